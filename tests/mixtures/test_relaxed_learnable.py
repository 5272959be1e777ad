"""RelaxedGaussianMixture: temperatures that fall in training, and files that keep them."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms

from pyromix import (
    Flow,
    GaussianMixture,
    MixtureOfNormals,
    RelaxedGaussianMixture,
    RelaxedMixtureOfNormals,
    fit,
    load,
    save,
)
from pyromix.core.module import DistributionModule
from pyromix.mixtures.relaxed import inner_points

TRUTH = MixtureOfNormals(
    torch.tensor([0.3, 0.7], dtype=torch.float64).log(),
    torch.tensor([[-3.0, 0.0], [2.0, 1.0]], dtype=torch.float64),
    torch.tensor([[0.5, 1.0], [1.0, 0.6]], dtype=torch.float64),
)


def train(model, data=None, **settings):
    data = TRUTH.sample((300,)) if data is None else data
    settings = {"steps": 20, "batch_size": 50, "lr": 0.01, "seed": 0, **settings}
    return fit(model, data, progress_bar=False, **settings)


def randomize(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


# ---- the law ----------------------------------------------------------------------------------


def test_queries_are_those_of_the_plain_law():
    model = randomize(RelaxedGaussianMixture(2, 3, 0.3, num_inner=60))
    mixture = model.mixture
    assert isinstance(mixture, GaussianMixture)
    parameters = mixture.logits, mixture.loc, mixture.scale
    law = RelaxedMixtureOfNormals(0.3, *parameters, num_inner=60)
    x = torch.randn(5, 2)
    torch.testing.assert_close(model.log_prob(x), law.log_prob(x))
    torch.testing.assert_close(model.mean, law.mean)
    torch.testing.assert_close(model.variance, law.variance)
    torch.testing.assert_close(model.distribution.inner.logits, law.inner.logits)
    for draw in (
        lambda d: d.rsample((4,)),
        lambda d: torch.cat([t.flatten() for t in d.rsample_weighted(70)]),
        lambda d: d.log_prob_nested(x, 7),
    ):
        torch.manual_seed(3)
        got = draw(model)
        torch.manual_seed(3)
        torch.testing.assert_close(got, draw(law))


def test_parameters_are_the_mixtures():
    model = RelaxedGaussianMixture(2, 3)
    expected = {f"mixture.{name}" for name, _ in GaussianMixture(2, 3).named_parameters()}
    assert {name for name, _ in model.named_parameters()} == expected
    x, log_weight = model.rsample_weighted(30)
    for total in (model.loss(torch.randn(9, 2)), x.sum() + log_weight.sum()):
        gradients = torch.autograd.grad(total, list(model.parameters()))
        assert all(g.isfinite().all() and g.any() for g in gradients)


def test_changes_of_parameters_and_temperature_change_the_law_at_once():
    model, x = RelaxedGaussianMixture(1, 2), torch.randn(5, 1)
    before = model.log_prob(x)
    model.temperature.fill_(0.1)
    cold = model.log_prob(x)
    assert not torch.allclose(cold, before)
    with torch.no_grad():
        model.mixture.loc.add_(1.0)
    torch.testing.assert_close(model.log_prob(x + 1), cold)


@pytest.fixture
def _fresh_points():
    """Other tests are not to see what one may do to shared points."""
    inner_points.cache_clear()
    yield
    inner_points.cache_clear()


@pytest.mark.usefixtures("_fresh_points")
def test_every_model_has_inner_points_of_its_own():
    """What changes those of one, such as loading a file, changes no other's."""
    one, other = RelaxedGaussianMixture(1, 2), RelaxedGaussianMixture(1, 2)
    plain = RelaxedMixtureOfNormals(
        0.5, other.mixture.logits, other.mixture.loc, other.mixture.scale
    )
    x = torch.randn(5, 1)
    before, plain_before = other.log_prob(x), plain.log_prob(x)
    state = {k: v + 0.5 if k == "points" else v.clone() for k, v in one.state_dict().items()}
    one.load_state_dict(state)
    assert torch.equal(other.log_prob(x), before)
    assert torch.equal(plain.log_prob(x), plain_before)
    assert torch.equal(RelaxedGaussianMixture(1, 2).points, other.points)


# ---- schedules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "middle"), [("geometric", math.sqrt(2.0 * 0.08)), ("linear", 1.04)]
)
def test_schedules(schedule, middle):
    model = RelaxedGaussianMixture(1, 2, (2.0, 0.08), schedule=schedule)
    assert float(model.temperature) == 2.0
    for progress, expected in ((0.5, middle), (1.0, 0.08), (0.0, 2.0)):
        model.anneal(progress)
        assert float(model.temperature) == pytest.approx(expected)
        assert float(model.distribution.temperature) == pytest.approx(expected)


def test_a_single_temperature_stays():
    model = RelaxedGaussianMixture(1, 2, 0.7)
    for progress in (0.0, 0.4, 1.0):
        model.anneal(progress)
        assert float(model.temperature) == pytest.approx(0.7)


