"""How many components variational Bayes finds: fit_vb against scikit-learn.

Five synthetic sets, drawn anew for every seed, are fitted with at most fifty components of full
covariance. Prints for each set the true number of components, those found for every seed, and the
median of the processor's time. scikit-learn's `BayesianGaussianMixture` is as it is by default,
but for the number of components and of iterations. (A smaller concentration and tolerance, 0.001
and 1e-5, change none of its numbers.) Its components are counted as those of at least half a
point, and as those that have points after each point is given to its likeliest component,
whichever is nearer the truth. Both start from k-means.

    python -m benchmarks.mixtures.variational [--quick] [--threads N]
"""

import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from torch import Generator, Tensor

from benchmarks.common import cli
from pyromix import GaussianMixture, fit_vb

MOST_COMPONENTS = 50
ITERATIONS = 1000  # of scikit-learn, which takes 100 by default


class Truth(NamedTuple):
    """A mixture to draw from."""

    weight: Tensor
    loc: Tensor
    tril: Tensor

    def sample(self, n: int, generator: Generator) -> Tensor:
        """Points, as many of each component as its weight says."""
        counts = (n * self.weight / self.weight.sum()).round().long()
        label = torch.arange(len(counts)).repeat_interleave(counts)
        noise = normal(generator, len(label), self.loc.shape[-1], 1)
        return self.loc[label] + (self.tril[label] @ noise).squeeze(-1)


def normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def apart(generator: Generator, k: int, dim: int, distance: float) -> Tensor:
    """Means (k, dim) from a normal law just wide enough for this least distance."""
    width = distance / 2
    while True:
        for _ in range(200):
            loc = width * normal(generator, k, dim)
            if torch.pdist(loc).min() >= distance:
                return loc
        width *= 1.1


def covariance_factors(generator: Generator, k: int, dim: int, ratio: float) -> Tensor:
    """Factors of covariances of random directions, with standard deviations from 1 to a ratio."""
    rotation = torch.linalg.qr(normal(generator, k, dim, dim)).Q
    scale = torch.linspace(0, math.log(ratio), dim, dtype=torch.float64).exp()
    return rotation * scale


def balls(generator: Generator) -> Truth:
    """Eight round groups in the plane, six standard deviations apart and more."""
    eye = torch.eye(2, dtype=torch.float64).expand(8, 2, 2)
    return Truth(torch.ones(8), apart(generator, 8, 2, 6.0), eye)


def unequal(generator: Generator) -> Truth:
    """Six groups in the plane that hold from 2 to 40 per cent of the points."""
    weight = torch.tensor([40.0, 25.0, 16.0, 11.0, 6.0, 2.0])
    scale = torch.tensor([2.0, 0.5, 1.0, 1.5, 0.7, 1.0], dtype=torch.float64)
    tril = scale[:, None, None] * torch.eye(2, dtype=torch.float64)
    return Truth(weight, apart(generator, 6, 2, 7.0), tril)


def elongated(generator: Generator) -> Truth:
    """Seven groups in space, six times as long as wide, of all directions."""
    return Truth(
        torch.ones(7), apart(generator, 7, 3, 8.0), covariance_factors(generator, 7, 3, 6)
    )


def ten_columns(generator: Generator) -> Truth:
    """Six correlated groups in ten dimensions."""
    loc = apart(generator, 6, 10, 9.0)
    return Truth(torch.ones(6), loc, covariance_factors(generator, 6, 10, 4.0))


def crossing(generator: Generator) -> Truth:
    """A round group, and three long ones that cross it and each other."""
    angle = torch.tensor([0.0, 60.0, 120.0], dtype=torch.float64).deg2rad()
    along = torch.stack([angle.cos(), angle.sin()], -1)
    across = torch.stack([-angle.sin(), angle.cos()], -1)
    long = torch.stack([8 * along, 0.5 * across], -1)
    tril = torch.cat([torch.eye(2, dtype=torch.float64).unsqueeze(0), long])
    loc = 0.5 * normal(generator, 4, 2)
    return Truth(torch.ones(4), loc, tril)


SETS: dict[str, tuple[Callable[[Generator], Truth], int]] = {
    "separated balls": (balls, 1000),
    "unequal sizes": (unequal, 1500),
    "elongated, 3 columns": (elongated, 1500),
    "correlated, 10 columns": (ten_columns, 1500),
    "crossing": (crossing, 1500),
}


def pyromix_count(x: Tensor, truth: int, seed: int) -> int:  # noqa: ARG001
    model = GaussianMixture(x.shape[-1], MOST_COMPONENTS, "full").double()
    return fit_vb(model, x, seed=seed, progress_bar=False).num_components


def sklearn_count(x: Tensor, truth: int, seed: int) -> int:
    model = BayesianGaussianMixture(
        n_components=MOST_COMPONENTS, max_iter=ITERATIONS, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = model.fit_predict(x.numpy())
    counts = len(set(labels)), int((model.weights_ * len(x) >= 0.5).sum())
    return min(counts, key=lambda count: abs(count - truth))


METHODS: dict[str, Callable[[Tensor, int, int], int]] = {
    "pyromix fit_vb": pyromix_count,
    "scikit-learn": sklearn_count,
}


def main() -> None:
    parser = cli.make_parser(__doc__, quick="one seed")
    seeds = range(1 if cli.parse(parser).size == "quick" else 5)
    right = dict.fromkeys(METHODS, 0)
    for name, (make, count) in SETS.items():
        print(f"\n{name}: {make.__doc__}")
        found: dict[str, list[int]] = {method: [] for method in METHODS}
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for seed in seeds:
            generator = Generator().manual_seed(seed)
            truth = make(generator)
            x = truth.sample(count, generator)
            for method, run in METHODS.items():
                start = time.process_time()
                found[method].append(run(x, len(truth.loc), seed))
                seconds[method].append(time.process_time() - start)
        for method, counts in found.items():
            hits = sum(c == len(truth.loc) for c in counts)
            right[method] += hits
            print(
                f"  {method:>20}: true {len(truth.loc)}, found {counts}, right {hits} of "
                f"{len(counts)}; {statistics.median(seconds[method]):.2f} s"
            )
    total = len(SETS) * len(seeds)
    print("\nright number: " + ", ".join(f"{m} {n} of {total}" for m, n in right.items()))


if __name__ == "__main__":
    main()
