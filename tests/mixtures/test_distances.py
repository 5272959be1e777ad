"""Distribution functions, divergences and their bounds, merging and pictures of mixtures."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyromix import (
    GaussianMixture,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
    MixtureOfNormals,
    MixtureOfStudentT,
)


def diagonal(k=4, dim=2, seed=0, batch=()):
    g = torch.Generator().manual_seed(seed)
    logits, loc = (torch.randn(*batch, k, generator=g), torch.randn(*batch, k, dim, generator=g))
    return MixtureOfNormals(logits, 2 * loc, 0.3 + torch.rand(*batch, k, dim, generator=g))


def full(k=4, dim=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    tril = torch.randn(k, dim, dim, generator=g).tril(-1) + torch.eye(dim)
    return MixtureOfMultivariateNormals(
        torch.randn(k, generator=g), 2 * torch.randn(k, dim, generator=g), tril
    )


def low_rank(k=4, dim=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return MixtureOfLowRankPrecisionNormals(
        torch.randn(k, generator=g), torch.randn(k, dim, generator=g),
        0.5 + torch.rand(k, dim, generator=g), torch.randn(k, dim, 1, generator=g),
    )  # fmt: skip


# ---- distribution functions -------------------------------------------------------------------


def test_cdf_and_icdf_of_one_coordinate():
    for law in (diagonal(dim=1, batch=(3,)), full(dim=1), low_rank(dim=1)):
        x = torch.linspace(-6, 6, 41).reshape(-1, *[1] * len(law.batch_shape), 1)
        expected = 0.0
        scale = law.component_variance.sqrt()
        for k in range(4):
            normal = scipy.stats.norm(law.loc[..., k, 0].numpy(), scale[..., k, 0].numpy())
            expected = expected + law.logits[..., k].exp().numpy() * normal.cdf(x[..., 0].numpy())
        p = law.cdf(x)
        torch.testing.assert_close(p, torch.as_tensor(expected))
        inside = (p > 1e-9) & (p < 1 - 1e-9)
        torch.testing.assert_close(law.icdf(p)[inside], x.expand(*p.shape, 1)[inside])
        ends = law.icdf(torch.tensor([0.0, 1.0]).reshape(2, *[1] * len(law.batch_shape)))
        assert (ends[0] == -math.inf).all()
        assert (ends[1] == math.inf).all()


def test_tails_keep_their_digits():
    law = full(k=1, dim=1)
    z = torch.linspace(-37, -5, 33)
    x = law.loc[0] + law.scale_tril[0, 0, 0] * z
    expected = torch.as_tensor(scipy.stats.norm.cdf(z.numpy()))
    torch.testing.assert_close(law.cdf(x.unsqueeze(-1)), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(law.icdf(expected).squeeze(-1), x, rtol=1e-10, atol=1e-10)


def test_icdf_has_gradients_in_everything():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, generator=g, requires_grad=True)
    loc = torch.randn(3, 1, generator=g, requires_grad=True)
    scale = (0.5 + torch.rand(3, 1, generator=g)).requires_grad_()
    p = torch.tensor([0.1, 0.7], requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *t: MixtureOfNormals(*t[:3], validate_args=False).icdf(t[3]),
        (logits, loc, scale, p),
    )


def test_cdf_of_several_independent_coordinates():
    law = diagonal()
    x = law.sample((200_000,), generator=torch.Generator().manual_seed(0))
    at = torch.tensor([[0.5, -0.2], [1.0, 2.0]])
    share = (x <= at.unsqueeze(1)).all(-1).double().mean(-1)
    torch.testing.assert_close(law.cdf(at), share, atol=5 * (0.25 / 200_000) ** 0.5, rtol=0)
    with pytest.raises(NotImplementedError, match=r"marginal\(\[d\]\)"):
        full().cdf(at)
    with pytest.raises(NotImplementedError, match=r"marginal\(\[d\]\)"):
        law.icdf(torch.tensor(0.5))
    with pytest.raises(ValueError, match="from 0 to 1"):
        diagonal(dim=1).icdf(torch.tensor(1.5))


def test_cdf_and_icdf_of_heavy_tails():
    normals, df = diagonal(dim=1, k=3), torch.tensor([0.7, 3.0, torch.inf])
    law = MixtureOfStudentT.of(normals, df)
    x = torch.linspace(-30, 30, 61).unsqueeze(-1)
    expected = sum(
        float(law.logits[k].exp())
        * scipy.stats.t(float(df[k]), float(law.loc[k, 0]), float(law.scale[k, 0])).cdf(x[:, 0])
        for k in range(3)
    )
    torch.testing.assert_close(law.cdf(x), torch.as_tensor(expected))
    torch.testing.assert_close(law.icdf(law.cdf(x)), x)
    with pytest.raises(NotImplementedError, match="merged"):
        law.reduce(1)
    with pytest.raises(ValueError, match="mixtures of normals"):
        law.kl_bounds(normals)


# ---- divergences ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [diagonal, full, low_rank])
def test_divergences_and_their_bounds(make):
    p, q = make(seed=1), make(seed=2)
    value, error = p.kl(q, 200_000, generator=torch.Generator().manual_seed(0))
    lower, upper = p.kl_bounds(q)
    assert lower <= value + 4 * error
    assert upper >= value - 4 * error
    assert upper < 2.5 * value
    if make is not low_rank:  # whose components overlap
        assert lower > 0.4 * value
    assert error < 0.05
    same = p.kl_bounds(p)
    assert same[0] == 0
    assert same[1] == pytest.approx(0.0, abs=1e-9)


def test_divergences_of_mixtures_far_apart_are_known():
    """Of components that do not overlap with others all bounds are tight."""
    loc = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
    p = MixtureOfNormals(torch.tensor([0.3, 0.7]).log(), loc, torch.ones(2, 2))
    q = MixtureOfNormals(torch.tensor([0.6, 0.4]).log(), loc, 2 * torch.ones(2, 2))
    weights = 0.3 * math.log(0.3 / 0.6) + 0.7 * math.log(0.7 / 0.4)
    exact = weights + 2 * (math.log(2) + 1 / 8 - 0.5)
    lower, upper = p.kl_bounds(q)
    assert upper == pytest.approx(exact, abs=1e-6)
    assert lower <= exact
    value, error = p.kl(q, 50_000)
    assert abs(value - exact) < 5 * error


def test_bounds_of_single_normals_hold_the_divergence():
    p, q = full(k=1, dim=3, seed=1), full(k=1, dim=3, seed=2)
    normals = [MultivariateNormal(m.loc[0], scale_tril=m.scale_tril[0]) for m in (p, q)]
    exact = kl_divergence(*normals)
    lower, upper = p.kl_bounds(q)
    torch.testing.assert_close(upper, exact)
    assert lower <= exact
    with pytest.raises(ValueError, match="over 3 coordinates"):
        p.kl_bounds(full(dim=2))
    with pytest.raises(ValueError, match=r"event shape \(3,\)"):
        p.kl(full(dim=2))


# ---- merging ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [diagonal, full, low_rank])
def test_merged_mixtures_keep_their_moments(make):
    law = make(k=7)
    for count in (7, 3, 1):
        small = law.reduce(count)
        assert small.num_components == count
        torch.testing.assert_close(small.mean, law.mean)
        torch.testing.assert_close(small.variance, law.variance)
    assert law.reduce(9) is law
    one = law.reduce(1)
    x = law.sample((100_000,), generator=torch.Generator().manual_seed(0))
    if make is not diagonal:
        torch.testing.assert_close(one.component_covariance[0], x.mT.cov(), atol=0.1, rtol=0)


def test_what_is_merged_costs_least():
    """Twenty components around three places, of which three are left."""
    g = torch.Generator().manual_seed(0)
    places = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    near = places[torch.arange(20) % 3] + 0.3 * torch.randn(20, 2, generator=g)
    law = MixtureOfNormals(torch.zeros(20), near, torch.ones(20, 2))
    small = law.reduce(3)
    assert torch.cdist(places, small.loc).min(1).values.max() < 0.3
    assert float(law.kl(small, 20_000)[0]) < 0.02
    model = GaussianMixture(2, 20)
    assert model.reduce(4).num_components == 4
    with pytest.raises(ValueError, match="at least 1"):
        law.reduce(0)
    with pytest.raises(ValueError, match="without batch"):
        diagonal(batch=(2,)).reduce(1)


# ---- pictures ---------------------------------------------------------------------------------


def test_ellipses_hold_their_share_and_are_drawn():
    import matplotlib.pyplot as plt
    from matplotlib.path import Path

    law = full(k=2)
    outlines = law.ellipses(0.8)
    assert outlines.shape == (2, 100, 2)
    for k, outline in enumerate(outlines):
        normal = MultivariateNormal(law.loc[k], scale_tril=law.scale_tril[k])
        inside = Path(outline.numpy()).contains_points(normal.sample((20_000,)).numpy())
        assert np.mean(inside) == pytest.approx(0.8, abs=0.02)
    heavy = MixtureOfStudentT.of(law, torch.tensor([1.5, torch.inf]))
    wide, same = heavy.ellipses(0.8)
    torch.testing.assert_close(same, outlines[1])
    alone = MixtureOfStudentT(
        torch.zeros(1), torch.tensor([1.5]), law.loc[:1], scale_tril=law.scale_tril[:1]
    )
    inside = Path(wide.numpy()).contains_points(alone.sample((20_000,)).numpy())
    assert np.mean(inside) == pytest.approx(0.8, abs=0.02)
    ax = law.plot(plt.figure().add_subplot(), data=law.sample((50,)))
    assert len(ax.lines) == 2
    assert len(ax.collections[0].get_offsets()) == 50
    plt.close(ax.figure)
    with pytest.raises(ValueError, match=r"marginal\(\[0, 1\]\)"):
        full(dim=3).plot()
    with pytest.raises(ValueError, match="between 0 and 1"):
        law.ellipses(1.0)
