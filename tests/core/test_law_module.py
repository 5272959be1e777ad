"""LawModule: what follows from `_law_given`."""

from typing import ClassVar

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyromix import GaussianMixture
from pyromix.core.checks import check_arguments, number
from pyromix.core.law_module import LawModule


class Shifted(LawModule[dist.Normal]):
    """A normal whose mean is a parameter, plus the context if there is one."""

    support = constraints.real_vector
    has_rsample = True

    def __init__(self, dim, context_dim=0):
        super().__init__(event_shape=(dim,))
        self.dim, self.context_dim = dim, context_dim
        self.loc = nn.Parameter(torch.arange(float(dim)).double())

    @property
    def conditional(self):
        return self.context_dim > 0

    def condition(self, context):
        return self._law_given(context)

    def _law_given(self, context=None):
        loc = self.loc if context is None else self.loc + context
        return dist.Normal(loc, 2.0).to_event(1)


def test_density_draws_and_moments_are_the_laws():
    model, x = Shifted(3), torch.randn(5, 3)
    law = dist.Normal(torch.arange(3.0).double(), 2.0).to_event(1)
    assert torch.equal(model.log_prob(x), law.log_prob(x))
    assert torch.equal(model.loss(x), -law.log_prob(x).mean())
    assert torch.equal(model.mean, law.mean)
    assert torch.equal(model.variance, law.variance)
    for name in ("sample", "rsample"):
        torch.manual_seed(0)
        got = getattr(model, name)((4,))
        torch.manual_seed(0)
        assert torch.equal(got, getattr(law, name)((4,)))
        assert got.requires_grad == (name == "rsample")


def test_the_law_has_gradients_and_follows_the_parameters():
    model = Shifted(2)
    (grad,) = torch.autograd.grad(model.law.mean.sum(), model.loc)
    assert torch.equal(grad, torch.ones(2))
    with torch.no_grad():
        model.loc.fill_(7.0)
    assert torch.equal(model.mean, torch.full((2,), 7.0))


def test_contexts():
    model, x, context = Shifted(2, context_dim=2), torch.randn(5, 2), torch.randn(5, 2)
    expected = dist.Normal(model.loc + context, 2.0).to_event(1).log_prob(x)
    torch.testing.assert_close(model.condition(context).log_prob(x), expected)
    torch.testing.assert_close(model.loss((x, context)), -expected.mean())
    for ask in (
        lambda: model.law,
        lambda: model.mean,
        lambda: model.log_prob(x),
        lambda: model.sample(),
        lambda: model.loss(x),
    ):
        with pytest.raises(ValueError, match=r"This Shifted needs a context.*condition\(context"):
            ask()
    with pytest.raises(ValueError, match="This Shifted takes no context"):
        Shifted(2).loss((x, context))
    with pytest.raises(ValueError, match="one context for each value"):
        model.loss((x, context[:, None]))


def test_a_model_may_score_values_in_its_own_way():
    class Doubled(Shifted):
        def _score(self, law, value):
            return 2 * law.log_prob(value)

    x, context = torch.randn(5, 2), torch.randn(5, 2)
    assert torch.equal(Doubled(2).log_prob(x), 2 * Shifted(2).log_prob(x))
    assert torch.equal(Doubled(2).loss(x), 2 * Shifted(2).loss(x))
    assert torch.equal(Doubled(2, 2).loss((x, context)), 2 * Shifted(2, 2).loss((x, context)))


def test_number_of_parameters():
    model = Shifted(3)
    model.other = nn.Parameter(torch.zeros(2, 2))
    assert model.num_parameters == 7
    model.other.requires_grad_(False)
    assert model.num_parameters == 7


def test_a_subclass_may_have_a_longer_table_of_arguments():
    class Longer(GaussianMixture):
        argument_checks: ClassVar = {**GaussianMixture.argument_checks, "shift": number(0.0)}

        def __init__(self, shift, dim, num_components):
            super().__init__(dim, num_components)
            given = {**vars(self), "shift": shift}
            self.keep_arguments(check_arguments(Longer.argument_checks, given))

    model = Longer(1, dim=2, num_components=3)
    assert (model.shift, model.dim, model.num_components) == (1.0, 2, 3)
    with pytest.raises(ValueError, match="shift to be a finite number"):
        Longer(-1, dim=2, num_components=3)
