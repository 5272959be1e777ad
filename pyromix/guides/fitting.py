"""Training a guide, up to the question whether to believe it."""

__all__ = ["fit_guide"]

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from tqdm import trange

from ..core.checks import check_positive_int
from ..core.random import draws_from, seeded
from .auto_mixture import AutoMixture
from .result import GuideResult, check_draws, evaluate_guide, import_arviz, try_out
from .stratified import StratifiedELBO

# Fewest draws of a step, and those of each component.
FEWEST, EACH = 32, 2


def fit_guide(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    steps: int = 1000,
    lr: float = 0.03,
    num_particles: int | None = None,
    num_draws: int = 4000,
    vectorize: bool = True,
    seed: int | None = None,
    progress_bar: bool = True,
    **kwargs: Any,
) -> GuideResult:
    """Trains a guide by `StratifiedELBO`, and says how far it is from the posterior.

    Learning rates fall to zero in the second half of the steps (Adam).

    Args:
        model: A Pyro model.
        guide: Its guide, such as an `AutoMixture`.
        args: Arguments of both.
        steps: Steps of training.
        lr: Learning rate.
        num_particles: Draws of a step; by default two of each component, 32 at least.
        num_draws: Draws by which the result is judged; see `evaluate_guide`.
        vectorize: Whether model and guide are run with all draws at once, in a plate.
        seed: Seed of everything random; by default drawn from PyTorch's global generator.
        progress_bar: Whether to show a bar with the loss.
        kwargs: Keyword arguments of both.

    Returns:
        The result: bounds, log-evidence, Pareto k, effective number of draws, and draws that are
        corrected. It warns if the guide misses part of the posterior.

    Raises:
        ValueError: For an argument that is out of range, or if the loss is not finite.
        ImportError: If ArviZ is not installed.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyromix.guides import AutoMixture
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 3.0))
        ...     pyro.sample("x", dist.Normal(z.square(), 0.5), obs=torch.tensor(4.0))
        >>> pyro.clear_param_store()
        >>> guide = AutoMixture(model, num_components=4)
        >>> result = fit_guide(model, guide, steps=200, seed=0, progress_bar=False)
        >>> result.effective_sample_size > 3000
        True
        >>> round(result.log_evidence, 1)
        -2.9
    """
    check_positive_int("steps", steps)
    if not lr > 0:
        raise ValueError(f"Expected a positive lr, got {lr!r}.")
    import_arviz()  # what is wrong is told before training, not after
    check_draws(num_draws)
    if num_particles is None:
        components = guide.num_components if isinstance(guide, AutoMixture) else 0
        num_particles = max(FEWEST, EACH * components)
    seed = int(torch.randint(2**31, ())) if seed is None else int(seed)
    bound = StratifiedELBO(num_particles, vectorize_particles=vectorize)
    optimizer = pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.LambdaLR,
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": lr},
            "lr_lambda": lambda step: min(1.0, 2 - 2 * step / steps),
        },
    )
    svi = SVI(model, guide, optimizer, bound)
    losses = []
    with draws_from(*seeded(seed)):
        try_out(model, guide, args, kwargs, vectorize)
        bar = trange(steps, disable=not progress_bar)
        for step in bar:
            losses.append(float(svi.step(*args, **kwargs)))
            optimizer.step()
            if not math.isfinite(losses[-1]):
                raise ValueError(f"Expected a finite loss, got {losses[-1]} at step {step}.")
            bar.set_postfix_str(f"loss {losses[-1]:.4g}")
        result = evaluate_guide(
            model, guide, *args, num_draws=num_draws, vectorize=vectorize, **kwargs
        )
    return replace(result, losses=tuple(losses))
