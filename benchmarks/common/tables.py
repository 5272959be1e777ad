"""Tables with entries hidden at random, and the simplest way of filling them in."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from pyromix import GaussianMixture, fit_em

HIDDEN = 0.3  # share of entries
FLOOR = 1e-3  # of variances: some standardised columns are rounded to a tenth of a deviation


class Split(NamedTuple):
    """Rows with all their entries, and with NaN for those that are hidden."""

    train: Tensor
    train_gaps: Tensor
    test: Tensor
    test_gaps: Tensor


def hide(x: Tensor) -> Tensor:
    """The table with NaN for about three tenths of its entries."""
    return x.masked_fill(torch.rand(x.shape) < HIDDEN, math.nan)


def split(x: Tensor, seed: int, real: int | None = None) -> Split:
    """Seven tenths of the rows to train on, in units of the observed entries among them.

    Args:
        x: Table of shape (N, columns).
        seed: Of the order of rows, and of what is hidden.
        real: Number of columns, the first ones, that are standardised; by default all.
    """
    torch.manual_seed(seed)
    x = x[torch.randperm(len(x))]
    count = round(0.7 * len(x))
    gaps = hide(x)
    observed = gaps[:count, :real]
    mean = observed.nanmean(0)
    scale = (observed - mean).square().nanmean(0).sqrt()
    for t in (x, gaps):
        t[:, :real] = (t[:, :real] - mean) / scale
    return Split(x[:count], gaps[:count], x[count:], gaps[count:])


def fit_mixture(
    x: Tensor, num_components: int, covariance: Any, seed: int
) -> tuple[float, GaussianMixture]:
    """A mixture of a table with gaps, and its BIC; both in double precision."""
    torch.manual_seed(seed)
    model = GaussianMixture(
        x.shape[-1], num_components, covariance, variance_floor=FLOOR, missing="marginalize"
    ).double()
    fit_em(model, x, steps=60, tolerance=1e-3, seed=seed, progress_bar=False)
    return model.bic(x), model


def impute(imputer: Any, train: Tensor, x: Tensor) -> Tensor:
    """What one of scikit-learn's imputers, fitted to a table, makes of another one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        imputer.fit(train.numpy())
    return torch.from_numpy(imputer.transform(x.numpy()))


def error_variance(fill: Callable[[Tensor], Tensor], data: Split) -> Tensor:
    """Variances of errors on training entries that are hidden in addition, one for each column.

    Args:
        fill: Fits an imputer to a table with gaps, and returns the table without gaps, or its
            first columns.
        data: What the imputer is to be used for.
    """
    torch.manual_seed(0)
    fewer = hide(data.train_gaps)
    filled = fill(fewer)
    real = filled.shape[1]
    probe = (fewer.isnan() & ~data.train_gaps.isnan())[:, :real]
    error = (filled - data.train[:, :real]).masked_fill(~probe, math.nan)
    return error.square().nanmean(0).clamp(min=FLOOR)


def normal_log_prob(error: Tensor, variance: Tensor) -> Tensor:
    """Log-density of errors under a normal around zero, entry by entry."""
    return -0.5 * (error.square() / variance + (2 * math.pi * variance).log())
