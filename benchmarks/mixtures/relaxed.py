"""What relaxing a mixture costs: the law, its density, its gradients, its use in optimisation.

Two normals at -2 and 2 with scales of 0.3 and weights of 0.3 and 0.7 stand for any two.

1. Laws: densities of the mixture and of its Gumbel-softmax relaxation at several temperatures, and
   the mass between the components, where the mixture has next to none.
2. Density: errors of `log_prob` by the number of inner points, and the bias of the nested estimate
   that draws the weights afresh.
3. Gradients of E[z] by the weight: bias and deviation of one draw's gradient, for the exact
   mixture (implicit, stratified), for straight-through Gumbel, and for two relaxations at many
   temperatures: the Gumbel-softmax, and the invertible Gaussian reparameterisation (Potapczynski,
   Loaiza-Ganem and Cunningham 2020), whose logits are normal. Both trade bias for deviation along
   nearly one curve, which is why pyromix has the first alone.
4. Maximum entropy of the double well exp(-x^4 + 4 x^2) from its second and fourth moment, on a
   bare mixture of eight normals: what each base claims, and what its draws really have.

Writes out/mixtures/relaxed_<size>.png.

    python -m benchmarks.mixtures.relaxed [--quick]
"""

import math
import time
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.distributions import Normal

from benchmarks.common import cli
from benchmarks.common.figures import save
from benchmarks.common.store import OUT
from benchmarks.common.training import in_chunks
from benchmarks.mixtures.estimators import implicit, straight_through, stratified
from pyromix import (
    GaussianMixture,
    MaximumEntropy,
    MixtureOfNormals,
    RelaxedGaussianMixture,
    RelaxedMixtureOfNormals,
)

WEIGHTS, MEANS, SCALE = (0.3, 0.7), (-2.0, 2.0), 0.3
TEMPERATURES = (0.1, 0.3, 1.0)
WELL_MOMENTS, WELL_ENTROPY = (1.835342, 3.920683), 0.872318


def law(temperature: float | None, **options: Any) -> Any:
    """The mixture, or its relaxation, in double precision."""
    loc = torch.tensor(MEANS, dtype=torch.float64).unsqueeze(-1)
    logits, scale = torch.tensor(WEIGHTS, dtype=torch.float64).log(), torch.full_like(loc, SCALE)
    if temperature is None:
        return MixtureOfNormals(logits, loc, scale)
    return RelaxedMixtureOfNormals(temperature, logits, loc, scale, **options)


# ---- laws and densities -------------------------------------------------------------------------


def show_laws(ax: Any) -> None:
    z = torch.linspace(-3.5, 3.5, 1401, dtype=torch.float64)
    middle = z.abs() < 1
    print(f"{'law':28} {'P(|z| < 1)':>12} {'distance':>10}")
    exact = law(None).log_prob(z.unsqueeze(-1)).exp()
    ax.fill_between(z, exact, color="0.85", label="mixture")
    print(f"{'mixture':28} {float(torch.trapezoid(exact[middle], z[middle])):12.4f} {0.0:10.3f}")
    for temperature in TEMPERATURES:
        density = law(temperature, num_inner=8192).log_prob(z.unsqueeze(-1)).exp()
        mass = float(torch.trapezoid(density[middle], z[middle]))
        distance = float(0.5 * torch.trapezoid((density - exact).abs(), z))
        print(f"{f'relaxed, temperature {temperature}':28} {mass:12.4f} {distance:10.3f}")
        ax.plot(z, density, label=f"temperature {temperature}")
    ax.set(title="Means blend into bridges", xlabel="z", ylabel="density")
    ax.legend(fontsize="small")


