"""Mixtures of normals and of Student-t laws on data with outliers, against their peers.

Four groups of normals in five dimensions are fitted as they are, with one value of 1e8, with 5% of
the points replaced by ones spread evenly over a wide cube, and with a further column of Cauchy
numbers. Prints the log-likelihood of held-out points without outliers, in nats per point, less
that of normals fitted to clean data; for the Cauchy column less that of pyromix's Student-t
mixture. Then the time of an iteration on clean data, next to that of normals.

    python -m benchmarks.mixtures.outliers [--quick]
"""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import cli
from pyromix import GaussianMixture, fit_em

K, DIM, COUNT = 4, 5, 1000
STEPS = 20

Score = Callable[[Tensor], Tensor]


def normal(x: Tensor, seed: int) -> Score:
    model = GaussianMixture(x.shape[-1], K, "full").double()
    fit_em(model, x, restarts=2, seed=seed, progress_bar=False)
    return model.log_prob


def student(x: Tensor, seed: int, df: float | None = None, more: int = 0) -> Score:
    model = GaussianMixture(x.shape[-1], K + more, "full", tails="student", df=df).double()
    fit_em(model, x, restarts=2, seed=seed, progress_bar=False)
    return model.log_prob


def scikit_learn(x: Tensor, seed: int) -> Score:
    from sklearn.mixture import GaussianMixture as Peer

    model = Peer(K, n_init=2, tol=1e-4, max_iter=200, random_state=seed).fit(x.numpy())
    return lambda points: torch.from_numpy(model.score_samples(points.numpy()))


def pomegranate(x: Tensor, seed: int) -> Score:
    """From scikit-learn's clusters, with diagonal scales: with full ones version 1.1.2 fails."""
    from pomegranate.distributions import StudentT
    from pomegranate.gmm import GeneralMixtureModel
    from sklearn.cluster import KMeans

    label = torch.from_numpy(KMeans(K, n_init=2, random_state=seed).fit(x.numpy()).labels_)
    pooled = x.var(0) / len(x)
    parts = []
    for number in range(K):
        own = x[label == number].double()
        scale = (own - own.mean(0)).square().mean(0) + pooled
        parts.append(StudentT(5, own.mean(0).float(), scale.float(), covariance_type="diag"))
    model = GeneralMixtureModel(parts, tol=1e-4 * len(x), max_iter=200).fit(x.float())
    return lambda points: model.log_probability(points.float()).double()


METHODS: dict[str, Callable[[Tensor, int], Score]] = {
    "normal": normal,
    "student": student,
    "student, K + 1": lambda x, seed: student(x, seed, more=1),
    "student, df=5": lambda x, seed: student(x, seed, 5.0),
    "scikit-learn": scikit_learn,
    "pomegranate t": pomegranate,
}


def groups(seed: int) -> tuple[Tensor, Tensor]:
    """Points to fit, and as many to score."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    label = torch.randint(K, (2 * COUNT,), generator=generator)
    loc, factor = 4 * randn(K, DIM), randn(K, DIM, DIM) / math.sqrt(DIM)
    noise = (factor[label] @ randn(2 * COUNT, DIM, 1)).squeeze(-1) + 0.3 * randn(2 * COUNT, DIM)
    first, second = (loc[label] + noise).split(COUNT)
    return first, second


def one_value(x: Tensor) -> Tensor:
    x = x.clone()
    x[0, 0] = 1e8
    return x


def gross(x: Tensor, far: float) -> Tensor:
    x = x.clone()
    count = len(x) // 20
    x[:count] = far * (2 * torch.rand(count, x.shape[-1], dtype=x.dtype) - 1)
    return x


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "clean": lambda x: x,
    "one value of 1e8": one_value,
    "5% within 20": lambda x: gross(x, 20.0),
    "5% within 1000": lambda x: gross(x, 1e3),
}


def with_cauchy(x: Tensor) -> Tensor:
    ratio = torch.randn(len(x), 1, dtype=x.dtype) / torch.randn(len(x), 1, dtype=x.dtype)
    return torch.cat([x, ratio], -1)


def score(method: str, data: Tensor, held_out: Tensor, seed: int) -> float:
    """Mean log-likelihood of held-out points; minus infinity if there is no fit at all."""
    try:
        return float(METHODS[method](data, seed)(held_out).mean().detach())
    except (ArithmeticError, RuntimeError, ValueError) as error:
        print(f"  {method}: {type(error).__name__}: {str(error).splitlines()[0]}")
        return -math.inf


def iteration(tails: str, count: int, dim: int, k: int) -> float:
    """Least seconds of an iteration of expectation maximisation with full covariances."""
    torch.manual_seed(0)
    x = torch.randn(count, dim, dtype=torch.float64)
    options = {"tails": tails} if tails != "normal" else {}
    model = GaussianMixture(dim, k, "full", **options).double()  # type: ignore[arg-type]
    model.initialize(x)
    options_of_run = {"steps": STEPS, "tolerance": -math.inf, "initialize": False}
    history = fit_em(model, x, progress_bar=False, **options_of_run)  # type: ignore[arg-type]
    return float(torch.tensor(history.seconds).diff().amin())


def available() -> list[str]:
    """The methods whose libraries are installed."""
    names = list(METHODS)
    try:
        import pomegranate.gmm  # noqa: F401
    except ImportError:
        names.remove("pomegranate t")
    return names


def main() -> None:
    parser = cli.make_parser(__doc__, quick="one seed, and small timings", threads=False)
    quick = cli.parse(parser).size == "quick"
    seeds = range(1 if quick else 3)
    names = available()
    warnings.simplefilter("ignore")
    clean: dict[int, float] = {}  # of normals fitted to clean data
    print(f"{'nats per held-out point':>24} " + " ".join(f"{n:>20}" for n in names))
    for case in (*CASES, "a column of Cauchy"):
        rows = []
        for seed in seeds:
            torch.manual_seed(seed)
            x, held_out = groups(seed)
            if case in CASES:
                if seed not in clean:
                    clean[seed] = score("normal", x, held_out, seed)
                x = CASES[case](x)
            else:
                x, held_out = with_cauchy(x), with_cauchy(held_out)
            row = [score(name, x, held_out, seed) for name in names]
            best = clean[seed] if case in CASES else row[names.index("student")]
            rows.append([value - best for value in row])
        table = torch.tensor(rows, dtype=torch.float64)
        cells = [
            f"{m:.3f} [{low:.3f}]" for m, low in zip(table.mean(0), table.amin(0), strict=True)
        ]
        print(f"{case:>24} " + " ".join(f"{cell:>20}" for cell in cells), flush=True)
    print("mean over seeds, and [the worst]\n\nseconds per iteration, full covariances")
    for size in ((2000, 8, 4),) if quick else ((2000, 8, 4), (20_000, 16, 8), (20_000, 64, 8)):
        normals, students = (iteration(tails, *size) for tails in ("normal", "student"))
        print(f"{size}: normal {normals:.4f}, student {students:.4f}, {students / normals:.2f}x")


if __name__ == "__main__":
    main()
