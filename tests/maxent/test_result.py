"""What a search hands back: figures that agree with the law, a table, a picture."""

import math
import os
import signal

import matplotlib.pyplot as plt
import pytest
import torch
from torch.distributions import biject_to, constraints

from pyromix import GaussianMixture, MaximumEntropy
from pyromix.maxent import MaximumEntropyResult, spline_flow


def statistics(x):
    return torch.cat([x, x.square()], -1)


@pytest.fixture(scope="module")
def result():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    problem = MaximumEntropy(
        GaussianMixture(1, 1),
        statistics,
        [1.0, 5.0],
        inequalities=lambda x: x.squeeze(-1) ** 4,
        bounds=500.0,
        names=["mean", "a very long name of the second moment", "fourth"],
    )
    yield problem.solve(steps=50, rounds=8, lr=0.02, start_steps=20, seed=0, progress_bar=False)
    torch.set_default_dtype(before)


def test_figures_are_those_of_the_law(result):
    """Of a normal: by fresh draws from the distribution that was trained."""
    assert isinstance(result, MaximumEntropyResult)
    law = result.distribution
    mean, variance = law.mean.item(), law.variance.item()
    entropy = 0.5 * math.log(2 * math.pi * math.e * variance)
    assert abs(result.entropy - entropy) < 5 * result.entropy_error
    # log q is a square of a standard normal number, halved.
    assert result.entropy_error == pytest.approx(math.sqrt(0.5 / 102_400), rel=0.05)
    exact = torch.tensor(
        [mean, mean**2 + variance, mean**4 + 6 * mean**2 * variance + 3 * variance**2]
    )
    assert ((result.means - exact).abs() < 5 * result.standard_errors).all()
    assert result.standard_errors[0] == pytest.approx(math.sqrt(variance / 102_400), rel=0.05)
    torch.testing.assert_close(result.levels, torch.tensor([1.0, 5.0, 500.0]))
    torch.testing.assert_close(result.violations[:2], result.means[:2] - result.levels[:2])
    assert result.violations[2] == 0  # slack
    sd = result.standard_errors * math.sqrt(102_400)
    torch.testing.assert_close(result.scaled_violations, result.violations.abs() / sd)


def test_the_residual_is_the_spread_of_what_should_be_constant(result):
    x = result.distribution.sample((100_000,))
    values = torch.cat([statistics(x), x**4], -1)
    total = result.distribution.log_prob(x) + values @ result.multipliers
    assert result.residual == pytest.approx(float(total.detach().std()), rel=0.1, abs=1e-3)


def test_the_course_of_the_search(result):
    assert len(result.entropies) == 50 * len(result.rounds)
    assert 0 <= result.best_round < len(result.rounds)
    assert result.seconds > 0
    kept = result.rounds[result.best_round]
    assert torch.equal(kept.multipliers, result.multipliers)
    for end in result.rounds:
        assert len(end.violations) == len(end.scaled_violations) == len(end.multipliers) == 3
        assert end.scale.shape == (1,)
        assert (end.scaled_violations >= 0).all()
        assert end.violations[2] >= 0
        assert end.multipliers[2] >= 0


def test_the_table(result):
    lines = str(result).splitlines()
    assert f"entropy {result.entropy:.4f} +- {result.entropy_error:.4f} nats" in lines[0]
    assert result.outcome in lines[0]
    assert f"{len(result.rounds)} rounds" in lines[0]
    assert ("constraints MISSED BY" in lines[0]) != result.feasible
    assert len(lines) == 2 + 3
    for line, name, asked, got in zip(
        lines[2:], result.names, result.levels.tolist(), result.means.tolist(), strict=True
    ):
        assert line.startswith(name[:20])
        assert [float(n) for n in line[20:].split()[:2]] == pytest.approx([asked, got], rel=1e-4)
    assert len({len(line) for line in lines[1:]}) == 1  # columns are aligned


def test_the_picture(result):
    figure = result.plot()
    assert len(figure.axes) == 3
    entropy, violations, multipliers = figure.axes
    got = entropy.lines[1].get_ydata()
    assert list(got) == pytest.approx([r.entropy for r in result.rounds])
    assert len(violations.lines) == len(multipliers.lines) == 3
    prices = [line.get_ydata()[-1] for line in multipliers.lines]
    assert prices == pytest.approx(result.rounds[-1].multipliers.tolist())
    labels = [text.get_text() for text in multipliers.get_legend().get_texts()]
    assert labels == list(result.names)
    plt.close(figure)


def test_interrupted_from_the_keyboard():
    """What there is by then is a result, too."""
    calls = []

    def watched(x):
        calls.append(len(x))
        if len(calls) == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return statistics(x)

    problem = MaximumEntropy(GaussianMixture(1, 1), watched, [1.0, 5.0])
    result = problem.solve(steps=50, rounds=9, start_steps=5, seed=0, progress_bar=False)
    assert result.outcome == "interrupted"
    assert 0 < len(result.entropies) < 50
    assert len(result.rounds) == 1
    assert "interrupted" in str(result)
    figure = result.plot()
    plt.close(figure)


# ---- spline_flow ------------------------------------------------------------------------------

SUPPORTS = {
    "space": (None, 2),
    "positive": (constraints.positive, 1),
    "positive-2d": (constraints.positive, 2),
    "interval": (constraints.interval(-1.0, 3.0), 1),
    "interval-2d": (constraints.interval(-1.0, 3.0), 2),
    "greater": (constraints.greater_than(2.0), 2),
    "simplex": (constraints.simplex, 2),
}


@pytest.mark.parametrize("name", SUPPORTS)
@pytest.mark.parametrize("temperatures", [None, (1.0, 0.1)])
def test_spline_flows_lie_on_their_support(name, temperatures):
    support, dim = SUPPORTS[name]
    flow = spline_flow(dim, 2, support=support, temperatures=temperatures, hidden_dims=(4,))
    size = dim + 1 if name == "simplex" else dim
    assert flow.event_shape == (size,)
    x, log_prob = flow.rsample_and_log_prob((200,))
    assert x.shape == (200, size)
    torch.testing.assert_close(flow.log_prob(x), log_prob, atol=1e-6, rtol=1e-6)
    if support is not None:
        assert constraints.independent(support, 1 - support.event_dim).check(x).all()
    assert flow.support.check(x).all()
    outside = torch.full((size,), -5.0)
    assert bool(flow.support.check(outside)) == (support is None)
    # A normal law to start from lies there, too.
    start = biject_to(flow.support)(torch.randn(50, dim))
    assert flow.log_prob(start).isfinite().all()


def test_spline_flows_start_near_their_base():
    flow, z = spline_flow(3, 2, hidden_dims=(4,)), torch.randn(50, 3)
    x = z
    for transform in flow.transforms:
        x = transform(x)
    order = [2, 1, 0]  # reversed between the two splines
    assert (x - z[:, order]).abs().max() < 0.5
