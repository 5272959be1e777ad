"""Scores of linear evidence, against normals written out, for columns of very different units."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from pyromix import (
    DRMM,
    Box,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Observed,
)
from pyromix.drmm.evidence_score import EvidenceParts, EvidenceScore
from pyromix.evidence.collect import collect

SIZES = {"alike": (1.0, 1.0, 1.0), "apart": (1.0, 1e-6, 1e6), "far apart": (1e-12, 1.0, 1e12)}


def statements(unit):
    """Values, a reading and a prior, and inequalities, of columns with given units."""
    return [
        Observed({1: 0.7 * unit[1]}),
        LinearGaussian((1 / unit * torch.tensor([1.0, 0.0, -0.5])), torch.tensor([0.3]), 0.2),
        GaussianPrior(0.4 * unit, unit * torch.tensor([2.0, math.inf, 3.0])),
        Box(torch.stack([-0.5 * unit[0], *torch.full((2,), -math.inf)]), math.inf),
        LinearInequality(1 / unit * torch.tensor([0.0, 0.0, 1.0]), 0.2),
    ]


@pytest.mark.parametrize("name", SIZES)
def test_scores_are_those_of_normals_written_out(name):
    unit = torch.tensor(SIZES[name])
    evidence = collect(statements(unit), 3, unit.device)
    scale = unit * torch.tensor([[0.8, 1.5, 0.6], [2.0, 0.3, 1.0]])
    mean = unit * torch.randn(1, 4, 3)
    index = torch.tensor([[0, 1, 1, 0]])
    score = EvidenceScore(EvidenceParts.of(evidence, torch.Size()), scale)
    matrix, y, noise = evidence.observations(())
    rows, low, _ = evidence.inequalities(())
    seen, within = [], []
    for m, s in zip(mean[0], scale[index[0]], strict=True):
        covariance = torch.diag(s.square())
        of_y = matrix @ covariance @ matrix.mT + noise
        size = of_y.diagonal().sqrt()
        law = MultivariateNormal(torch.zeros(len(y)), of_y / size / size.unsqueeze(-1))
        seen.append(law.log_prob((y - matrix @ m) / size) - size.log().sum())
        gain = (covariance @ matrix.mT / size) @ law.precision_matrix
        centre = m + gain @ ((y - matrix @ m) / size)
        left = covariance - gain @ (matrix @ covariance / size.unsqueeze(-1))
        spread = (rows @ left @ rows.mT).diagonal().sqrt()
        within.append(torch.special.log_ndtr((rows @ centre - low) / spread))
    expected = torch.stack(seen)
    torch.testing.assert_close(
        score.observations_of(mean, index)[0], expected, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        score.inequalities_of(mean, index)[0], torch.stack(within), rtol=1e-6, atol=1e-6
    )


def test_an_effective_sample_size_does_not_depend_on_units():
    """The very same law, in other units, from the same random numbers."""
    sizes = []
    for unit in ((1.0, 1.0, 1.0), (1.0, 2.0**-30, 2.0**30)):
        torch.manual_seed(3)
        model, unit = DRMM(3, 3, 6), torch.tensor(unit)
        with torch.no_grad():
            model.units.scale.copy_(unit)
            reading = LinearGaussian(1 / unit, torch.tensor([0.4]), 0.1)
            law = model.condition(reading, num_particles=32, max_exact=1)
        assert not law.exact
        sizes.append(law.effective_sample_size)
    torch.testing.assert_close(sizes[1], sizes[0])


def test_an_equation_counts_among_values_of_a_small_column():
    unit = torch.tensor([1.0, 1e-6])
    evidence = collect([LinearEquality(1 / unit, 0.0)], 2, unit.device)
    score = EvidenceScore(EvidenceParts.of(evidence, torch.Size()), unit.unsqueeze(0))
    ((row,), ((y,),), _) = evidence.observations((1,))
    expected = Normal(0.0, (row * unit).norm()).log_prob(y)
    got = score.observations_of(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long))
    torch.testing.assert_close(got.squeeze(), expected)