def show_density(ax: Any, num_draws: int) -> None:
    """Errors of the two estimates of the relaxed law's log-density."""
    sizes = [8 * 2**i for i in range(9)]
    print(f"\n{'inner points':>12} {'temperature':>12} {'error':>9} {'as estimated':>12} "
          f"{'entropy, nested':>16}")  # fmt: skip
    for color, temperature in enumerate(TEMPERATURES):
        truth = law(temperature, num_inner=2**17)
        z = truth.sample((num_draws,))
        expected = truth.log_prob(z)
        errors, nested = [], []
        for size in sizes:
            relaxed = law(temperature, num_inner=size)
            errors.append(float((relaxed.log_prob(z) - expected).square().mean().sqrt()))
            estimate = float(relaxed.log_prob_error(z).square().mean().sqrt())
            bias = (expected - relaxed.log_prob_nested(z, size)).mean()
            nested.append(float(bias))
            print(f"{size:12} {temperature:12} {errors[-1]:9.4f} {estimate:12.4f} "
                  f"{nested[-1]:+16.4f}")  # fmt: skip
        ax.loglog(sizes, errors, "o-", ms=3, color=f"C{color}", label=f"log_prob, {temperature}")
        ax.loglog(
            sizes, nested, "s:", ms=3, color=f"C{color}", label=f"nested bias, {temperature}"
        )
    ax.set(
        title="Log-density: error, and bias of the nested estimate",
        xlabel="inner points",
        ylabel="nats",
    )
    ax.legend(fontsize="small")


# ---- gradients ----------------------------------------------------------------------------------


def blend(c: Tensor, noise: Tensor) -> Tensor:
    """Draws of z from the weight c of the second component."""
    return (1 - c) * MEANS[0] + c * MEANS[1] + SCALE * noise


def gumbel(logit: Tensor, noise: Tensor, sharpness: float) -> Tensor:
    return torch.sigmoid((logit + torch.logit(noise)) * sharpness)


def invertible_gaussian(logit: Tensor, noise: Tensor, sharpness: float) -> Tensor:
    """Normal logits whose sign is that of the second component with the same probability."""
    return torch.sigmoid((Normal(0.0, 1.0).icdf(logit.sigmoid()) + Normal(0.0, 1.0).icdf(noise))
                         * sharpness)  # fmt: skip


def relaxation_gradient(
    relax: Callable[[Tensor, Tensor, float], Tensor], sharpness: float, count: int
) -> tuple[float, float]:
    """Mean and deviation of the gradient of one draw by the logit of the second component."""
    logit = torch.full((count,), math.log(WEIGHTS[1] / WEIGHTS[0]), dtype=torch.float64)
    logit.requires_grad_()
    noise = (torch.randperm(count).double() + 0.5) / count
    value = blend(relax(logit, noise, sharpness), torch.randn(count).double())
    (gradient,) = torch.autograd.grad(value.sum(), logit)
    return float(gradient.mean()), float(gradient.std())


def mixture_gradients(count: int, sets: int = 200) -> dict[str, tuple[float, float]]:
    """Mean and deviation, scaled to one draw, of the estimators for the exact mixture."""
    results = {}
    estimators = {
        "implicit": implicit,
        "stratified": stratified,
        "straight-through": straight_through,
    }
    for name, estimate in estimators.items():
        gradients = []
        for _ in range(sets):
            logits = torch.tensor(WEIGHTS, dtype=torch.float64).log().requires_grad_()
            loc = torch.tensor(MEANS, dtype=torch.float64).unsqueeze(-1)
            mixture = MixtureOfNormals(logits, loc, torch.full_like(loc, SCALE))
            value = estimate(mixture, count, lambda z: z.squeeze(-1))
            (gradient,) = torch.autograd.grad(value, logits)
            gradients.append(float(gradient[1]))
        spread = torch.tensor(gradients)
        results[name] = (float(spread.mean()), float(spread.std()) * math.sqrt(count))
    return results


def show_gradients(ax: Any, count: int) -> None:
    means = torch.tensor(MEANS, dtype=torch.float64)
    exact = WEIGHTS[0] * WEIGHTS[1] * float(means[1] - means[0])
    print(f"\nGradient of E[z] by the logit, exactly {exact:.4f}")
    print(f"{'estimator':34} {'bias':>9} {'deviation of a draw':>20}")
    for relax, marker in ((gumbel, "o-"), (invertible_gaussian, "s--")):
        biases, deviations = [], []
        # Matched by the logits' deviation, which is pi / sqrt(3) for the logistic law.
        match = math.pi / math.sqrt(3) if relax is invertible_gaussian else 1.0
        for temperature in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0):
            mean, deviation = relaxation_gradient(relax, match / temperature, count)
            biases.append(abs(mean - exact) / exact)
            deviations.append(deviation)
            name = f"{relax.__name__.replace('_', ' ')}, {temperature}"
            print(f"{name:34} {mean - exact:+9.4f} {deviation:20.3f}")
        ax.loglog(biases, deviations, marker, ms=4, label=relax.__name__.replace("_", " "))
    for name, (mean, deviation) in mixture_gradients(2000).items():
        print(f"{name:34} {mean - exact:+9.4f} {deviation:20.3f}")
        bias = max(abs(mean - exact) / exact, 1e-3)
        ax.loglog([bias], [max(deviation, 1e-2)], "*", ms=12, label=name)
    ax.set(title="Gradient by a weight", xlabel="relative bias (at least 0.001)",
           ylabel="deviation of one draw")  # fmt: skip
    ax.legend(fontsize="small")


