"""Plain distributions and transforms as modules, and as plain data."""

import json

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from torch import nn
from torch.distributions import Distribution, constraints

from pyromix import GaussianMixture, MixtureOfNormals
from pyromix.core.registry import NotPlainError, decode, encode
from pyromix.flows.wrapping import PlainDistribution, as_distribution_module, as_transform_module

DIM = 6

DISTRIBUTIONS = {
    "normal": lambda: dist.Normal(torch.zeros(2), 1.0),
    "independent": lambda: dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1),
    "full normal": lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2) * 3),
    "precision": lambda: dist.MultivariateNormal(torch.ones(2), precision_matrix=torch.eye(2) * 3),
    "low rank": lambda: dist.LowRankMultivariateNormal(
        torch.zeros(3), torch.ones(3, 1), torch.ones(3)
    ),
    "categorical": lambda: dist.Categorical(logits=torch.randn(3)),
    "bernoulli": lambda: dist.Bernoulli(probs=torch.tensor(0.3)),
    "binomial": lambda: dist.Binomial(5, torch.tensor(0.5)),
    "beta": lambda: dist.Beta(1.0, 2.0),
    "gamma": lambda: dist.Gamma(torch.ones(3), 2.0),
    "dirichlet": lambda: dist.Dirichlet(torch.ones(3)),
    "student": lambda: dist.StudentT(3.0, torch.zeros(2)),
    "uniform": lambda: dist.Uniform(torch.zeros(2), 1.0),
    "relaxed": lambda: dist.RelaxedOneHotCategorical(torch.tensor(0.3), logits=torch.randn(3)),
    "log-normal": lambda: dist.LogNormal(0.0, 1.0),
    "lkj": lambda: dist.LKJCholesky(3, torch.tensor(2.0)),
    "pyro mixture": lambda: dist.MixtureOfDiagNormals(
        torch.zeros(2, 2), torch.ones(2, 2), torch.zeros(2)
    ),
    "mixture": lambda: MixtureOfNormals(torch.zeros(2), torch.randn(2, 3), torch.ones(2, 3)),
    "nested": lambda: dist.MixtureSameFamily(
        dist.Categorical(logits=torch.randn(2)), dist.Normal(torch.randn(2), 1.0)
    ),
    "masked": lambda: dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0), [transforms.AffineTransform(torch.ones(2), 2.0)]
    ),
}

TRANSFORMS = {
    "affine": lambda: transforms.AffineTransform(torch.randn(DIM), torch.full((DIM,), 2.0)),
    "exp": transforms.ExpTransform,
    "elu": transforms.ELUTransform,
    "permute": lambda: transforms.permute(DIM),
    "cholesky": lambda: transforms.LowerCholeskyAffine(torch.randn(DIM), 2 * torch.eye(DIM)),
    "stack": lambda: transforms.StackTransform(
        [transforms.AffineTransform(float(i), 2.0) for i in range(DIM)], dim=-1
    ),
    "independent": lambda: transforms.IndependentTransform(transforms.ExpTransform(), 1),
    "reshape": lambda: transforms.ReshapeTransform((DIM,), (2, 3)),
    "affine coupling": lambda: transforms.affine_coupling(DIM),
    "spline coupling": lambda: transforms.spline_coupling(DIM),
    "spline": lambda: transforms.spline(DIM, order="quadratic"),
    "affine autoregressive": lambda: transforms.affine_autoregressive(DIM),
    "spline autoregressive": lambda: transforms.spline_autoregressive(DIM),
    "neural autoregressive": lambda: transforms.neural_autoregressive(DIM, activation="tanh"),
    "block autoregressive": lambda: transforms.block_autoregressive(
        DIM, hidden_factors=[3, 4], residual="gated", activation="ELU"
    ),
    "batch norm": lambda: transforms.batchnorm(DIM).eval(),
    "householder": lambda: transforms.householder(DIM, 3),
    "matrix exponential": lambda: transforms.matrix_exponential(DIM),
    "planar": lambda: transforms.planar(DIM),
    "polynomial": lambda: transforms.polynomial(DIM),
    "radial": lambda: transforms.radial(DIM),
    "sylvester": lambda: transforms.sylvester(DIM),
}

CONDITIONAL = {
    "affine coupling": transforms.conditional_affine_coupling,
    "spline": transforms.conditional_spline,
    "affine autoregressive": transforms.conditional_affine_autoregressive,
    "spline autoregressive": transforms.conditional_spline_autoregressive,
    "neural autoregressive": transforms.conditional_neural_autoregressive,
    "planar": transforms.conditional_planar,
    "radial": transforms.conditional_radial,
    "householder": transforms.conditional_householder,
    "matrix exponential": transforms.conditional_matrix_exponential,
}


