"""Training a guide, up to the question whether to believe it."""

__all__ = ["falling_adam", "fit_guide"]

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import pyro
import torch
from pyro.infer import SVI
from tqdm import trange

from ..core.advice import warn_user
from ..core.checks import check_choice, check_positive_int
from ..core.random import draws_from, seeded
from .adaptive import Plan, can_adapt, fit_mixture
from .auto_mixture import AutoMixture
from .result import GuideResult, check_draws, evaluate_guide, import_arviz, try_out
from .stratified import StratifiedELBO

Method = Literal["auto", "natural", "gradient"]

# Steps by method.
STEPS = {"natural": 300, "gradient": 1000}
# Learning rates of guides without transforms and with them.
RATES = {False: 0.03, True: 0.005}
# Fewest draws of a step, and those of each component.
FEWEST, EACH = 32, 2
# Components that natural gradients may add, by default.
MOST_COMPONENTS = 64


def fit_guide(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    method: Method = "auto",
    steps: int | None = None,
    max_components: int | None = None,
    lr: float | None = None,
    num_particles: int | None = None,
    num_draws: int = 4000,
    vectorize: bool = True,
    seed: int | None = None,
    progress_bar: bool = True,
    **kwargs: Any,
) -> GuideResult:
    r"""Trains a guide, and says how far it is from the posterior.

    By natural gradients (Arenz et al., "A unified perspective on natural gradient variational
    inference with Gaussian mixture models", 2023) where the guide is an `AutoMixture`: steps of
    each component in the metric of normals, within a trust region. Every 50 steps components
    without weight are dropped, and draws that are moved from guide and prior to the posterior show
    where others should be added. Training ends early when the bound reaches the evidence, and the
    tail of the weights is light. All other guides are trained by `StratifiedELBO` and Adam, whose
    learning rates fall to zero in the second half of the steps. So are those with transforms,
    after their mixture has been trained by natural gradients: transforms that are trained from
    the start would lose modes.

    Args:
        model: A Pyro model.
        guide: Its guide, such as an `AutoMixture`.
        args: Arguments of both.
        method: ``"natural"`` for natural gradients, ``"gradient"`` for Adam, or ``"auto"`` for
            the first of these that can train the guide: Adam where the model has parameters, and
            for all guides but mixtures with a covariance of each component.
        steps: Most steps of training; by default 300 by natural gradients, and 1000 by Adam.
        max_components: Most components that the guide may grow to, by natural gradients; by
            default 64, or twice as many as it has.
        lr: Learning rate of Adam; by default 0.03, and 0.005 for transforms.
        num_particles: Draws of a step; by default five and one for each dimension, of each
            component, by natural gradients, and two of each component, 32 at least, by Adam.
        num_draws: Draws by which the result is judged; see `evaluate_guide`.
        vectorize: Whether model and guide are run with all draws at once, in a plate.
        seed: Seed of everything random; by default drawn from PyTorch's global generator.
        progress_bar: Whether to show a bar with the loss.
        kwargs: Keyword arguments of both. Those that have the names of arguments here do not reach
            the model: set them by `functools.partial`.

    Returns:
        The result: bounds, log-evidence, Pareto k, effective number of draws, modes, and draws
        that are corrected. It warns where the guide misses part of the posterior that was found.

    Raises:
        ValueError: For an argument that is out of range, if natural gradients are asked for and
            cannot train the guide, or if the loss is not finite.
        ImportError: If ArviZ is not installed.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyromix.guides import AutoMixture
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 3.0))
        ...     pyro.sample("x", dist.Normal(z.square(), 0.5), obs=torch.tensor(4.0))
        >>> pyro.clear_param_store()
        >>> guide = AutoMixture(model, num_components=4)
        >>> result = fit_guide(model, guide, seed=0, progress_bar=False)
        >>> result.effective_sample_size > 3900
        True
        >>> round(result.log_evidence, 2)
        -2.92
    """
    check_choice("method", method, ("auto", "natural", "gradient"))
    if steps is not None:
        check_positive_int("steps", steps)
    for name, count in (("num_particles", num_particles), ("max_components", max_components)):
        if count is not None:
            check_positive_int(name, count)
    if lr is not None and not lr > 0:
        raise ValueError(f"Expected a positive lr, got {lr!r}.")
    import_arviz()  # what is wrong is told before training, not after
    check_draws(num_draws)
    seed = int(torch.randint(2**31, ())) if seed is None else int(seed)
    with draws_from(*seeded(seed)):
        try_out(model, guide, args, kwargs, vectorize)
        obstacle = "" if method == "gradient" else can_adapt(model, guide, args, kwargs)
        if method == "natural" and obstacle:
            raise ValueError(f"Expected a guide for natural gradients, but {obstacle}.")
        losses: list[float] = []
        missed = False
        if method != "gradient" and not obstacle:
            mixture: Any = guide
            most = max_components or max(MOST_COMPONENTS, 2 * mixture.num_components)
            plan = Plan(steps or STEPS["natural"], num_particles, most, vectorize, progress_bar)
            losses, missed = fit_mixture(model, mixture, args, kwargs, plan)
        bent = isinstance(guide, AutoMixture) and guide.has_transforms
        if bent or not losses:
            losses += _by_gradients(
                model, guide, args, kwargs,
                steps=steps or STEPS["gradient"],
                lr=lr or RATES[bent],
                num_particles=num_particles,
                vectorize=vectorize,
                progress_bar=progress_bar,
            )  # fmt: skip
        result = evaluate_guide(
            model, guide, *args, num_draws=num_draws, vectorize=vectorize, **kwargs
        )
    if missed:
        warn_user(
            f"Draws that were moved from the prior to the posterior found parts of it that the "
            f"guide misses, and training ended with {mixture.num_components} components after "
            f"{len(losses)} steps: the evidence is too low. Raise max_components or steps."
        )
    return replace(result, losses=tuple(losses), missed=missed)


def falling_adam(lr: float, steps: int) -> pyro.optim.PyroLRScheduler:
    """Adam for Pyro, whose learning rate falls to zero in the second half of the steps.

    Args:
        lr: Learning rate at the start.
        steps: Number of steps: call `step` after each.
    """
    return pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.LambdaLR,
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": lr},
            "lr_lambda": lambda step: min(1.0, 2 - 2 * step / steps),
        },
    )


def _by_gradients(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    steps: int,
    lr: float,
    num_particles: int | None,
    vectorize: bool,
    progress_bar: bool,
) -> list[float]:
    """Trains a guide by `StratifiedELBO` and Adam, and returns the loss of each step."""
    if num_particles is None:
        components = guide.num_components if isinstance(guide, AutoMixture) else 0
        num_particles = max(FEWEST, EACH * components)
    bound = StratifiedELBO(num_particles, vectorize_particles=vectorize)
    optimizer = falling_adam(lr, steps)
    svi = SVI(model, guide, optimizer, bound)
    losses = []
    bar = trange(steps, disable=not progress_bar)
    for step in bar:
        losses.append(float(svi.step(*args, **kwargs)))
        optimizer.step()
        if not math.isfinite(losses[-1]):
            raise ValueError(f"Expected a finite loss, got {losses[-1]} at step {step}.")
        bar.set_postfix_str(f"loss {losses[-1]:.4g}")
    return losses
