"""Models of simulations in Pyro programs and in files, and numbers of other shapes and dtypes."""

import io
import math
import pickle

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import Predictive

from pyromix.simulations import SimulationModel, learn_joint

OPTIONS = {"num_components": (2,), "num_members": 1, "hidden_dims": (8,)}
TRAINING = {"steps": 2, "seed": 0, "progress_bar": False}
PRIORS = {
    "box": dist.Uniform(torch.zeros(2), torch.ones(2)).to_event(1),
    "positive": dist.LogNormal(torch.zeros(2), 1.0).to_event(1),
}
SEEN = torch.tensor([2, 1])


def counts(theta):
    return torch.poisson(3 * theta).long()


@pytest.fixture(scope="module", params=PRIORS)
def model(request):
    return learn_joint(PRIORS[request.param], counts, 200, **TRAINING, **OPTIONS)


def test_laws_are_sites_of_pyro_programs(model):
    assert model.likelihood(model.prior.sample()).expand([4]).to_event(1).event_shape == (4, 2)

    def program(seen=None):
        theta = pyro.sample("theta", model.prior)
        with pyro.plate("observations", 3):
            return pyro.sample("x", model.likelihood(theta), obs=seen)

    for parallel in (False, True):
        draws = Predictive(program, num_samples=4, parallel=parallel)()
        assert draws["x"].squeeze(-3 if parallel else 1).shape[-2:] == (3, 2)
    pyro.set_rng_seed(0)
    trace = pyro.poutine.trace(program).get_trace(SEEN.expand(3, 2))
    trace.compute_log_prob()
    theta = trace.nodes["theta"]["value"]
    right = model.likelihood(theta).log_prob(SEEN.double())
    assert torch.allclose(trace.nodes["x"]["log_prob"], right.expand(3))

    for route in ("likelihood", "network"):
        law = model.posterior(SEEN, route=route, num_draws=1000)
        with pyro.plate("groups", 3):
            assert pyro.sample("theta", law).shape == (3, 2)


def test_models_and_posteriors_are_saved(model):
    values = model.prior.sample((5,))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    questions = [(SEEN, "likelihood"), (SEEN, "network"), ([2, math.nan], "likelihood")]
    for seen, route in questions:
        options = {"route": route, "num_draws": 1000}
        law = model.posterior(seen, **options)
        kept = pickle.loads(pickle.dumps(law))
        for other in (kept, again.posterior(seen, **options)):
            assert torch.equal(other.log_prob(values), law.log_prob(values))
            assert repr(other) == repr(law)
            draws = [
                one.sample((3,), generator=torch.Generator().manual_seed(0))
                for one in (other, law)
            ]
            assert torch.equal(*draws)


def test_texts_tell_what_was_learnt(model):
    text = repr(model)
    for part in ("num_parameters=2", "num_columns=2", "num_simulations=200", model.route):
        assert part in text
    assert f"{model.scores['network']:.3f}" in text
    assert "not fitted" in repr(SimulationModel(model.prior))
    law = model.posterior(SEEN, route="likelihood", num_draws=1000)
    assert f"effective={float(law.effective):.3f}" in repr(law)
    assert "log_evidence" in repr(law)
    assert "batch_shape=(1,)" in repr(model.posterior(SEEN[None], route="network"))


@pytest.mark.parametrize("gap", [0.05, 0.15])
def test_a_poor_route_is_warned_of(model, gap, recwarn, monkeypatch):
    monkeypatch.setattr(model, "scores", {"likelihood": -1.0, "network": gap - 1.0})
    if gap < 0.1:
        model.posterior([2, math.nan], num_draws=1000)
        assert not recwarn
    else:
        with pytest.warns(UserWarning, match=r"-1\.000, is far below .* -0\.850") as caught:
            model.posterior([2, math.nan], num_draws=1000)
        assert caught[0].filename == __file__


def test_numbers_take_the_dtype_of_the_model():
    prior = dist.Uniform(torch.zeros(2, dtype=torch.float32), 1.0).to_event(1)
    theta = prior.sample((200,)).float()
    model = SimulationModel(prior, **OPTIONS).fit(theta, counts(theta).double(), **TRAINING)
    for route in ("likelihood", "network"):
        options = {"route": route, "num_draws": 1000}
        law = model.posterior(SEEN.double(), **options)
        right = model.posterior(SEEN.float(), **options).log_prob(theta[:3])
        assert right.dtype == torch.float32
        assert torch.equal(law.log_prob(theta[:3].double()), right)
    right = model.likelihood(theta[:3]).log_prob(SEEN.float())
    for kind in (torch.float64, torch.int64):
        assert torch.equal(model.likelihood(theta[:3].double()).log_prob(SEEN.to(kind)), right)


def test_one_parameter_and_one_column():
    prior = dist.Uniform(torch.zeros(1), torch.ones(1)).to_event(1)
    theta = prior.sample((200,))
    x = theta + torch.randn(200, 1)
    models = [
        SimulationModel(prior, **OPTIONS).fit(*pair, **TRAINING)
        for pair in ((theta, x), (theta[:, 0], x[:, 0]), (theta[:, 0].numpy(), x[:, 0].numpy()))
    ]
    right = models[0].posterior([0.5], num_draws=1000).log_prob(theta[:3])
    for one in models:
        for seen in (0.5, torch.tensor(0.5)):
            assert torch.equal(one.posterior(seen, num_draws=1000).log_prob(theta[:3]), right)
        assert one.likelihood(0.5).sample().shape == (1,)
