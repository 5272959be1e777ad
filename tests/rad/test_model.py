"""What a RAD model can be asked, on random models and on one that was trained."""

import copy
import math

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from torch import nn
from torch.distributions import Distribution

from pyromix import RAD, Flow, GaussianMixture, MixtureOfNormals, fit, load, save
from pyromix.datasets import two_moons
from pyromix.testing import GOODNESS_OF_FIT, Case, applicable_checks, goodness_of_fit

from .slow import integral, normal, sharpen


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def mixture(dim=2):
    return MixtureOfNormals(torch.zeros(3), torch.randn(3, dim), 0.5 + torch.rand(3, dim))


BASES = {
    "default": lambda: None,
    "batch of normals": lambda: normal(2),
    "plain mixture": mixture,
    "learnable mixture": lambda: GaussianMixture(2, 3),
    "flow": lambda: Flow(GaussianMixture(2, 2), transforms.affine_coupling(2)),
    "RAD": lambda: RAD(2, num_layers=1),
}
bases = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


# ---- random models ----------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 6])
@pytest.mark.parametrize("partition", ["alternate", "random"])
def test_draws_codes_and_scores(dim, partition):
    rad = sharpen(RAD(dim, num_layers=3, partition=partition), 2.0)
    rad.initialize(3 + 2 * torch.randn(100, dim))
    x = rad.sample((4, 50))
    assert x.shape == (4, 50, dim)
    assert rad.log_prob(x).shape == (4, 50)
    z, branches = rad.encode(x)
    assert z.shape == x.shape
    assert [b.shape[:-1] for b in branches] == [(4, 50)] * 3
    assert {int(b) for branch in branches for b in branch.unique()} == {0, 1, 2}
    close(rad.decode(z, branches), x, 1e-7)
    # The latents of draws follow the base: folding undoes the drawing of branches.
    z, _ = rad.encode(rad.sample((20_000,)))
    assert (z.mean(0).abs() < 6 / math.sqrt(20_000)).all()
    assert ((z.square().mean(0) - 1).abs() < 6 * math.sqrt(2 / 20_000)).all()


def test_log_prob_is_that_of_its_parts():
    """Base, branches and Jacobian of every layer, one by one, with its event's scale."""
    rad = sharpen(RAD(3, num_layers=3))
    rad.initialize(5 + torch.tensor([1.0, 2.0, 3.0]) * torch.randn(100, 3))
    x = rad.sample((20,))
    z, branches = rad.encode(x)
    z = z.detach()
    total = normal(3).to_event(1).log_prob(z)
    value = z
    for layer in rad.transforms[:-1]:
        below = value
        value = layer.decode(value, branches[len(branches) - 3]).detach()
        total = total + layer.log_branch_prob(below, value)
        branches = (*branches[1:], None)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: rad.decode(z, rad.encode(x)[1]).sum(0), z
    ).movedim(1, 0)
    close(rad.log_prob(x), total - torch.linalg.slogdet(jacobian).logabsdet, 1e-7)


def crossings(rad, dim, num=1000, spread=1.5):
    """Steps of length 1e-6 and 1e-9 along lines that cross a crease, and the branches there."""

    def branches(x):
        return torch.cat(rad.encode(x)[1], -1)

    with torch.no_grad():
        a, b = spread * torch.randn(2, 3 * num, dim)
        start = branches(a)
        change = (start != branches(b)).any(-1)
        a, b, start = a[change][:num], b[change][:num], start[change][:num]
        assert len(a) == num
        direction = (b - a) / (b - a).norm(dim=-1, keepdim=True)
        low, high = torch.zeros(num, 1), (b - a).norm(dim=-1, keepdim=True)
        for _ in range(45):
            middle = (low + high) / 2
            same = (branches(a + middle * direction) == start).all(-1, keepdim=True)
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        at = (low + high) / 2
        return [[a + (at + s * h / 2) * direction for s in (-1, 1)] for h in (1e-6, 1e-9)]


