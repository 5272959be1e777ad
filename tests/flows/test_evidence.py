"""Evidence about the columns of flows, against quadrature, closed forms and draws."""

import copy
import math
import pickle

import pytest
import scipy.stats
import torch
from pyro.distributions.transforms import Spline, affine_coupling
from torch.distributions import Independent, Normal, constraints
from torch.distributions.transforms import (
    AffineTransform,
    CatTransform,
    ComposeTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    IndependentTransform,
    PowerTransform,
    SigmoidTransform,
    StackTransform,
    TanhTransform,
    identity_transform,
)

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    CategoricalPrior,
    Flow,
    GaussianMixture,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    MixtureOfNormals,
    Nonlinear,
    Observed,
)
from pyromix.flows import ConditionedFlow

INF = math.inf
N = 100_000


def mixture(covariance="full"):
    torch.manual_seed(0)
    model = GaussianMixture(2, 3, covariance)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.4 if name.startswith("raw") else 0.7)
    return model.requires_grad_(False)


def spline():
    torch.manual_seed(0)
    return Spline(2, count_bins=4, bound=2.0).requires_grad_(False).double()


FALLING = AffineTransform(torch.tensor([0.2, -0.1]).double(), torch.tensor([-0.7, 1.2]).double())
# Transforms, and where values of two columns lie: ends that quadrature may use.
TRANSFORMS = {
    "exp": ([ExpTransform()], ((1e-9, 60.0), (1e-9, 60.0))),
    "falling, then sigmoid": ([FALLING, SigmoidTransform()], ((0.0, 1.0), (0.0, 1.0))),
    "columns": (
        [
            StackTransform(
                [
                    ComposeTransform([TanhTransform(), AffineTransform(1.0, -3.0)]),
                    ComposeTransform([ExpTransform(), PowerTransform(torch.tensor(0.5).double())]),
                ],
                dim=-1,
            )
        ],
        ((-2.0, 4.0), (1e-9, 12.0)),
    ),
    "inverse": (
        [IndependentTransform(CumulativeDistributionTransform(Normal(0.0, 2.0)), 1)],
        ((0.0, 1.0), (0.0, 1.0)),
    ),
    "logarithm": ([ExpTransform(), ExpTransform().inv, FALLING], ((-9.0, 9.0), (-9.0, 9.0))),
    "spline": ([spline()], ((-9.0, 9.0), (-9.0, 9.0))),
}
BOUNDS = {
    "exp": ([-1.0, 0.4], [2.5, INF]),
    "falling, then sigmoid": ([0.25, -0.5], [7.0, 0.6]),
    "columns": ([-5.0, 0.8], [1.4, 2.0]),
    "inverse": ([0.3, 0.2], [0.8, 1.0]),
    "logarithm": ([-0.5, -INF], [INF, 0.3]),
    "spline": ([-0.5, -1.0], [0.7, INF]),
}


def grid(ends, count=801):
    """Midpoints of a grid in the plane, and the area of its cells."""
    lines, area = [], 1.0
    for low, high in ends:
        step = (high - low) / count
        lines.append(low + step * (torch.arange(count) + 0.5))
        area *= step
    return torch.cartesian_prod(*lines), area


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_box_is_a_box_of_the_base(name, covariance):
    transforms, ends = TRANSFORMS[name]
    low, high = (torch.tensor(bound) for bound in BOUNDS[name])
    flow = Flow(mixture(covariance), transforms)
    law = flow.condition(Box(low, high))
    assert isinstance(law, ConditionedFlow)
    ends = [(max(a, float(low[d])), min(b, float(high[d]))) for d, (a, b) in enumerate(ends)]
    points, area = grid(ends)
    log_z, _ = law.log_evidence()
    whole = flow.log_prob(points)
    assert float((whole.exp().sum() * area).log()) == pytest.approx(float(log_z), abs=8e-3)
    assert float(law.log_prob(points).exp().sum() * area) == pytest.approx(1.0, abs=8e-3)
    torch.testing.assert_close(law.log_prob(points), whole - log_z, rtol=1e-6, atol=1e-6)
    x = law.sample((N,))
    assert bool(((x >= low) & (x <= high)).all())
    density = law.log_prob(points).exp() * area
    for d in range(2):
        middle = 0.5 * (ends[d][0] + min(ends[d][1], ends[d][0] + 3.0))
        share = float(density[points[:, d] < middle].sum())
        found = float((x[:, d] < middle).double().mean())
        assert abs(found - share) < 5e-3 + 4.5 * math.sqrt(share * (1 - share) / N)
    outside = torch.stack([low, high]).nan_to_num(posinf=1.0, neginf=-1.0)
    outside[:, 0] = high[0] + 1.0 if high[0] < INF else low[0] - 1.0
    assert law.log_prob(outside[:1]).tolist() == [-INF]


