"""Adversarial random forests of the package arfpy, with laws of columns in every leaf.

The package grows the forest. Leaf by leaf, columns are independent: together, leaves of all trees
are a mixture of products, the weight of a leaf being its share of the rows, over the number of
trees. Laws in leaves are those of the package, a normal truncated at the leaf's bounds or the
frequencies of categories, with three changes, so that nothing that occurs has the density zero,
and so that the units are those of others:

- Normals are of encoded numbers, so that amounts have log-normals. Bounds are encoded with them.
- A column's point has its share of the leaf's rows. The probability of an integer, or of
  a multiple of another step, is that of its interval.
- Frequencies and variances are smoothed as if rows like the whole table were in the leaf. How many
  is chosen by rows that are held out.

The package takes no gaps: they are filled in from the column's known values before the forest is
grown. Laws in leaves are of known values alone.

Synthetic rows are drawn by the package, which knows nothing of the changes.
"""

from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.special import ndtr

from benchmarks.tables.components import Mixture, Rows, log_normal_mass
from benchmarks.tables.peer import choice, is_choice, number, to_steps, without_gaps
from pyromix.tables import Schema

TREES = 10
LEAF_ROWS = 5
# Rows like the whole table that are in every leaf: what is tried.
SMOOTHING = (0.03, 0.1, 0.3, 1.0)
LEAST_SCALE = 1e-3
HELD_OUT = 500
# Log-density of what is outside a leaf.
OUTSIDE = -1e4
# What the package calls `numpy.isin`.
OLD_NAME = "in1d"


