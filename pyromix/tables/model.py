"""A model of the rows of a table, asked in the table's own words."""

__all__ = ["ConditionedTable", "TableModel"]

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ..checkpoints import load, save
from ..conditioning.law import ConditionedLaw
from ..core.checks import check_count, check_positive_int
from ..core.random import takes_generator
from ..drmm import DRMM
from ..evidence.pieces import Box, Evidence, Observed
from ..training import fit
from .columns import Choice, Date, Encoded, Number
from .frames import Frame
from .schema import Schema

SCHEMA, MODEL = "schema.json", "model.safetensors"
# Rows that are worked on at once.
BLOCK = 256
# Draws that stand for a law where something has no closed form.
DRAWS = 20_000


class _Drawn:
    """What draws rows of a table."""

    schema: Schema
    _law: Any
    """The law of encoded rows."""

    @takes_generator
    def sample(self, count: int, *, generator: Generator | None = None) -> Frame:
        """Draws rows that meet all that is known: a frame of the library and types of the table.

        Args:
            count: Number of rows.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self.schema.decode(self._law.sample((check_count("count", count),)))


class TableModel(_Drawn):
    """A residual mixture over the rows of a table.

    Integers are intervals of the model's real numbers, gaps are summed over, and all that comes
    out is in the table's units and types.

    Args:
        schema: The columns.
        model: Of encoded rows: of ``schema.dim`` real columns and ``schema.categories``, with
            ``missing="marginalize"``.

    Raises:
        ValueError: If the model has other columns.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> age = rng.integers(18, 80, 500)
        >>> table = {"age": age, "income": rng.lognormal(9 + age / 40, 0.3)}
        >>> model = TableModel.fit(table, num_components=8, steps=50, seed=0, progress_bar=False)
        >>> law = model.condition(age=(30, 40))
        >>> bool(law.sample(100)["age"].between(30, 40).all())
        True
        >>> 0 < model.probability(age=(30, 40)) < 1
        True
    """

    def __init__(self, schema: Schema, model: DRMM) -> None:
        if (model.dim, tuple(model.categories)) != (schema.dim, schema.categories):
            raise ValueError(
                f"Expected a model of {schema.dim} real columns and categories "
                f"{schema.categories}, got {model.dim} and {tuple(model.categories)}."
            )
        if model.missing != "marginalize":
            raise ValueError("Expected a model with missing='marginalize', got 'error'.")
        self.schema, self.model = schema, model
        self._law = model

    @classmethod
    def fit(
        cls,
        frame: Frame,
        schema: Schema | None = None,
        *,
        num_layers: int = 2,
        num_components: int = 32,
        steps: int = 2000,
        batch_size: int = 256,
        lr: float = 0.01,
        seed: int | None = None,
        progress_bar: bool = True,
    ) -> "TableModel":
        """Trains a model of a table.

        Args:
            frame: Its rows, with gaps where nothing is known.
            schema: Its columns; by default as `Schema.infer` guesses them.
            num_layers: Layers of the mixture.
            num_components: Components of a layer.
            steps: Steps of training.
            batch_size: Rows of a step.
            lr: Learning rate.
            seed: Seed of training; by default drawn from PyTorch's global generator.
            progress_bar: Whether to show a bar with the loss.

        Raises:
            ValueError: If the frame does not fit.
        """
        schema = Schema.infer(frame) if schema is None else schema
        model = DRMM(
            schema.dim,
            check_positive_int("num_layers", num_layers),
            check_positive_int("num_components", num_components),
            categories=schema.categories,
            missing="marginalize",
        )
        generator = None if seed is None else Generator().manual_seed(seed)
        x = schema.dequantize(schema.encode(frame), generator=generator).to(model.loc)
        fit(
            model,
            x,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            progress_bar=progress_bar,
        )
        return cls(schema, model.requires_grad_(False))

    def save(self, folder: str | PathLike[str]) -> None:
        """Saves the model and its schema, without pickle.

        Args:
            folder: Where to; it is made, and gets the files schema.json and model.safetensors.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        save(self.model, place / MODEL)
        (place / SCHEMA).write_text(json.dumps(self.schema.to_plain()))

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "TableModel":
        """Loads what `save` wrote.

        Raises:
            FileNotFoundError: If the folder has no such files.
        """
        place = Path(folder)
        if not (place / SCHEMA).exists():
            raise FileNotFoundError(f"No {SCHEMA} in {place}: expected a folder of a table.")
        schema = Schema.from_plain(json.loads((place / SCHEMA).read_text()))
        model = load(place / MODEL)
        assert isinstance(model, DRMM)
        return cls(schema, model.requires_grad_(False))

    def log_prob(self, frame: Frame) -> Tensor:
        """Log-density of rows in the table's units, (N,), in nats.

        Of integers and categories it is a log-mass. Gaps are summed over.

        Args:
            frame: Rows of the table.
        """
        x = self.schema.encode(frame)
        total = x.new_zeros(len(x))
        for index in _alike(x):
            part = x[index]
            pieces = self._row_evidence(part)
            slope = self.schema.log_slope(part, integers=False)
            total[index] = self._log_mass(part, pieces) + slope
        return total

    def _log_mass(self, x: Tensor, pieces: Sequence[Evidence]) -> Tensor:
        """Log-density of encoded rows alike, or of what is known of them."""
        if bool(x.isnan().all()):
            return x.new_zeros(len(x))
        if not any(isinstance(piece, Box) for piece in pieces):
            return self.model.log_prob(x.to(self.model.loc)).to(x)
        return self.model.condition(*pieces).log_evidence()[0].to(x)

    def _row_evidence(self, x: Tensor) -> list[Evidence]:
        """What encoded rows with gaps at the same places say, one entry a row."""
        schema = self.schema
        known = ~x[0].isnan()
        integers = {
            place: column
            for place, column in enumerate(schema[name] for name in schema.real_names)
            if isinstance(column, Number) and column.integer
        }
        values, bounds = {}, torch.full((2, len(x), schema.dim), torch.inf, dtype=x.dtype)
        bounds[0].neg_()
        for place in known.nonzero().flatten().tolist():
            if place in integers:
                column = integers[place]
                edges = column.interval(column.whole(x[:, place].numpy()))
                bounds[0, :, place], bounds[1, :, place] = (torch.from_numpy(e) for e in edges)
            else:
                values[place] = x[:, place]
        pieces: list[Evidence] = [Observed(values)] if values else []
        if bool(bounds.isfinite().any()):
            pieces.append(Box(*bounds))
        return pieces

    @takes_generator
    def impute(
        self, frame: Frame, draws: int | None = None, *, generator: Generator | None = None
    ) -> Frame | list[Frame]:
        """Fills gaps in from what is known of each row.

        Args:
            frame: Rows of the table; columns that it lacks are filled in, too.
            draws: How many frames to draw. By default one is returned, with the mean of numbers
                in the model's units, and the likeliest of a few values.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            A frame of the schema's columns, or a list of frames. What is known stays as it was.
        """
        x = self.schema.encode(frame).to(self.model.loc)
        filled = self.model.impute(x, draws)
        if draws is None:
            return self.schema.filled(frame, filled)
        return [self.schema.filled(frame, each) for each in filled]

    def condition(self, **known: Any) -> "ConditionedTable":
        """The law of a row given what is known of it.

        Args:
            known: By the names of columns, as `Schema.evidence` takes it.

        Raises:
            ValueError: If it does not fit the table, or cannot hold.
        """
        pieces = self.schema.evidence(**known)
        law = self.model.condition(*pieces)
        return ConditionedTable(self, known, law)

    def probability(self, given: Mapping[str, Any] | None = None, **event: Any) -> float:
        """The probability of what an event says of a row.

        Args:
            given: What is known, by the names of columns.
            event: What is asked, of other columns; see `Schema.evidence`. A value of a real
                column has no probability: ask for a range.

        Raises:
            ValueError: If a column is in both, or one of them does not fit the table.
        """
        given = {} if given is None else dict(given)
        both = sorted(set(given) & set(event))
        if both:
            raise ValueError(f"Expected an event about columns that are not given, got {both}.")
        for name, said in event.items():
            column = self.schema[name]
            if not isinstance(column, Number) or column.integer or isinstance(said, tuple):
                continue
            if said != column.point:
                raise ValueError(
                    f"Expected a range of column {name!r} as (low, high), got {said!r}: one value "
                    f"has no probability."
                )
        joint = self._log_evidence({**given, **event})
        return float((joint - self._log_evidence(given)).exp().clamp(max=1.0))

    def _log_evidence(self, known: Mapping[str, Any]) -> Tensor:
        pieces = self.schema.evidence(**known)
        if not pieces:
            return torch.zeros(())
        return self.model.condition(*pieces).log_evidence()[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self.schema.names)} columns: {self.model!r}"


