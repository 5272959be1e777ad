"""Whether to believe a guide: evidence, effective draws and the tail of importance weights."""

__all__ = [
    "GuideResult",
    "check_draws",
    "evaluate_guide",
    "import_arviz",
    "is_reliable",
    "smoothed",
    "try_out",
]

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Generator, Tensor

from ..core.advice import warn_user
from ..core.checks import check_count, check_positive_int
from ..core.random import takes_generator
from ..numerics.resampling import effective
from .auto_mixture import AutoMixture
from .joint import (
    check_sites,
    in_plate,
    latent_names,
    log_density,
    paired_traces,
    plate_depth,
    subsampled,
)
from .modes import Mode, find_modes
from .plots import plot_draws

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Above it, means by importance weights have no error that can be told (Vehtari et al., 2024).
HIGHEST_K = 0.7
# Share of effective draws from which on the tail has no weight, whatever its shape.
NEARLY_ALL = 0.95
# Fewest draws that have a tail, and log-weights that are as good as equal.
FEWEST, ALIKE = 100, 1e-4
# Draws that the model is run with at once.
BLOCK = 1000
# Modes of less mass are not told.
LEAST_MASS = 1e-4


@dataclass(frozen=True, eq=False, repr=False)
class GuideResult:
    r"""What independent draws of a guide say of it, by the weights :math:`p(x, z_i) / q(z_i)`.

    Args:
        draws: Draws of the latent variables, by the name of a site, n of each on the left.
        log_weight: Logarithms of their weights, smoothed where the tail is heavy, (n,). They sum
            to one.
        elbo: The evidence lower bound.
        elbo_error: Its standard error.
        log_evidence: The log-evidence, by importance sampling.
        log_evidence_error: Its standard error; not to be believed where `pareto_k` is above 0.7.
        pareto_k: The shape of the tail of the weights, by Pareto smoothed importance sampling
            (Vehtari et al., "Pareto smoothed importance sampling", 2024). Below 0.5 the guide
            covers the posterior well, above 0.7 it does not.
        effective_sample_size: How many draws of the posterior the weighted ones are worth.
        modes: Modes, by mass from the largest, where the guide is an `AutoMixture` without
            transforms: groups of components without a dip between them.
        mode_of_draw: Which of them each draw is of, (n,); None where modes are not known.
        missed: Whether training ended with parts of the posterior in view that the guide misses,
            as it had no components or steps left.
        losses: Losses of training, if there was one.
    """

    draws: Mapping[str, Tensor]
    log_weight: Tensor
    elbo: float
    elbo_error: float
    log_evidence: float
    log_evidence_error: float
    pareto_k: float
    effective_sample_size: float
    modes: tuple[Mode, ...] = ()
    mode_of_draw: Tensor | None = None
    missed: bool = False
    losses: tuple[float, ...] = ()

    @property
    def reliable(self) -> bool:
        """Whether `pareto_k` is at most 0.7, or weights are so alike that tails do not count.

        Not where training knew of parts of the posterior that the guide misses. A mode that no
        draw is near, and a narrow neck that few are in, cannot be told.
        """
        return (
            not self.missed
            and self.elbo != math.inf
            and is_reliable(self.log_weight, self.pareto_k)
        )

    @takes_generator
    def resample(
        self, num_samples: int, *, generator: Generator | None = None
    ) -> dict[str, Tensor]:
        """Draws of the guide by their weights: of the posterior, as far as the guide covers it.

        Args:
            num_samples: Number of draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            By the name of a site, a tensor with the draws on the left.
        """
        count = check_count("num_samples", num_samples)
        if not count:
            return {name: value[:0] for name, value in self.draws.items()}
        index = torch.multinomial(self.log_weight.exp(), count, replacement=True)
        return {name: value[index] for name, value in self.draws.items()}

    def mean(self, name: str) -> Tensor:
        """The mean of a latent variable under the posterior, by the weights.

        Args:
            name: Of its site.

        Raises:
            ValueError: If there is no such site.
        """
        draws, weight = self._weighted(name)
        return torch.tensordot(weight, draws, 1)

    def std(self, name: str) -> Tensor:
        """The standard deviation of a latent variable under the posterior, by the weights.

        Args:
            name: Of its site.

        Raises:
            ValueError: If there is no such site.
        """
        draws, weight = self._weighted(name)
        return torch.tensordot(weight, (draws - self.mean(name)).square(), 1).sqrt()

    def mean_error(self, name: str) -> Tensor:
        r"""The standard error of `mean`, for the number of draws and their weights w.

        .. math:: \Big(\sum_i w_i^2 (z_i - \bar z)^2\Big)^{1/2}

        Not to be believed where `pareto_k` is above 0.7.

        Args:
            name: Of the site.

        Raises:
            ValueError: If there is no such site.
        """
        draws, weight = self._weighted(name)
        return torch.tensordot(weight.square(), (draws - self.mean(name)).square(), 1).sqrt()

    def _weighted(self, name: str) -> tuple[Tensor, Tensor]:
        """Draws of a site (n, *) as floating-point numbers, and their weights (n,)."""
        if name not in self.draws:
            raise ValueError(f"Expected one of the sites {list(self.draws)}, got {name!r}.")
        draws, weight = self.draws[name], self.log_weight.exp()
        draws = draws if draws.is_floating_point() else draws.to(weight)
        return draws, weight.to(draws)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        verdict = f"above {HIGHEST_K}: the guide is too thin somewhere"
        if self.missed:
            verdict = "but parts of the posterior are missed"
        elif self.pareto_k == -math.inf:
            verdict = "all weights are alike"
        elif self.pareto_k <= HIGHEST_K:
            verdict = f"at most {HIGHEST_K}"
        elif self.reliable:
            verdict = "nearly all draws count"
        return (
            f"evidence lower bound {self.elbo:.3f} +- {self.elbo_error:.3f}\n"
            f"log-evidence         {self.log_evidence:.3f} +- {self.log_evidence_error:.3f}\n"
            f"Pareto k             {self.pareto_k:.2f} ({verdict})\n"
            f"effective draws      {self.effective_sample_size:.0f} of {len(self.log_weight)}"
            f"{self._told_modes()}"
        )

    def _told_modes(self) -> str:
        if not self.modes:
            return ""
        masses = ", ".join(f"{mode.mass:.3f}" for mode in self.modes[:8])
        more = ", ..." if len(self.modes) > 8 else ""
        return f"\nmodes                {len(self.modes)}, of mass {masses}{more}"

    def plot(self) -> "Figure":
        """Plots draws of the first numbers of latent variables, and the weights of all draws.

        Lines are draws of the guide, areas are these by their weights: where the two differ, the
        guide is off. Colours are modes, the five of largest mass.

        Returns:
            A new figure.
        """
        verdict = "reliable" if self.reliable else "NOT reliable"
        title = f"Pareto k {self.pareto_k:.2f}: {verdict}"
        return plot_draws(self.draws, self.log_weight, self.mode_of_draw, title)


