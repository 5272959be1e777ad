"""Bad contexts, labels, lengths and evidence: laws with a density, or clear refusals."""

import pytest
from torch import zeros

from pyromix import DCGMM, FRMDN, GaussianMixture, RelaxedGaussianMixture, class_conditional
from pyromix.dcgmm import GMM, Folding

from .checks import Unchanged, attempt
from .test_constructors import BAD

FITTING = [zeros(2), zeros(3, 2), zeros(2, 1), zeros(3, 2, 1), [0.0, 1.0], [0, 1]]


def sequences():
    return FRMDN(1, 2, 2, hidden_dim=3, context_dim=1, static_dim=2)


def conditional():
    return GaussianMixture(2, 2, context_dim=2, hidden_dims=(3,))


CALLS = {
    "context": (sequences, lambda law, x: law.condition(x, static=zeros(2))),
    "static": (sequences, lambda law, x: law.condition(zeros(2, 1), static=x)),
    "lengths": (
        sequences,
        lambda law, x: law.condition(zeros(2, 1), static=zeros(2), lengths=x),
    ),
    "mixture": (conditional, lambda law, x: law.condition(x)),
    "classes": (lambda: class_conditional(conditional(), 2), lambda law, x: law.condition(x)),
    "relaxed": (
        lambda: RelaxedGaussianMixture(2, 2, num_inner=8), lambda law, x: law.condition(x)
    ),
    "dcgmm": (
        lambda: DCGMM((1, 2, 2), [Folding((2, 2)), GMM(2)]), lambda law, x: law.condition(x)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CALLS)
def test_what_a_law_is_given_is_taken_or_refused(kind):
    build, condition = CALLS[kind]
    law = build()
    for given in [*BAD, *FITTING]:
        with Unchanged(law):
            conditioned = attempt(lambda given=given: condition(law, given))
            if conditioned is None:
                continue
            value = conditioned.sample()
            assert value.isfinite().all()
            assert conditioned.log_prob(value).isfinite().all()
