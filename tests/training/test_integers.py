"""Whole numbers in real columns: a density on them grows without bound."""

import math
import warnings

import pyro.distributions as dist
import pytest
import torch

from pyromix import DRMM, GaussianMixture, dequantize, fit, fit_em, fit_vb
from pyromix.flows.wrapping import as_distribution_module
from pyromix.training.integers import warn_about_integers


def table(n=200):
    """A real column, counts of children, and a flag with gaps."""
    x = torch.stack([torch.randn(n), torch.randint(0, 6, (n,)), torch.randint(0, 2, (n,))], -1)
    x[::7, 2] = math.nan
    return x


def test_columns_of_few_whole_numbers_are_named():
    law = GaussianMixture(3, 2, missing="marginalize")
    with pytest.warns(UserWarning, match=r"Columns \[1, 2\].*at most 6.*dequantize.*categories"):
        warn_about_integers(law, table())


@pytest.mark.parametrize(
    ("law", "data"),
    [
        (lambda: GaussianMixture(2, 2), lambda: torch.randn(200, 2)),
        (lambda: GaussianMixture(2, 2), lambda: torch.randn(200, 2).round(decimals=1)),
        (lambda: GaussianMixture(1, 2), lambda: torch.randint(0, 1000, (200, 1)).double()),
        (lambda: GaussianMixture(1, 2), lambda: torch.arange(8.0).unsqueeze(-1)),
        (lambda: GaussianMixture(1, 2), lambda: torch.ones(200, 1)),
        (lambda: GaussianMixture(1, 2), lambda: dequantize(torch.randint(0, 5, (200, 1)), 5)),
        (lambda: DRMM(1, 2, 3, categories=(6,)), lambda: table()[:, :2]),
        (
            lambda: as_distribution_module(dist.Poisson(torch.ones(1)).to_event(1)),
            lambda: torch.randint(0, 5, (200, 1)).double(),
        ),
    ],
)
def test_nothing_is_said_about_others(law, data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_integers(law(), data())


def test_training_warns_once():
    data = table()[:, :2]
    with pytest.warns(UserWarning, match=r"Columns \[1\]"):
        fit(DRMM(2, 2, 3), data, steps=1, progress_bar=False, seed=0)
    with pytest.warns(UserWarning, match=r"Columns \[1\]"):
        fit_em(GaussianMixture(2, 2), data, steps=2, progress_bar=False, seed=0)
    with pytest.warns(UserWarning, match=r"Columns \[1\]"):
        fit_vb(GaussianMixture(2, 2), data, steps=2, progress_bar=False, seed=0)
