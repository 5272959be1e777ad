"""Many questions of the same model, one after the other: `DRMM.query`."""

__all__ = ["Query"]

import copy
from collections.abc import Sequence

from torch import Generator, Tensor

from ..conditioning.law import ConditionedLaw, Statement
from ..conditioning.nonlinear import NonlinearLaw
from ..conditioning.rejection import LawWithinUnions
from ..conditioning.union import UnionOfConditioned
from ..core.checks import check_positive_int
from ..core.random import draws_from
from .conditioned import ConditionedDRMM, ResidualPrior


class Query:
    r"""A model prepared for questions that follow each other, as in a control loop.

    Calling it with evidence is `DRMM.condition`, but the model is read once, when this is made:
    later changes of its parameters do not reach it. The codes that counted in one answer are
    examined in the next one, for certain and next to those of a search of its own. So where
    questions change little from one to the next a small population does; and where they change
    much the answer is that of the search. Either way Z is unbiased.

    Made by `DRMM.query`.

    Args:
        prior: The model.
        known: Evidence that holds in all questions.
        memory: How many codes of an answer are remembered.
        generator: Where random numbers of searches come from; by default PyTorch's global one.

    Example:
        >>> import torch
        >>> from pyromix import DRMM, GaussianPrior, Observed
        >>> query = DRMM(dim=3, num_layers=4, num_components=8).query(num_particles=64)
        >>> x = torch.zeros(3)
        >>> for step in range(3):
        ...     x = query(Observed({0: 0.1 * step}), GaussianPrior(x, 0.5)).sample()
        >>> round(float(x[0]), 3)
        0.2
    """

    def __init__(
        self,
        prior: ResidualPrior,
        known: Sequence[Statement] = (),
        memory: int = 0,
        generator: Generator | None = None,
    ) -> None:
        self._prior, self._known = prior, tuple(known)
        self._memory, self._generator = memory, generator
        self._kept: Tensor | None = None

    def __call__(self, *evidence: Statement, num_particles: int | None = None) -> ConditionedLaw:
        """The law given what is known; see `DRMM.condition`.

        Args:
            evidence: Pieces, or mappings from columns to values, short for `Observed`.
            num_particles: Number of codes that are searched for, in this question alone.
        """
        prior = self._prior
        if num_particles is not None:
            prior = prior.with_options(check_positive_int("num_particles", num_particles))
        prior = copy.copy(prior)
        prior.kept = self._kept
        with draws_from(self._generator):
            law = prior.condition_on((*self._known, *evidence))
        if self._memory:
            self._kept = _codes_of(law, self._memory)
        return law

    def forget(self) -> None:
        """Starts anew: the next question searches without remembered codes."""
        self._kept = None

    def __repr__(self) -> str:
        return f"Query(dim={self._prior.dim}, known={len(self._known)})"


def _codes_of(law: ConditionedLaw, count: int) -> Tensor | None:
    """The codes with the largest weights in an answer, (E, up to count, L); None if all are."""
    while not isinstance(law, ConditionedDRMM):
        if isinstance(law, UnionOfConditioned):
            law = law.alternatives[0]
        elif isinstance(law, LawWithinUnions | NonlinearLaw):
            law = law.law
        else:
            return None
    return None if law.exact else law.likeliest_codes(count)