@pytest.mark.parametrize(("dim", "num_layers", "factor"), [(2, 6, 1.0), (2, 2, 3.0), (5, 4, 1.0)])
def test_continuous_across_creases(dim, num_layers, factor):
    rad = sharpen(RAD(dim, num_layers), factor)
    jumps = []
    for before, after in crossings(rad, dim):
        differ = torch.cat(rad.encode(before)[1], -1) != torch.cat(rad.encode(after)[1], -1)
        assert differ.any(-1).all()
        ends = torch.stack([before, after]).requires_grad_()
        log_prob = rad.log_prob(ends)
        (slopes,) = torch.autograd.grad(log_prob.sum(), ends)
        log_prob = log_prob.detach()
        jumps.append((log_prob[1] - log_prob[0]).abs())
        # Nothing is left beyond what the steeper of both sides makes of the step.
        steepest = (slopes * (after - before)).sum(-1).abs().amax(0)
        assert (jumps[-1] - steepest).max() < 1e-8
    assert jumps[0].median() < 1e-4
    assert jumps[1].max() < 1e-6  # a thousandth of the step, a thousandth of the jump
    assert (jumps[0] > 1e-8).any()  # it is not constant


def test_partitions():
    assert RAD(4, 3).partition == ((2, 3), (0, 1), (2, 3))
    assert RAD(3, 2).partition == ((1, 2), (0,))
    explicit = ((0,), (1, 2), (2,))
    rad = RAD(3, 3, partition=explicit)
    assert rad.partition == explicit
    assert [layer.folded for layer in rad.transforms[:-1]] == list(explicit)
    first, second = (RAD(8, 6, partition="random").partition for _ in range(2))
    assert first != second
    assert all(0 < len(folded) < 8 for folded in first)
    torch.manual_seed(3)
    third = RAD(8, 6, partition="random").partition
    torch.manual_seed(3)
    assert RAD(8, 6, partition="random").partition == third


@pytest.mark.parametrize("partition", ["random", ((4, 0), (1,), (2, 3))])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_partitions_survive_files(partition, context_dim, tmp_path):
    rad = sharpen(RAD(5, 3, partition=partition, context_dim=context_dim, hidden_dims=(4, 3)))
    rad.initialize((torch.randn(50, 5), torch.randn(50, 2)) if context_dim else torch.randn(50, 5))
    save(rad, tmp_path / "rad.safetensors")
    torch.manual_seed(17)  # a partition that is drawn again would be another
    other = load(tmp_path / "rad.safetensors")
    assert type(other) is RAD
    assert other.partition == rad.partition
    assert (other.hidden_dims, other.context_dim) == ((4, 3), context_dim)
    x, context = torch.randn(20, 5), torch.randn(20, 2)
    laws = [m.condition(context) if context_dim else m for m in (rad, other)]
    assert torch.equal(laws[0].log_prob(x), laws[1].log_prob(x))
    assert all(torch.equal(a, b) for a, b in zip(*(law.encode(x)[1] for law in laws), strict=True))


# ---- bases, scales, contexts ------------------------------------------------------------------


@bases
def test_bases(base, tmp_path):
    rad = RAD(2, num_layers=2, base=base())
    data = torch.randn(300, 2) * torch.tensor([0.1, 5.0]) + 3
    rad.initialize(data)
    x = rad.sample((30,))
    assert x.shape == (30, 2)
    assert not rad.has_rsample
    save(rad, tmp_path / "rad.safetensors")
    other = load(tmp_path / "rad.safetensors")
    assert torch.equal(other.log_prob(x), rad.log_prob(x))
    z, branches = rad.encode(x)
    close(rad.decode(z, branches), x, 1e-7)
    assert abs(integral(rad, 301) - 1) < 1e-3
    rad.log_prob(data).mean().backward()
    for name, p in rad.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all()
    learnable = isinstance(rad.base, nn.Module) and any(True for _ in rad.base.parameters())
    assert learnable == (rad.base.__class__.__name__ in ("GaussianMixture", "Flow", "RAD"))
    if learnable:
        assert any(p.grad.any() for p in rad.base.parameters())


