"""What can be asked of the law of a row, given an event."""

__all__ = ["TableLaw"]

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from torch import Generator, Tensor

from ..conditioning.truncated import ConflictError
from ..core.checks import check_count
from ..core.random import takes_generator
from .cells import Cell, check_known, joined
from .checks import (
    check_choice,
    check_numeric,
    check_ordered,
    check_probs,
    ends_of,
    quantile_labels,
)
from .coding import Coding, Division
from .columns import Choice, Date, Number, as_dates
from .estimate import Estimate
from .events import All, Event
from .frames import Frame, is_frame
from .mixture import LEAST, Mixture, log_sum, normalized
from .plots import plot_column, plot_dependence, plot_pair
from .random import draw_rows
from .regions import Intervals, Labels, Region
from .rows import TableRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Draws by which combinations of columns are decided on: a round, how many are to be accepted, and
# the largest number of all.
ROUND, ENOUGH, MOST = 2**16, 10_000, 2**22
# Most draws of which rows are taken.
PATIENCE = 2**27
# Draws that stand for a law where combinations of columns are in the event.
DRAWS = 20_000
# Rows of given columns that a conditional mutual information averages over.
AVERAGED = 400
# Components that the search for the likeliest row starts from, and its most rounds.
STARTS, SWEEPS = 64, 50


class _Weights(NamedTuple):
    """How likely cells and components are."""

    log_joint: np.ndarray
    """Log-probability of cells and components together, (cells, H), without combinations."""
    log_accepted: np.ndarray
    """Log of the share of a cell's draws that meet its combinations, (cells,)."""
    relative_error: np.ndarray
    """Relative standard error of that share, (cells,)."""

    @property
    def log_total(self) -> float:
        """Log-probability of the event."""
        return float(log_sum((self.log_joint + self.log_accepted[:, None]).reshape(-1)))

    @property
    def error(self) -> float:
        """Relative standard error of the probability of the event."""
        each = log_sum(self.log_joint) + self.log_accepted - self.log_total
        return float(np.sqrt(np.square(np.exp(each) * self.relative_error).sum()))

    @property
    def probs(self) -> np.ndarray:
        """Probabilities of cells and components given the event, (cells, H)."""
        return np.exp(self.log_joint + self.log_accepted[:, None] - self.log_total)


