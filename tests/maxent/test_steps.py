"""Steps whose values are exact, and whose gradients are smooth."""

import pytest
import torch

from pyromix import MaximumEntropy
from pyromix.maxent import below, between, elicit, interval, mean, sd, spline_flow


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_those_of_the_step_and_gradients_those_of_the_smooth_one(dtype):
    x = torch.linspace(-3, 3, 101, dtype=dtype).requires_grad_()
    inside = between(x, -1.01, 0.52, 0.3)
    assert torch.equal(inside, ((x > -1.01) & (x < 0.52)).to(dtype))
    assert torch.equal(below(x, 0.52, 0.3), (x < 0.52).to(dtype))
    (got,) = torch.autograd.grad(inside.sum(), x)
    smooth = torch.sigmoid(4 * (0.52 - x) / 0.3) - torch.sigmoid(4 * (-1.01 - x) / 0.3)
    torch.testing.assert_close(got, torch.autograd.grad(smooth.sum(), x)[0])


def test_arguments_that_are_no_steps():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="positive width, got 0"):
        below(x, 0.5, 0.0)
    with pytest.raises(ValueError, match=r"low to be less than high, got 1.0 and 0.5"):
        between(x, 1.0, 0.5, 0.1)


def test_a_search_keeps_the_probability_of_an_interval():
    """Sigmoids of this width in place of the steps would leave 0.64 instead of 0.6."""
    torch.manual_seed(0)
    law = spline_flow(1, num_layers=1)
    problem = MaximumEntropy(
        law,
        lambda x: torch.cat([x, x.square(), between(x, -0.5, 0.5, 0.4)], -1),
        [0.0, 1.0, 0.6],
    )
    problem.solve(steps=50, rounds=8, lr=0.01, batch_size=256, seed=0, progress_bar=False)
    x = law.sample((100_000,))
    # Within the margin of feasibility, the error of its test, and that of these draws.
    assert ((x > -0.5) & (x < 0.5)).double().mean() == pytest.approx(0.6, abs=0.015)
    answer = elicit({"x": [mean(0), sd(1), interval(0.6, -0.5, 0.5)]}, smooth=0.4)
    got = -float(law.log_prob(x[:20_000]).detach().mean())
    assert got == pytest.approx(float(answer.entropy()), abs=0.03)
