"""Folds as transforms: Jacobians, branches, contexts, and Pyro's own transforms beside them."""

import copy
import itertools
import math
import pickle

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from scipy.stats import chi2

from pyromix import RAD, ConditionalFoldingCoupling, Flow, Fold, FoldingCoupling

from .slow import SlowFold, from_library, grid, integral, normal, sharpen

STANDARD_ERRORS = 6.0
P_VALUE = 1e-5

COUPLINGS = {
    "2, second": (2, None),
    "2, first": (2, (0,)),
    "3, half": (3, None),
    "3, middle": (3, (1,)),
    "3, first two": (3, (0, 1)),
    "5, half": (5, None),
    "5, first": (5, (0,)),
    "5, scattered": (5, (3, 0)),
    "5, most": (5, (-1, 1, 2)),
}
couplings = pytest.mark.parametrize(("dim", "folded"), COUPLINGS.values(), ids=COUPLINGS)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def all_branches(num_folds):
    return torch.tensor(list(itertools.product(range(3), repeat=num_folds)))


def every_preimage(coupling, z):
    """Branches (K, N, d) of z (N, D), their values, and which of them are there."""
    branches = all_branches(len(coupling.folded)).unsqueeze(1)
    branches = branches.expand(-1, len(z), -1)
    x = coupling.decode(z.expand(len(branches), -1, -1), branches)
    back, branch = coupling.encode(x)
    there = (branch == branches).all(-1) & ((back - z).abs() < 1e-9).all(-1)
    return branches, x, there


# ---- the Jacobian -----------------------------------------------------------------------------


@couplings
def test_jacobian_given_the_branch(dim, folded):
    coupling = sharpen(FoldingCoupling(dim, folded))
    _, x, there = every_preimage(coupling, torch.randn(20, dim))
    x = x[there].detach()
    z, branch = coupling.encode(x)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: coupling.decode(z, branch).sum(0), z.detach()
    ).movedim(1, 0)
    close(
        coupling.log_abs_det_jacobian(z, x) + coupling.log_branch_prob(z, x),
        torch.linalg.slogdet(jacobian).logabsdet,
    )
    assert set(branch.unique().tolist()) == {0, 1, 2}
    assert (coupling.log_branch_prob(z, x) < -0.1).any()


def test_jacobian_of_a_scalar_fold():
    fold = sharpen(Fold())
    x = 2 * torch.randn(200)
    z, branch = fold.encode(x)
    z = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(fold.decode(z, branch).sum(), z)
    close(fold.log_abs_det_jacobian(z, x) + fold.log_branch_prob(z, x), slope.abs().log())


def test_a_scalar_fold_as_written_out():
    fold = sharpen(Fold())
    gate = fold.gate

    def free_scores(z):
        right, left = gate(torch.tensor([z])).tolist()
        return left, right

    slow = SlowFold(from_library(fold.raw), free_scores)
    x = torch.linspace(-4, 4, 101)
    z, branch = fold.encode(x)
    expected = [slow.fold(value) for value in x.tolist()]
    close(z, torch.tensor([e[0] for e in expected]))
    close(-fold.log_abs_det_jacobian(z, x), torch.tensor([e[1] for e in expected]))
    assert branch.flatten().tolist() == [e[2] for e in expected]
    close(fold.log_branch_prob(z, x).exp(), torch.tensor([e[3] for e in expected]))


@couplings
def test_kept_coordinates_stay(dim, folded):
    coupling = sharpen(FoldingCoupling(dim, folded))
    kept = [i for i in range(dim) if i not in coupling.folded]
    z = torch.randn(50, dim)
    x = coupling(z)
    assert torch.equal(x[:, kept], z[:, kept])
    assert (x[:, list(coupling.folded)] != z[:, list(coupling.folded)]).all()


# ---- branches ---------------------------------------------------------------------------------


