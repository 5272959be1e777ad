"""The fold of a line, against its five pieces written out one by one."""

import math

import pytest
import torch

from pyromix.rad.pieces import Pieces

from .slow import LEFT, MIDDLE, RIGHT, SlowFold, to_library

NEUTRAL = torch.zeros(8)  # symmetric: slopes of 3, half-width log 2


def free_scores(z):
    """A stand-in for the gating network; the slow fold has the same in `slow_scores`."""
    left, right = 1.3 * torch.sin(2 * z) + 0.4, torch.cos(3 * z) - 0.5
    return torch.stack([right, left])


def slow_scores(z):
    return 1.3 * math.sin(2 * z) + 0.4, math.cos(3 * z) - 0.5


def random_raw(num):
    return torch.randn(num, 8) * torch.tensor([1.0, 1, 1, 1, 1, 2, 1, 2])


def extreme_raw(num):
    signs = torch.randint(2, (num, 8)) * 2.0 - 1.0
    return 20 * signs


def tiny_raw(num):
    raw = random_raw(num)
    raw[:, 7] = -40.0  # half-widths at their floor
    return raw


def large_raw(num):
    raw = random_raw(num)
    raw[:, 7] = 30.0 + torch.rand(num)
    return raw


RAW = {"random": random_raw, "extreme": extreme_raw, "tiny": tiny_raw, "large": large_raw}
parameters = pytest.mark.parametrize("raw", RAW.values(), ids=RAW)


def points(slow):
    """Values on, next to and far from creases and ends of a fold."""
    kinks = [slow.left_end, -slow.b, 0.0, slow.b, slow.right_end]
    near = [k + step * slow.b for k in kinks for step in (0, -1e-6, 1e-6, -0.3, 0.3)]
    far = [-100 * slow.b - 50, -3.0, 2.0, 100 * slow.b + 50]
    return [t + slow.loc for t in near + far]


def build(raw):
    """Folds, one a row, as the slow ones and as one `Pieces` of shape (N, 1, ., 1)."""
    slow = [SlowFold(row.tolist(), slow_scores) for row in raw]
    return slow, Pieces.from_raw(to_library(raw))


def is_single(mapped):
    return mapped.rest > 0


@parameters
def test_folds_as_written_out(raw):
    slow, pieces = build(raw(20))
    x = torch.tensor([points(fold) for fold in slow])
    mapped = pieces.fold(x.unsqueeze(-1), free_scores)
    log_branch = pieces.log_branch(mapped).squeeze(-1)
    for i, fold in enumerate(slow):
        # Next to a crease rounding decides on the piece; the other numbers are continuous there.
        scale = max(1.0, fold.b)
        for j, value in enumerate(x[i].tolist()):
            z, log_density, branch, gate = fold.fold(value)
            t = value - fold.loc
            assert mapped.value[i, j].item() == pytest.approx(z, abs=1e-12 * scale, rel=1e-11)
            assert mapped.log_density[i, j].item() == pytest.approx(log_density, abs=1e-7)
            if abs(abs(t) - fold.b) < 1e-12 * scale:
                continue
            assert mapped.branch[i, j].item() == branch
            if min(abs(t - fold.left_end), abs(t - fold.right_end)) > 1e-12 * scale:
                assert log_branch[i, j].item() == pytest.approx(math.log(gate), abs=1e-7)
                assert is_single(mapped)[i, j].item() == (not fold.left_end < t < fold.right_end)


@parameters
def test_unfolds_as_written_out(raw):
    slow, pieces = build(raw(20))
    share = torch.tensor([-40.0, -1.5, -1 + 1e-9, -0.6, 0.0, 0.3, 1 - 1e-9, 1.2, 9.0])
    z = torch.tensor([[s * f.limit + f.shift for s in share.tolist()] for f in slow])
    for branch in (LEFT, MIDDLE, RIGHT):
        mapped = pieces.unfold(z.unsqueeze(-1), free_scores, torch.full((*z.shape, 1), branch))
        for i, fold in enumerate(slow):
            for j, value in enumerate(z[i].tolist()):
                x = fold.unfold(value, branch)
                scale = max(1.0, fold.b)
                if x is None:  # the piece's end
                    end = math.copysign(fold.limit, value - fold.shift)
                    x = fold.unfold(end + fold.shift, branch)
                    if x is None:
                        continue  # beyond by rounding
                    assert mapped.value[i, j].item() == pytest.approx(x, abs=1e-9 * scale)
                    continue
                assert mapped.value[i, j].item() == pytest.approx(x, abs=1e-11 * scale, rel=1e-11)
                log_density = fold.fold(x)[1]
                if share[j].abs() != 1 - 1e-9:
                    assert mapped.log_density[i, j].item() == pytest.approx(log_density, abs=1e-7)
                inside = abs(value - fold.shift) <= fold.limit
                assert is_single(mapped)[i, j].item() == (not inside)


