"""Variance of ELBO gradients with a mixture as guide in Pyro: pathwise against score function.

The posterior is one of sign retrieval: y = |x.z| + noise leaves the sign of z open, and its two
modes ask for a mixture as guide. Left: variance of the gradient of a one-particle ELBO while the
guide learns. Middle: the ELBO under SVI with either estimator. Right: where pathwise gradients
end. With the guide next to a normalised target the ELBO's terms cancel, which favours the score
function, and the pathwise variance grows with the distance of the components.
Writes out/mixtures/elbo_gradients_<size>.png, and prints the variances.

    python -m benchmarks.mixtures.elbo_gradients [--quick]
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.figures import save
from benchmarks.common.store import OUT
from pyromix import GaussianMixture, MixtureOfNormals

DIM, NOISE = 2, 0.5
KINDS = {"pathwise": "C0", "score function": "C1", "Pyro's pathwise": "C2"}
Model = Callable[[], None]


def sign_retrieval(n: int = 12) -> Model:
    """The posterior's model, with data."""
    torch.manual_seed(0)
    x = torch.randn(n, DIM)
    y = (x @ torch.tensor([1.2, 1.2])).abs() + NOISE * torch.randn(n)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        pyro.sample("y", dist.Normal((z @ x.mT).abs(), NOISE).to_event(1), obs=y)

    return model


def gradient_variance(guide: GaussianMixture, model: Model, kind: str, draws: int) -> float:
    """Total variance of the gradient of a one-particle ELBO."""

    def variational() -> None:
        law = guide
        if kind == "Pyro's pathwise":
            law = dist.MixtureOfDiagNormals(guide.loc, guide.scale, guide.logits)
        pyro.sample("z", law)

    guide.has_rsample_(kind != "score function")
    rows = []
    for _ in range(draws):
        loss = Trace_ELBO().differentiable_loss(model, variational)
        grads = torch.autograd.grad(loss, list(guide.parameters()), materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    guide.has_rsample_(True)
    return float(torch.stack(rows).var(0).sum())


def train(
    model: Model, kind: str, steps: int, seed: int, visit: Callable[[int, GaussianMixture], None]
) -> None:
    """Trains a guide by SVI with four particles; `visit` sees it every tenth step."""
    torch.manual_seed(seed)
    pyro.clear_param_store()
    guide = GaussianMixture(DIM, 2)
    guide.has_rsample_(kind == "pathwise")

    def variational() -> None:
        pyro.module("guide", guide)
        pyro.sample("z", guide)

    svi = SVI(model, variational, ClippedAdam({"lr": 0.01}), Trace_ELBO(num_particles=4))
    for step in range(steps + 1):
        if step % 10 == 0:
            visit(step, guide)
        svi.step()


class Variances:
    """Variances of gradients by a number such as the step, printed row by row.

    Args:
        what: The number.
        draws: How many gradients to estimate a variance from.
    """

    def __init__(self, what: str, draws: int) -> None:
        self.draws = draws
        self.rows: list[float] = []
        self.columns: dict[str, list[float]] = {kind: [] for kind in KINDS}
        print(f"{what:>10} " + " ".join(f"{kind:>16}" for kind in KINDS) + "   ratio")

    def add(self, row: float, guide: GaussianMixture, model: Model) -> None:
        self.rows.append(row)
        found = [gradient_variance(guide, model, kind, self.draws) for kind in KINDS]
        for column, value in zip(self.columns.values(), found, strict=True):
            column.append(value)
        cells = " ".join(f"{value:>16.3g}" for value in found)
        print(f"{row:>10} {cells}{found[1] / found[0]:>8.1f}")

    def plot(self, ax: Axes) -> None:
        for kind, color in KINDS.items():
            ax.semilogy(self.rows, self.columns[kind], "o-", color=color, label=kind, markersize=4)


def variance_along_training(model: Model, steps: int, draws: int) -> Variances:
    variances = Variances("SVI step", draws)

    def visit(step: int, guide: GaussianMixture) -> None:
        if step % (steps // 10) == 0:
            variances.add(step, guide, model)

    train(model, "pathwise", steps, 1, visit)
    return variances


def elbo_curve(model: Model, kind: str, steps: int, seed: int) -> Tensor:
    values = []
    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=0)

    def visit(_step: int, guide: GaussianMixture) -> None:
        values.append(-elbo.loss(model, lambda: pyro.sample("z", guide)))

    train(model, kind, steps, seed, visit)
    return torch.tensor(values)


def variance_by_separation(draws: int) -> Variances:
    """Two components, the guide's a third of a scale off the target's."""
    print()
    variances = Variances("distance", draws)
    torch.manual_seed(0)
    offset = torch.randn(2, DIM) / 3
    for distance in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0):
        loc = torch.tensor([[-0.5, 0.0], [0.5, 0.0]]) * distance
        law = MixtureOfNormals(torch.zeros(2), loc, torch.ones(2, DIM))
        guide = GaussianMixture(DIM, 2)
        with torch.no_grad():
            guide.loc.copy_(loc + offset)

        def model(law: MixtureOfNormals = law) -> None:
            pyro.sample("z", law)

        variances.add(distance, guide, model)
    return variances


def main() -> None:
    parser = cli.make_parser(__doc__, quick="fewer draws and steps", threads=False)
    size = cli.parse(parser).size
    draws, steps, seeds = (300, 600, 2) if size == "quick" else (2000, 2000, 5)
    model = sign_retrieval()

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    variance_along_training(model, steps, draws).plot(axes[0])
    variance_by_separation(draws).plot(axes[2])
    axes[0].set(title="while the guide learns a posterior", xlabel="SVI step")
    axes[0].set(ylabel="total variance of the gradient")
    axes[0].legend()
    axes[2].set(title="guide next to a normalised target")
    axes[2].set(xlabel="distance of components (standard deviations)")
    for kind in ("pathwise", "score function"):
        curves = torch.stack([elbo_curve(model, kind, steps, seed) for seed in range(seeds)])
        axis = torch.arange(curves.shape[1]) * 10
        final = curves[:, -1]
        print(f"{kind}: ELBO after {steps} steps {final.median():.2f} (median of {seeds} seeds)")
        for curve in curves:
            axes[1].plot(axis, curve, color=KINDS[kind], alpha=0.25, linewidth=0.8)
        axes[1].plot(axis, curves.median(0).values, color=KINDS[kind], label=kind)
    axes[1].set(title=f"training ({seeds} seeds, median)", xlabel="SVI step", ylabel="ELBO, nats")
    axes[1].set_ylim(-60, -5)  # the score function starts thousands of nats below
    axes[1].legend()
    save(figure, OUT / "mixtures" / f"elbo_gradients_{size}.png", dpi=150)


if __name__ == "__main__":
    main()
