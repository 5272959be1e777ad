"""The conformance suite itself: it passes a correct distribution, and catches mistakes."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Size, nn
from torch.distributions import Normal, constraints

from pyromix import DistributionModule
from pyromix.core.checks import check_value
from pyromix.testing import Case, applicable_checks


class Sample(DistributionModule):
    """A diagonal normal, with one mistake."""

    support = constraints.real_vector
    has_rsample = True

    def __init__(self, dim=2, mistake="", batch=()):
        super().__init__(batch, (dim,))
        self.dim, self.mistake, self.batch = dim, mistake, batch
        self.loc = nn.Parameter(torch.full((*batch, dim), 0.3))
        self.log_scale = nn.Parameter(torch.full((*batch, dim), -0.5))
        if mistake == "unregistered tensor":
            self.shift = torch.zeros(dim)

    def rsample(self, sample_shape=Size()):
        scale = self.log_scale.exp()
        if self.mistake == "variance for scale":
            scale = scale**2
        if self.mistake == "detached scale":
            scale = scale.detach()
        noise = torch.randn(self._extended_shape(sample_shape), dtype=scale.dtype)
        if self.mistake == "rounded to float32":
            noise = noise.float()
        return self.loc + scale * noise

    def sample(self, sample_shape=Size()):
        if self.mistake == "sample keeps a graph":
            return self.rsample(sample_shape)
        if self.mistake == "sample keeps a graph in a trace":
            with torch.no_grad():
                return self.rsample(sample_shape)
        return super().sample(sample_shape)

    def log_prob(self, value):
        if self.mistake != "no checks":
            check_value(self, value, like=self.loc)
        law = Normal(self.loc, self.log_scale.exp(), validate_args=False)
        log_prob = law.log_prob(value).sum(-1)
        if self.mistake == "not normalised":
            log_prob = log_prob + 0.02
        if self.mistake == "far from normalised in many dimensions":
            log_prob = log_prob + 0.2
        if self.mistake == "noisy":
            log_prob = log_prob + 1e-9 * torch.randn(())
        if self.mistake == "another law":
            log_prob = log_prob + 0.2 * value[..., 0].sin()
        if self.mistake == "detached density":
            law = Normal(self.loc.detach(), self.log_scale.exp(), validate_args=False)
            log_prob = law.log_prob(value).sum(-1)
        if self.mistake == "event not summed":
            log_prob = law.log_prob(value)
        if self.mistake == "no broadcasting with the batch":
            log_prob = law.log_prob(value.reshape(-1, *self.batch, self.dim)).sum(-1)
        if self.mistake == "control flow on values" and (value > 100).any():
            log_prob = log_prob - 1
        return log_prob

    def expand(self, batch_shape, _instance=None):
        if self.mistake == "expand changes the law":
            return ExpandedDistribution(self, batch_shape)
        new = super().expand(batch_shape)
        if self.mistake == "expand is lost on values":
            new.log_prob = self.log_prob
        return new

    def score_parts(self, x):
        parts = super().score_parts(x)
        if self.mistake == "score parts of zeros":
            return parts._replace(score_function=torch.zeros(()))
        return parts

    @property
    def mean(self):
        return self.loc

    @property
    def variance(self):
        return (self.log_scale if self.mistake == "wrong variance" else 2 * self.log_scale).exp()


def failures(make, **options):
    """Names of the checks that a distribution fails."""
    case, failed = Case(make, **options), set()
    for name, check in applicable_checks(case).items():
        try:
            check(case)
        except Exception:
            failed.add(name)
    return failed


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_correct_distribution_passes(batch):
    assert failures(lambda: Sample(batch=batch)) == set()


@pytest.mark.parametrize(
    ("mistake", "caught_by"),
    [
        ("variance for scale", {"goodness_of_fit", "stein_identity", "moments"}),
        ("detached scale", {"pathwise_gradients"}),
        ("sample keeps a graph", {"shapes"}),
        ("sample keeps a graph in a trace", {"jit"}),
        ("not normalised", {"normalized"}),
        ("far from normalised in many dimensions", {"normalized_in_expectation"}),
        ("noisy", {"deterministic"}),
        ("another law", {"normalized", "goodness_of_fit", "stein_identity"}),
        ("detached density", {"log_prob_gradients"}),
        ("wrong variance", {"moments"}),
        ("unregistered tensor", {"moves"}),
        ("no checks", {"bad_input"}),
        ("event not summed", {"shapes"}),
        ("expand is lost on values", {"unexpanded_value"}),
        ("expand changes the law", {"plates"}),
        ("no broadcasting with the batch", {"broadcast_value"}),
        ("score parts of zeros", {"pathwise_losses"}),
        ("control flow on values", {"function_transforms"}),
    ],
)
def test_mistakes_are_caught(mistake, caught_by):
    dim = 12 if "many dimensions" in mistake else 2
    batch = (3,) if "batch" in mistake else ()
    assert caught_by <= failures(lambda: Sample(dim, mistake=mistake, batch=batch))


def test_batch_and_plain_distributions_can_be_checked():
    """Users' distributions need not be modules; Pyro's own pass, too."""

    def make():
        return dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1)

    assert "save_load" not in applicable_checks(Case(make))
    assert failures(make) == set()


class Shifted(DistributionModule):
    """The example of `DistributionModule`, with a scalar parameter."""

    support = constraints.real_vector
    has_rsample = True

    def __init__(self, dim, width=1.0):
        super().__init__(event_shape=(dim,))
        self.dim, self.width = dim, width
        self.loc = nn.Parameter(torch.zeros(()))

    def rsample(self, sample_shape=Size()):
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype)
        return self.loc + self.width * noise

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        return Normal(self.loc, self.width).log_prob(value).sum(-1)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: Shifted(2), {}),
        (lambda: dist.Gamma(torch.tensor(3.0), torch.tensor(1.0)), {"smooth": False}),
        (lambda: dist.Laplace(torch.zeros(1), torch.ones(1)).to_event(1), {"smooth": False}),
        (lambda: dist.Poisson(torch.tensor(3.0)), {"smooth": False, "continuous": False}),
        (lambda: dist.Categorical(torch.ones(3) / 3), {"smooth": False, "continuous": False}),
        (lambda: dist.Dirichlet(torch.ones(3)), {"smooth": False, "continuous": False}),
    ],
    ids=["example", "gamma", "laplace", "poisson", "categorical", "dirichlet"],
)
def test_correct_laws_of_other_kinds_pass(make, options):
    assert failures(make, nuts=False, **options) == set()


def test_a_law_that_is_not_of_pyro_is_refused():
    with pytest.raises(TypeError, match=r"found under the same names in pyro\.distributions"):
        Case(lambda: Normal(0.0, 1.0)).build()


def test_checks_leave_global_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.get_default_dtype()
    failures(Sample)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_default_dtype() == before[1]
