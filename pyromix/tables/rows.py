"""Laws of many rows at once, of each of which some columns are known."""

__all__ = ["TableRows"]

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ..core.checks import check_count
from ..core.random import takes_generator
from .bins import Segments
from .cells import Cell, check_known
from .checks import (
    check_choice,
    check_numeric,
    check_ordered,
    check_probs,
    ends_of,
    quantile_labels,
)
from .coding import Coding
from .columns import Choice, Date, Number, as_dates
from .events import Event
from .frames import Frame, index_of, table_of
from .mixture import Mixture, log_sum, normalized
from .random import draw_rows


class TableRows:
    """The laws of N rows, each given what a frame knows of it.

    Made by `TableLaw.condition` with a frame. A column that a row knows keeps its value in all
    answers: leave it out of the frame to predict it.

    Args:
        coding: The codes of columns.
        mixture: The law of codes, given an event if there is one.
        frame: The rows, with gaps where nothing is known. Columns may be missing.
        event: What it says of single columns.
        names: The columns that rows have; by default all.

    Raises:
        ValueError: If a row knows a column that the event speaks of.
    """

    def __init__(
        self,
        coding: Coding,
        mixture: Mixture,
        frame: Frame,
        event: Cell | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.schema, self._coding, self._mixture = coding.schema, coding, mixture
        self._event, self.names = event or Cell(), list(coding.names if names is None else names)
        self._parts = {
            name: coding.divide(name, [region]) for name, region in self._event.regions.items()
        }
        self._values, self._index = self.schema.values(frame), index_of(frame)
        self._codes, self._log_density = coding.encode_values(self._values)
        hidden = [j for j, name in enumerate(coding.names) if name not in self.names]
        self._codes[:, hidden], self._log_density[:, hidden] = -1, 0.0
        for name in self._parts:
            self._check_unknown(name)

    def _check_unknown(self, name: str) -> None:
        if (self._codes[:, self._coding.names.index(name)] >= 0).any():
            raise ValueError(
                f"Expected an event about unknown columns, but rows of the frame know {name!r}: "
                f"leave it out of one of them."
            )

    def _division(self, name: str) -> tuple[Segments, np.ndarray]:
        """A column in parts, and their probabilities given codes and the event, (S,)."""
        own = self._parts.get(name) or self._coding.divide(name, [None])
        weight = own.segments.share * own.belongs[0]
        total = own.mass[0][own.segments.bins]
        return own.segments, weight / np.where(total > 0, total, 1.0)

    def __len__(self) -> int:
        return len(self._codes)

    def log_evidence(self) -> Tensor:
        """Log-density of what is known of each row given the event, (N,), in the table's units."""
        found = self._mixture.log_prob(self._codes) + self._log_density.sum(1)
        return torch.from_numpy(found)

    def _posteriors(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Probabilities of components given what is known, (n, H), for few rows at a time."""
        for part in self._mixture.blocks(len(self)):
            yield part, normalized(self._mixture.log_joint(self._codes[part]))

    def _column(self, name: str) -> tuple[int, Number | Choice]:
        check_known([name], self.names)
        column = self.schema[name]
        assert isinstance(column, Number | Choice)
        return self._coding.names.index(name), column

    def _code_probs(self, j: int) -> np.ndarray:
        """Probabilities of the codes of a column, (N, codes); known ones are certain."""
        table = self._mixture.probs[j]
        found = [posterior @ table for _, posterior in self._posteriors()]
        probs = np.concatenate([np.zeros((0, table.shape[1])), *found])
        known = self._codes[:, j] >= 0
        probs[known] = np.eye(table.shape[1])[self._codes[known, j]]
        return probs

    def predict_proba(self, name: str) -> Frame:
        """Probabilities of the values of a column of a few values: a frame with a column of each.

        Args:
            name: The column.

        Raises:
            ValueError: If it is another column.
        """
        j, column = self._column(name)
        probs = self._code_probs(j)
        values = check_choice(name, column).values
        columns = dict(zip(values, probs.T, strict=True))
        return table_of(columns, self.schema.library, self._index)

    def probability(self, /, *events: Event, **event: Any) -> np.ndarray:
        """Probabilities of an event for every row, (N,).

        Args:
            events: Comparisons of `col`, about columns that no row knows.
            event: What is asked of columns, by name; see `TableModel.condition`.

        Raises:
            ValueError: If it is about a column that a row knows, or compares combinations of
                columns.
        """
        cells = self.schema.cells(*events, **event)
        total = np.full(len(self), -np.inf)
        for cell in cells:
            if cell.combined:
                raise ValueError(
                    f"Expected an event without combinations of columns, got "
                    f"{list(cell.combined)}. Draw rows, and count."
                )
            extra = np.zeros(self._mixture.size)
            for name, region in (cell & self._event).regions.items():
                if name not in cell.regions:
                    continue
                j, _ = self._column(name)
                self._check_unknown(name)
                mass = self._coding.divide(name, [region]).mass
                if name in self._parts:
                    whole = self._parts[name].mass
                    mass = mass / np.where(whole > 0, whole, 1.0)
                with np.errstate(divide="ignore"):
                    extra = extra + np.log(mass @ self._mixture.probs[j].T)[0]
            for part in self._mixture.blocks(len(self)):
                own = log_sum(self._mixture.log_joint(self._codes[part]) + extra)
                total[part] = np.logaddexp(total[part], own)
        return np.minimum(1.0, np.exp(total - self._mixture.log_prob(self._codes)))

    def mean(self, name: str) -> np.ndarray:
        """Means of a column of numbers or dates, (N,).

        Args:
            name: The column.

        Raises:
            ValueError: If it is a column of labels.
        """
        j, column = self._column(name)
        check_numeric(name, column)
        if isinstance(column, Choice):
            return self._code_probs(j) @ np.array(column.values, dtype=float)
        bins = self._coding.bins[name]
        segments, share = self._division(name)
        some = share > 0
        own = share[some] * bins.means(segments.take(some))
        each = np.bincount(segments.bins[some], own, minlength=bins.count)
        mean = self._kept(name, j, self._code_probs(j) @ each)
        return as_dates(mean, "us") if isinstance(column, Date) else mean

    def _kept(self, name: str, j: int, values: np.ndarray) -> np.ndarray:
        """Values (N, ...) with those that are known in their place."""
        known = self._codes[:, j] >= 0
        if known.any():
            own = self._values[name].numbers()[known]
            values[known] = own.reshape(-1, *[1] * (values.ndim - 1))
        return values

    def quantile(self, name: str, probs: float | Sequence[float]) -> np.ndarray:
        """Quantiles of a column of numbers, dates, or labels with an order.

        Args:
            name: The column.
            probs: Probabilities from 0 to 1, a number or P of them.

        Returns:
            Array of shape (N,), or (N, P).

        Raises:
            ValueError: If it is another column, or probabilities are out of range.
        """
        j, column = self._column(name)
        check_ordered(name, column)
        asked = check_probs(probs)
        if asked.ndim > 1:
            raise ValueError(f"Expected a number or several, got probabilities {probs!r}.")
        shape = (len(self), *asked.shape)
        if isinstance(column, Choice):
            return quantile_labels(column, self._code_probs(j), asked.reshape(-1)).reshape(shape)
        found = self._quantiles(name, j, asked.reshape(-1)).reshape(shape)
        return as_dates(found, column.unit) if isinstance(column, Date) else found

    def _quantiles(self, name: str, j: int, probs: np.ndarray) -> np.ndarray:
        """Quantiles (N, P) of a numeric column as numbers, those of dates too."""
        segments, share = self._division(name)
        parts = self._code_probs(j)[:, segments.bins] * share
        return self._kept(name, j, self._coding.bins[name].quantiles(segments, parts, probs))

    def interval(self, name: str, level: float = 0.9) -> np.ndarray:
        """Central intervals that hold a column with at least a probability, (N, 2).

        Args:
            name: The column.
            level: The probability.

        Raises:
            ValueError: If it is a column without an order.
        """
        return self.quantile(name, ends_of(level))

    @takes_generator
    def sample(self, count: int, *, generator: Generator | None = None) -> Frame:
        """Draws rows that keep all that is known: those of the first row, of the second, and on.

        Args:
            count: Draws of every row.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            A frame of N times as many rows; of pandas, with their labels repeated.
        """
        count = check_count("count", count)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.names}
        for part, posterior in self._posteriors():
            rows = np.repeat(np.arange(len(posterior)), count)
            component = draw_rows(posterior, rows)
            for name in self.names:
                j, _ = self._column(name)
                code = draw_rows(self._mixture.probs[j], component)
                known = np.repeat(self._codes[part, j], count)
                parts[name].append(self._decoded(name, np.where(known >= 0, known, code)))
        values = {}
        for name, own in parts.items():
            j, _ = self._column(name)
            value = np.concatenate(own) if own else self._decoded(name, np.zeros(0, dtype=int))
            if name in self._coding.bins:
                value = self._kept(name, j, value.reshape(len(self), count)).reshape(-1)
            values[name] = value
        index = None if self._index is None else self._index.repeat(count)
        return self.schema.frame(values, index)

    def _decoded(self, name: str, code: np.ndarray) -> np.ndarray:
        """Values of codes; of numbers, draws within their bins."""
        if name not in self._coding.bins:
            return self._coding.labels(name, code)
        own = self._parts.get(name)
        parts = (None, None) if own is None else (own.segments, own.belongs[0])
        return self._coding.bins[name].draw(code, *parts)

    def filled(self) -> Frame:
        """The rows with gaps filled in: by medians of numbers and dates, and the likeliest labels.

        What is known stays as it was.
        """
        values = {}
        for name in self.names:
            j, _ = self._column(name)
            code = self._codes[:, j]
            # If all is known, nothing has to be worked out.
            known = name in self._values and bool((code >= 0).all())
            if name not in self._coding.bins:
                code = code if known else self._code_probs(j).argmax(1)
                values[name] = self._coding.labels(name, code)
            elif known:
                values[name] = self._values[name].numbers()
            else:
                values[name] = self._quantiles(name, j, np.array([0.5]))[:, 0]
        return self.schema.frame(values, self._index)

    def __repr__(self) -> str:
        return f"Laws of {len(self)} rows of {len(self.names)} columns"
