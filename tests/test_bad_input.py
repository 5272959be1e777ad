"""Whatever a user passes wrongly: a ValueError that says what was expected."""

import math

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch

from pyromix import (
    DCGMM,
    DRMM,
    FRMDN,
    RAD,
    Box,
    Flow,
    GaussianMixture,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    MixtureOfNormals,
    RelaxedGaussianMixture,
    class_conditional,
    fit,
    load,
    save,
)
from pyromix.dcgmm import GMM, Folding

ones, zeros = torch.ones, torch.zeros


def mixture(logits=None, loc=None, scale=None, **kwargs):
    return MixtureOfNormals(
        zeros(3) if logits is None else logits,
        zeros(3, 2) if loc is None else loc,
        ones(3, 2) if scale is None else scale,
        **kwargs,
    )


def learnable(**kwargs):
    return GaussianMixture(**{"dim": 2, "num_components": 3, **kwargs})


def train(data=None, **kwargs):
    data = torch.randn(20, 2) if data is None else data
    return fit(learnable(), data, **{"steps": 2, "progress_bar": False, **kwargs})


BAD = [
    # parameters of a mixture
    (lambda: mixture(loc=[[0.0]]), "loc to be a torch.Tensor, got list"),
    (lambda: mixture(loc=zeros(3, 2).long()), "float32 or torch.float64, got torch.int64"),
    (lambda: mixture(loc=zeros(3, 2).half()), "float32 or torch.float64, got torch.float16"),
    (lambda: mixture(scale=ones(3, 2).float()), "scale to have dtype torch.float64"),
    (lambda: mixture(scale=ones(3, 2, device="meta")), "scale on device cpu, got meta"),
    (lambda: mixture(logits=zeros(3, device="meta")), "logits on device cpu, got meta"),
    (lambda: mixture(logits=zeros(4)), "with the same K"),
    (lambda: mixture(scale=ones(3, 1)), "must be expanded to loc's shape"),
    (lambda: mixture(loc=zeros(3), scale=ones(3)), r"loc.unsqueeze\(-1\)"),
    (lambda: mixture(zeros(0), zeros(0, 2), ones(0, 2)), "at least one component"),
    (lambda: mixture(zeros(3), zeros(3, 0), ones(3, 0)), "at least one component and one dim"),
    (lambda: mixture(logits=zeros(2, 3), loc=zeros(4, 3, 2)), "batch shapes that broadcast"),
    (lambda: mixture(scale=zeros(3, 2)), "positive, finite scales"),
    (lambda: mixture(scale=-ones(3, 2)), "values from -1.0 to -1.0"),
    (lambda: mixture(scale=ones(3, 2) * math.nan), "positive, finite scales"),
    (lambda: mixture(loc=ones(3, 2) * math.nan), "finite values of loc"),
    (lambda: mixture(logits=ones(3) * math.nan), "logits without NaN"),
    (lambda: mixture(logits=torch.full((3,), -math.inf)), "at least one logit above"),
    # values to score
    (lambda: mixture().log_prob(0.5), "value to be a torch.Tensor, got float"),
    (lambda: mixture().log_prob(zeros(5, 3)), r"event shape \(2,\), got shape \(5, 3\)"),
    (lambda: mixture().log_prob(zeros(())), r"event shape \(2,\), got shape \(\)"),
    (lambda: mixture().log_prob(zeros(5, 2).int()), "float32 or torch.float64, got torch.int32"),
    (lambda: mixture().log_prob(zeros(5, 2).float()), "dtype torch.float64, got torch.float32"),
    (lambda: mixture().log_prob(zeros(5, 2, device="meta")), "on device cpu, got meta"),
    (lambda: mixture().log_prob(zeros(5, 2) * math.nan), "10 NaN among 10 entries"),
    (lambda: mixture(loc=zeros(4, 3, 2)).log_prob(zeros(5, 2)), r"batch shape \(4,\), got \(5,\)"),
    (lambda: mixture().responsibilities(zeros(5, 3)), "event shape"),
    # queries
    (lambda: mixture().marginal([]), "at least one coordinate"),
    (lambda: mixture().marginal([0, 0]), "each coordinate once"),
    (lambda: mixture().marginal([0, -2]), "each coordinate once"),
    (lambda: mixture().marginal(2), "an integer from -2 to 1, got 2"),
    (lambda: mixture().marginal([0.5]), "an integer from -2 to 1, got 0.5"),
    (lambda: mixture().marginal(True), "an integer from -2 to 1, got True"),
    (lambda: mixture().condition({}), "between 1 and 1 observed"),
    (lambda: mixture().condition({0: 1.0, 1: 1.0}), "call log_prob"),
    (lambda: mixture().condition({2: 1.0}), "an integer from -2 to 1"),
    (lambda: mixture().condition({0: math.nan}), "without NaN"),
    (lambda: mixture().condition({0: ones(3).long()}), "observed value of coordinate 0"),
    (lambda: mixture().condition(ones(5)), "mapping"),
    # learnable mixtures
    (lambda: learnable(dim=0), "dim to be an integer of at least 1, got 0"),
    (lambda: learnable(num_components=0), "num_components to be an integer of at least 1"),
    (lambda: learnable(num_components=2.5), "integer of at least 1, got 2.5"),
    (lambda: learnable(dim=True), "integer of at least 1, got True"),
    (lambda: learnable(covariance="round"), "got 'round'"),
    (lambda: learnable(variance_floor=0.0), "positive, finite variance_floor"),
    (lambda: learnable(variance_floor=math.inf), "positive, finite variance_floor"),
    (lambda: learnable().log_prob(zeros(5, 3)), "event shape"),
    (
        lambda: learnable(missing="marginalize").log_prob([[0.0, math.nan]]),
        "value to be a torch.Tensor, got list",
    ),
    (lambda: learnable().initialize(zeros(5, 3)), "event shape"),
    (lambda: learnable().initialize(ones(5, 2) * math.inf), "a finite value, got 10"),
    (lambda: learnable().initialize(zeros(0, 2)), "at least one point"),
    (lambda: learnable().condition(ones(5)), "mapping"),
    (lambda: learnable().loss((zeros(5, 2), zeros(5, 1), zeros(5))), "pair"),
    (lambda: learnable().loss({"x": zeros(5, 2)}), "keys 'value' and 'context'"),
    # flows
    (lambda: Flow(dist.Normal(0.0, 1.0), transforms.affine_coupling(2)), "shape fits"),
    (lambda: Flow(dist.Normal(zeros(2), 1.0), []).log_prob(zeros(2).long()), "got torch.int64"),
    (lambda: Flow(dist.Normal(zeros(2), 1.0), []).log_prob(zeros(3)), "broadcast"),
    (
        lambda: Flow(
            dist.Normal(zeros(2), 1.0), transforms.conditional_affine_coupling(2, 1)
        ).log_prob(zeros(2)),
        r"condition\(context\)",
    ),
    (
        lambda: Flow(
            dist.Normal(zeros(2), 1.0), transforms.conditional_affine_coupling(2, 1)
        ).rsample_and_log_prob(),
        r"condition\(context\)",
    ),
    (
        lambda: fit(Flow(learnable(), [transforms.spline_coupling(2)]), zeros(9, 2).float()),
        "dtype torch.float64, got torch.float32",
    ),
    # training
    (lambda: train([1.0, 2.0, 3.0]), "event shape"),
    (lambda: train(["a", "b"]), "real numbers, got strings"),
    (lambda: train({1.0}), "tuple, list or dict of tensors"),
    (lambda: train((torch.randn(20, 2).numpy(), "ab")), "tuple, list or dict of tensors"),
    (lambda: train(zeros(0, 2)), "positive number of items"),
    (lambda: train((zeros(3, 2), zeros(4, 2))), "same, positive number"),
    (lambda: train(zeros(20, 3)), "event shape"),
    (lambda: train(zeros(20, 2).float()), "dtype torch.float64"),
    (lambda: train(steps=0), "steps to be an integer of at least 1"),
    (lambda: train(batch_size=0), "batch_size to be an integer"),
    (lambda: train(patience=3), "validation data with patience"),
    (lambda: train(validation=1.5), "fraction between 0 and 1"),
    (lambda: train(validation=0.001), "fraction between 0 and 1"),
    (lambda: train(validation="all"), "Expected validation to be"),
    (lambda: fit(torch.nn.Linear(2, 2), zeros(20, 2), steps=2), r"loss\(batch, progress\)"),
    (lambda: fit(learnable().requires_grad_(False), zeros(20, 2), steps=2), "no parameters"),
    # files
    (lambda: save(torch.nn.Linear(2, 2), "model.safetensors"), "DistributionModule, got Linear"),
    (lambda: load(__file__), "not a safetensors file"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call()


def test_parts_of_the_wrong_kind():
    with pytest.raises(TypeError, match="Expected a distribution, got int"):
        Flow(3, [])
    with pytest.raises(TypeError, match="Expected a transform"):
        Flow(dist.Normal(zeros(2), 1.0), [torch.exp])


def images(pixel):
    return zeros(1, 1, 1, 2).index_fill(-1, torch.tensor([0]), pixel)


def small_images():
    return DCGMM((1, 1, 2), [Folding((1, 1)), GMM(4), Folding((1, 2)), GMM(4)])


def observation(y=0.0, noise=1.0):
    return LinearGaussian(torch.eye(2)[:1], torch.tensor([y]), noise)


INF = math.inf
ROW = torch.tensor([INF, 0.0], dtype=torch.float64)
GAP = torch.tensor([[INF, math.nan]], dtype=torch.float64)
INFINITE = {
    "mixture": lambda: mixture().log_prob(ROW),
    "full": lambda: learnable(covariance="full").log_prob(ROW),
    "responsibilities": lambda: learnable().responsibilities(ROW),
    "impute": lambda: learnable(covariance="full").impute(GAP),
    "missing": lambda: learnable(missing="marginalize").log_prob(GAP),
    "mapping": lambda: learnable(missing="marginalize").condition({0: INF}),
    "relaxed": lambda: RelaxedGaussianMixture(2, 2).log_prob(ROW),
    "drmm": lambda: DRMM(2, 2, 2).log_prob(ROW),
    "drmm impute": lambda: DRMM(2, 2, 2).impute(GAP),
    "rad": lambda: RAD(2, 2).log_prob(ROW),
    "conditioned rad": lambda: RAD(2, 2, context_dim=1).condition(zeros(1)).log_prob(ROW),
    "rad encode": lambda: RAD(2, 2).encode(ROW),
    "frmdn": lambda: FRMDN(2, 3, 2).log_prob(ROW.expand(3, 2)),
    "dcgmm": lambda: small_images().log_prob(images(INF)),
    "dcgmm encode": lambda: small_images().encode(images(INF)),
    "conditioned": lambda: learnable().condition(Box(low=0.0)).log_prob(ROW.abs()),
    "classes": lambda: class_conditional(RAD(2, 2, context_dim=3), 3).classify(ROW),
    "prior": lambda: learnable().condition(GaussianPrior(INF, 1.0)),
    "observation": lambda: DRMM(2, 2, 2).condition(observation(y=INF)),
    "noise": lambda: learnable().condition(observation(noise=INF)),
    "inequality": lambda: learnable().condition(LinearInequality(ones(2), INF)),
    "equation": lambda: learnable().condition(LinearEquality(ones(2), -INF)),
}


@pytest.mark.parametrize("call", INFINITE.values(), ids=INFINITE)
def test_infinities_are_refused_as_nan_is(call):
    with pytest.raises(ValueError, match="finite"):
        call()


def test_an_infinite_scale_of_a_prior_says_nothing_about_its_coordinate():
    law = learnable()
    given = law.condition(GaussianPrior(torch.tensor([INF, 1.0]), torch.tensor([INF, 2.0])))
    other = law.condition(GaussianPrior(torch.tensor([0.0, 1.0]), torch.tensor([INF, 2.0])))
    assert torch.equal(given.mean, other.mean)


FAR = {
    "responsibilities": lambda x: learnable().float().responsibilities(x),
    "impute": lambda x: learnable().float().impute(torch.stack([x[0], x[0] * math.nan])[None]),
    "drmm impute": lambda x: DRMM(2, 2, 2).float().impute(x.where(x > 0, math.nan)[None]),
    "condition": lambda x: learnable().float().condition({0: x[0]}),
    "classes": lambda x: class_conditional(RAD(2, 2, context_dim=3), 3).float().classify(x),
}


@pytest.mark.parametrize("call", FAR.values(), ids=FAR)
@pytest.mark.filterwarnings("ignore:condition:FutureWarning")
def test_values_too_far_from_every_component_are_refused(call):
    with pytest.raises(ValueError, match="near enough to a component"):
        call(torch.tensor([1e25, 0.0], dtype=torch.float32))


def test_pixels_whose_squares_overflow_are_refused():
    with pytest.raises(ValueError, match="can hold, got numbers up to"):
        small_images().float().log_prob(images(1e25).float())
