"""Few of many weighted items: against the definition, and by frequency."""

import math

import pytest
import torch

from pyromix.drmm.thinning import thin


def probabilities(log_weight, count):
    """Of being kept, for one row in float64: the largest for certain, others by their weights."""
    weight = (log_weight.double() - log_weight.max()).exp()
    order = weight.argsort(descending=True)
    positive = int((weight > 0).sum())
    if positive <= count:
        return (weight > 0).double()
    for certain in range(count):
        rest = weight[order[certain:]].flip(0).sum()  # the smallest first
        threshold = rest / (count - certain)
        if weight[order[certain]] < threshold:
            break
    return (weight / threshold).clamp(max=1.0)


WEIGHTS = {
    "even": lambda n: torch.randn(n),
    "steep": lambda n: 30 * torch.randn(n),
    "one large": lambda n: torch.randn(n) + 25.0 * (torch.arange(n) == 5),
    "all but a few large ones small": lambda n: torch.randn(n) - 30.0 * (torch.arange(n) > 6),
    "equal": torch.zeros,
    "some impossible": lambda n: torch.where(torch.arange(n) % 3 > 0, torch.randn(n), -math.inf),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WEIGHTS)
def test_items_are_kept_as_often_as_they_should(name, dtype):
    torch.manual_seed(0)
    count, repeats = 8, 20_000
    log_weight = WEIGHTS[name](60).to(dtype)
    expected = probabilities(log_weight, count)
    index, log_inclusion = thin(log_weight.expand(repeats, -1), count)
    assert index.shape == log_inclusion.shape == (repeats, count)
    kept = log_inclusion < math.inf
    torch.testing.assert_close(
        log_inclusion[kept].exp().double(), expected[index[kept]], rtol=1e-3, atol=1e-3
    )
    assert bool((index.sort(1).values.diff(dim=1) > 0)[kept[:, 1:]].all())  # no item twice
    frequency = torch.zeros(60).index_add(0, index[kept], torch.ones(int(kept.sum()))) / repeats
    error = (expected * (1 - expected) / repeats).sqrt()
    assert bool(((frequency - expected).abs() <= 4.5 * error + 1e-9).all())
    # Sums over items are unbiased: those for certain are exact.
    assert bool((frequency[expected == 1] == 1).all())


def test_too_few_items_are_filled_up():
    log_weight = torch.full((2, 50), -math.inf)
    log_weight[0, [3, 30, 41]] = torch.tensor([0.0, -80.0, 5.0])
    index, log_inclusion = thin(log_weight, 5)
    kept = log_inclusion < math.inf
    assert sorted(index[0][kept[0]].tolist()) == [3, 30, 41]
    assert bool((log_inclusion[0][kept[0]] == 0).all())
    assert not bool(kept[1].any())
    assert torch.equal(thin(log_weight, 50)[1], torch.zeros(2, 50))