def evaluate_guide(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_draws: int = 4000,
    vectorize: bool = True,
    seed: int | None = None,
    **kwargs: Any,
) -> GuideResult:
    """Draws from a guide, and says how far it is from the posterior.

    Args:
        model: A Pyro model.
        guide: Its guide, trained.
        args: Arguments of both.
        num_draws: Number of draws.
        vectorize: Whether model and guide are run with many draws at once, in a plate.
        seed: Seed of the draws; by default they come from PyTorch's global generator.
        kwargs: Keyword arguments of both.

    Returns:
        The result. It warns where the tail of the weights is too heavy to believe it.

    Raises:
        ImportError: If ArviZ is not installed.
        ValueError: If no draw has a finite weight.
    """
    check_draws(num_draws)
    import_arviz()  # what is missing is told before the draws
    with torch.no_grad(), torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        draws, ratio = _weighted(model, guide, args, kwargs, num_draws, vectorize)
        latent = draws.pop(_latent_name(guide), None)
    ratio = ratio.double()
    if ratio.isnan().any():
        warn_user(
            f"{int(ratio.isnan().sum())} of {num_draws} draws have NaN for a density: they "
            f"count as impossible."
        )
    finite = torch.where(ratio.isfinite(), ratio, -math.inf)
    if finite.max() == -math.inf:
        raise ValueError("Expected draws of the guide that the model can have, got none.")
    raw = (finite - finite.max()).exp()
    evidence = float(raw.mean().log() + finite.max())
    relative = float(raw.std() / raw.mean() / num_draws**0.5)
    log_weight, k = smoothed(finite)
    result = GuideResult(
        draws,
        log_weight,
        float(ratio.mean()),
        float(ratio.std() / num_draws**0.5),
        evidence,
        relative,
        k,
        effective(log_weight),
    )
    if latent is not None:
        result = _with_modes(result, guide, latent, finite)
    if not result.reliable:
        warn_user(
            f"The weights of draws of the guide have a heavy tail, Pareto k = "
            f"{result.pareto_k:.2f} (above {HIGHEST_K}): somewhere the guide is too thin, and may "
            f"miss part of the posterior. Give it more components, or train longer."
        )
    return result