class AdversarialForest(Mixture):
    """Leaves of an adversarial random forest as components."""

    needs: ClassVar[str | None] = "arfpy"

    def fit(self, frame: pd.DataFrame, schema: Schema) -> None:
        from arfpy import arf

        _mend_numpy()
        np.random.seed(0)  # noqa: NPY002, the package knows no other
        self.schema = schema
        self.make_grids(frame)
        self.plain = self._plain(frame)
        self.forest = arf.arf(
            self.plain,
            num_trees=TREES,
            min_node_size=LEAF_ROWS,
            verbose=False,
            random_state=0,
        )
        self.forest.forde()
        self._collect(frame)
        self._choose_smoothing(frame)

    def _plain(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame as numbers and categories without gaps."""
        columns: dict[str, Any] = dict(without_gaps(frame, self.schema))
        for name, x in columns.items():
            column = self.schema[name]
            if is_choice(column):
                kinds = range(choice(column).num_categories)
                columns[name] = pd.Categorical(x.astype(int), categories=kinds)
        return pd.DataFrame(columns)

    def _collect(self, frame: pd.DataFrame) -> None:
        """Bounds, weights and sums of all leaves."""
        rows = self.rows(frame)
        places = self.forest.clf.apply(self.forest.x_real)  # (N, trees)
        bounds, members = [], []
        for tree, leaf in zip(self.forest.clf.estimators_, places.T, strict=True):
            found, member = np.unique(leaf, return_inverse=True)
            members.append(member.reshape(-1) + sum(len(b) for b in bounds))
            bounds.append(_bounds(tree.tree_, len(self.schema.names))[found])
        limits = np.concatenate(bounds)  # (K, columns, 2)
        member = np.stack(members)  # (trees, N)
        size = len(limits)
        share = np.bincount(member.reshape(-1), minlength=size) / member.size
        self.log_weights = np.log(share)

        def totals(x: np.ndarray) -> np.ndarray:
            return np.bincount(member.reshape(-1), weights=np.tile(x, len(member)), minlength=size)

        self.counts = []  # of the values of every code, (K, values)
        for values, kinds in zip(rows.codes.T, self.schema.categories, strict=True):
            self.counts.append(np.stack([totals(values == value) for value in range(kinds)], 1))
        self.sums = []  # of every real number: how many, sums, sums of squares, and bounds
        for place, name in enumerate(self.schema.real_names):
            z = rows.z[:, place]
            known, filled = ~np.isnan(z), np.nan_to_num(z)
            low, high = limits[:, self.schema.names.index(name)].T
            with np.errstate(divide="ignore", invalid="ignore"):
                low, high = (_encoded(number(self.schema[name]), end) for end in (low, high))
            self.sums.append((totals(known), totals(filled), totals(filled**2), low, high))

    def _choose_smoothing(self, frame: pd.DataFrame) -> None:
        """The smoothing under which rows are likeliest by leaves from which they are taken out.

        Without growing a second forest: laws of leaves are made of a part of the rows.
        """
        order = np.random.default_rng(0).permutation(len(frame))
        held_out, rest = frame.iloc[order[:HELD_OUT]], frame.iloc[order[HELD_OUT:]]
        whole, plain = self.forest.x_real, self.forest
        plain.x_real = whole.iloc[order[HELD_OUT:]]
        self._collect(rest)
        scores = []
        for smoothing in SMOOTHING:
            self._make_laws(smoothing)
            scores.append(float(self.log_prob(held_out).mean()))
        self.smoothing = SMOOTHING[int(np.argmax(scores))]
        plain.x_real = whole
        self._collect(frame)
        self._make_laws(self.smoothing)
        self.num_components = len(self.log_weights)

    def _make_laws(self, rows: float) -> None:
        self.log_probs = []
        for counts in self.counts:
            overall = (counts.sum(0) + 0.1) / (counts.sum(0) + 0.1).sum()
            smooth = counts + rows * overall
            self.log_probs.append(np.log(smooth / smooth.sum(1, keepdims=True)))
        self.normals = []
        for count, first, second, low, high in self.sums:
            total = count + rows
            loc = first / total  # the whole table has mean zero and variance one
            variance = (second + rows) / total - loc**2
            scale = np.sqrt(np.maximum(variance, LEAST_SCALE**2))
            inside = log_normal_mass((low - loc) / scale, (high - loc) / scale)
            self.normals.append((loc, scale, low, high, np.maximum(inside, OUTSIDE / 2)))

    def code_probs(self, place: int) -> np.ndarray:
        return np.exp(self.log_probs[place])

    def log_joint(self, rows: Rows) -> np.ndarray:
        joint = np.tile(self.log_weights, (len(rows), 1))
        for values, logs in zip(rows.codes.T, self.log_probs, strict=True):
            known = ~np.isnan(values)
            joint[known] += logs.T[values[known].astype(int)]
        for place, name in enumerate(self.schema.real_names):
            z = rows.z[:, place]
            known = ~np.isnan(z)
            different, which = np.unique(z[known], return_inverse=True)
            joint[known] += self._log_number(name, place, different)[which.reshape(-1)]
        return joint

    def _log_number(self, name: str, place: int, z: np.ndarray) -> np.ndarray:
        """Log-densities of encoded numbers in leaves, (N, K), in the table's units."""
        column = number(self.schema[name])
        loc, scale, low, high, inside = self.normals[place]
        if column.step is not None:
            first, last = (end[:, None] for end in column.interval(column.from_real(z)))
            first, last = np.maximum(first, low), np.minimum(last, high)
            out = first >= last
            last = np.where(out, first + 1, last)
            value = log_normal_mass((first - loc) / scale, (last - loc) / scale)
        else:
            slope = column.map.log_slope(column.from_real(z))
            out = (z[:, None] < low) | (z[:, None] > high)
            value = -0.5 * np.square((z[:, None] - loc) / scale) - np.log(scale)
            value += slope[:, None] - 0.5 * np.log(2 * np.pi)
        return np.maximum(np.where(out, OUTSIDE, value - inside), OUTSIDE)

    def cdf(self, rows: Rows, place: int, grid: np.ndarray, posterior: np.ndarray) -> np.ndarray:  # noqa: ARG002
        loc, scale, low, high, inside = (part[:, None] for part in self.normals[place])
        below = ndtr((np.clip(grid, low, high) - loc) / scale) - ndtr((low - loc) / scale)
        mass = np.maximum(np.exp(inside), 1e-300)
        return posterior @ np.clip(below / mass, 0, 1)

    def sample(self, count: int, seed: int) -> pd.DataFrame:
        np.random.seed(seed)  # noqa: NPY002
        drawn = self.forest.forge(count)
        columns: dict[str, Any] = {}
        for name, column in self.schema.columns.items():
            x = drawn[name].to_numpy()
            if is_choice(column):
                values = choice(column).values
                columns[name] = pd.Series([values[int(code)] for code in x])
            else:
                columns[name] = to_steps(number(column), x.astype(float))
        return pd.DataFrame(columns)


def _encoded(column: Any, x: np.ndarray) -> np.ndarray:
    """Encoded bounds, infinite where a leaf or the map has none."""
    lowest = column.map.low if column.map.form != "linear" else -np.inf
    z = np.where(x > lowest, column.map.forward(np.where(x > lowest, x, np.inf)), -np.inf)
    return np.where(np.isposinf(x), np.inf, z)


def _bounds(tree: Any, dim: int) -> np.ndarray:
    """Bounds of the values in every node of a tree, (nodes, dim, 2)."""
    bounds = np.empty((tree.node_count, dim, 2))
    bounds[:] = -np.inf, np.inf
    for node in range(tree.node_count):
        left, right = tree.children_left[node], tree.children_right[node]
        if left < 0:
            continue
        bounds[left] = bounds[right] = bounds[node]
        if left != right:  # both are the same where the package cut a leaf off
            bounds[left, tree.feature[node], 1] = tree.threshold[node]
            bounds[right, tree.feature[node], 0] = tree.threshold[node]
    return bounds


def _mend_numpy() -> None:
    """The package calls a function that NumPy has under another name since version 2.4."""
    if not hasattr(np, OLD_NAME):
        setattr(np, OLD_NAME, np.isin)