def through_json(obj):
    """A copy built from plain data and the state dict, as a checkpoint does."""
    other = decode(json.loads(json.dumps(encode(obj))))
    other.load_state_dict(obj.state_dict())
    return other.eval()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(name):
    plain = DISTRIBUTIONS[name]()
    module = as_distribution_module(plain)
    x = plain.sample((3,))
    assert (module.batch_shape, module.event_shape) == (plain.batch_shape, plain.event_shape)
    assert module.has_rsample == plain.has_rsample
    torch.testing.assert_close(module.log_prob(x), plain.log_prob(x))
    assert module.sample((3,)).shape == x.shape
    torch.testing.assert_close(through_json(module).log_prob(x), plain.log_prob(x))
    moved = module.to("meta")
    assert all(t.is_meta for t in moved.state_dict().values())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    plain = TRANSFORMS[name]()
    module = as_transform_module(plain)
    x = torch.randn(4, DIM)
    y = plain(x)
    torch.testing.assert_close(module(x), y)
    copied = through_json(module)
    torch.testing.assert_close(copied(x), y)
    torch.testing.assert_close(
        copied.log_abs_det_jacobian(x, copied(x)), plain.log_abs_det_jacobian(x, plain(x))
    )
    assert as_transform_module(module) is module


@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_transforms(name):
    transform = CONDITIONAL[name](DIM, 2)
    x, context = torch.randn(4, DIM), torch.randn(4, 2)
    expected = transform.condition(context)(x)
    torch.testing.assert_close(through_json(transform).condition(context)(x), expected)


@pytest.mark.parametrize("name", ["affine", "affine coupling", "spline"])
def test_inverses_own_their_transform(name):
    transform = TRANSFORMS[name]()
    module = as_transform_module(transform.inv)
    x = torch.rand(4, DIM)
    torch.testing.assert_close(module(x), transform.inv(x))
    torch.testing.assert_close(module.inv(module(x)), x)
    forward = as_transform_module(transform)
    assert len(list(module.parameters())) == len(list(forward.parameters()))
    assert len(list(module.buffers())) == len(list(forward.buffers()))
    torch.testing.assert_close(through_json(module)(x), transform.inv(x))


def test_parameters_stay_parameters():
    loc = nn.Parameter(torch.zeros(2))
    module = as_distribution_module(dist.Normal(loc, torch.ones(2)))
    assert [name for name, _ in module.named_parameters()] == ["arguments.loc"]
    assert [name for name, _ in through_json(module).named_parameters()] == ["arguments.loc"]
    module.log_prob(torch.ones(2)).sum().backward()
    assert loc.grad is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda p: dist.Normal(p[0], torch.ones(2)),
        lambda p: dist.Normal(p, 1.0).expand([3, 2]),
        lambda p: dist.MultivariateNormal(p, torch.eye(2)),
        lambda p: dist.Categorical(logits=p),
        lambda p: dist.MixtureSameFamily(dist.Categorical(p.exp()), dist.Normal(p, torch.ones(2))),
    ],
    ids=["view", "expanded", "broadcast", "normalised", "within"],
)
def test_parameters_that_would_be_lost_are_refused(make):
    with pytest.raises(TypeError, match="could not be found to be trained"):
        as_distribution_module(make(nn.Parameter(torch.zeros(2))))


def test_an_expanded_mixture_keeps_its_batch():
    mixture = MixtureOfNormals(torch.zeros(2), torch.randn(2, 3), torch.ones(2, 3)).expand((5,))
    module = through_json(as_distribution_module(mixture))
    assert module.batch_shape == (5,)
    assert module.sample((7,)).shape == (7, 5, 3)


def test_the_law_in_a_wrapper():
    normal = dist.Normal(torch.zeros(2), torch.full((2,), 3.0)).to_event(1)
    module = as_distribution_module(normal)
    assert type(module.law) is type(normal)
    assert torch.equal(module.mean, normal.mean)
    assert torch.equal(module.variance, normal.variance)
    assert torch.equal(module.entropy(), normal.entropy())
    torch.testing.assert_close(module.loss(torch.ones(5, 2)), -normal.log_prob(torch.ones(2)))


def test_validation_stays_off():
    uniform = dist.Uniform(torch.zeros(2), torch.ones(2), validate_args=False)
    assert as_distribution_module(uniform).log_prob(torch.tensor(2.0)).isneginf().all()


def test_repr_is_readable():
    module = as_distribution_module(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    assert repr(module) == (
        "Independent(base_distribution=Normal(loc=tensor of shape (2,), "
        "scale=tensor of shape (2,)), reinterpreted_batch_ndims=1)"
    )


class Opaque(Distribution):
    """Keeps its tensor where it cannot be found."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real

    def __init__(self, start):
        super().__init__()
        self.hidden = torch.as_tensor(start)


def test_hidden_tensors_are_an_error():
    with pytest.raises(TypeError, match="Keep every constructor argument as an attribute"):
        as_distribution_module(Opaque(1.0))


def test_modules_are_left_alone():
    model = GaussianMixture(2, 3)
    assert as_distribution_module(model) is model
    assert isinstance(as_distribution_module(dist.Normal(0.0, 1.0)), PlainDistribution)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        float("inf"),
        float("-inf"),
        "text",
        [1, [2.5]],
        (1, (2,)),
        {"a": 1, 2: (3,)},
        torch.float64,
        torch.Size((2, 3)),
        nn.ReLU,
    ],
)
def test_plain_values_survive(value):
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_unknown_classes_are_refused():
    with pytest.raises(NotPlainError, match="into=model"):
        encode(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(NotPlainError):
        encode(lambda: None)
    for data in (
        {"object": "os.system", "config": {"command": "true"}},
        {"object": "builtins.eval", "config": {"source": "1"}},
        {"class": "subprocess.Popen"},
    ):
        with pytest.raises(ValueError, match="Unknown class"):
            decode(data)
    with pytest.raises(ValueError, match="plain data"):
        decode({"something": 1})