@parameters
def test_all_preimages_fold_back_and_gates_sum_to_one(raw):
    _, pieces = build(raw(30))
    limit = pieces.log_slopes[0].exp() * pieces.half_width
    share = torch.linspace(-0.99, 0.99, 41).unsqueeze(-1)
    z = share * limit + pieces.shift
    total = torch.zeros_like(z)
    preimages = []
    for branch in (LEFT, MIDDLE, RIGHT):
        there = pieces.unfold(z, free_scores, torch.full(z.shape, branch))
        back = pieces.fold(there.value, free_scores)
        scale = limit.clamp(min=1.0)
        assert ((back.value - z).abs() < 1e-10 * scale).all()
        assert (back.branch == branch).all()
        assert not is_single(there).any()
        torch.testing.assert_close(back.log_density, there.log_density, atol=1e-7, rtol=1e-7)
        total += pieces.log_branch(there).exp()
        preimages.append(there.value)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert (preimages[0] < preimages[1]).all()
    assert (preimages[1] < preimages[2]).all()


@parameters
def test_one_preimage_outside(raw):
    _, pieces = build(raw(30))
    limit = pieces.log_slopes[0].exp() * pieces.half_width
    for side, branch in ((-1.0, LEFT), (1.0, RIGHT)):
        z = side * limit * (1 + torch.rand(10, 1)) + side * 1e-6 + pieces.shift
        drawn = pieces.unfold(z, free_scores)
        assert (drawn.branch == branch).all()
        assert is_single(drawn).all()
        assert (pieces.log_branch(drawn) == 0).all()
        back = pieces.fold(drawn.value, free_scores)
        torch.testing.assert_close(back.value, z, atol=1e-11, rtol=1e-11)


def test_creases_belong_to_the_outer_pieces():
    pieces = Pieces.from_raw(NEUTRAL.reshape(8, 1, 1))
    b = pieces.half_width.item()
    x = torch.tensor([-b, -math.nextafter(b, 0), math.nextafter(b, 0), b]).unsqueeze(-1)
    branch = pieces.fold(x, free_scores).branch.flatten().tolist()
    assert branch == [LEFT, MIDDLE, MIDDLE, RIGHT]


def test_the_ends_of_the_fold_in_z_belong_to_the_outer_pieces():
    """A draw there must not be put on the middle piece, nor at the end of the other outer one."""
    pieces = Pieces.from_raw(NEUTRAL.reshape(8, 1, 1))
    limit = pieces.log_slopes[0].exp() * pieces.half_width
    for z, branch in ((limit, RIGHT), (-limit, LEFT)):
        drawn = pieces.unfold(z.expand(200, 1), free_scores)
        assert (drawn.branch == branch).all()


def test_draws_follow_the_gates():
    (fold,), pieces = build(random_raw(1))
    within, num = 0.2 * fold.limit, 40_000
    z = torch.full((1, num, 1), within + fold.shift)
    counts = pieces.unfold(z, free_scores).branch.flatten().bincount(minlength=3)
    for count, gate in zip(counts.tolist(), fold.gates(within), strict=True):
        assert abs(count - num * gate) < 6 * math.sqrt(num * gate * (1 - gate)) + 1


@pytest.mark.parametrize("step", [1e-7, 1e-9])
@parameters
def test_continuous_at_creases_and_ends(raw, step):
    """z and log p(k|z) + log |dz/dx| have the same limits from both sides."""
    slow, pieces = build(raw(50))
    kinks = torch.tensor([[f.left_end, -f.b, f.b, f.right_end] for f in slow])
    width = pieces.half_width.squeeze(-1)
    kinks = kinks + pieces.loc.squeeze(-1)
    sides = [pieces.fold((kinks + s * step * width).unsqueeze(-1), free_scores) for s in (-1, 1)]
    below, above = sides
    differ = torch.tensor([False, True, True, False]).expand_as(below.branch.squeeze(-1))
    assert torch.equal((below.branch != above.branch).squeeze(-1), differ)
    # The rate at which the log-density changes is bounded by the strongest gates.
    rate = 40 * width + 40
    assert ((above.log_density - below.log_density).squeeze(-1).abs() < 20 * rate * step).all()
    assert ((above.value - below.value).squeeze(-1).abs() < 50 * step * width + 1e-12).all()