def test_initialize_reaches_a_learnable_base():
    """Two far clusters, folded together by nothing yet: the base's components sit on them."""
    data = torch.cat([torch.randn(100, 2) * 0.1 - 40, torch.randn(100, 2) * 0.1 + 60])
    rad = RAD(2, num_layers=1, base=GaussianMixture(2, 2))
    assert not rad.base.initialized
    rad.initialize(data)
    assert rad.base.initialized
    z, _ = rad.encode(data)
    assert rad.base.log_prob(z).mean() > normal(2).to_event(1).log_prob(z).mean()
    assert abs(float(z.detach().mean())) < 20  # standardised before


@pytest.mark.parametrize("context_dim", [0, 1])
def test_initialize_standardises(context_dim):
    rad = RAD(3, context_dim=context_dim)
    x = torch.randn(1000, 3) * torch.tensor([1e-3, 1.0, 1e4]) + torch.tensor([5.0, 0.0, -1e4])
    rad.initialize((x, torch.randn(1000, 1)) if context_dim else x)
    standard = rad.transforms[-1].inv(x)
    close(standard.mean(0), torch.zeros(3))
    close(standard.std(0, correction=0), torch.ones(3))
    law = rad.condition(torch.randn(1)) if context_dim else rad
    draws = law.sample((2000,))
    ratio = (draws.std(0) / x.std(0)).log()
    assert ratio.abs().max() < 1.0  # a new model is of the data's scale


def test_constant_columns_keep_their_unit():
    x = torch.cat([torch.randn(50, 1), torch.full((50, 1), 1e6), torch.zeros(50, 1)], -1)
    rad = RAD(3)
    rad.initialize(x)
    arguments = rad.transforms[-1].arguments
    assert arguments.scale.tolist()[1:] == [1.0, 1.0]
    assert arguments.loc.tolist()[1:] == [1e6, 0.0]
    assert rad.log_prob(x).isfinite().all()


@pytest.mark.parametrize("dim", [1, 3])
def test_contexts(dim):
    rad = sharpen(RAD(dim, num_layers=2, context_dim=2))
    assert rad.conditional
    context = torch.randn(7, 2)
    law = rad.condition(context)
    assert law.batch_shape == (7,)
    x = law.sample((5,))
    assert x.shape == (5, 7, dim)
    assert not law.has_rsample
    log_prob = law.log_prob(x)
    for i in range(7):
        close(log_prob[:, i], rad.condition(context[i]).log_prob(x[:, i]))
    z, branches = law.encode(x)
    close(law.decode(z, branches), x, 1e-7)
    assert (log_prob - law.log_prob(x.flip(1))).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"condition\(context\)"):
        rad.log_prob(x)


def test_learns_from_a_context():
    """y has one mode or two, as the context says."""
    context = torch.rand(2000, 1)
    sign = torch.where(torch.rand(2000, 1) < 0.5, -1.0, 1.0)
    y = 2 * context * sign + 0.2 * torch.randn(2000, 1)
    rad = RAD(1, num_layers=2, context_dim=1)
    fit(rad, (y, context), steps=200, lr=0.02, seed=0, progress_bar=False)
    narrow, wide = (rad.condition(torch.tensor([c])).sample((4000,)).std() for c in (0.0, 1.0))
    assert 3 * narrow < wide
    axis = torch.tensor([[0.0], [2.0]])
    centre, mode = rad.condition(torch.ones(1)).log_prob(axis).tolist()
    assert centre < mode - 1


