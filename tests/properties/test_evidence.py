"""Random laws and evidence: draws meet it, densities factorise, nonsense is refused."""

import math

import pytest
import torch
from hypothesis import strategies as st

from pyromix import AnyOf, Box, LinearEquality, LinearInequality, Observed

from .checks import Unchanged, attempt, check_scores, examples, for_examples, in_double
from .strategies import TAKES_EVIDENCE, dtype_of, evidence, good_values


@examples(8)
@pytest.mark.parametrize("kind", TAKES_EVIDENCE)
def test_draws_given_evidence_meet_it(kind, count):
    def check(draw):
        law = draw(TAKES_EVIDENCE[kind])
        pieces = draw(evidence(law, nasty=draw(st.booleans())))
        with Unchanged(law), torch.no_grad():
            given = attempt(lambda: law.condition(*pieces))
            if given is None:
                return
            log_z, error = given.log_evidence()
            value = attempt(lambda: given.sample((5,)))
            if value is None:
                return
            scores = given.log_prob(value)
        assert not log_z.isnan().any()
        assert not (log_z == math.inf).any()
        assert not error.isnan().any()
        assert value.shape == (5, *given.batch_shape, *law.event_shape)
        assert value.dtype == dtype_of(law)
        assert value.isfinite().all()
        assert not scores.isnan().any()
        assert not (scores == math.inf).any()
        for piece in pieces:
            assert holds(piece, value, getattr(law, "dim", None)).all(), (
                f"{type(piece).__name__} does not hold"
            )

    for_examples(count, check)


@examples(8)
@pytest.mark.parametrize("kind", TAKES_EVIDENCE)
def test_a_density_is_that_of_some_columns_times_that_of_the_others_given_them(kind, count):
    def check(draw):
        law = draw(TAKES_EVIDENCE[kind])
        value = draw(good_values(law, sizes=(0.0, 1.0)))
        value = value.reshape(-1, *law.event_shape)[:1].squeeze(0)
        if value.dim() == 0 or value.numel() < law.event_shape[0]:
            return
        law, value = in_double(law), value.double()
        dim = len(value) - len(getattr(law, "categories", ()))
        # The last real column is not observed: where all are, the density is log_prob.
        columns = st.integers(-len(value), -1).filter(lambda d: d + len(value) != dim - 1)
        if len(value) == 1:
            return
        seen = draw(st.lists(columns, min_size=1, unique=True))
        with torch.no_grad():
            given = law.condition(Observed({d: value[d] for d in seen}))
            log_z, _ = given.log_evidence()
            parts = given.log_prob(value) + log_z
            check_scores(parts, law.log_prob(value), torch.float64)

    for_examples(count, check)


def holds(piece, value, dim=None):
    """Whether points meet a piece of evidence, but for rounding; shape (*S, *B).

    The first `dim` columns are real; by default all are.
    """
    value = value.double()
    if isinstance(piece, Observed):
        return torch.stack(
            [
                (value[..., d] - torch.as_tensor(x)).abs() <= 1e-5 * (1 + abs(x))
                for d, x in piece.values.items()
            ]
            or [torch.ones(value.shape[:-1], dtype=torch.bool)]
        ).all(0)
    if isinstance(piece, AnyOf):
        return torch.stack(
            [
                torch.stack([holds(part, value, dim) for part in parts]).all(0)
                for parts in piece.alternatives
            ]
        ).any(0)
    if isinstance(piece, Box):
        low, high = torch.as_tensor(piece.low).double(), torch.as_tensor(piece.high).double()
        real = value[..., : low.shape[-1] if low.dim() else dim]
        slack = 1e-5 * (1 + real.abs())
        return ((real >= low - slack) & (real <= high + slack)).all(-1)
    if isinstance(piece, LinearInequality | LinearEquality):
        a, b = torch.atleast_2d(piece.a.double()), torch.as_tensor(piece.b).double()
        if isinstance(piece, LinearEquality):  # of whichever size, they say the same
            unit = a.abs().amax(-1, keepdim=True)
            a, b = a / unit, b / unit.squeeze(-1)
        terms = a * value[..., : a.shape[-1]].unsqueeze(-2)  # (*S, *B, m, D)
        left = terms.sum(-1) + b
        slack = 1e-5 * (1 + terms.abs().sum(-1) + b.abs())
        if isinstance(piece, LinearEquality):
            return (left.abs() <= 100 * slack).all(-1)
        return (left >= -slack).all(-1)
    return torch.ones(value.shape[:-1], dtype=torch.bool)