@couplings
def test_all_preimages(dim, folded):
    """Each decodes and encodes exactly; their probabilities sum to one."""
    coupling = sharpen(FoldingCoupling(dim, folded))
    z = 2 * torch.randn(50, dim)
    branches, x, there = every_preimage(coupling, z)
    num = there.sum(0)
    assert num.max() == 3 ** len(coupling.folded)  # some z lies within all folds
    assert num.min() < num.max()  # and some does not
    for k, (branch, value) in enumerate(zip(branches, x, strict=True)):
        close(coupling.decode(z, branch)[there[k]], value[there[k]])
    same = (x.unsqueeze(0) - x.unsqueeze(1)).abs().amax(-1) < 1e-9
    off = ~torch.eye(len(x), dtype=torch.bool).unsqueeze(-1)
    assert not (same & off & there.unsqueeze(0) & there.unsqueeze(1)).any()
    log_prob = coupling.log_branch_prob(z.expand_as(x), x)
    close(torch.where(there, log_prob.exp(), 0.0).sum(0), torch.ones(50))


@couplings
def test_round_trip(dim, folded):
    coupling = sharpen(FoldingCoupling(dim, folded))
    x = 3 * torch.randn(500, dim)
    z, branch = coupling.encode(x)
    assert branch.shape == (500, len(coupling.folded))
    close(coupling.decode(z, branch), x)
    close(coupling.inv(x), z)
    drawn = coupling(z)
    close(coupling.encode(drawn)[0], z)
    assert ((drawn - x).abs() > 1e-3).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dim", [2, 5])
def test_float32_round_trip_through_six_layers(dim, seed):
    torch.manual_seed(seed)
    rad = RAD(dim).float()
    for x in (torch.randn(1000, dim).float(), 3 * torch.rand(1000, dim).float()):
        z, branches = rad.encode(x)
        assert z.dtype == torch.float32
        assert (rad.decode(z, branches) - x).abs().max() < 1e-4


@pytest.mark.parametrize(("dim", "folded"), [(2, None), (3, (0, 2))])
def test_frequencies_of_branches(dim, folded):
    coupling, num = sharpen(FoldingCoupling(dim, folded)), 30_000
    z = 0.3 * torch.randn(1, dim)
    branches, x, there = every_preimage(coupling, z)
    log_prob = coupling.log_branch_prob(z.expand_as(x), x)
    probs = torch.where(there, log_prob.exp(), 0.0).flatten()
    with torch.no_grad():
        drawn = coupling.encode(coupling(z.expand(num, -1)))[1]
    counts = torch.stack([(drawn == branch).all(-1).sum() for branch in branches.squeeze(1)])
    assert counts.sum() == num
    assert (counts[probs == 0] == 0).all()
    counts, expected = counts[probs > 0], num * probs[probs > 0].detach()
    assert len(counts) >= 3
    statistic = ((counts - expected).square() / expected).sum()
    assert chi2.sf(float(statistic), len(counts) - 1) > P_VALUE


def test_drawn_branches_vary_with_z():
    """The gates see where in the fold z is, and the kept coordinates."""
    coupling = sharpen(FoldingCoupling(2))
    z = torch.tensor([[-0.8, 0.2], [0.9, 0.2], [-0.8, 0.5]])
    _, x, _ = every_preimage(coupling, z)
    log_prob = coupling.log_branch_prob(z.expand_as(x), x).detach()
    assert (log_prob.std(-1) > 1e-3).any()


# ---- normalisation ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_folded_line_is_normalised(seed):
    torch.manual_seed(seed)
    law = Flow(dist.Normal(0.0, 1.0), [sharpen(Fold()), sharpen(Fold())])
    assert abs(integral(law, 20_001) - 1) < 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("folded", [None, (0,), (0, 1)])
def test_a_folded_plane_is_normalised(seed, folded):
    torch.manual_seed(seed)
    if folded == (0, 1):  # folds that a context decides on
        coupling = sharpen(ConditionalFoldingCoupling(2, 1, folded))
        law = Flow(normal(2), [coupling]).condition(torch.tensor([0.5]))
    else:
        law = Flow(normal(2), [sharpen(FoldingCoupling(2, folded))])
    assert abs(integral(law, 301) - 1) < 1e-3


# ---- contexts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2])
def test_normalised_given_every_context(dim):
    flow = Flow(normal(dim), [sharpen(ConditionalFoldingCoupling(dim, 3))])
    laws = [flow.condition(c) for c in 2 * torch.randn(3, 3)]
    for law in laws:
        assert abs(integral(law, 10_001 if dim == 1 else 801) - 1) < 1e-3
    x = torch.randn(20, dim)
    first, second, _ = (law.log_prob(x) for law in laws)
    assert ((first - second).abs() > 0.05).any()