def test_values_of_a_lognormal_law_have_its_closed_form():
    loc, tril = torch.tensor([0.3, -0.2]), torch.tensor([[0.5, 0.0], [0.4, 0.6]])
    base = GaussianMixture(2, 1, "full").law.with_covariances(
        torch.zeros(1), loc[None], tril[None]
    )
    law = Flow(base, [ExpTransform()]).condition(Observed({0: torch.tensor([0.7, 2.0])}))
    assert law.batch_shape == (2,)
    z = torch.tensor([0.7, 2.0]).log()
    log_z = scipy.stats.lognorm(s=0.5, scale=math.exp(0.3)).logpdf([0.7, 2.0])
    torch.testing.assert_close(law.log_evidence()[0], torch.as_tensor(log_z))
    x = law.sample((N,))
    assert bool((x[..., 0] == torch.tensor([0.7, 2.0])).all())
    means = -0.2 + 0.4 * (z - 0.3) / 0.5
    for entry, mean in enumerate(means.tolist()):
        exact = scipy.stats.lognorm(s=0.6, scale=math.exp(mean))
        scores = torch.as_tensor(exact.logpdf(x[:50, entry, 1]))
        torch.testing.assert_close(law.log_prob(x[:50])[:, entry], scores)
        assert scipy.stats.kstest(x[:, entry, 1], exact.cdf).pvalue > 1e-3
        levels = [0.0, 0.1, 0.9]
        found = law.quantile(1, levels)[:, entry]
        torch.testing.assert_close(found, torch.as_tensor(exact.ppf(levels)))
    assert list(law.observed) == [0]
    torch.testing.assert_close(law.free().log_prob(x[:5, :, 1:]), law.log_prob(x[:5]))
    assert bool((law.quantile(0, 0.3) == torch.tensor([0.7, 2.0])).all())


def test_quantiles_of_falling_transforms_turn_round():
    flow = Flow(mixture(), [AffineTransform(0.0, -1.0), ExpTransform()])
    law = flow.condition(Observed({0: 0.7}))
    levels = torch.tensor([0.01, 0.5, 0.99])
    share = (law.sample((N,))[:, 1] <= law.quantile(1, levels)[:, None]).double().mean(1)
    assert bool(((share - levels).abs() < 4.5 * (levels * (1 - levels) / N).sqrt()).all())