# Laws that a flow returns hold no parameters that could be cast: all checks but that of dtypes.
LAWS = {
    "expanded": Case(lambda: sharpen(RAD(2, num_layers=2), 1.5).expand((3,))),
    "conditioned": Case(
        lambda: sharpen(RAD(2, num_layers=2, context_dim=1), 1.5).condition(torch.ones(1))
    ),
    "contexts": Case(
        lambda: sharpen(RAD(1, num_layers=2, context_dim=2), 1.5).condition(torch.randn(3, 2))
    ),
}


@pytest.mark.parametrize(
    ("check", "case"),
    [
        pytest.param(check, case, id=f"{name}-{what}")
        for name, case in LAWS.items()
        for what, check in applicable_checks(case).items()
        if what != "dtype"
    ],
)
def test_conformance_of_laws(check, case):
    check(case)


# ---- transformations of functions -------------------------------------------------------------


def test_compiles_in_one_graph():
    Distribution.set_default_validate_args(False)
    rad = sharpen(RAD(4, num_layers=3, partition="random"))
    x = torch.randn(10, 4)
    expected = rad.log_prob(x)
    torch.compiler.reset()
    compiled = torch.compile(rad.log_prob, backend="eager", fullgraph=True)
    close(compiled(x), expected)


class LogProb(nn.Module):
    def __init__(self, law):
        super().__init__()
        self.law = law

    def forward(self, x):
        return self.law.log_prob(x)


def test_an_ensemble_of_models_at_once():
    partition = ((1, 2), (0,))
    models = [LogProb(sharpen(RAD(3, 2, partition=partition))) for _ in range(4)]
    x = torch.randn(20, 3)
    parameters, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0])

    def score(parameters, buffers, x):
        return torch.func.functional_call(skeleton, (parameters, buffers), (x,))

    got = torch.func.vmap(score, in_dims=(0, 0, None))(parameters, buffers, x)
    close(got, torch.stack([model(x) for model in models]))
    assert not torch.equal(got[0], got[1])
    total, gradient = torch.func.vmap(
        torch.func.grad_and_value(lambda p, b: score(p, b, x).sum()), in_dims=(0, 0)
    )(parameters, buffers)[::-1]
    close(total, got.sum(-1))
    models[2](x).sum().backward()
    for name, p in models[2].named_parameters():
        close(gradient[name][2], p.grad, 1e-8)


# ---- a trained model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A model of the two moons, and points that it was not trained on."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data, held_out = two_moons(2000).double(), two_moons(2000).double()
        model = RAD(2)
        fit(model, data, steps=600, lr=0.01, seed=0, progress_bar=False)
    torch.set_default_dtype(dtype)
    return model.requires_grad_(False), data, held_out


def test_training_beats_a_normal(trained):
    model, data, held_out = trained
    gaussian = dist.MultivariateNormal(data.mean(0), data.T.cov())
    assert model.log_prob(held_out).mean() > gaussian.log_prob(held_out).mean() + 0.7


def test_still_normalised_after_training(trained):
    model, _, _ = trained
    assert abs(integral(model, 401) - 1) < 1e-3


def test_draws_follow_the_density_after_training(trained):
    model, _, _ = trained
    x = model.sample((20_000,))
    assert goodness_of_fit(x, model.log_prob(x)) > GOODNESS_OF_FIT


def test_no_draws_far_away_after_training(trained):
    model, data, _ = trained
    assert model.sample((100_000,)).abs().max() < 3 * data.abs().max()


def test_codes_after_training(trained):
    model, _, held_out = trained
    z, branches = model.encode(held_out)
    close(model.decode(z, branches), held_out, 1e-6)
    used = torch.cat(branches, -1).unique(dim=0)
    assert len(used) > 5


def test_float32_after_training(trained):
    model, _, held_out = trained
    single = copy.deepcopy(model).float()
    log_prob = single.log_prob(held_out.float())
    assert log_prob.dtype == torch.float32
    assert (log_prob - model.log_prob(held_out)).abs().median() < 1e-5
    z, branches = single.encode(held_out.float())
    assert (single.decode(z, branches) - held_out).abs().max() < 1e-4
