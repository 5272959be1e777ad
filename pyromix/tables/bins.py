r"""A numeric column as codes: bins that a model tells apart, and one fixed law inside each.

Given its bin, a number has the same law under every component: uniform on pieces of the axis that
the column's map leads to, with exponential tails in the outer ones, or one value that many rows
have. So all questions about the column are about probabilities of codes, and

.. math:: p(x) = P(b(x)) \, p(x \mid b(x)), \qquad P(R) = \sum_b P(b) \, P(R \mid b).

Numbers that come in steps, such as integers, are rounded from intervals around them.
"""

__all__ = ["Bins", "Segments"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .columns import Number
from .random import uniform
from .regions import Intervals

# Fewest values that are worth a bin, and fewest that are worth a piece of one.
LEAST_ROWS, LEAST_IN_PIECE = 15, 15
# Fewest rows with one value that are worth a bin for it alone.
SPIKE_ROWS = 8
# Most pieces of a bin.
PIECES = 4
# Rows that numbers which did not occur count for.
UNSEEN = 0.5
# Values that so many bins' worth of rows have are bins by themselves.
SPIKE = 0.5
# Values that this share of all rows have do not count in the size of bins.
COMMON = 0.1
# Of a real column, values that this share of rows have are single numbers with a probability.
ATOM = 0.005
# Longest tail, in standard deviations of the axis; longer ones have no mean by logarithms.
LONGEST_TAIL = 0.25
# Pieces of a bin are cut in as many by averages over a piece.
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)
NODES, NODE_WEIGHTS = (NODES + 1) / 2, NODE_WEIGHTS / 2


