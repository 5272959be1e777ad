"""What a training run came to: warnings where it did not help."""

__all__ = ["Verdict"]

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, constraints

from ..core.advice import warn_user
from ..core.law_module import LawModule
from ..core.module import DistributionModule
from ..core.random import draws_from, seeded

# Rows of the data that are scored before and after training.
SCORED_ROWS = 1000

# A run is worse by more than so many nats a row, and so many standard errors of the difference.
LEAST_NATS = 0.1
STANDARD_ERRORS = 4.0

# A shorter run is no attempt to be better than one normal.
ENOUGH_STEPS = 100

# Columns whose standard deviation is the smallest scale, up to this share, have lost nothing.
AT_NOISE = 0.2


class Verdict:
    """Compares a model after training with itself before, with one normal, and with its floor.

    That takes vectors without a context, and a model whose loss is the mean negative log-density.
    Rows with missing entries are left out. Of other data and models it says nothing.

    Args:
        model: The model, as training starts.
        preview: Some of the data, or None.
        seed: Seed for log-densities that take random numbers.
    """

    def __init__(self, model: nn.Module, preview: Any, seed: int) -> None:
        self.model: Any = model
        self.seed = seed
        self.rows = _points(model, preview)
        self.start = None if self.rows is None else self._scores(self.rows)

    def warn(self, steps: int) -> None:
        """Says what is wrong after so many steps, in at most one warning.

        Warns:
            UserWarning: If the model is worse than before, or than a normal, or if its smallest
                scale is larger than the data's.
        """
        if self.rows is None or self.start is None:
            return
        problem = self._swallowed(self.rows) or self._worse(self.rows, self.start, steps)
        if problem:
            warn_user(problem)

    def _scores(self, rows: Tensor) -> Tensor | None:
        """Log-densities (N,) of rows; None for models without."""
        model, training = self.model, self.model.training
        model.eval()
        try:
            with torch.no_grad(), draws_from(*seeded(self.seed, rows.device)):
                scores: Tensor = model.log_prob(rows)
        except NotImplementedError:
            return None
        finally:
            model.train(training)
        return scores.double() if bool(scores.isfinite().all()) else None

    def _spread(self, rows: Tensor) -> Tensor:
        """Standard deviations (D,) of the law, in double precision; infinite if not known."""
        try:
            with torch.no_grad():
                variance: Tensor = self.model.variance
        except NotImplementedError:
            return torch.full_like(rows[0], math.inf, dtype=torch.float64)
        return variance.double().sqrt()

    def _worse(self, rows: Tensor, start: Tensor, steps: int) -> str:
        """What to say if the model is worse than it was, or than one normal."""
        end = self._scores(rows)
        if end is None:
            return ""
        spread = rows.double().std(0, correction=0)
        advice = (
            f"Standardise the columns, whose standard deviations are {spread.min():.3g} to "
            f"{spread.max():.3g}, lower lr, or train longer."
        )
        if not self.model.scheduled and _is_below(end, start):
            return (
                f"Training made the model worse: the mean log-density of {len(rows)} rows was "
                f"{start.mean():.4g} nats before, and is {end.mean():.4g} nats now. {advice}"
            )
        real = isinstance(self.model.support, type(constraints.real_vector))
        if steps >= ENOUGH_STEPS and real and bool((spread > 0).all()):
            normal = Normal(rows.double().mean(0), spread)
            scores = normal.log_prob(rows.double()).sum(-1)
            if _is_below(end, scores):
                return (
                    f"After training the model describes the data worse than one normal with "
                    f"independent columns: {end.mean():.4g} nats a row, and {scores.mean():.4g} "
                    f"by the normal. {advice}"
                )
        return ""

    def _swallowed(self, rows: Tensor) -> str:
        """What to say if columns vary, and have the smallest scale everywhere in the law."""
        floored = self.model.columns_at_floor()
        if floored is None or not len(floored):
            return ""
        spread = rows[:, : len(floored)].double().std(0, correction=0)
        floors, floor = torch.as_tensor(self.model.column_floors()), self.model.scale_floor
        # Where the floor is the noise of the data, that is what columns should come to.
        right = (spread - floors).abs() <= AT_NOISE * floors
        right &= (self._spread(rows)[: len(floored)] - spread).abs() <= AT_NOISE * spread
        lost = (floored | (spread <= floors)) & (spread > 0) & ~right
        lost = lost.nonzero().flatten().tolist()
        if not lost:
            return ""
        return (
            f"Columns {lost} have about the smallest scale that the model allows, "
            f"scale_floor={floor:.3g}, in every component; their standard deviations in the data "
            f"are from {spread[lost].min():.3g} to {spread[lost].max():.3g}. Standardise them, or "
            f"set scale_floor far below. If they take few distinct values, components have "
            f"collapsed onto these: use fewer, or pyromix.preprocessing.dequantize."
        )


def _is_below(scores: Tensor, others: Tensor) -> bool:
    """Whether scores are lower than others on average, by more than chance."""
    difference = others - scores
    error = difference.std() / math.sqrt(len(difference))
    return bool(difference.mean() > LEAST_NATS + STANDARD_ERRORS * error)


def _points(model: Any, preview: Any) -> Tensor | None:
    """The rows to score, or None if data and model are not for that."""
    if not isinstance(model, DistributionModule) or model.conditional:
        return None
    likelihood = {DistributionModule.loss, LawModule.loss}
    if type(model).loss not in likelihood and not model.trains_density:
        return None
    if isinstance(preview, tuple | list) and len(preview) == 1:
        preview = preview[0]
    if not isinstance(preview, Tensor) or not preview.is_floating_point():
        return None
    fits = preview.dim() == 2 and preview.shape[1:] == model.event_shape and len(preview) > 1
    if not fits or model.batch_shape:
        return None
    rows = preview[:SCORED_ROWS].detach()
    rows = rows[rows.isfinite().all(-1)]
    return rows if len(rows) > 1 else None