class TableLaw:
    """The law of a row of a table given an event, and the questions that it answers.

    `TableModel` is one, given nothing, and `TableModel.condition` returns others. Answers are sums
    over all components of the mixture, in closed form, unless the event compares combinations of
    columns: then they are those of draws, which all meet it.

    Args:
        coding: The codes of columns.
        mixture: The law of codes.
        cells: The event, as disjoint cells.
        names: The columns that rows have; by default all.
        said: The event in words.
    """

    def __init__(
        self,
        coding: Coding,
        mixture: Mixture,
        cells: Sequence[Cell] = (Cell(),),
        names: Sequence[str] | None = None,
        said: str = "",
    ) -> None:
        self.schema, self._coding, self._mixture = coding.schema, coding, mixture
        self._cells, self._said = list(cells), said
        self.names = list(coding.names if names is None else names)
        self._divided: dict[str, Division] = {}
        if not self._cells:
            raise ConflictError(f"Expected an event that can hold, got {said}.")
        _ = self._weights

    # ---- the event --------------------------------------------------------------------------

    @overload
    def condition(self, frame: Frame, /, *events: Event, **known: Any) -> TableRows: ...

    @overload
    def condition(self, /, *events: Event, **known: Any) -> "TableLaw": ...

    def condition(self, /, *events: Any, **known: Any) -> Any:
        """The law of a row given what is known of it, or the laws of many rows.

        Args:
            events: Comparisons of `col`, joined by ``&``, ``|`` and ``~``. A data frame before
                them is what is known of many rows, each of which gets a law of its own
                (`TableRows`); the rest is then about columns that no row knows.
            known: By the name of a column: a value; a pair (low, high), both ends included, None
                for an end that there is not; a list of values that are possible. Names that are no
                Python names go in by ``**{...}``.

        Raises:
            ValueError: If it does not fit the table, or cannot hold.

        Example:
            >>> from pyromix.tables import TableModel
            >>> rng = np.random.default_rng(0)
            >>> table = {"x": rng.normal(size=200), "label": rng.choice(["a", "b"], 200)}
            >>> model = TableModel.fit(table, time_budget=1, seed=0, progress_bar=False)
            >>> law = model.condition(x=(0, 1), label="a")
            >>> 0 < law.mean("x") < 1
            True
            >>> model.condition({"x": [0.5, -0.5]}).predict_proba("label").shape
            (2, 2)
        """
        if events and is_frame(events[0]):
            frame, *others = events
            law = self._given(others, known) if others or known else self
            return law._rows(frame)
        return self._given(events, known)

    def _given(self, events: Sequence[Event], known: Mapping[str, Any]) -> "TableLaw":
        cells = self._with(events, known)
        said = " & ".join(filter(None, [self._said, _in_words(events, known)]))
        return TableLaw(self._coding, self._mixture, cells, self.names, said)

    def _rows(self, frame: Frame) -> TableRows:
        """The laws of the rows of a frame."""
        cells = joined(self._cells)
        if len(self._cells) > len(cells) == 1:  # a union of ranges of one column
            law = TableLaw(self._coding, self._mixture, cells, self.names, self._said)
            return law._rows(frame)
        cell = cells[0]
        if len(cells) > 1 or cell.combined or self._pinned:
            raise NotImplementedError(
                f"Not available: rows of a frame go with ranges, or sets of values, of single "
                f"columns, not with unions across columns, combinations of columns or values "
                f"that have a density, got {self._said}. Say them in the frame, or draw rows."
            )
        if not self._constrained:
            return TableRows(self._coding, self._mixture, frame, names=self.names)
        probs, log_prior = list(self._mixture.probs), self._mixture.log_prior
        for name in self._constrained:
            own = self._log_masses[name][0]
            log_prior = log_prior + own
            table = probs[self._column(name)] * self._masses[name][0]
            probs[self._column(name)] = table / np.maximum(table.sum(1, keepdims=True), LEAST)
        possible = np.isfinite(log_prior)
        mixture = Mixture(log_prior[possible], [table[possible] for table in probs])
        return TableRows(self._coding, mixture, frame, cell, self.names)

    def marginal(self, columns: str | Iterable[str]) -> "TableLaw":
        """The law of some columns.

        Args:
            columns: Their names.

        Raises:
            ValueError: If there are no such columns.
        """
        names = [columns] if isinstance(columns, str) else list(columns)
        check_known(names, self.names)
        if not names:
            raise ValueError("Expected at least one column, got none.")
        kept = [name for name in self.names if name in names]
        return TableLaw(self._coding, self._mixture, self._cells, kept, self._said)

    def probability(
        self, /, *events: Event, given: Event | Mapping[str, Any] | None = None, **event: Any
    ) -> Estimate:
        """The probability of an event.

        Args:
            events: Comparisons of `col`, all of which hold.
            given: What is known besides: an event, or a mapping as `condition` takes it by name.
            event: As `condition` takes it.

        Returns:
            A number with its standard error, as the attribute `error`: zero unless combinations
            of columns are compared.

        Raises:
            ValueError: If something does not fit the table, or asks for one value of a column of
                real numbers, which has no probability.
        """
        if given is not None:
            if isinstance(given, Event):
                return self._given([given], {}).probability(*events, **event)
            if not isinstance(given, Mapping):
                raise ValueError(
                    f"Expected given to be an event, or a mapping from columns to what is known, "
                    f"got {given!r}. Ask for a column of that name by col('given')."
                )
            return self._given([], given).probability(*events, **event)
        asked = self.schema.cells(*events, **event)
        for name in {name for cell in asked for name in cell.regions}:
            regions = [cell.regions.get(name) for cell in asked]
            if any(self._pins(name, region) for region in regions):
                raise ValueError(
                    f"Expected a range of column {name!r} as (low, high), got one value: it has a "
                    f"density, not a probability."
                )
        cells = self._with(events, event)
        try:
            joint = TableLaw(self._coding, self._mixture, cells, self.names)._weights
        except ConflictError:
            return Estimate(0.0)
        value = min(1.0, math.exp(joint.log_total - self._weights.log_total))
        return Estimate(value, value * math.hypot(joint.error, self._weights.error))

    def _with(self, events: Sequence[Event], known: Mapping[str, Any]) -> list[Cell]:
        more = self.schema.cells(*events, **known)
        if self._cells == [Cell()]:
            return more
        return [both for a in self._cells for b in more if not (both := a & b).empty]

    def _pins(self, name: str, region: Region | None) -> bool:
        """Whether a region is one value that has a density."""
        if not isinstance(region, Intervals) or region.point is None:
            return False
        return self._coding.is_density(name, region.point)

    @cached_property
    def _pinned(self) -> dict[str, list[float]]:
        """Columns of which one value is known that has a density, and their values by cell."""
        found = {}
        for name in self._constrained:
            regions = [cell.regions.get(name) for cell in self._cells]
            pins = [self._pins(name, region) for region in regions]
            if any(pins) and not all(pins):
                raise ValueError(
                    f"Expected ranges of column {name!r} in all alternatives, or one value in "
                    f"all, got both: a value has a density, and a range a probability."
                )
            if any(pins):
                found[name] = [float(r.point) for r in regions if isinstance(r, Intervals)]  # type: ignore[arg-type]
        return found

    @cached_property
    def _pinned_codes(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Their codes, and log-densities given these, by cell."""
        return {
            name: self._coding.encode_numbers(name, np.array(values))
            for name, values in self._pinned.items()
        }

    @cached_property
    def _constrained(self) -> list[str]:
        """Columns of which something is said, in the order of the table."""
        said = {name for cell in self._cells for name in cell.regions}
        return [name for name in self._coding.names if name in said]

    def _division(self, name: str) -> Division:
        """A column in the parts that cells hold or do not hold."""
        if name not in self._divided:
            regions = [cell.regions.get(name) for cell in self._cells]
            if name not in self._constrained or name in self._pinned:
                regions = [None] * len(self._cells)
            self._divided[name] = self._coding.divide(name, regions)
        return self._divided[name]

    @cached_property
    def _masses(self) -> dict[str, np.ndarray]:
        """Of columns of which something is said, probabilities of cells given codes."""
        found = {}
        for name in self._constrained:
            if name in self._pinned:
                count = self._mixture.probs[self._column(name)].shape[1]
                found[name] = np.eye(count)[self._pinned_codes[name][0]]
            else:
                found[name] = self._division(name).mass
        return found

    def _column(self, name: str) -> int:
        return self._coding.names.index(name)

    @cached_property
    def _log_masses(self) -> dict[str, np.ndarray]:
        """Log-probabilities of cells given components, of what is said of each column.

        Log-densities where it is one value that has one: (cells, H).
        """
        found = {}
        for name, mass in self._masses.items():
            with np.errstate(divide="ignore"):
                found[name] = np.log(mass @ self._mixture.probs[self._column(name)].T)
            if name in self._pinned:
                found[name] += self._pinned_codes[name][1][:, None]
        return found

    @cached_property
    def _weights(self) -> _Weights:
        log_joint = np.tile(self._mixture.log_prior, (len(self._cells), 1))
        for own in self._log_masses.values():
            log_joint = log_joint + own
        total = log_sum(log_joint)
        possible = np.isfinite(total)
        if not possible.any():
            raise ConflictError(
                f"Expected an event that can hold, got {self._said or 'a contradiction'}."
            )
        weights = _Weights(log_joint, np.where(possible, 0.0, -np.inf), np.zeros(len(total)))
        if any(cell.combined for cell in self._cells):
            weights = self._accepted(weights, possible)
        return weights

    # ---- combinations of columns --------------------------------------------------------------

    def _accepted(self, weights: _Weights, possible: np.ndarray) -> _Weights:
        """The weights with shares of draws that meet combinations."""
        log_accepted, error = weights.log_accepted.copy(), weights.relative_error.copy()
        generator = Generator().manual_seed(0)
        for number in np.flatnonzero(possible).tolist():
            if not self._cells[number].combined:
                continue
            met, drawn = 0, 0
            while met < ENOUGH and drawn < MOST:
                met += self._try(number, ROUND, weights, generator=generator)[0].size
                drawn += ROUND
            log_accepted[number] = math.log(met / drawn) if met else -math.inf
            error[number] = math.sqrt((1 - met / drawn) / met) if met else 0.0
        if not np.isfinite(log_accepted).any():
            raise ConflictError(
                f"Expected an event that can hold, but none of {MOST:,} draws met its "
                f"combinations of columns: {self._said}."
            )
        return _Weights(weights.log_joint, log_accepted, error)

    @takes_generator
    def _try(
        self, number: int, count: int, weights: _Weights, *, generator: Generator | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draws of a cell that meet its combinations: components, and the columns in these."""
        cell = self._cells[number]
        weight = normalized(weights.log_joint[number])
        component = draw_rows(weight[None], np.zeros(count, dtype=int))
        names = dict.fromkeys(n for e in cell.expressions.values() for n in e.names)
        values = {name: self._draw(name, number, component) for name in names}
        met = np.broadcast_to(cell.contains({n: _as_numbers(v) for n, v in values.items()}), count)
        return component[met], {name: own[met] for name, own in values.items()}

    # ---- draws --------------------------------------------------------------------------------

    @takes_generator
    def sample(self, count: int, *, generator: Generator | None = None) -> Frame:
        """Draws rows that meet all that is known: a frame of the library and types of the table.

        Args:
            count: Number of rows.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self.schema.frame(self._draws(check_count("count", count)))

    def _draws(self, count: int) -> dict[str, np.ndarray]:
        """Draws of all columns, by name."""
        weights = self._weights
        pair = draw_rows(weights.probs.reshape(1, -1), np.zeros(count, dtype=int))
        cell, component = np.divmod(pair, self._mixture.size)
        rows = {int(number): np.flatnonzero(cell == number) for number in np.unique(cell)}
        known: dict[int, dict[str, np.ndarray]] = {}
        for number, own in rows.items():
            if self._cells[number].combined:
                component[own], known[number] = self._draw_combined(number, len(own))
        values = {}
        for name in self.names:
            values[name] = np.empty(count, dtype=float if name in self._coding.bins else object)
            for number, own in rows.items():
                drawn = known.get(number, {}).get(name)
                if drawn is None:
                    drawn = self._draw(name, number, component[own])
                values[name][own] = drawn
        return values

    def _draw_combined(self, number: int, count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draws of a cell with combinations: components, and the columns in these."""
        parts, found = [], 0
        share = math.exp(self._weights.log_accepted[number])
        if count / share > PATIENCE:
            raise ValueError(
                f"Expected fewer rows: about one of {1 / share:,.0f} draws meets "
                f"{list(self._cells[number].combined)}, so that {count:,} rows take "
                f"{count / share:,.0f} draws. Say more of single columns, which takes none."
            )
        while found < count:
            size = int(np.clip(1.2 * (count - found) / share + 64, 256, 4 * ROUND))
            parts.append(self._try(number, size, self._weights))
            found += parts[-1][0].size
        component = np.concatenate([part for part, _ in parts])[:count]
        names = list(parts[0][1])
        return component, {
            name: np.concatenate([own[name] for _, own in parts])[:count] for name in names
        }

    def _draw(self, name: str, number: int, component: np.ndarray) -> np.ndarray:
        """Draws of one column given a cell and components (N,)."""
        if name in self._pinned:
            return np.full(len(component), self._pinned[name][number])
        division, table = self._division(name), self._mixture.probs[self._column(name)]
        if name in self._masses:
            table = table * self._masses[name][number]
        code = draw_rows(table, component)
        if name not in self._coding.bins:
            return self._coding.labels(name, code)
        return self._coding.bins[name].draw(code, division.segments, division.belongs[number])

    @cached_property
    def _stand_in(self) -> dict[str, np.ndarray]:
        """Draws that stand for the law where combinations are compared, the same at every call."""
        drawn: dict[str, np.ndarray] = self.draws(DRAWS, generator=Generator().manual_seed(0))
        return drawn

    @takes_generator
    def draws(self, count: int, *, generator: Generator | None = None) -> dict[str, np.ndarray]:
        """Draws of all columns, by name: objects for labels, and days since 1970 for dates.

        Args:
            count: Number of rows.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self._draws(check_count("count", count))

    @property
    def _by_draws(self) -> bool:
        return any(cell.combined for cell in self._cells)

    # ---- densities ----------------------------------------------------------------------------

    def log_prob(self, frame: Frame) -> Tensor:
        """Log-density of rows in the table's units, (N,), in nats.

        Of integers, categories and numbers that have a probability it is a log-mass. Gaps, and
        columns that the frame lacks, are summed over. Minus infinity where rows do not meet what
        is known.

        Args:
            frame: Rows of the table.

        Raises:
            ValueError: If values do not fit, or a combination of columns is known of which a row
                lacks one.
        """
        values = self.schema.values(frame)
        codes, log_density = self._coding.encode_values(values)
        hidden = [j for j, name in enumerate(self._coding.names) if name not in self.names]
        codes[:, hidden], log_density[:, hidden] = -1, 0.0
        total = np.full(len(codes), -np.inf)
        for number, cell in enumerate(self._cells):
            own = self._log_joint_with(number, cell, codes, values)
            total = np.logaddexp(total, own)
        found = total + log_density.sum(1) - self._weights.log_total
        return torch.from_numpy(np.where(np.isneginf(total), -np.inf, found))

    def density(self, frame: Frame) -> Tensor:
        """Densities of rows, (N,): the exponential of `log_prob`."""
        return self.log_prob(frame).exp()

    def _log_joint_with(
        self, number: int, cell: Cell, codes: np.ndarray, values: Mapping[str, Any]
    ) -> np.ndarray:
        """Log-probability of codes and a cell, (N,)."""
        inside = np.ones(len(codes), dtype=bool)
        for name, region in cell.regions.items():
            j = self._column(name)
            known = codes[:, j] >= 0
            if isinstance(region, Labels):
                met = np.isin(codes[:, j], list(region.codes))
            elif known.any():
                met = region.contains(values[name].numbers())
            else:
                continue
            inside &= met | ~known
        for key, region in cell.combined.items():
            expression = cell.expressions[key]
            places = [self._column(name) for name in expression.names]
            if (codes[:, places] < 0).any():
                raise ValueError(
                    f"Expected rows with all of {list(expression.names)}, of which {expression} "
                    f"is known, got gaps."
                )
            numbers = {name: _as_numbers(values[name].raw) for name in expression.names}
            inside &= region.contains(expression.evaluate(numbers))
        found = []
        for part in self._mixture.blocks(len(codes)):
            log_joint = self._mixture.log_joint(codes[part])
            for name in cell.regions:
                gap = codes[part, self._column(name)] < 0
                log_joint[gap] += self._log_masses[name][number]
            found.append(log_sum(log_joint))
        return np.where(inside, np.concatenate([np.zeros(0), *found]), -np.inf)

    # ---- one column ---------------------------------------------------------------------------

    def _check_column(self, name: str) -> Number | Choice:
        check_known([name], self.names)
        column = self.schema[name]
        assert isinstance(column, Number | Choice)
        return column

    def _parts(self, name: str) -> np.ndarray:
        """Probabilities of the parts of a column, (S,)."""
        division = self._division(name)
        probs, table = self._weights.probs, self._mixture.probs[self._column(name)]
        if name in self._masses:
            probs = probs * np.exp(-np.where(probs > 0, self._log_masses[name], 0.0))
        code = probs @ table  # (cells, codes)
        parts = division.segments
        weight: np.ndarray = (division.belongs * code[:, parts.bins]).sum(0) * parts.share
        return weight / weight.sum()

    def predict_proba(self, name: str) -> dict[Any, float]:
        """Probabilities of the values of a column of a few values.

        Args:
            name: The column.

        Raises:
            ValueError: If it is another column.
        """
        column = check_choice(name, self._check_column(name))
        if self._by_draws:
            drawn = list(self._stand_in[name])
            return {value: drawn.count(value) / len(drawn) for value in column.values}
        return dict(zip(column.values, self._parts(name).tolist(), strict=True))

    def mean(self, name: str) -> Any:
        """The mean of a column of numbers, or of dates.

        Args:
            name: The column.

        Raises:
            ValueError: If it is a column of labels.
        """
        column = check_numeric(name, self._check_column(name))
        if self._by_draws:
            mean = float(_as_numbers(self._stand_in[name]).mean())
        elif isinstance(column, Choice):
            mean = float(self._parts(name) @ np.array(column.values, dtype=float))
        elif name in self._pinned:
            mean = float(np.average(self._pinned[name], weights=self._weights.probs.sum(1)))
        else:
            segments = self._division(name).segments
            mean = float(self._parts(name) @ self._coding.bins[name].means(segments))
        return as_dates(np.array([mean]), "us")[0] if isinstance(column, Date) else mean

    def quantile(self, name: str, probs: float | Sequence[float]) -> Any:
        """Quantiles of a column of numbers, dates, or labels with an order.

        Args:
            name: The column.
            probs: Probabilities from 0 to 1, a number or several.

        Returns:
            An array of as many.

        Raises:
            ValueError: If it is another column, or probabilities are out of range.
        """
        column = check_ordered(name, self._check_column(name))
        asked = check_probs(probs)
        if isinstance(column, Choice):
            weight = np.array(list(self.predict_proba(name).values()))
            return quantile_labels(column, weight[None], asked.reshape(-1))[0].reshape(asked.shape)
        if self._by_draws or name in self._pinned:
            drawn = self._stand_in[name]
            found = np.quantile(drawn, asked, method="inverted_cdf")
        else:
            bins, segments = self._coding.bins[name], self._division(name).segments
            found = bins.quantiles(segments, self._parts(name)[None], asked.reshape(-1))[0]
            found = found.reshape(asked.shape)
        return as_dates(found, column.unit) if isinstance(column, Date) else found

    def interval(self, name: str, level: float = 0.9) -> tuple[Any, Any]:
        """The central interval that holds a column with at least a probability.

        Args:
            name: The column.
            level: The probability.

        Raises:
            ValueError: If it is a column without an order, or the level is not from 0 to 1.
        """
        low, high = self.quantile(name, ends_of(level))
        return low, high

    # ---- several columns ----------------------------------------------------------------------

    def mutual_information(
        self, first: str, second: str, given: str | Iterable[str] | None = None
    ) -> Estimate:
        """How much two columns tell of each other, in nats: zero if they are independent.

        Args:
            first: A column.
            second: Another.
            given: Columns that are known besides, whose values are averaged over by draws. For
                some known values, ask the law that `condition` returns.

        Returns:
            A number with its standard error, zero without `given`.

        Raises:
            ValueError: If there are no such columns, or combinations of columns are known.
        """
        others = [given] if isinstance(given, str) else list(given or [])
        check_known([first, second, *others], self.names)
        if first == second or {first, second} & set(others):
            raise ValueError(f"Expected different columns, got {[first, second, *others]}.")
        if self._by_draws:
            raise NotImplementedError(
                "Not available: the event compares combinations of columns, so that there is no "
                "closed form. Leave them out."
            )
        a, b = self._parts_by_component(first), self._parts_by_component(second)
        weight = self._weights.probs
        if not others:
            return Estimate(_information(weight, a, b))
        drawn = self.marginal(others).sample(AVERAGED, generator=Generator().manual_seed(0))
        codes, _ = self._coding.encode(drawn)
        with np.errstate(divide="ignore"):
            log_weight = np.log(weight)
        each = []
        for row in codes:
            known = self._mixture.log_joint(row[None])[0] - self._mixture.log_prior
            each.append(
                _information(
                    normalized((log_weight + known).reshape(1, -1)).reshape(weight.shape), a, b
                )
            )
        return Estimate(float(np.mean(each)), float(np.std(each) / math.sqrt(len(each))))

    def _parts_by_component(self, name: str) -> np.ndarray:
        """Probabilities of the parts of a column given cells and components, (cells, H, S)."""
        division, table = self._division(name), self._mixture.probs[self._column(name)]
        segments = division.segments
        part = table[None, :, segments.bins] * segments.share * division.belongs[:, None]
        if name in self._masses:
            if name in self._pinned:
                part = part * self._masses[name][:, None, segments.bins]
            total = part.sum(-1, keepdims=True)
            part = part / np.where(total > 0, total, 1.0)
        return part

    def mode(self) -> Frame:
        """A row of the highest density in the table's units, as far as a search finds it.

        Numbers are the middle of what the model tells apart. Of integers, categories and numbers
        that have a probability, masses count.

        Raises:
            NotImplementedError: If combinations of columns are known.
        """
        if self._by_draws:
            raise NotImplementedError(
                "Not available: the event compares combinations of columns. Draw rows, and take "
                "the one with the largest log_prob."
            )
        weights = self._weights.probs
        tables = {name: self._parts_by_component(name) for name in self.names}
        scores = {name: self._log_peaks(name) for name in self.names}
        best: tuple[float, dict[str, int]] = (-math.inf, {})
        starts = np.argsort(-weights.reshape(-1))[:STARTS]
        with np.errstate(divide="ignore"):
            logs = {name: np.log(own) + scores[name] for name, own in tables.items()}
            log_weights = np.log(weights)
        for start in starts:
            cell, component = divmod(int(start), weights.shape[1])
            chosen = {name: int(own[cell, component].argmax()) for name, own in logs.items()}
            value = -math.inf
            for _ in range(SWEEPS):
                for name in self.names:
                    rest = log_weights + sum(
                        logs[other][..., k] for other, k in chosen.items() if other != name
                    )
                    total = log_sum(
                        (rest[..., None] + logs[name]).reshape(-1, len(scores[name])).T
                    )
                    chosen[name] = int(total.argmax())
                    reached = float(total.max())
                if reached <= value + 1e-9:
                    break
                value = reached
            if value > best[0]:
                best = (value, dict(chosen))
        return self.schema.frame({name: self._peak(name, k) for name, k in best[1].items()})

    # ---- pictures -----------------------------------------------------------------------------

    def plot(self, column: str, other: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draws the law of a column, or of two.

        Args:
            column: The column, on the horizontal axis.
            other: Another one, on the vertical axis.
            ax: Matplotlib axes; by default the current ones.

        Returns:
            The axes.

        Raises:
            ValueError: If there are no such columns.
        """
        check_known([column, *([] if other is None else [other])], self.names)
        return (
            plot_column(self, column, ax) if other is None else plot_pair(self, column, other, ax)
        )

    def plot_dependence(self, ax: "Axes | None" = None) -> "Axes":
        """Draws how much columns tell of each other; see `pyromix.tables.plots.plot_dependence`.

        Args:
            ax: Matplotlib axes; by default the current ones.
        """
        return plot_dependence(self, ax)

    def _log_peaks(self, name: str) -> np.ndarray:
        """Log-densities at the middle of the parts of a column given these, (S,)."""
        parts = self._division(name).segments
        if name not in self._coding.bins or name in self._pinned:
            return np.zeros(len(parts))
        each = np.arange(len(parts))
        middle = self._coding.bins[name].decode(parts, each, np.full(len(parts), 0.5))
        codes, log_density = self._coding.encode_numbers(name, middle)
        with np.errstate(divide="ignore"):
            return np.where(codes == parts.bins, log_density - np.log(parts.share), -np.inf)

    def _peak(self, name: str, part: int) -> np.ndarray:
        """The middle of a part of a column, (1,)."""
        if name in self._pinned:
            return np.array(self._pinned[name][:1])
        index = np.array([part])
        if name not in self._coding.bins:
            return self._coding.labels(name, index)
        segments = self._division(name).segments
        return self._coding.bins[name].decode(segments, index, np.array([0.5]))

    def __repr__(self) -> str:
        given = f" given {self._said}" if self._said else ""
        return f"Law of {len(self.names)} columns{given}"


def _information(weight: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of parts, from weights (cells, H) and probabilities (cells, H, S)."""
    joint = np.einsum("ch,chs,cht->st", weight, a, b, optimize=True)
    joint /= joint.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    some = joint > 0
    return max(0.0, float((joint[some] * np.log(joint[some] / apart[some])).sum()))


def _as_numbers(x: np.ndarray) -> np.ndarray:
    """Numbers, of numeric labels too."""
    return x.astype(np.float64) if x.dtype == object else x


def _in_words(events: Sequence[Event], known: Mapping[str, Any]) -> str:
    parts = [f"{name}={said!r}" for name, said in known.items()]
    if events:
        parts.append(str(All(tuple(events)) if len(events) > 1 else events[0]))
    return ", ".join(parts)
