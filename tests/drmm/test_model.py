"""What a deep residual mixture can be asked, on random models and on one that was trained."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from scipy.stats import ks_2samp

from pyromix import load, save
from pyromix.drmm import DRMM
from pyromix.testing import GOODNESS_OF_FIT, goodness_of_fit

from .conftest import spiral
from .slow import Slow, random_model
from .test_law import STANDARD_ERRORS, close, exactly, quadrature

# ---- a trained model --------------------------------------------------------------------------


def test_the_beam_loses_little(trained):
    model, x = trained
    truth = exactly(model)(x)
    assert truth.mean() > -3.2  # the data's entropy, about: a Gaussian has -5.2
    gap = truth - model.log_prob(x)
    assert gap.min() > -1e-9
    assert gap.mean() < 1e-3
    narrow = copy.copy(model)
    gaps = []
    for narrow.beam in (1, 4, 16, 256):
        gaps.append((truth - narrow.log_prob(x)).mean())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-9


def test_the_trained_law_is_normalised(trained):
    model, _ = trained
    assert 0.999 < quadrature(model, 200, 0.5) < 1 + 1e-3
    shallow = model.shallow(2)
    shallow.max_exact = 256
    assert abs(quadrature(shallow, 200, 1.0) - 1) < 1e-3


def test_samples_of_the_trained_model_follow_its_law(trained):
    model, _ = trained
    x = model.sample((5000,))
    assert goodness_of_fit(x, exactly(model)(x)) > GOODNESS_OF_FIT


def test_encodings_of_the_trained_model(trained):
    model, x = trained
    codes = model.encode(x)
    decoded = model.decode(codes)
    last = model.law.scale[codes[:, -1]]
    # Residuals are what the last layer takes for noise, and small compared to the data.
    standardised = ((x - decoded) / last).square().mean().sqrt()
    assert 0.7 < standardised < 1.3
    assert (x - decoded).norm(dim=-1).mean() < 0.05 * x.norm(dim=-1).mean() + 0.15
    few = x[:20]
    wide = copy.copy(model)
    wide.beam = 256
    joint = wide.law.mixture_of(*wide.law.all_codes())._joint_log_prob(few)
    assert torch.equal(wide.encode(few), wide.law.all_codes()[0][joint.argmax(-1)])


def test_inner_scales_are_those_of_residuals(trained):
    """They are trained next to the density, which does not depend on them."""
    model, _ = trained
    torch.manual_seed(2)
    x = spiral(10_000, 0.1)
    residual = x
    codes = model.encode(x)
    for layer in range(model.num_layers - 1):
        residual = residual - model.loc[layer][codes[:, layer]]
        spread = residual.square().mean(0).sqrt()
        torch.testing.assert_close(model.law.inner_scale[layer], spread, atol=0.01, rtol=0.15)


def test_importance_sampling_on_the_trained_model(trained):
    model, x = trained
    few = x[:50]
    ratio = (model.log_prob_importance(few.expand(200, -1, -1), 20) - exactly(model)(few)).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert ((ratio.mean(0) - 1).abs() <= STANDARD_ERRORS * error + 1e-9).all()
    many = model.log_prob_importance(few, 2000)
    assert (many - exactly(model)(few)).abs().mean() < 0.05


# ---- depth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner_scale", ["diagonal", "scalar"])
def test_layers(inner_scale):
    model = random_model(2, 3, 3, inner_scale=inner_scale, scale="scalar", truncation=0.01)
    x = model.sample((6,))
    by_layer = model.layer_log_prob(x)
    close(by_layer[:, -1], model.log_prob(x))
    assert model.layer_log_prob(x.reshape(2, 3, 2)).shape == (2, 3, 3)
    for depth in (1, 2, 3):
        shallow = model.shallow(depth)
        close(by_layer[:, depth - 1], shallow.log_prob(x))
        close(shallow.log_prob(x), Slow(shallow).log_prob(x))
        assert abs(quadrature(shallow) - 1) < 1e-3
        assert shallow.num_layers == depth
        assert shallow.training == model.training
    with pytest.raises(ValueError, match="at most 3 layers"):
        model.shallow(4)
    with pytest.raises(ValueError, match="num_layers"):
        model.shallow(0)


def test_a_shallow_model_is_one_of_its_own():
    model = random_model(2, 3, 3, categories=(2,)).eval()
    shallow, state = model.shallow(2), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in shallow.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not shallow.training
    assert model.float().shallow(1).loc.dtype == torch.float32


def test_samples_of_shallow_models(trained):
    """Coordinates, against draws from the codes and residual scales written out."""
    model, _ = trained
    for depth in (1, 2):
        law, num = model.law, 4000
        mine = model.shallow(depth).sample((num,))
        codes = law.sample_codes(num)[:, :depth]
        theirs = sum(law.loc[layer][codes[:, layer]] for layer in range(depth))
        theirs = theirs + law.inner_scale[depth - 1] * torch.randn(num, 2)
        for direction in torch.randn(3, 2):
            assert ks_2samp(mine @ direction, theirs @ direction).pvalue > 1e-5


# ---- encodings --------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True])
def test_encoding_finds_the_likeliest_code(missing):
    model = random_model(2, 3, 3, categories=(3,), missing="marginalize", beam=9)
    x = model.sample((12,))
    if missing:
        x[:4, 0], x[4:8, 2], x[8] = math.nan, math.nan, math.nan
    codes = model.encode(x)
    assert torch.equal(codes, Slow(model).best_code(x))
    assert torch.equal(model.encode(x.reshape(3, 4, -1)), codes.reshape(3, 4, -1))
    assert torch.equal(model.encode(x[0]), codes[0])


def test_decoding():
    model = random_model(2, 3, 4, categories=(3, 2))
    codes = torch.randint(4, (2, 5, 3))
    decoded = model.decode(codes)
    slow = Slow(model)
    for code, value in zip(codes.reshape(-1, 3).tolist(), decoded.reshape(-1, 4), strict=True):
        close(value[:2].detach(), slow.mean(code))
        expected = [p.argmax().item() for p in slow.column_log_probs(code)]
        assert value[2:].tolist() == expected
    assert model.support.check(decoded).all()
    assert torch.equal(model.decode(codes.int()), decoded)


# ---- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "layers", "k"), [(5, 4, 7), (1, 1, 1), (30, 3, 2)])
def test_number_of_parameters(dim, layers, k):
    """Section 4.3 of the paper: D L K + L (L - 1) K^2 / 2, and weights and scales."""
    model = DRMM(dim, layers, k, scale="scalar", inner_scale="scalar")
    pairs = layers * (layers - 1) // 2
    assert model.num_parameters == layers * ((dim + 1) * k + 1) + pairs * k * k
    richer = DRMM(dim, layers, k, categories=(3, 2))
    scales = (layers - 1) * (dim - 1) + k * dim - 1
    assert richer.num_parameters == model.num_parameters + scales + 5 * layers * k


@pytest.mark.parametrize("max_exact", [0, 1000])
@pytest.mark.parametrize(("layers", "k"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_small_and_empty_inputs(layers, k, max_exact):
    model = random_model(2, layers, k, categories=(2,), max_exact=max_exact, missing="marginalize")
    assert model.sample().shape == (3,)
    for shape in ((), (0,), (1,), (0, 2), (2, 0), (2, 1)):
        x = model.sample(shape)
        assert x.shape == (*shape, 3)
        assert model.log_prob(x).shape == shape
        assert model.log_prob_importance(x, 3).shape == shape
        assert model.layer_log_prob(x).shape == (*shape, layers)
        assert model.encode(x).shape == (*shape, layers)
        assert model.decode(model.encode(x)).shape == (*shape, 3)


# ---- state ------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    model = random_model(
        2, 3, 3, categories=(3,), truncation=0.1, curriculum=[("em", 1), ("joint", 3)]
    )
    save(model, tmp_path / "model.safetensors")
    other = load(tmp_path / "model.safetensors")
    x = model.sample((10,))
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    assert other.curriculum == (("em", 0.25), ("joint", 0.75))
    assert other.config() == model.config()


def test_other_precision():
    model = random_model(2, 3, 3, categories=(3,))
    x = model.sample((50,))
    expected = model.log_prob(x)
    single = copy.deepcopy(model).to(torch.float32)
    assert single.sample((3,)).dtype == torch.float32
    log_prob = single.log_prob(x.float())
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(single.encode(x.float()), model.encode(x))
    assert single.decode(single.encode(x.float())).dtype == torch.float32
    assert single.log_prob_importance(x.float(), 5).dtype == torch.float32
    single.initialize(x.float())
    assert single.loss(x.float(), 0.3).dtype == torch.float32


# ---- bad input --------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ({"dim": 0}, "dim to be positive, or categories"),
    ({"num_layers": 0}, "num_layers"),
    ({"num_layers": 1.5}, "num_layers"),
    ({"num_components": True}, "num_components"),
    ({"categories": (3, 0)}, "every entry of categories"),
    ({"scale": "full"}, "scale to be one of"),
    ({"inner_scale": "spherical"}, "inner_scale to be one of"),
    ({"missing": "ignore"}, "missing to be one of"),
    ({"scale_floor": 0.0}, "positive, finite scale_floor"),
    ({"scale_floor": -1.0}, "positive, finite scale_floor"),
    ({"scale_floor": math.nan}, "positive, finite scale_floor"),
    ({"smoothing": -1e-8}, "smoothing to be a finite number, at least 0 and less than 1"),
    ({"smoothing": math.nan}, "smoothing to be a finite number, at least 0 and less than 1"),
    ({"truncation": 1.0}, "truncation to be a finite number, at least 0 and less than 1"),
    ({"orphans": -0.01}, "orphans to be a finite number, at least 0"),
    ({"orphans": math.inf}, "orphans to be a finite number, at least 0"),
    ({"max_exact": -1}, "max_exact"),
    ({"max_exact": 1e4}, "max_exact"),
    ({"beam": 0}, "beam"),
    ({"training_beam": 0}, "training_beam"),
    ({"curriculum": ()}, "curriculum to be pairs"),
    ({"curriculum": "em"}, "curriculum to be pairs"),
    ({"curriculum": [("hard", 1.0)]}, "curriculum to be pairs"),
    ({"curriculum": [("em", 0.0)]}, "curriculum to be pairs"),
    ({"curriculum": [("em", -1.0), ("joint", 2.0)]}, "curriculum to be pairs"),
    ({"curriculum": [("em", math.inf)]}, "curriculum to be pairs"),
    ({"curriculum": [("em", math.nan)]}, "curriculum to be pairs"),
    ({"curriculum": [("em",)]}, "curriculum to be pairs"),
    ({"curriculum": {"em": 1.0}}, "curriculum to be pairs"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DRMM(**{"dim": 2, "num_layers": 2, "num_components": 3} | arguments)


BAD_VALUES = {
    "too wide": (torch.zeros(3, 5), "event shape"),
    "too narrow": (torch.zeros(3, 2), "event shape"),
    "a scalar": (torch.zeros(()), "event shape"),
    "another dtype": (torch.zeros(3, 4).float(), "dtype"),
    "integers": (torch.zeros(3, 4).long(), "dtype"),
    "NaN": (torch.tensor([[math.nan, 0.2, 1.0, 0.0]]), "without NaN"),
    "no code": (torch.tensor([[0.1, 0.2, math.nan, 0.0]]), "without NaN"),
    "too large a code": (torch.tensor([[0.1, 0.2, 3.0, 0.0]]), "codes from 0 to 2 in column 2"),
    "a negative code": (torch.tensor([[0.1, 0.2, 0.0, -1.0]]), "codes from 0 to 1 in column 3"),
    "half a code": (torch.tensor([[0.1, 0.2, 0.5, 0.0]]), "codes from 0 to 2 in column 2"),
    "an infinite code": (torch.tensor([[0.1, 0.2, math.inf, 0.0]]), "a finite value, got 1"),
}


@pytest.mark.parametrize(("value", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values(value, message):
    if message != "dtype":
        value = value.double()
    model = random_model(2, 2, 3, categories=(3, 2))
    before = copy.deepcopy(model.state_dict())
    for query in (
        model.log_prob,
        model.log_prob_importance,
        model.layer_log_prob,
        model.encode,
        model.initialize,
        model.loss,
        model.eval().loss,
    ):
        with pytest.raises(ValueError, match=message):
            query(value)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    if "codes from" in message:  # whether or not entries may be missing
        with pytest.raises(ValueError, match=message):
            random_model(2, 2, 3, categories=(3, 2), missing="marginalize").log_prob(value)


def test_other_bad_input():
    model = random_model(2, 3, 4)
    for codes, message in (
        (torch.zeros(5, 2).long(), r"integers of shape \(\*S, 3\)"),
        (torch.zeros(5, 3), "got torch.float64"),
        (torch.tensor(1), "integers of shape"),
        ([0.5, 1.0, 2.0], "to be integers, got float"),
        (torch.tensor([0, 4, 1]), "codes from 0 to 3, got"),
        (torch.tensor([0, -1, 1]), "codes from 0 to 3, got"),
    ):
        with pytest.raises(ValueError, match=message):
            model.decode(codes)
    for count in (0, 1.5, -1):
        with pytest.raises(ValueError, match="num_samples"):
            model.log_prob_importance(torch.zeros(2), count)
    for data in (torch.zeros(0, 2), torch.tensor([[0.0, 1.0], [math.inf, 0.0]])):
        with pytest.raises(ValueError, match=r"at least one point|a finite value"):
            model.initialize(data)
    assert not model.initialized
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match=r"torch\.Tensor"):
        model.log_prob([0.0, 1.0])
    with pytest.raises(NotImplementedError):
        model.rsample()


# ---- in Pyro ----------------------------------------------------------------------------------


def test_likelihood_with_missing_entries_under_a_plate():
    law = random_model(2, 2, 3, categories=(2,), missing="marginalize")
    data = law.sample((8,))
    data[0, 0] = data[1, 2] = data[2, 1] = math.nan

    def model(data):
        pyro.module("law", law)
        with pyro.plate("items", len(data)):
            pyro.sample("x", law, obs=data)

    trace = pyro.poutine.trace(model).get_trace(data)
    close(trace.log_prob_sum(), Slow(law).log_prob(data).sum())
    expanded = pyro.poutine.trace(lambda: pyro.sample("x", law.expand((8,)), obs=data)).get_trace()
    close(expanded.log_prob_sum(), law.log_prob(data).sum())
    svi = SVI(model, lambda data: None, ClippedAdam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(data) for _ in range(50)]
    assert losses[-1] < losses[0] - 1


def test_prior_with_an_autoguide():
    law = random_model(2, 2, 3)
    noise = 0.2

    def model(data):
        pyro.module("law", law)
        with pyro.plate("items", len(data)):
            z = pyro.sample("z", law)
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=data)

    data = law.sample((30,)) + noise * torch.randn(30, 2)
    before = law.loc.detach().clone()
    guide = AutoNormal(model)
    svi = SVI(model, guide, ClippedAdam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(data) for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert not torch.equal(law.loc, before)
    assert (guide.median(data)["z"] - data).abs().mean() < 2 * noise


def test_guide_by_the_score_function():
    """The gradient of the ELBO against the closed form: the target is a normal."""
    law = random_model(1, 2, 2)
    target = dist.Normal(torch.tensor([0.3]), torch.tensor([1.7])).to_event(1)

    def expectation():
        """KL(law || target), with the entropy by quadrature."""
        axis = torch.linspace(-15, 15, 6001).unsqueeze(-1)
        log_q = law.log_prob(axis)
        integrand = log_q.exp() * (log_q - target.log_prob(axis))
        return torch.trapezoid(integrand, axis.squeeze(-1))

    leaves = [p for name, p in law.named_parameters() if name != "raw_inner_scale"]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(expectation(), leaves)])
    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=0)
    rows = []
    for _ in range(200):
        loss = elbo.differentiable_loss(
            lambda: pyro.sample("z", target), lambda: pyro.sample("z", law)
        )
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)]))
    rows = torch.stack(rows)
    error = rows.std(0) / math.sqrt(len(rows))
    assert ((rows.mean(0) - expected).abs() <= STANDARD_ERRORS * error + 1e-9).all()

    def guide():
        pyro.module("law", law)
        pyro.sample("z", law)

    before = expectation().item()
    svi = SVI(lambda: pyro.sample("z", target), guide, ClippedAdam({"lr": 0.03}), elbo)
    for _ in range(100):
        svi.step()
    assert expectation() < before - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("max_exact", [0, 100])
def test_nuts_recovers_a_posterior_known_by_quadrature(max_exact):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # announces its coming refactoring
        import arviz
    prior = random_model(2, 2, 3, max_exact=max_exact, beam=3)
    with torch.no_grad():
        prior.loc.mul_(0.7)
        prior.raw_scale.clamp_(min=-1.0)
    observed, noise = torch.tensor(0.5), 0.7

    def likelihood(z):
        return dist.Normal(z.sum(-1), noise)

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("y", likelihood(z), obs=observed)

    chains, divergences = [], 0
    for seed in range(4):
        pyro.set_rng_seed(seed)
        mcmc = MCMC(NUTS(model), num_samples=1000, warmup_steps=300, disable_progbar=True)
        mcmc.run()
        chains.append(mcmc.get_samples()["z"])
        divergences += sum(map(len, mcmc.diagnostics()["divergences"].values()))
    draws = torch.stack(chains)  # (chain, draw, 2)
    assert divergences == 0
    assert float(arviz.rhat(arviz.convert_to_dataset(draws.numpy())).x.max()) < 1.01
    axis = torch.linspace(-8, 8, 801)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weight = (prior.log_prob(z) + likelihood(z).log_prob(observed)).softmax(0).unsqueeze(-1)
    mean = (weight * z).sum(0)
    for values, expected in (
        (draws, mean),
        ((draws - mean).square(), (weight * (z - mean).square()).sum(0)),
    ):
        error = torch.as_tensor(arviz.mcse(arviz.convert_to_dataset(values.numpy())).x.values)
        assert ((values.mean((0, 1)) - expected).abs() < 4 * error).all()


# ---- traced -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("options", [{}, {"max_exact": 0, "beam": 3}, {"missing": "marginalize"}])
def test_traced(options):
    """By the JIT; vmap and torch.compile are among the conformance checks."""
    model = random_model(2, 3, 3, categories=(2,), validate_args=False, **options)
    model.requires_grad_(False)  # the JIT takes no others for constants
    x, other = model.sample((5,)), model.sample((5,))
    if "missing" in options:
        other[0, 0] = other[1, 2] = math.nan
    traced = torch.jit.trace(lambda x: model.log_prob(x), (x,), check_trace=False)
    close(traced(other), model.log_prob(other))