class ConditionedTable(_Drawn):
    """The law of a row of a table given what is known of it.

    Made by `TableModel.condition`.

    Args:
        table: The model.
        known: What is known, by the names of columns.
        law: The law of encoded rows.
    """

    def __init__(self, table: TableModel, known: Mapping[str, Any], law: ConditionedLaw) -> None:
        self.schema, self.known, self.law = table.schema, dict(known), law
        self._table, self._law = table, law

    def probability(self, **event: Any) -> float:
        """The probability of an event given what is known; see `TableModel.probability`."""
        return self._table.probability(self.known, **event)

    def predict_proba(self, name: str) -> dict[Any, float]:
        """Probabilities of the values of a column of a few values.

        Raises:
            ValueError: If it is another column.
        """
        column = self.schema[name]
        if not isinstance(column, Choice):
            raise ValueError(
                f"Expected a column of a few values, got {name!r}, which is {column}. Ask for "
                f"quantile({name!r}, ...), or for the probability of a range."
            )
        law: Any = self.law
        index = self.schema.dim + self.schema.code_names.index(name)
        return dict(zip(column.values, law.probs(index).tolist(), strict=True))

    def quantile(self, name: str, probs: float | Sequence[float]) -> np.ndarray:
        """Quantiles of a numeric column, in its units; dates as dates.

        Exact where the law has them in closed form and the column has no point, else those of
        draws, the same at every call.

        Args:
            name: The column.
            probs: Probabilities from 0 to 1, a number or several.

        Raises:
            ValueError: If it is another column, or probabilities are out of range.
        """
        column = self.schema[name]
        if not isinstance(column, Number):
            raise ValueError(f"Expected a numeric column, got {name!r}, which is {column}.")
        asked = np.asarray(probs, dtype=np.float64)
        if not ((asked >= 0) & (asked <= 1)).all():
            raise ValueError(f"Expected probabilities from 0 to 1, got {probs!r}.")
        place = self.schema.real_names.index(name)
        if column.point is None:
            try:
                z = self.law.quantile(place, asked.flatten().tolist()).double().numpy()[:, None]
                return column.decode(Encoded(z, z[:, :0])).reshape(asked.shape)
            except NotImplementedError:
                pass
        return np.quantile(self._drawn(name), asked, method="inverted_cdf")

    def interval(self, name: str, level: float = 0.9) -> tuple[Any, Any]:
        """The central interval that holds a numeric column with a probability.

        Args:
            name: The column.
            level: The probability.
        """
        tail = (1 - float(level)) / 2
        low, high = self.quantile(name, [tail, 1 - tail])
        return low, high

    def mean(self, name: str) -> float:
        """The mean of a column of numbers, from draws that are the same at every call.

        Raises:
            ValueError: If it is a column of dates or of a few values.
        """
        column = self.schema[name]
        if not isinstance(column, Number) or isinstance(column, Date):
            raise ValueError(f"Expected a column of numbers, got {name!r}, which is {column}.")
        return float(self._drawn(name).mean())

    def _drawn(self, name: str) -> np.ndarray:
        drawn = self.sample(DRAWS, generator=Generator().manual_seed(0))
        return np.asarray(drawn[name])


def _alike(x: Tensor) -> Iterator[Tensor]:
    """Indices of rows that have gaps at the same places, in blocks."""
    _, kind = x.isnan().unique(dim=0, return_inverse=True)
    for number in range(int(kind.max()) + 1 if len(kind) else 0):
        yield from (kind == number).nonzero().squeeze(-1).split(BLOCK)