def test_models_without_a_schedule_take_no_notice():
    model = GaussianMixture(2, 2)
    before = copy.deepcopy(model.state_dict())
    DistributionModule.anneal(model, 0.5)
    model.anneal(0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Watched(RelaxedGaussianMixture):
    """Notes the temperature at which it computes every loss of training."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def loss(self, batch, progress=1.0):
        if self.training:
            self.seen.append((progress, float(self.temperature)))
        return super().loss(batch, progress)


def test_training_follows_the_schedule():
    model = Watched(2, 2, (1.0, 0.01))
    train(model, TRUTH.sample((100,)), steps=10)
    assert [progress for progress, _ in model.seen] == pytest.approx([i / 10 for i in range(10)])
    for progress, temperature in model.seen:
        assert temperature == pytest.approx(0.01**progress)
    assert float(model.temperature) == pytest.approx(0.01)


def test_flows_hand_the_schedule_to_their_base():
    for flow in (
        Flow(RelaxedGaussianMixture(2, 2, (1.0, 0.1)), [transforms.affine_coupling(2)]),
        Flow(
            Flow(RelaxedGaussianMixture(2, 2, (1.0, 0.1)), []),
            [transforms.AffineTransform(0.0, 2.0)],
        ),
    ):
        flow.anneal(0.5)
        (temperature,) = (v for k, v in flow.state_dict().items() if k.endswith("temperature"))
        assert float(temperature) == pytest.approx(math.sqrt(0.1))
        train(flow, TRUTH.sample((100,)), steps=3)
        assert float(temperature) == pytest.approx(0.1)
    Flow(dist.Normal(torch.zeros(2), torch.ones(2)), []).anneal(0.5)  # nothing to hand on to


# ---- training ---------------------------------------------------------------------------------


def test_initialisation_starts_from_clusters():
    data = TRUTH.sample((2000,))
    model, plain = RelaxedGaussianMixture(2, 2, 0.2), GaussianMixture(2, 2)
    model.initialize(data)
    plain.initialize(data)
    assert model.initialized
    order, other = model.mixture.loc[:, 0].argsort(), plain.loc[:, 0].argsort()
    torch.testing.assert_close(model.mixture.loc[order], plain.loc[other])
    torch.testing.assert_close(model.mixture.scale[order], plain.scale[other])
    error = TRUTH.scale / math.sqrt(0.3 * 2000)
    assert ((model.mixture.loc[order] - TRUTH.loc).abs() < 5 * error).all()


def test_training_with_a_falling_temperature_reaches_the_mixture():
    data, held_out = TRUTH.sample((4000,)), TRUTH.sample((4000,))
    model = RelaxedGaussianMixture(2, 2, (0.5, 1e-3), num_inner=64)
    history = train(model, data, steps=400, batch_size=400, lr=0.02)
    assert history.outcome == "finished"
    difference = TRUTH.log_prob(held_out) - model.log_prob(held_out).detach()
    # Bridges cost little at this temperature; beside the error, that of five estimates per
    # component at 4000 points.
    error = float(difference.std()) / math.sqrt(len(difference))
    assert float(difference.mean()) < 4 * error + 10 / len(data)
    order = model.mixture.loc[:, 0].argsort()
    scale = TRUTH.scale / math.sqrt(0.3 * len(data))
    assert ((model.mixture.loc[order] - TRUTH.loc).abs() < 5 * scale).all()
    weight = model.mixture.logits.softmax(-1)[order]
    share = math.sqrt(0.21 / len(data))
    assert ((weight - TRUTH.logits.exp()).abs() < 5 * share).all()


# ---- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda m: m, lambda m: Flow(m, [transforms.AffineTransform(1.0, 2.0)])]
)
def test_a_resumed_run_has_the_temperatures_of_a_whole_one(make, tmp_path):
    data, start = TRUTH.sample((300,)), make(RelaxedGaussianMixture(2, 2, (1.0, 0.05)))
    settings = {"validation": 0.2, "validation_every": 4}
    whole = copy.deepcopy(start)
    expected = train(whole, data, **settings)
    path = tmp_path / "training.safetensors"

    broken, calls = copy.deepcopy(start), []

    def fail(module, *_):
        calls.append(1)
        if len(calls) == 13:
            raise RuntimeError("power cut")

    loss = type(broken).loss
    broken.loss = lambda batch, progress=1.0: (fail(broken), loss(broken, batch, progress))[1]
    with pytest.raises(RuntimeError, match="power cut"):
        train(broken, data, checkpoint=path, checkpoint_every=5, **settings)
    resumed = copy.deepcopy(start)
    history = train(resumed, data, checkpoint=path, **settings)
    assert history.losses == expected.losses
    assert history.validation_losses == expected.validation_losses
    state = resumed.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(state[name], value), name


def test_a_run_that_goes_on_longer_follows_the_longer_schedule(tmp_path):
    path, data = tmp_path / "training.safetensors", TRUTH.sample((100,))
    model = Watched(2, 2, (1.0, 0.01))
    train(copy.deepcopy(model), data, steps=10, checkpoint=path)
    train(model, data, steps=20, checkpoint=path)
    assert model.seen[0] == pytest.approx((0.5, 0.1))
    assert model.seen[-1] == pytest.approx((0.95, 0.01**0.95))
    assert float(model.temperature) == pytest.approx(0.01)


def test_the_best_weights_come_back_with_the_temperature_they_were_validated_at():
    data, held_out = TRUTH.sample((200,)), TRUTH.sample((200,))
    model = RelaxedGaussianMixture(2, 2, (0.01, 5.0))  # rising: the best come early
    history = train(model, data, validation=held_out, validation_every=2)
    assert 0 < history.best_step < 20
    expected = min(history.validation_losses)
    assert model.loss(held_out).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_keep_temperature_and_inner_points(dtype, tmp_path):
    model = randomize(RelaxedGaussianMixture(2, 3, (1.0, 0.1), schedule="linear", num_inner=50))
    model = model.to(dtype)
    model.anneal(0.3)
    model.points = inner_points(3, 50, seed=9).to(dtype)  # as an older release had them, say
    save(model, tmp_path / "model.safetensors")
    other = load(tmp_path / "model.safetensors")
    assert other.temperature.dtype == dtype
    assert float(other.temperature) == pytest.approx(0.73)
    assert torch.equal(other.points, model.points)
    x = torch.randn(5, 2, dtype=dtype)
    torch.testing.assert_close(other.log_prob(x), model.log_prob(x))
    other.anneal(1.0)
    assert float(other.temperature) == pytest.approx(0.1)
    assert (other.schedule, other.num_inner) == ("linear", 50)


class Pair(DistributionModule):
    """Two models in one."""

    support = TRUTH.support

    def __init__(self):
        super().__init__(event_shape=(2,))
        self.first, self.second = (RelaxedGaussianMixture(2, 2) for _ in range(2))

    def log_prob(self, value):
        return 0.5 * (self.first.log_prob(value) + self.second.log_prob(value))


@pytest.mark.usefixtures("_fresh_points")
def test_two_in_one_file(tmp_path):
    pair, other = Pair(), Pair()
    pair.second.points = inner_points(2, 512, seed=9)
    save(pair, tmp_path / "pair.safetensors")
    load(tmp_path / "pair.safetensors", into=other)
    x = torch.randn(5, 2)
    torch.testing.assert_close(other.first.log_prob(x), pair.first.log_prob(x))
    torch.testing.assert_close(other.second.log_prob(x), pair.second.log_prob(x))


# ---- bad input --------------------------------------------------------------------------------


def learnable(*args, **kwargs):
    return RelaxedGaussianMixture(2, 3, *args, **kwargs)


BAD = [
    (lambda: RelaxedGaussianMixture(0, 3), "dim to be an integer of at least 1, got 0"),
    (lambda: RelaxedGaussianMixture(2, 0), "num_components to be an integer of at least 1"),
    (lambda: learnable(0.0), "positive temperature, or a pair of them, got 0.0"),
    (lambda: learnable(-1.0), "positive temperature"),
    (lambda: learnable(math.nan), "positive temperature"),
    (lambda: learnable(math.inf), "positive temperature"),
    (lambda: learnable("cold"), "positive temperature"),
    (lambda: learnable(None), "positive temperature"),
    (lambda: learnable((1.0, 0.0)), "positive temperature"),
    (lambda: learnable((1.0, 0.5, 0.1)), "positive temperature"),
    (lambda: learnable((1.0,)), "positive temperature"),
    (lambda: learnable(schedule="cosine"), "got 'cosine'"),
    (lambda: learnable(num_inner=0), "num_inner to be an integer of at least 1, got 0"),
    (lambda: learnable(variance_floor=0.0), "positive, finite variance_floor"),
    (lambda: learnable().log_prob(torch.zeros(5, 3)), "event shape"),
    (lambda: learnable().log_prob(torch.zeros(5, 2) * math.nan), "10 NaN among 10 entries"),
    (lambda: learnable().log_prob(torch.zeros(5, 2).float()), "dtype torch.float64"),
    (lambda: learnable().initialize(torch.zeros(5, 3)), "event shape"),
    (lambda: learnable().initialize(torch.ones(5, 2) * math.inf), "a finite value, got 10"),
    (lambda: learnable().rsample_weighted(0), "num_samples to be an integer of at least 1"),
    (lambda: learnable().log_prob_nested(torch.zeros(2), 0), "num_inner to be an integer"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_integer_temperature_is_a_number():
    model = learnable((1, 2))
    assert model.temperatures == (1.0, 2.0)
    assert model.temperature.dtype == torch.float64