@pytest.mark.parametrize("transform", [ExpTransform(), SigmoidTransform(), TanhTransform()])
def test_single_precision_keeps_values_and_bounds(transform):
    flow = Flow(mixture().float(), [FALLING, transform]).float()
    for low, high in ((0.1, 0.1000001), (0.3, 0.9), (-3.0, 0.2)):
        law = flow.condition(
            Box(low, high)
            if low != 0.1
            else Box(torch.tensor([low, -9.0]), torch.tensor([high, 9.0]))
        )
        x = law.sample((N // 4,))
        assert x.dtype == torch.float32
        assert bool((x[:, 0] >= torch.tensor(low).float()).all())
        assert bool((x[:, 0] <= torch.tensor(high).float()).all())
        assert bool(law.log_prob(x).isfinite().all())
    law = flow.condition({1: 0.3})
    assert bool((law.sample((100,))[:, 1] == torch.tensor(0.3).float()).all())


def test_evidence_on_single_columns_may_be_written_in_other_ways():
    flow = Flow(mixture(), [ExpTransform()])
    rows = LinearInequality(torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor([-1.0, 3.0]))
    law, box = (
        flow.condition(rows),
        flow.condition(Box(torch.tensor([0.5, -INF]), torch.tensor([INF, 3.0]))),
    )
    x = law.sample((1000,))
    torch.testing.assert_close(law.log_evidence()[0], box.log_evidence()[0])
    torch.testing.assert_close(law.log_prob(x), box.log_prob(x))
    # Step by step is as good as at once.
    later = flow.condition(Box(torch.tensor([0.5, -INF]))).condition(
        Box(high=torch.tensor([INF, 3.0]))
    )
    torch.testing.assert_close(later.log_prob(x), box.log_prob(x))


def test_alternatives_count_once():
    flow = Flow(mixture(), [ExpTransform()])
    both = AnyOf(
        Box(high=torch.tensor([0.5, INF])),
        Box(torch.tensor([0.3, 1.0]), torch.tensor([2.0, 3.0])),
        Box(high=-1.0),  # not reached
    )
    law = flow.condition(both)
    points, area = grid(((1e-9, 60.0), (1e-9, 60.0)), 2401)
    inside = (points[:, 0] <= 0.5) | (
        (points[:, 0] <= 2.0) & (points[:, 1] >= 1.0) & (points[:, 1] <= 3.0)
    )
    total = float(((flow.log_prob(points).exp() * inside).sum() * area).log())
    assert float(law.log_evidence()[0]) == pytest.approx(total, abs=2e-2)
    assert torch.equal(law.log_prob(points[::7]) > -INF, inside[::7])
    x = law.sample((N // 4,))
    assert bool(law.holds(x).all())


def test_affine_transforms_take_all_evidence():
    flow = Flow(mixture(), [FALLING, AffineTransform(0.5, 2.0)])
    direct = MixtureOfNormals(torch.zeros(2), torch.zeros(2, 2), torch.ones(2, 2))
    moved = Flow(direct, [FALLING])
    loc, scale = FALLING.loc, FALLING.scale.abs()
    same = MixtureOfNormals(torch.zeros(2), loc.expand(2, -1), scale.expand(2, -1))
    for evidence in (
        (GaussianPrior(0.3, 0.8),),
        (LinearGaussian(torch.tensor([[1.0, 2.0]]), torch.tensor([0.4]), 0.3), Box(-1.0)),
        (LinearInequality(torch.tensor([1.0, -2.0]), 0.3),),
        (LinearEquality(torch.tensor([1.0, -2.0]), 0.3),),
        (Observed({1: 0.3}), GaussianPrior(torch.tensor([0.0, 0.2]), 0.5)),
    ):
        law, expected = moved.condition(*evidence), same.condition(*evidence)
        torch.testing.assert_close(
            law.log_evidence()[0], expected.log_evidence()[0], atol=1e-3, rtol=0
        )
        x = expected.sample((100,))
        torch.testing.assert_close(law.log_prob(x), expected.log_prob(x), atol=1e-3, rtol=0)
        drawn = law.sample((1000,))
        assert bool(expected.log_prob(drawn).isfinite().all())
    assert bool(flow.condition(GaussianPrior(0.0, 1.0)).sample((5,)).isfinite().all())


def test_functions_are_of_the_flow_s_own_columns():
    flow = Flow(mixture(), [ExpTransform()])
    law = flow.condition(Nonlinear(lambda x: x.prod(-1, keepdim=True), 1.5, 0.01))
    assert float((law.sample((200,)).prod(-1) - 1.5).abs().max()) < 0.06
    x = law.sample((5,))
    likelihood = Normal(1.5, 0.01).log_prob(x.prod(-1))
    log_z, error = law.log_evidence()
    torch.testing.assert_close(law.log_prob(x), flow.log_prob(x) + likelihood - log_z)
    # The density of log(x_0 x_1), a sum of the base's columns, at log(1.5).
    base, line = mixture(), torch.linspace(-12.0, 12.0, 4001)
    on_line = torch.stack([line, math.log(1.5) - line], -1)
    density = base.log_prob(on_line).logsumexp(0) + math.log(24.0 / 4000) - math.log(1.5)
    assert abs(float(log_z - density)) < 5 * float(error) + 0.02


@pytest.mark.parametrize("max_exact", [4096, 1])
@pytest.mark.filterwarnings("ignore:The .* codes that were found")
def test_categorical_columns_pass_untouched(max_exact):
    torch.manual_seed(0)
    base = DRMM(2, 2, 4, categories=(3,), max_exact=max_exact).requires_grad_(False)
    with torch.no_grad():
        base.column_logits[0].normal_()
    parts = [ExpTransform(), AffineTransform(0.0, -1.0), identity_transform]
    flow = Flow(base, [CatTransform(parts, dim=-1, lengths=[1, 1, 1])])
    law = flow.condition(Observed({0: 2.0}), CategoricalPrior(2, torch.tensor([0.5, 0.0, 0.2])))
    expected = base.condition(
        Observed({0: math.log(2.0)}), CategoricalPrior(2, torch.tensor([0.5, 0.0, 0.2]))
    )
    x = law.sample((1000,))
    assert set(x[:, 2].tolist()) == {0.0, 2.0}
    z = torch.stack([x[:, 0].log(), -x[:, 1], x[:, 2]], -1)
    if max_exact > 1:
        torch.testing.assert_close(law.log_prob(x), expected.log_prob(z))
        torch.testing.assert_close(law.probs(2), expected.probs(2))
        slope = -math.log(2.0)
        torch.testing.assert_close(law.log_evidence()[0], expected.log_evidence()[0] + slope)
    assert law.condition({2: 2}).observed[2] == 2.0
    fewer = flow.condition({0: 2.0}, num_particles=64)
    assert fewer.law.num_particles <= 64
    with pytest.raises(ValueError, match="leave the categorical column"):
        Flow(base, [ExpTransform()]).condition({0: 2.0})


def test_laws_are_of_the_parameters_that_the_flow_had():
    transform = Spline(2, count_bins=4)
    flow = Flow(mixture(), [transform, ExpTransform()])
    law = flow.condition({0: 1.3})
    x = law.sample((5,))
    before = law.log_prob(x)
    for copied in (copy.deepcopy(law), pickle.loads(pickle.dumps(law))):
        assert torch.equal(copied.log_prob(x), before)
    with torch.no_grad():
        transform.unnormalized_widths.add_(torch.randn(2, 4))
    assert torch.equal(law.log_prob(x), before)
    assert not torch.equal(flow.condition({0: 1.3}).log_prob(x), before)


def falls_short():
    return Flow(mixture(), [ExpTransform()])


@pytest.mark.parametrize(
    ("flow", "evidence", "error", "match"),
    [
        (falls_short, (GaussianPrior(0.0, 1.0),), ValueError, "Observed values, Box bounds"),
        (falls_short, (LinearEquality(torch.ones(2)),), ValueError, r"columns \[0, 1\]"),
        (falls_short, (LinearInequality(torch.ones(2)),), ValueError, "of several columns"),
        (falls_short, (Observed({0: -1.0}),), ValueError, "that the transforms reach"),
        (falls_short, (Box(high=-1.0),), ValueError, "leave room"),
        (falls_short, (AnyOf(Box(high=-1.0), Box(high=-2.0)),), ValueError, "leave room"),
        (falls_short, (Observed({2: 1.0}),), ValueError, "coordinates"),
        (falls_short, (Box(0.0), torch.zeros(1)), NotImplementedError, "no context"),
        (
            lambda: Flow(mixture(), [affine_coupling(2)]),
            ({0: 1.0},),
            NotImplementedError,
            "every coordinate alone",
        ),
        (
            lambda: Flow(Independent(Normal(torch.zeros(2), 1.0), 1), [ExpTransform()]),
            ({0: 1.0},),
            NotImplementedError,
            "where its base does",
        ),
    ],
)
def test_what_does_not_go_through_says_so(flow, evidence, error, match):
    with pytest.raises(error, match=match):
        flow().condition(*evidence)


def test_what_has_no_closed_form_says_so():
    law = falls_short().condition({0: 1.0})
    for ask in (
        lambda: law.mean,
        lambda: law.mode,
        lambda: law.marginal(1),
        lambda: law.probs(0),
        lambda: law.support,
    ):
        with pytest.raises(NotImplementedError):
            ask()


def test_entries_that_are_not_reached_are_conflicts():
    flow = falls_short()
    high = torch.tensor([[-1.0, INF], [2.0, INF]])
    with pytest.raises(ValueError, match=r"can hold|leave"):
        flow.condition(Box(high=high))
    law = flow.condition(AnyOf(Box(high=high), Box(low=1.0)))
    assert law.batch_shape == (2,)
    x = law.sample((1000,))
    assert bool((x[:, 0] >= 1.0).all())
    assert constraints.positive.check(x).all()
