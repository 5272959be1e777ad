"""One law: densities, draws and bounds against sums over all codes of tiny arrays."""

import itertools

import pytest
import torch

from pyromix import HierarchicalDRMM, Level, Top
from pyromix.hierarchy.dense import log_product
from pyromix.hierarchy.law import Search

SHAPES = {
    "row": ((1, 6), [Level(2, num_components=2), Top(2, 2)]),
    "two levels": ((1, 8), [Level(2, num_components=2), Level(2, None, 1, 3), Top(1, 2)]),
    "hanging over": ((2, 5), [Level(2, num_components=2, maps="diagonal"), Top(2, 2)]),
    "image": ((1, 4, 4), [Level(2, num_components=2), Top(2, 2)]),
    "windows of an image overlap": ((1, 3, 5), [Level(3, 2, 2, 2), Top(2, 3)]),
    "windows continue": ((2, 6), [Level(3, 2, 2, 2, "triangular"), Top(2, 2)]),
    "windows of codes overlap": (
        (1, 6),
        [Level(2, 1, 1, 2, "triangular"), Level(3, 2, 2, 2), Top(1, 2)],
    ),
}


def scattered(name, dtype=torch.float64, **options):
    """A model with parameters at random, and arrays that it could have drawn."""
    torch.manual_seed(len(name))
    model = HierarchicalDRMM(*SHAPES[name], **options).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.eval()


def every(num_components, num_layers):
    return list(itertools.product(range(num_components), repeat=num_layers))


def log_prior(log_weight, links, code, shift, gate):
    """Log p(h) of a code, written out; a gate takes the codes of the layers so far."""
    total, pair = 0.0, 0
    for layer, chosen in enumerate(code):
        scores = log_weight[layer] + shift[layer]
        scores = scores + torch.stack(
            [gate((*code[:layer], k)) for k in range(len(log_weight[layer]))]
        )
        for earlier in range(layer):
            scores = scores + links[pair][code[earlier]]
            pair += 1
        total = total + scores.log_softmax(-1)[chosen]
    return total


def slow_log_prob(model, value):
    """Log-density of one array: a sum over the codes of all cells, one by one.

    Entries that are NaN are left out, of columns that are independent given a code.
    """
    mixture = model.windows.law
    links = mixture.links.reshape(-1, mixture.num_components, mixture.num_components)
    tables = [(mixture.log_weight, links)]
    tables += [(level.log_weight, level.links) for level in model.codes]
    entries = value.reshape(value.shape[0], -1).mT  # (P, channels)

    def normal(code):
        """Mean and covariance of a window, if there were no more layers than codes."""
        own, law = torch.tensor([code]), mixture.shallow(len(code))
        mean = law.mean_of(own)[0]
        if law.correlates:
            factor = law.factor_of(own)[0]
            return mean, factor @ factor.mT
        return mean, law.mixture_of(own.unsqueeze(0), torch.zeros(1, 1).to(mean)).variance[
            0
        ].diag()

    def parts(cell):
        """Entries of a window; which are given, and which are drawn."""
        channels = entries.shape[1]
        place = model.tiling.place[cell].repeat_interleave(channels)
        new = model.tiling.drawn[cell].repeat_interleave(channels)
        x = entries[model.tiling.place[cell].clamp(min=0)].flatten()
        return x, (place >= 0) & ~new, new & ~x.isnan()

    def gate(place, cell):
        """How well codes fit what a cell is given."""
        x, old, _ = parts(cell) if place == 0 else (None, torch.zeros(1), None)
        if not old.any():
            return lambda code: torch.tensor(0.0)

        def fit(code):
            mean, covariance = normal(code)
            law = torch.distributions.MultivariateNormal(mean[old], covariance[old][:, old])
            return law.log_prob(x[old])

        return fit

    def window(cell, code):
        """Log-density of what a window draws, given what it is given."""
        (x, old, new), (mean, covariance) = parts(cell), normal(code)
        if not new.any():
            return mean.new_zeros(())
        x = x - mean
        gain = covariance[new][:, old] @ torch.linalg.inv(covariance[old][:, old])
        left = covariance[new][:, new] - gain @ covariance[old][:, new]
        law = torch.distributions.MultivariateNormal(gain @ x[old], left)
        return law.log_prob(x[new])

    def below(place, cell, code):
        """Log-probability of all below a cell of a level, given its code."""
        if place == 0:
            return window(cell, code)
        level = model.codes[place - 1]
        total = 0.0
        for position in range(level.tiling.num_positions):
            if level.tiling.drawn[cell, position]:
                child = int(level.tiling.place[cell, position])
                shift = sum(level.tables[i, k, position] for i, k in enumerate(code))
                total = total + cell_sum(place - 1, child, shift)
        return total

    def cell_sum(place, cell, shift):
        log_weight, links = tables[place]
        layers, k = log_weight.shape
        return torch.stack(
            [
                log_prior(log_weight, links, code, shift, gate(place, cell))
                + below(place, cell, code)
                for code in every(k, layers)
            ]
        ).logsumexp(0)

    top = len(model.codes)
    return cell_sum(top, 0, torch.zeros_like(tables[top][0]))


@pytest.mark.parametrize("name", SHAPES)
def test_density_is_the_sum_over_all_codes(name):
    model = scattered(name, max_codes=1000)
    value = model.sample((3,))
    expected = torch.stack([slow_log_prob(model, x) for x in value])
    torch.testing.assert_close(model.log_prob(value), expected, rtol=1e-9, atol=1e-9)
    single = scattered(name, torch.float32, max_codes=1000)
    single.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        single.log_prob(value.float()).double(), expected, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("name", SHAPES)
def test_beams_are_a_lower_bound_that_closes(name):
    model = scattered(name, max_codes=1000)
    value = model.sample((200,))
    exact = model.log_prob(value).detach()
    flat, gaps = model.flatten(value), []
    for width in (1, 2, 3):
        bound = model.law.log_prob(flat, Search(width, 1)).detach()
        assert bool((bound <= exact + 1e-9).all())
        gaps.append((exact - bound).mean().item())
    assert gaps[0] > gaps[1] > gaps[2]
    widest = model.law.log_prob(flat, Search(16, 1)).detach()
    torch.testing.assert_close(widest, exact)


def test_sums_of_products_are_those_of_logarithms():
    """Where single precision ends, too: rows of which nothing is left are added up anew."""
    torch.manual_seed(0)
    fit, table = 40 * torch.randn(6, 2, 5), (60 * torch.randn(4, 5)).log_softmax(-1)
    table[0, 1:], fit[0, 0, 0] = -200.0, -300.0
    fit, table = fit.requires_grad_(), table.requires_grad_()
    got = log_product(fit, table)
    expected = (fit.unsqueeze(-2).double() + table.double()).logsumexp(-1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)
    slopes = torch.autograd.grad(got.sum(), (fit, table))
    for slope, right in zip(
        slopes, torch.autograd.grad(expected.sum(), (fit, table)), strict=True
    ):
        torch.testing.assert_close(slope, right, rtol=1e-4, atol=1e-4)


def test_sums_over_all_codes_and_over_wide_beams_agree():
    model = scattered("two levels", max_codes=1000)
    value = model.sample((20,))
    exact = model.log_prob(value)
    beams = scattered("two levels", max_codes=0, beam=100)
    torch.testing.assert_close(beams.log_prob(value), exact)