def smoothed(log_ratio: Tensor) -> tuple[Tensor, float]:
    """Logarithms of weights (n,) that sum to one, with a smooth tail, and its Pareto k.

    Args:
        log_ratio: Log-densities of the model less those of the guide, (n,); some finite.
    """
    floor = log_ratio[log_ratio.isfinite()].min() - 50
    log_weight, k = log_ratio.double().clamp(min=float(floor)), -math.inf
    if log_ratio.max() - log_ratio.min() > ALIKE:  # else there is no tail
        with np.errstate(over="ignore"):
            found, k = import_arviz().psislw(log_weight.cpu().numpy())
        log_weight = torch.as_tensor(found)
    return log_weight - log_weight.logsumexp(0), float(k)


def is_reliable(log_weight: Tensor, pareto_k: float) -> bool:
    """Whether weights have a light tail, or are so alike that tails do not count."""
    return pareto_k <= HIGHEST_K or effective(log_weight) >= NEARLY_ALL * len(log_weight)


def _latent_name(guide: Any) -> str:
    """The site of all latent variables together, of a guide whose modes can be told."""
    told = isinstance(guide, AutoMixture) and not guide.has_transforms
    return f"_{guide._pyro_name}_latent" if told else ""


@torch.no_grad()
def _with_modes(result: GuideResult, guide: Any, latent: Tensor, log_ratio: Tensor) -> GuideResult:
    """A result with its modes.

    Args:
        result: The result.
        guide: The guide.
        latent: All latent variables of draws, (n, D).
        log_ratio: Log-densities of the model less those of the guide, (n,).
    """
    law = guide.correlated_law
    of_component = find_modes(law)
    latent = latent.reshape(len(latent), -1).double()
    joint = torch.cat([law._joint_log_prob(part) for part in latent.split(BLOCK)])
    parts = [joint[:, of_component == i].logsumexp(-1) for i in of_component.unique().tolist()]
    of_draw = torch.stack(parts, -1).argmax(-1)
    weight = result.log_weight.exp().to(latent)
    masses = torch.zeros(len(parts)).to(weight).index_add(0, of_draw, weight)
    order = masses.argsort(descending=True)
    height = log_ratio.to(latent) + joint.logsumexp(-1)
    modes = []
    for i in order[masses[order] > LEAST_MASS].tolist():
        inside = of_draw == i
        share, own = float(masses[i]), weight * inside
        error = float((weight.square() * (inside.double() - share).square()).sum().sqrt())
        best = int(torch.where(inside, height, -torch.inf).argmax())
        means = {
            name: torch.tensordot(own.to(value) / share, value, 1)
            for name, value in result.draws.items()
        }
        modes.append(
            Mode(share, error, means, {name: value[best] for name, value in result.draws.items()})
        )
    return replace(result, modes=tuple(modes), mode_of_draw=order.argsort()[of_draw])


def check_draws(num_draws: int) -> None:
    """Checks that draws are enough to have a tail.

    Raises:
        ValueError: If they are too few.
    """
    if check_positive_int("num_draws", num_draws) < FEWEST:
        raise ValueError(f"Expected num_draws of at least {FEWEST}, got {num_draws}.")