SHAPES = {"full": (6, 4), "one for all": (4,), "columns": (6, 1)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_batches_of_contexts(dim, shape):
    parts = [ConditionalFoldingCoupling(dim, 2), ConditionalFoldingCoupling(dim, 2)]
    flow = Flow(normal(dim), [sharpen(part) for part in parts])
    context = torch.randn(4, 2)
    law = flow.condition(context)
    assert law.batch_shape == (4,)
    x = torch.randn(*shape, dim)
    log_prob = law.log_prob(x)
    whole = x.expand(*shape[:-1], 4, dim)
    z, branches = law.encode(x)
    assert log_prob.shape == whole.shape[:-1]
    assert z.shape == whole.shape
    close(law.decode(z, branches), whole)
    for i, c in enumerate(context):
        one = flow.condition(c)
        close(log_prob[..., i], one.log_prob(whole[..., i, :]))
        close(z[..., i, :], one.encode(whole[..., i, :])[0])
    assert law.sample((5,)).shape == (5, 4, dim)
    assert law.expand((3, 4)).sample().shape == (3, 4, dim)


def test_contexts_and_values_as_a_grid():
    flow = RAD(2, num_layers=2, context_dim=1)
    context = torch.randn(3, 1, 1)
    x = torch.randn(3, 5, 2)
    log_prob = flow.condition(context).log_prob(x)
    pairs = zip(context, x, strict=True)
    close(log_prob, torch.stack([flow.condition(c[0]).log_prob(v) for c, v in pairs]))


def test_a_conditioned_coupling_has_the_jacobian_of_its_parts():
    coupling = sharpen(ConditionalFoldingCoupling(3, 2, (0, 2))).condition(torch.randn(50, 2))
    x = torch.randn(50, 3)
    z, branch = (t.detach() for t in coupling.encode(x))
    jacobian = torch.autograd.functional.jacobian(
        lambda z: coupling.decode(z, branch).sum(0), z
    ).movedim(1, 0)
    close(
        coupling.log_abs_det_jacobian(z, x) + coupling.log_branch_prob(z, x),
        torch.linalg.slogdet(jacobian).logabsdet,
    )


# ---- beside other transforms, and outside of a flow -------------------------------------------


def mixed():
    spline = transforms.spline(2)
    with torch.no_grad():
        for p in spline.parameters():
            p.mul_(0.3)  # no bins so steep that a grid misses them
    return [
        sharpen(FoldingCoupling(2), factor=1.5),
        transforms.affine_coupling(2),
        transforms.permute(2, torch.tensor([1, 0])),
        transforms.ComposeTransform([spline, FoldingCoupling(2, [0])]),
        transforms.AffineTransform(torch.ones(2), 2.0, event_dim=1),
    ]


def test_mixes_with_other_transforms():
    torch.manual_seed(1)
    parts = mixed()
    flow = Flow(normal(2), parts)
    law = dist.TransformedDistribution(normal(2), parts)
    x = flow.sample((200,))
    assert not flow.has_rsample
    close(flow.log_prob(x), law.log_prob(x.clone()))
    assert abs(integral(flow, 301) - 1) < 1e-3
    z, branches = flow.encode(x)
    assert [b.shape for b in branches] == [(200, 1), (200, 1)]
    close(flow.decode(z, branches), x, 1e-7)
    drawn, log_prob = flow.rsample_and_log_prob((100,))
    close(flow.log_prob(drawn), log_prob, 1e-7)
    assert not drawn.requires_grad


def test_draws_of_a_transformed_distribution_follow_its_density():
    """Bounded functions of draws have the means that the density gives them."""
    torch.manual_seed(1)
    law = dist.TransformedDistribution(normal(2), mixed())
    points, volume = grid(torch.tensor([-14.0, -15.0]), torch.tensor([16.0, 17.0]), 301)
    with torch.no_grad():
        x = law.sample((40_000,))
        weight = torch.cat([law.log_prob(part).exp() for part in points.split(50_000)]) * volume
    assert abs(weight.sum() - 1) < 3e-3
    for frequency in (torch.tensor([1.0, 0.5]), torch.tensor([-0.3, 2.0])):
        for function in (torch.sin, torch.cos):
            draws = function(x @ frequency)
            error = draws.std() / math.sqrt(len(x))
            expected = (weight * function(points @ frequency)).sum()
            assert (draws.mean() - expected).abs() < STANDARD_ERRORS * error + 3e-3


@pytest.mark.parametrize("make", [Fold, lambda: FoldingCoupling(3)])
def test_the_inverse_of_the_inverse(make):
    transform = make()
    assert transform.inv.inv is transform
    assert not transform.bijective
    assert not transform.inv.bijective
    assert transform.inv.domain is transform.codomain


@pytest.mark.parametrize("make", [Fold, lambda: FoldingCoupling(2)])
def test_a_fold_the_wrong_way_round(make):
    """Folded draws have a law, but not one that can be scored."""
    with pytest.raises(ValueError, match="Use the transform itself"):
        Flow(normal(2), [make().inv])
    with pytest.raises(ValueError, match="Use the transform itself"):
        Flow(normal(2), [transforms.ComposeTransform([make()]).inv])
    law = dist.TransformedDistribution(normal(2), [make().inv])
    x = law.sample()
    assert x.isfinite().all()
    with pytest.raises(NotImplementedError, match="several values to one"):
        law.log_prob(x.clone())


@pytest.mark.parametrize("make", [Fold, lambda: FoldingCoupling(2)])
def test_no_pathwise_gradient_outside_of_a_flow(make):
    transform = make()
    law = dist.TransformedDistribution(normal(2), [transform])
    with pytest.raises(NotImplementedError, match=r"pyromix\.Flow"):
        law.rsample((3,)).sum().backward()
    with pytest.raises(NotImplementedError, match=r"pyromix\.Flow"):
        transform(torch.randn(2)).sum().backward()
    with pytest.raises(NotImplementedError, match=r"sample\(\)"):
        Flow(normal(2), [transform]).rsample()
    law.log_prob(torch.randn(3, 2)).sum().backward()  # the density has one
    assert all(p.grad.isfinite().all() for p in transform.parameters())


# ---- caches and copies ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Fold, lambda: FoldingCoupling(2)])
def test_caches_hold_what_is_computed(make):
    transform = sharpen(make())
    z = torch.randn(50, 2)
    x = transform.draw(z)
    close(
        transform.log_abs_det_jacobian(z, x), transform.log_abs_det_jacobian(z.clone(), x.clone())
    )
    close(transform.log_branch_prob(z, x), transform.log_branch_prob(z.clone(), x.clone()))
    y = x.clone()
    back = transform.inv(y)
    close(
        transform.log_abs_det_jacobian(back, y),
        transform.log_abs_det_jacobian(back.clone(), y.clone()),
    )
    # After the inverse pass the probabilities of an older draw must not be taken for these.
    close(transform.log_branch_prob(back, y), transform.log_branch_prob(z.clone(), x.clone()))


@pytest.mark.parametrize("event", [False, True])
def test_scores_are_fresh_after_an_update(event):
    part = sharpen(FoldingCoupling(2) if event else Fold())
    flow = Flow(normal(2), [part])
    for draw in (flow, flow.sample, lambda: flow.rsample_and_log_prob()[0]):
        x = draw().detach()
        before = flow.log_prob(x)
        with torch.no_grad():
            for p in flow.parameters():
                p.add_(0.1 * torch.randn_like(p))
        after = flow.log_prob(x)
        assert not torch.equal(before, after)
        assert torch.equal(after, flow.log_prob(x.clone()))


@pytest.mark.parametrize("make", [Fold, lambda: FoldingCoupling(2, (0,))])
def test_copies(make):
    transform = sharpen(make())
    x = torch.randn(20, 2)
    flow = Flow(normal(2), [transform])
    flow()  # fills the caches
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other.log_prob(x), flow.log_prob(x))
        assert torch.equal(other.encode(x)[1][0], flow.encode(x)[1][0])
        with torch.no_grad():
            for p in other.parameters():
                p.add_(0.1)
        assert not torch.equal(other.log_prob(x), flow.log_prob(x))
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(other.encode(x)[0], transform.encode(x)[0])