# ---- maximum entropy ----------------------------------------------------------------------------


def show_maximum_entropy(ax: Any, rounds: int) -> None:
    """The double well on bare mixtures of eight normals."""

    def moments(x: Tensor) -> Tensor:
        return torch.cat([x.square(), x.square().square()], -1)

    entries: dict[str, tuple[Callable[[], Any], str]] = {
        "exact, stratified": (lambda: GaussianMixture(1, 8), "stratified"),
        "exact, implicit": (lambda: GaussianMixture(1, 8), "pathwise"),
        "relaxed, weighted": (lambda: RelaxedGaussianMixture(1, 8, 0.3, num_inner=64), "auto"),
        "relaxed, pathwise": (lambda: RelaxedGaussianMixture(1, 8, 0.3, num_inner=64), "pathwise"),
        "annealed, weighted": (
            lambda: RelaxedGaussianMixture(1, 8, (1.0, 0.05), num_inner=64),
            "auto",
        ),
    }
    print(f"\nDouble well, entropy {WELL_ENTROPY}")
    print(f"{'base':22} {'claimed':>9} {'real':>9} {'E x^2':>8} {'E x^4':>8} {'seconds':>8}")
    claimed, real = [], []
    for name, (build, gradient) in entries.items():
        torch.manual_seed(0)
        model = build()
        start = time.process_time()
        result = MaximumEntropy(model, moments, WELL_MOMENTS, gradient=gradient).solve(
            rounds=rounds, seed=0, progress_bar=False
        )
        seconds = time.process_time() - start
        claimed.append(result.entropy)
        real.append(real_entropy(model))
        second, fourth = result.means.tolist()
        print(f"{name:22} {claimed[-1]:9.4f} {real[-1]:9.4f} {second:8.4f} {fourth:8.4f} "
              f"{seconds:8.1f}")  # fmt: skip
    rows = range(len(entries))
    ax.barh([r + 0.2 for r in rows], claimed, 0.35, color="C1", label="claimed by log_prob")
    ax.barh([r - 0.2 for r in rows], real, 0.35, color="C0", label="of its draws")
    ax.axvline(WELL_ENTROPY, color="k", lw=1, label="largest possible")
    ax.set_yticks(list(rows), list(entries), fontsize="small")
    ax.invert_yaxis()
    ax.set(title="Maximum entropy of the double well", xlabel="entropy [nats]",
           xlim=(0.5, max(*claimed, 1.0) + 0.05))  # fmt: skip
    ax.legend(fontsize="small", loc="lower right")


@torch.no_grad()
def real_entropy(model: Any) -> float:
    """Entropy of a model's draws: with so many inner points that more make no difference."""
    if isinstance(model, GaussianMixture):
        precise: Any = model
    else:
        m = model.mixture
        precise = RelaxedMixtureOfNormals(
            model.temperature, m.logits, m.loc, m.scale, num_inner=2**14
        )
    draws = model.sample((20_000,))
    return -float(in_chunks(precise.log_prob, draws, 2000).mean())


def main() -> None:
    parser = cli.make_parser(__doc__, quick="a minute instead of two", threads=False)
    size = cli.parse(parser).size
    quick = size == "quick"
    torch.manual_seed(0)
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    show_laws(axes[0, 0])
    show_density(axes[0, 1], 500 if quick else 2000)
    show_gradients(axes[1, 0], 20_000 if quick else 400_000)
    show_maximum_entropy(axes[1, 1], 8 if quick else 20)
    save(figure, OUT / "mixtures" / f"relaxed_{size}.png", dpi=120)


if __name__ == "__main__":
    main()