def test_tends_to_a_line_as_the_fold_closes():
    raw = random_raw(50)
    raw[:, 7] = -40.0
    _, pieces = build(raw)
    x = pieces.loc + torch.randn(1, 20, 1).abs() + 1.0
    mapped = pieces.fold(x, free_scores)
    expected = -torch.logsumexp(-pieces.log_slopes, 0)
    assert ((mapped.log_density - expected).abs() < 0.01).all()


def gradients_of(pieces, x):
    mapped = pieces.fold(x, free_scores)
    there = pieces.unfold(mapped.value.detach().requires_grad_(), free_scores, mapped.branch)
    return (
        mapped.value.sum() + mapped.log_density.sum() + pieces.log_branch(mapped).sum(),
        there.value.sum() + there.log_density.sum() + pieces.log_branch(there).sum(),
    )


@parameters
def test_gradients_are_finite_everywhere(raw):
    raw = raw(20)
    slow, _ = build(raw)
    raw = to_library(raw).requires_grad_()
    x = torch.tensor([points(fold) for fold in slow]).unsqueeze(-1).requires_grad_()
    total = sum(gradients_of(Pieces.from_raw(raw), x))
    for gradient in torch.autograd.grad(total, [raw, x]):
        assert gradient.isfinite().all()


def test_gradients_are_finite_exactly_at_kinks():
    """With loc and shift at zero no rounding leads away from t = 0, creases and ends."""
    for half_width in (-40.0, 0.0, 3.0):
        raw = NEUTRAL.clone()
        raw[7] = half_width
        raw = raw.reshape(8, 1, 1).requires_grad_()
        b = Pieces.from_raw(raw).half_width.item()
        x = torch.tensor([-3 * b, -b, 0.0, b, 3 * b]).unsqueeze(-1).requires_grad_()
        total = sum(gradients_of(Pieces.from_raw(raw), x))
        for gradient in torch.autograd.grad(total, [raw, x]):
            assert gradient.isfinite().all()


def test_gradient_at_the_centre():
    """The middle piece is a line there, like anywhere else."""
    t = torch.zeros(1, 1, requires_grad=True)
    z = Pieces.from_raw(NEUTRAL.reshape(8, 1, 1)).fold(t, free_scores).value
    (slope,) = torch.autograd.grad(z.sum(), t)
    torch.testing.assert_close(slope, torch.full((1, 1), -3.0))


def test_gradients_match_finite_differences_off_the_kinks():
    raw = 0.7 * torch.randn(1, 8)
    f = SlowFold(raw.flatten().tolist(), slow_scores)
    raw = to_library(raw)
    t = [f.left_end - 0.5, f.left_end + 0.2 * f.b, -0.5 * f.b, 0.4 * f.b]
    t += [f.b + 0.1 * f.b, f.right_end - 0.2 * f.b, f.right_end + 2]
    x = (torch.tensor(t) + f.loc).reshape(1, -1, 1).requires_grad_()
    branch = Pieces.from_raw(raw).fold(x, free_scores).branch
    raw.requires_grad_()

    def fold(raw, x):
        pieces = Pieces.from_raw(raw)
        mapped = pieces.fold(x, free_scores)
        return mapped.value, mapped.log_density, pieces.log_branch(mapped)

    def unfold(raw, z):
        pieces = Pieces.from_raw(raw)
        mapped = pieces.unfold(z, free_scores, branch)
        return mapped.value, mapped.log_density, pieces.log_branch(mapped)

    assert torch.autograd.gradcheck(fold, (raw, x), atol=1e-6)
    z = Pieces.from_raw(raw).fold(x, free_scores).value.detach().requires_grad_()
    assert torch.autograd.gradcheck(unfold, (raw, z), atol=1e-6)


def test_the_inverse_is_the_slope_of_the_fold():
    """The log-density less log p(k|z) is log |dz/dx|, which autograd knows."""
    slow, pieces = build(random_raw(20))
    x = torch.tensor([points(f) for f in slow]) + 1e-4
    x = x.unsqueeze(-1).requires_grad_()
    mapped = pieces.fold(x, free_scores)
    (slope,) = torch.autograd.grad(mapped.value.sum(), x)
    log_slope = mapped.log_density - pieces.log_branch(mapped)
    torch.testing.assert_close(slope.abs().log(), log_slope, atol=1e-9, rtol=1e-9)


def test_float32_takes_extremes():
    pieces = Pieces.from_raw(to_library(extreme_raw(200).float()))
    mapped = pieces.fold(1e4 * torch.randn(200, 5, 1).float(), free_scores)
    there = pieces.unfold(mapped.value, free_scores)
    for tensor in (mapped.value, mapped.log_density, there.value, there.log_density):
        assert tensor.isfinite().all()
        assert tensor.dtype == torch.float32
