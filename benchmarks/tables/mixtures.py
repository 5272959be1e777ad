"""Mixtures by expectation-maximisation: products of columns, and jointly normal numbers.

Both take the columns as the schema encodes them. Codes are independent given the component. Real
numbers are so, too, in a mixture of products (naive Bayes with a hidden class), and are jointly
normal with a full covariance in the other. Gaps are summed over, in training as well. Integers,
and multiples of another step, are spread evenly over their intervals for training. The number of
components is doubled as long as a tenth of the rows, held out, become likelier.
"""

from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp, ndtr
from sklearn.cluster import KMeans
from torch import Generator

from benchmarks.tables.components import Mixture, Rows, log_normal_mass
from benchmarks.tables.peer import number
from pyromix.tables import Schema

STEPS = 100
# Gain of a step, in nats a row, below which training ends.
TOLERANCE = 1e-3
# Of variances, in the units of encoded numbers.
FLOOR = 1e-4
# Rows like the whole table that are counted to every component.
PRIOR_ROWS = 1.0
HELD_OUT = 0.1
LEAST = 4
LOG_2PI = float(np.log(2 * np.pi))


class MixtureByEM(Mixture):
    """What both have in common.

    Attributes:
        most: Components at most.
    """

    most: ClassVar[int]

    log_weights: np.ndarray
    log_probs: list[np.ndarray]
    """Of the values of every code, (K, values)."""
    loc: np.ndarray
    """Shape (K, D)."""

    def fit(self, frame: pd.DataFrame, schema: Schema) -> None:
        self.schema = schema
        self.make_grids(frame)
        x = schema.dequantize(schema.encode(frame), generator=Generator().manual_seed(0))
        everything = Rows(x.numpy(), schema.dim)
        order = np.random.default_rng(0).permutation(len(everything))
        border = round(HELD_OUT * len(order))
        held_out, rest = everything[order[:border]], everything[order[border:]]
        best, count, found = -np.inf, LEAST, LEAST
        while count <= min(self.most, len(rest) // 10):
            self._train(rest, count)
            score = float(logsumexp(self._log_density(held_out), axis=1).mean())
            if score < best:
                break
            best, found, count = score, count, 2 * count
        self.num_components = found
        self._train(everything, found)

    def _train(self, rows: Rows, count: int) -> None:
        weight = self._start(rows, count)
        last = -np.inf
        for _ in range(STEPS):
            self._maximise(rows, weight)
            joint = self._log_density(rows)
            total = logsumexp(joint, axis=1, keepdims=True)
            weight = np.exp(joint - total)
            score = float(total.mean())
            if score - last < TOLERANCE:
                break
            last = score

    def _start(self, rows: Rows, count: int) -> np.ndarray:
        """Components of rows to begin with, (N, K), by k-means of numbers and indicators."""
        parts = [np.nan_to_num(rows.z)]
        for values, size in zip(rows.codes.T, self.schema.categories, strict=True):
            parts.append((values[:, None] == np.arange(size)) * 0.7)
        features = np.concatenate(parts, 1)
        rng = np.random.default_rng(0)
        some = rng.permutation(len(features))[: max(5000, 10 * count)]
        means = KMeans(count, n_init=1, max_iter=10, random_state=0).fit(features[some])
        weight = np.full((len(rows), count), 0.1 / count)
        weight[np.arange(len(rows)), means.predict(features)] += 0.9
        return weight

    def _maximise(self, rows: Rows, weight: np.ndarray) -> None:
        total = weight.sum(0)
        self.log_weights = np.log(total / total.sum())
        self.log_probs = []
        for values, size in zip(rows.codes.T, self.schema.categories, strict=True):
            hits = (values[:, None] == np.arange(size)).astype(float)
            counts = weight.T @ hits  # (K, values)
            overall = (hits.sum(0) + 1 / size) / (hits.sum() + 1)
            counts += PRIOR_ROWS * overall
            self.log_probs.append(np.log(counts / counts.sum(1, keepdims=True)))
        self._maximise_real(rows.z, weight)

    def _log_density(self, rows: Rows) -> np.ndarray:
        return self._log_codes(rows) + self._log_real(rows.z)

    def _log_codes(self, rows: Rows) -> np.ndarray:
        joint = np.tile(self.log_weights, (len(rows), 1))
        for values, logs in zip(rows.codes.T, self.log_probs, strict=True):
            known = ~np.isnan(values)
            joint[known] += logs.T[values[known].astype(int)]
        return joint

    def code_probs(self, place: int) -> np.ndarray:
        return np.exp(self.log_probs[place])

    def _maximise_real(self, z: np.ndarray, weight: np.ndarray) -> None:
        raise NotImplementedError

    def _log_real(self, z: np.ndarray) -> np.ndarray:
        """Log-density of encoded numbers z (N, D), (N, K)."""
        raise NotImplementedError

    def _draw_real(self, component: int, count: int, rng: np.random.Generator) -> np.ndarray:
        raise NotImplementedError

    def sample(self, count: int, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        sizes = rng.multinomial(count, np.exp(self.log_weights))
        parts = []
        for component, size in enumerate(sizes):
            drawn = [
                rng.choice(logs.shape[1], size, p=np.exp(logs[component]))
                for logs in self.log_probs
            ]
            z = self._draw_real(component, size, rng)
            parts.append(np.concatenate([z, *(code[:, None] for code in drawn)], 1))
        x = rng.permutation(np.concatenate(parts))
        return self.schema.decode(torch.from_numpy(x))


class ProductMixture(MixtureByEM):
    """A mixture of products: all columns are independent given the component."""

    most = 512
    variance: np.ndarray
    """Shape (K, D)."""

    def _maximise_real(self, z: np.ndarray, weight: np.ndarray) -> None:
        known = (~np.isnan(z)).astype(float)
        filled = np.nan_to_num(z)
        total = weight.T @ known + PRIOR_ROWS
        self.loc = (weight.T @ filled) / total
        square = weight.T @ filled**2 + PRIOR_ROWS
        self.variance = np.maximum(square / total - self.loc**2, FLOOR)

    def _log_real(self, z: np.ndarray) -> np.ndarray:
        known = (~np.isnan(z)).astype(float)
        filled, precision = np.nan_to_num(z), 1 / self.variance
        constant = self.loc**2 * precision + np.log(self.variance) + LOG_2PI
        square = filled**2 @ precision.T - 2 * filled @ (self.loc * precision).T
        return -0.5 * (square + known @ constant.T)

    def log_joint(self, rows: Rows) -> np.ndarray:
        """Integers and other multiples of a step have the probability of their intervals."""
        joint, z, scale = self._log_codes(rows), rows.z.copy(), np.sqrt(self.variance)
        for place, name in enumerate(self.schema.real_names):
            column = number(self.schema[name])
            if column.step is None:
                continue
            known = ~np.isnan(z[:, place])
            ends = column.interval(column.from_real(z[known, place]))
            low, high = ((e[:, None] - self.loc[:, place]) / scale[:, place] for e in ends)
            joint[known] += log_normal_mass(low, high)
            z[:, place] = np.nan
        slope = self.schema.log_slope(torch.from_numpy(rows.x), integers=False).numpy()
        return joint + self._log_real(z) + slope[:, None]

    def cdf(self, rows: Rows, place: int, grid: np.ndarray, posterior: np.ndarray) -> np.ndarray:  # noqa: ARG002
        scaled = (grid - self.loc[:, place, None]) / np.sqrt(self.variance[:, place, None])
        return posterior @ ndtr(scaled)

    def _draw_real(self, component: int, count: int, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal((count, self.loc.shape[1]))
        return self.loc[component] + noise * np.sqrt(self.variance[component])


class NormalMixture(MixtureByEM):
    """Numbers are jointly normal with a full covariance given the component."""

    most = 256
    covariance: np.ndarray
    """Shape (K, D, D)."""

    def _train(self, rows: Rows, count: int) -> None:
        dim = self.schema.dim
        self.loc, self.covariance = np.zeros((count, dim)), np.tile(np.eye(dim), (count, 1, 1))
        super()._train(rows, count)

    def _maximise_real(self, z: np.ndarray, weight: np.ndarray) -> None:
        count, dim = self.loc.shape
        total = weight.sum(0) + PRIOR_ROWS
        first, second = np.zeros((count, dim)), np.tile(PRIOR_ROWS * np.eye(dim), (count, 1, 1))
        for index, known in _patterns(z):
            mean, rest = self._given(z[index], known)
            own = weight[index]
            first += np.einsum("nk,nkd->kd", own, mean, optimize=True)
            second += np.matmul((own[..., None] * mean).transpose(1, 2, 0), mean.swapaxes(0, 1))
            second += own.sum(0)[:, None, None] * rest
        self.loc = first / total[:, None]
        outer = self.loc[:, :, None] * self.loc[:, None]
        self.covariance = second / total[:, None, None] - outer + FLOOR * np.eye(dim)

    def _given(self, z: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means (N, K, D) and covariances (K, D, D) of rows that have the same gaps."""
        dim = self.loc.shape[1]
        gain = self.covariance[:, :, known] @ np.linalg.inv(self.covariance[:, known][..., known])
        diff = z[:, None, known] - self.loc[:, known]  # (N, K, known)
        mean = self.loc + np.matmul(diff.swapaxes(0, 1), gain.swapaxes(1, 2)).swapaxes(0, 1)
        mean[..., known] = z[:, None, known]
        rest = self.covariance - gain @ self.covariance[:, known]
        rest[:, known], rest[..., known] = 0.0, 0.0
        assert rest.shape[1:] == (dim, dim)
        return mean, rest

    def _log_real(self, z: np.ndarray) -> np.ndarray:
        result = np.zeros((len(z), len(self.loc)))
        for index, known in _patterns(z):
            root = np.linalg.cholesky(self.covariance[:, known][..., known])
            inverse = np.linalg.inv(root)
            diff = z[index][:, None, known] - self.loc[:, known]
            white = np.matmul(diff.swapaxes(0, 1), inverse.swapaxes(1, 2))  # (K, N, known)
            constant = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
            constant += 0.5 * len(known) * LOG_2PI
            result[index] = -0.5 * np.square(white).sum(-1).T - constant
        return result

    def log_joint(self, rows: Rows) -> np.ndarray:
        """Multiples of a step have the density in the middle of their interval times its width."""
        slope = self.schema.log_slope(torch.from_numpy(rows.x)).numpy()
        return self._log_density(rows) + slope[:, None]

    def cdf(self, rows: Rows, place: int, grid: np.ndarray, posterior: np.ndarray) -> np.ndarray:
        result = np.empty((len(rows), len(grid)))
        for index, known in _patterns(rows.z):
            mean, rest = self._given(rows.z[index], known)
            scale = np.sqrt(np.maximum(rest[:, place, place], 1e-12))
            scaled = (grid[:, None] - mean[:, None, :, place]) / scale  # (N, G, K)
            result[index] = (ndtr(scaled) @ posterior[index][..., None])[..., 0]
        return result

    def _draw_real(self, component: int, count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.multivariate_normal(self.loc[component], self.covariance[component], count)


def _patterns(z: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of rows that have the same gaps, and the columns that they know."""
    kinds, kind = np.unique(~np.isnan(z), axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    return [
        (np.flatnonzero(kind == number), np.flatnonzero(known))
        for number, known in enumerate(kinds)
    ]