@torch.no_grad()
def try_out(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    vectorize: bool,
) -> None:
    """Runs a model and a guide with two draws, for the errors that this has."""
    _weighted(model, guide, args, kwargs, 2, vectorize)


def _weighted(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    count: int,
    vectorize: bool,
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of all latent variables, and log-densities of the model less those of the guide."""
    traced, guided = paired_traces(model, guide, args, kwargs)
    check_sites(traced, guided)
    for name in subsampled(traced):
        raise ValueError(
            f"Expected all rows of plate {name!r}, got a subsample, whose evidence is another. "
            f"Train by SVI with StratifiedELBO, and call evaluate_guide without subsampling."
        )
    depth = max(plate_depth(guided), plate_depth(traced))
    names = latent_names(guided)
    if _latent_name(guide):
        names = [*names, _latent_name(guide)]
    values: dict[str, Any] = {name: guided.nodes[name]["value"] for name in names}
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    ratios = []
    sizes = [BLOCK] * (count // BLOCK) + [count % BLOCK] if vectorize else [1] * count
    for size in filter(None, sizes):
        many = size if vectorize else None
        traced, guided, log_p, log_q = _run(model, guide, args, kwargs, many, depth)
        ratios.append((log_p - log_q).reshape(-1))
        for name in names:
            value: Any = guided.nodes[name]["value"]
            found[name].append(value.reshape(size, *values[name].shape))
        if vectorize and len(ratios) == 1:
            first = {name: own[0][0] for name, own in found.items() if name in traced.nodes}
            _check_first(model, first, log_p[0], args, kwargs, depth)
    return {name: torch.cat(own) for name, own in found.items()}, torch.cat(ratios)


def _run(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    count: int | None,
    depth: int,
) -> tuple[Trace, Trace, Tensor, Tensor]:
    """Traces of a model and its guide with so many draws, and the log-densities of both.

    Raises:
        ValueError: If they fail with many draws at once.
    """
    both = in_plate(model, count, depth), in_plate(guide, count, depth)
    try:
        nesting = depth + (count is not None)
        traced, guided = paired_traces(*both, args, kwargs, nesting=nesting)
        log_p, log_q = (log_density(trace, count, depth) for trace in (traced, guided))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        known = isinstance(error, NotImplementedError) or "vectorize=False" in str(error)
        if count is None or known:
            raise
        raise ValueError(
            f"Expected a model and a guide that broadcast over a plate of draws: run with "
            f"{count} at once they failed, where one by one they do not. Index and sum from "
            f"the right, as in z[..., 0] and z.sum(-1), or set vectorize=False. {error}"
        ) from error
    return traced, guided, log_p, log_q


def _check_first(
    model: Callable[..., Any],
    values: Mapping[str, Tensor],
    log_p: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    depth: int,
) -> None:
    """Checks that the first of many draws has the density that it has by itself.

    Raises:
        ValueError: If it has not.
    """
    conditioned = poutine.condition(model, dict(values))
    conditioned = poutine.enum(conditioned, first_available_dim=-1 - depth)
    expected, again = (
        log_density(poutine.trace(conditioned).get_trace(*args, **kwargs), None, 0)
        for _ in range(2)
    )
    if expected != again:
        return  # something hidden is drawn at random: densities differ between runs
    if expected.isfinite() and not torch.isclose(log_p, expected, rtol=1e-3, atol=1e-2):
        raise ValueError(
            f"Expected draws that are run together to have the densities that they have by "
            f"themselves, got {float(log_p):.6g} and {float(expected):.6g}: the model sums over "
            f"draws. Sum from the right, as in z.sum(-1), or set vectorize=False."
        )


def import_arviz() -> Any:
    """ArviZ, or an error that says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # announces its coming refactoring
            return importlib.import_module("arviz")
    except ImportError:
        raise ImportError(
            "Expected ArviZ to be installed, which tells how heavy tails of weights are: "
            "python -m pip install 'pyromix[guides]'"
        ) from None