@dataclass(frozen=True)
class Segments:
    """Parts of a column's axis, in ascending order, each within one bin.

    Args:
        bins: Of each, (S,).
        share: Probability of each given its bin, (S,).
        low: Where each begins on the column's axis z, (S,); a single number has both ends there.
        high: Where it ends.
        tail: Lengths of exponential tails, (S,): above `low` if positive, below `high` if
            negative; zero for what is uniform.
        atom: The single number that a segment is, (S,); else NaN.
    """

    bins: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    tail: np.ndarray
    atom: np.ndarray

    def __len__(self) -> int:
        return len(self.bins)

    def place(self, index: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Numbers z at probabilities u within segments, of their shape."""
        low, high, tail = self.low[index], self.high[index], self.tail[index]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            flat = low + u * (high - low)
            length = np.abs(tail)
            # Of a tail: from the finite end outwards, cut off at the other one.
            whole = -np.expm1(-(high - low) / length)
            up = low - length * np.log1p(-u * whole)
            down = high + length * np.log1p(-(1 - u) * whole)
        return np.where(tail > 0, up, np.where(tail < 0, down, flat))

    def mass(self, belongs: np.ndarray) -> np.ndarray:
        """Probabilities of sets of segments given each bin, (sets, bins).

        Args:
            belongs: Which segments they hold, (sets, S).
        """
        total = np.zeros((len(belongs), int(self.bins.max()) + 1))
        for row, own in zip(total, belongs, strict=True):
            np.add.at(row, self.bins[own], self.share[own])
        return np.minimum(total, 1.0)

    def take(self, index: np.ndarray) -> "Segments":
        """Some of the segments."""
        return Segments(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Bins:
    """Codes of a numeric column.

    Args:
        column: The column.
        segments: The pieces of all bins. Bins are numbered in ascending order of their numbers,
            those of single numbers after the others.
    """

    column: Number
    segments: Segments

    @classmethod
    def of(cls, column: Number, x: np.ndarray, most: int) -> "Bins":
        """Bins of about as many values each.

        Args:
            column: The column.
            x: Values that it had.
            most: About the largest number of bins.
        """
        x = np.sort(x[~np.isnan(x)])
        atoms = np.array([])
        if column.step is None:
            different, counts = np.unique(x, return_counts=True)
            atoms = different[counts > max(SPIKE_ROWS, ATOM * len(x))]
            if column.point is not None:
                atoms = np.union1d(atoms, [column.point])
            x = x[~np.isin(x, atoms)]
        x = column.reached("", x)
        pieces = _pieces(column, x, most)
        first = int(pieces[0][-1]) + 1
        single = [(*_atom(column, a), first + k) for k, a in enumerate(atoms)]
        low, high, tail, weight, atom, bins = (
            np.concatenate([np.asarray(one, dtype=float), [row[k] for row in single]])
            for k, one in enumerate((*pieces[1:], np.full(len(pieces[0]), np.nan), pieces[0]))
        )
        bins = bins.astype(int)
        share = weight / np.bincount(bins, weight)[bins]
        return cls(column, Segments(bins, share, low, high, tail, atom))

    @property
    def count(self) -> int:
        """Number of bins."""
        return int(self.segments.bins[-1]) + 1

    def to_plain(self) -> dict[str, Any]:
        """The segments as lists of numbers, as JSON holds them."""
        own = self.segments
        return {
            name: [_finite(v) for v in getattr(own, name).tolist()]
            for name in own.__dataclass_fields__
        }

    @classmethod
    def from_plain(cls, column: Number, plain: Mapping[str, Any]) -> "Bins":
        """The bins that `to_plain` described."""
        parts = {
            name: np.array([float(v) for v in values], dtype=int if name == "bins" else float)
            for name, values in plain.items()
        }
        return cls(column, Segments(**parts))

    # ---- values ---------------------------------------------------------------------------

    def encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of values (N,), minus one where they are not known, and log p(x | code).

        The second is a density in the column's units, or a mass where the column has steps or the
        value has one; zero where nothing is known.
        """
        own, column = self.segments, self.column
        codes, log_density = np.full(len(x), -1), np.zeros(len(x))
        known = ~np.isnan(x)
        for segment in np.flatnonzero(~np.isnan(own.atom)):
            at = known & (x == own.atom[segment])
            codes[at] = own.bins[segment]
            known &= ~at
        value = column.reached("", x[known])
        wide = np.isnan(own.atom)
        starts = own.low[wide]
        if column.step is None:
            z = column.map.forward(value)
            place = np.clip(np.searchsorted(starts, z, side="right") - 1, 0, len(starts) - 1)
            codes[known] = own.bins[wide][place]
            log_density[known] = self._log_density(place, z) + column.map.log_slope(value)
            return codes, log_density
        # Pieces end at ends of what is rounded: a multiple of the step is within one of them.
        low, high = column.edges(column.on_grid(value))
        middle = np.searchsorted(starts, (low + high) / 2, side="right") - 1
        place = np.clip(middle, 0, len(starts) - 1)
        codes[known] = own.bins[wide][place]
        log_density[known] = self._log_mass(np.flatnonzero(wide)[place], low, high)
        return codes, log_density

    def cdf(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of less than x (N,), and of at most x, given each bin: (N, bins) each."""
        column, own = self.column, self.segments
        different, back = np.unique(x, return_inverse=True)
        reach = column.bounds(-math.inf, math.inf)
        if column.step is None:
            with np.errstate(invalid="ignore"):
                z = column.map.forward(different)
            z = np.where(np.isnan(z), reach[0], z)
            low = high = np.clip(z, *reach)
        else:
            low, high = (np.clip(edge, *reach) for edge in column.edges(different))
        start = np.full(len(different), reach[0])
        below, upto = (self._mass_within(start, z).T for z in (low, high))
        for segment in np.flatnonzero(~np.isnan(own.atom)):
            below[:, own.bins[segment]] += different > own.atom[segment]
            upto[:, own.bins[segment]] += different >= own.atom[segment]
        return below[back.reshape(-1)], upto[back.reshape(-1)]

    def _log_density(self, place: np.ndarray, z: np.ndarray) -> np.ndarray:
        own = self.segments
        low, high, tail = own.low[place], own.high[place], own.tail[place]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            length = np.abs(tail)
            distance = np.where(tail > 0, z - low, high - z)
            whole = -np.expm1(-(high - low) / length)
            falling = -distance / length - np.log(length * whole)
            shape = np.where(tail == 0, -np.log(high - low), falling)
            return np.log(own.share[place]) + shape

    def _log_mass(self, segment: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Log-probabilities of intervals (M,) of z within segments (M,), given their bins.

        In logarithms, as those far out in tails are too small for numbers.
        """
        own = self.segments
        start, stop, tail = own.low[segment], own.high[segment], own.tail[segment]
        length = np.abs(tail)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            nearer = np.where(tail > 0, low - start, stop - high)
            whole = -np.expm1(-(stop - start) / length)
            falling = np.log(-np.expm1(-(high - low) / length) / whole) - nearer / length
            flat = np.log((high - low) / (stop - start))
            return np.log(own.share[segment]) + np.where(tail == 0, flat, falling)

    def _mass_within(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Probabilities of intervals (M,) of z given each bin, (bins, M); of wide pieces alone."""
        own = self.segments
        total = np.zeros((self.count, len(low)))
        wide = np.flatnonzero(np.isnan(own.atom))
        part = self._between(wide, low, high)  # (pieces, M)
        np.add.at(total, own.bins[wide], own.share[wide, None] * part)
        return total

    def _between(self, segment: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Share of segments (S,) that is between numbers z, from (M,) to (M,): (S, M).

        In tails it is the density at the end that is nearer to the bulk, times what is left from
        there, so that it is exact however small.
        """
        own = self.segments
        low, high, tail = (
            getattr(own, name)[segment][:, None] for name in ("low", "high", "tail")
        )
        start, stop = np.clip(start[None], low, high), np.clip(stop[None], low, high)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            length = np.abs(tail)
            whole = -np.expm1(-(high - low) / length)
            distance = np.where(tail > 0, start - low, high - stop)
            falling = np.exp(-distance / length) * -np.expm1(-(stop - start) / length) / whole
            flat = (stop - start) / (high - low)
        return np.where(stop <= start, 0.0, np.where(tail == 0, flat, falling))

    # ---- sets of values ---------------------------------------------------------------------

    def cut(self, regions: Sequence[Intervals]) -> tuple[Segments, np.ndarray]:
        """Segments that are each within or without each of several sets of values.

        Args:
            regions: The sets.

        Returns:
            The segments, and which sets they are in, (sets, S).
        """
        own = self.segments
        wide = np.isnan(own.atom)
        spans = [self._spans(region) for region in regions]
        places = own.low[~wide]  # single numbers within the axis, so that parts have an order
        cuts = np.unique([*(end for part in spans for span in part for end in span), *places])
        segments = own
        inner = cuts[np.isfinite(cuts)]
        row, where = np.nonzero(
            (inner > own.low[:, None]) & (inner < own.high[:, None]) & wide[:, None]
        )
        if len(row):
            segments = self._cut_at(row, inner[where])
        belongs = np.zeros((len(regions), len(segments)), dtype=bool)
        with np.errstate(invalid="ignore"):
            middle = segments.place(np.arange(len(segments)), np.full(len(segments), 0.5))
        single = ~np.isnan(segments.atom)
        for number, (region, part) in enumerate(zip(regions, spans, strict=True)):
            for low, high in part:
                belongs[number] |= ~single & (middle > low) & (middle < high)
            belongs[number, single] = region.contains(segments.atom[single])
        return segments, belongs

    def _cut_at(self, row: np.ndarray, z: np.ndarray) -> Segments:
        """The segments with some of them (C,) cut at places z (C,), both in ascending order."""
        own = self.segments
        # Each cut ends one part and begins the next; a part keeps the law of its segment.
        source = np.sort(np.concatenate([np.arange(len(own)), row]))
        first = np.concatenate([[True], source[1:] != source[:-1]])
        last = np.concatenate([source[1:] != source[:-1], [True]])
        low, high = own.low[source].copy(), own.high[source].copy()
        low[~first] = z
        high[~last] = z
        share = own.share[source].copy()
        for part in np.flatnonzero(~(first & last)):
            ends = low[part : part + 1], high[part : part + 1]
            share[part] *= self._between(source[part : part + 1], *ends)[0, 0]
        return Segments(own.bins[source], share, low, high, own.tail[source], own.atom[source])

    def _spans(self, region: Intervals) -> list[tuple[float, float]]:
        """A set of values as intervals of z."""
        column = self.column
        if column.step is not None:
            region = region.whole(column.step)
        found = []
        for (low, _), (high, _) in region.spans:
            ends = column.bounds(low, high)
            if ends[0] < ends[1]:
                found.append(ends)
        return found

    def draw(
        self, code: np.ndarray, segments: Segments | None = None, held: np.ndarray | None = None
    ) -> np.ndarray:
        """Draws of numbers given their codes (N,), by PyTorch's random state.

        Args:
            code: The codes.
            segments: Parts of the axis, as `cut` returns them; by default all pieces.
            held: Which of them count, (S,).
        """
        own = self.segments if segments is None else segments
        total = np.cumsum(own.share if held is None else own.share * held)
        last = np.searchsorted(own.bins, np.arange(self.count), side="right") - 1
        ends = total[last]
        starts = np.concatenate([[0.0], ends[:-1]])
        u = starts[code] + uniform(len(code)) * (ends - starts)[code]
        index = np.searchsorted(total, np.minimum(u, np.nextafter(ends[code], 0)), side="right")
        return self.decode(own, index, uniform(len(code)))

    def decode(self, segments: Segments, index: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Values at probabilities u within segments, numbers that the column can have."""
        column = self.column
        value = column.from_real(segments.place(index, u))
        if column.step is not None:  # ends of segments are between two multiples
            low, high = (column.map.inverse(end) for end in (segments.low, segments.high))
            first = column.on_grid(low + 0.5 * column.step)
            last = column.on_grid(high - 0.5 * column.step)
            inside = first <= last
            value = np.where(inside[index], np.clip(value, first[index], last[index]), value)
        atom = segments.atom[index]
        return np.where(np.isnan(atom), value, atom)

    def quantiles(self, segments: Segments, weights: np.ndarray, probs: np.ndarray) -> np.ndarray:
        """Quantiles of laws over segments.

        Args:
            segments: As `cut` returns them.
            weights: Their probabilities under R laws, (R, S).
            probs: Probabilities, (P,).

        Returns:
            Array of shape (R, P).
        """
        order = np.lexsort((segments.high, segments.low))
        own = segments.take(order)
        total = np.cumsum(weights[:, order], -1)
        # A probability that is reached by a value but for rounding means that value.
        wanted = np.clip(probs, 1e-12, 1 - 1e-14) * (1 - 1e-12) * total[:, -1:]  # (R, P)
        index = np.empty(wanted.shape, dtype=int)
        for row, (reached, p) in enumerate(zip(total, wanted, strict=True)):
            index[row] = np.searchsorted(reached, p)
        index = np.minimum(index, len(own) - 1)
        weight = np.take_along_axis(weights[:, order], index, 1)
        before = np.take_along_axis(total, index, 1) - weight
        u = np.clip((wanted - before) / np.where(weight > 0, weight, 1.0), 0, 1)
        u = np.where(probs >= 1, 1.0, np.where(probs <= 0, 0.0, u * (1 - 1e-9)))
        return self.decode(own, index, u)

    def means(self, segments: Segments) -> np.ndarray:
        """Means of values within segments, (S,)."""
        index = np.repeat(np.arange(len(segments))[:, None], len(NODES), 1)
        u = np.broadcast_to(NODES, index.shape)
        mean: np.ndarray = self.decode(segments, index, u) @ NODE_WEIGHTS
        return mean


def _atom(column: Number, x: float) -> tuple[float, float, float, float, float]:
    """A single number as a segment: its ends, tail and weight, and itself."""
    place = float(column.map.forward(np.array(x))) if column.map.reaches(np.array(x)) else math.nan
    if math.isnan(place):
        below = column.map.form != "linear" and x <= column.map.low
        place = -math.inf if below else math.inf
    return place, place, 0.0, 1.0, x


def _pieces(column: Number, x: np.ndarray, most: int) -> tuple[np.ndarray, ...]:
    """Pieces of the axis: their bins, ends, tails and weights."""
    different, counts = np.unique(x, return_counts=True)
    if not len(different):  # nothing but single numbers: a wide bin for what may come
        reach = column.bounds(-math.inf, math.inf)
        start, stop = max(reach[0], -1.0), min(reach[1], 1.0)
        if column.step is not None:
            ends = column.edges(column.from_real(np.array([start, stop])))
            start, stop = float(ends[0][0]), float(ends[1][1])
        return _with_tails(column, [(0, start, stop, 1.0)])
    if column.step is not None:
        low, high = column.edges(different)
    else:
        places = column.map.forward(different)
        middle = (places[1:] + places[:-1]) / 2
        low = np.concatenate([places[:1], middle])
        high = np.concatenate([middle, places[-1:]])
    pieces: list[tuple[int, float, float, float]] = []
    start, alone = 0, True
    for number, stop in enumerate(_cuts(counts, most)):
        single = stop == start + 1
        if pieces and low[start] > high[start - 1] + 1e-12:
            # Numbers that did not occur, between two bins: half a row, of the wider bin.
            owner = number if alone or not single else number - 1
            pieces.append((owner, high[start - 1], low[start], UNSEEN))
        first = start
        for last in _split(counts[start:stop]):
            weight = float(counts[first : start + last].sum())
            pieces.append((number, low[first], high[start + last - 1], weight))
            if start + last < stop and low[start + last] > high[start + last - 1] + 1e-12:
                pieces.append((number, high[start + last - 1], low[start + last], UNSEEN))
            first = start + last
        start, alone = stop, single
    return _with_tails(column, pieces)


def _cuts(counts: np.ndarray, most: int) -> list[int]:
    """Where bins of about as many rows end, as indices of different values; spikes are apart."""
    # Values that many rows have do not make the bins of the others wider.
    rest = counts[counts <= COMMON * counts.sum()].sum()
    target = max(rest / most, LEAST_ROWS)
    spike = counts >= max(SPIKE_ROWS, SPIKE * target)
    cuts, filled = [], 0
    for index, count in enumerate(counts):
        filled += count
        last = index + 1 == len(counts)
        if last or spike[index] or spike[index + 1] or filled >= target:
            cuts.append(index + 1)
            filled = 0
    return cuts


def _split(counts: np.ndarray) -> list[int]:
    """Where pieces of a bin end, as indices of its different values."""
    total = counts.sum()
    parts = int(min(PIECES, total // LEAST_IN_PIECE, len(counts)))
    if parts < 2:
        return [len(counts)]
    filled = np.cumsum(counts)
    ends = {int(np.searchsorted(filled, total * k / parts)) + 1 for k in range(1, parts)}
    return sorted(end for end in {*ends, len(counts)} if 0 < end <= len(counts))


def _with_tails(
    column: Number, pieces: Sequence[tuple[int, float, float, float]]
) -> tuple[np.ndarray, ...]:
    """The pieces with one more on each side, for numbers beyond those that there were."""
    reach = column.bounds(-math.inf, math.inf)
    number, low, high, weight = (np.array(part) for part in zip(*pieces, strict=True))
    low, high = np.maximum(low, reach[0]), np.minimum(high, reach[1])
    if not (high > low).any():  # one value alone
        low, high = low - 0.5 * LONGEST_TAIL, high + 0.5 * LONGEST_TAIL
    wide = high > low
    number, low, high, weight = (part[wide] for part in (number, low, high, weight))
    tail = np.zeros(len(low))
    spread = float(np.clip((high[-1] - low[0]) / (number[-1] + 1), 1e-3, LONGEST_TAIL))
    if reach[0] < low[0]:
        number, tail = np.insert(number, 0, number[0]), np.insert(tail, 0, -spread)
        low, high = np.insert(low, 0, reach[0]), np.insert(high, 0, low[0])
        weight = np.insert(weight, 0, UNSEEN)
    if reach[1] > high[-1]:
        number, tail = np.append(number, number[-1]), np.append(tail, spread)
        low, high = np.append(low, high[-1]), np.append(high, reach[1])
        weight = np.append(weight, UNSEEN)
    # Bins without a piece that is wide enough are left out.
    _, number = np.unique(number, return_inverse=True)
    return number, low, high, tail, weight


def _finite(x: float) -> float | str | int:
    """A number as JSON holds it."""
    return x if math.isfinite(x) else str(x)
