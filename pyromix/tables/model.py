"""A model of the rows of a table, asked in the table's own words."""

__all__ = ["TableModel"]

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Generator

from ..checkpoints import load, save
from ..core.checks import check_count, check_positive_int
from ..core.random import takes_generator
from ..drmm import DRMM
from .anomalies import Anomalies, Calibration, find_anomalies
from .cells import check_known
from .coding import Coded, Coding
from .columns import Column
from .frames import Frame, filled_in
from .law import TableLaw
from .mixture import Mixture
from .schema import Schema
from .search import Search
from .values import Values

SCHEMA, MODEL, CALIBRATION = "schema.json", "model-{}.safetensors", "calibration.safetensors"
# Bins of numeric columns, and how many there may be from so many rows on.
FEW_BINS, MANY_BINS, MANY_ROWS = 48, 192, 2000
# Most rows that are held out.
MOST_HELD_OUT = 2000


class TableModel(TableLaw):
    """A mixture over the rows of a table: any question, in the table's names, units and types.

    Columns are codes (`Coding`): labels as they are, numbers by bins of about as many rows, each
    with a fixed law inside. The law of codes is a residual mixture, or the average of several that
    were trained from different starts; all its components are summed over. Gaps are summed over.

    Made by `fit` or `load`.

    Args:
        coding: The codes of columns.
        models: Residual mixtures of codes, ``DRMM(0, ..., categories=coding.categories)``.
        weights: Of the mixtures in their average, by default equal.
        calibration: Rows that training did not see, for p-values of `anomaly`.

    Raises:
        ValueError: If a model has other columns, or weights are no shares of as many.

    Example:
        >>> from pyromix.tables import col
        >>> rng = np.random.default_rng(0)
        >>> age = rng.integers(18, 80, 500)
        >>> table = {"age": age, "income": rng.lognormal(9 + age / 40, 0.3)}
        >>> model = TableModel.fit(table, time_budget=2, seed=0, progress_bar=False)
        >>> law = model.condition(col("age").between(30, 40) | (col("age") > 70))
        >>> bool((law.sample(100)["income"] > 0).all())
        True
        >>> 0 < model.probability(age=(30, 40)) < 1
        True
    """

    def __init__(
        self,
        coding: Coding,
        models: Sequence[DRMM],
        weights: Sequence[float] | np.ndarray | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        for model in models:
            if (model.dim, tuple(model.categories)) != (0, coding.categories):
                raise ValueError(
                    f"Expected models of no real columns and categories {coding.categories}, got "
                    f"{model.dim} and {tuple(model.categories)}."
                )
        self.models = list(models)
        shares = np.ones(len(models)) if weights is None else np.asarray(weights, dtype=float)
        if shares.shape != (len(models),) or not (shares > 0).all():
            raise ValueError(f"Expected {len(models)} positive weights, got {weights!r}.")
        self.weights = shares / shares.sum()
        super().__init__(coding, Mixture.average([Mixture.of(m) for m in models], self.weights))
        self._calibration = calibration

    @classmethod
    def fit(
        cls,
        frame: Frame,
        schema: Schema | Mapping[str, Column] | None = None,
        *,
        targets: str | Sequence[str] = (),
        time_budget: float = 150.0,
        max_bins: int | None = None,
        num_layers: int | None = None,
        num_components: int | None = None,
        shrinkage: float | None = None,
        steps: int | None = None,
        members: int | None = None,
        held_out: float = 0.1,
        seed: int | None = None,
        progress_bar: bool = True,
    ) -> "TableModel":
        """Trains a model of a table.

        What is not given is chosen by how well rows that are held out are predicted, within the
        time budget: how strong the prior of mixtures is, how many are averaged and with which
        weights, and when training stops. Layers and components follow from the number of rows.

        Args:
            frame: Its rows, with gaps where nothing is known.
            schema: Its columns, or kinds of some by name; by default as `Schema.infer` guesses
                them.
            targets: Columns that will be predicted from all others, if that matters most:
                training makes the most of these predictions.
            time_budget: Seconds that training may take, about.
            max_bins: About the largest number of bins of a numeric column: by default 48, or 192
                if rows that are held out are likelier then, on tables of 2,000 rows or more.
            num_layers: Layers of a mixture.
            num_components: Components of a layer.
            shrinkage: Strength of the prior of tables, about one.
            steps: Steps of training of each mixture.
            members: Mixtures that are averaged.
            held_out: Share of the rows that are held out, at most 2,000 of them.
            seed: Seed of training; by default drawn from PyTorch's global generator.
            progress_bar: Whether to show bars with losses of the mixtures that are averaged.

        Raises:
            ValueError: If the frame does not fit.
        """
        if schema is None or isinstance(schema, Mapping):
            schema = Schema.infer(frame, **(schema or {}))
        if max_bins is not None:
            check_positive_int("max_bins", max_bins)
        seed = int(torch.randint(2**31, ())) if seed is None else int(seed)
        wanted = [targets] if isinstance(targets, str) else list(targets)
        check_known(wanted, schema.names)
        search = Search(
            targets=tuple(schema.names.index(name) for name in wanted),
            num_layers=num_layers,
            num_components=num_components,
            shrinkage=shrinkage,
            steps=steps,
            members=members,
            time_budget=time_budget,
            progress_bar=progress_bar,
        )
        start = time.perf_counter()
        values = schema.values(frame)
        outside = _held_out(len(next(iter(values.values()))), held_out, seed)
        table = _coded(schema, values, max_bins or FEW_BINS, outside)
        if max_bins is None and steps is None and len(outside) >= MANY_ROWS and outside.any():
            finer = _coded(schema, values, MANY_BINS, outside)
            if sum(finer.coding.categories) > sum(table.coding.categories):
                table = search.best_of([table, finer], seed)
        spent = time.perf_counter() - start
        search = replace(search, time_budget=max(search.time_budget - spent, 0.1 * time_budget))
        codes, log_density = table.codes, table.log_density
        calibration = Calibration(codes[outside], log_density[outside])
        models, weights = search.run(codes[~outside], codes[outside], table.coding, seed)
        return cls(table.coding, models, weights, calibration)

    def save(self, folder: str | PathLike[str]) -> None:
        """Saves the model and its schema, without pickle.

        Args:
            folder: Where to; it is made, and gets the file schema.json and safetensors.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob(MODEL.format("*")):
            old.unlink()
        for number, model in enumerate(self.models):
            save(model, place / MODEL.format(number))
        plain = {
            "schema": self.schema.to_plain(),
            "bins": self._coding.to_plain(),
            "models": len(self.models),
            "weights": self.weights.tolist(),
        }
        (place / SCHEMA).write_text(json.dumps(plain))
        if self._calibration is not None:
            save_file(self._calibration._asdict(), place / CALIBRATION)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "TableModel":
        """Loads what `save` wrote.

        Args:
            folder: Where it is.

        Raises:
            FileNotFoundError: If the folder has no such files.
        """
        place = Path(folder)
        if not (place / SCHEMA).exists():
            raise FileNotFoundError(f"No {SCHEMA} in {place}: expected a folder of a table.")
        plain = json.loads((place / SCHEMA).read_text())
        coding = Coding.from_plain(Schema.from_plain(plain["schema"]), plain["bins"])
        models = []
        for number in range(plain["models"]):
            model = load(place / MODEL.format(number))
            assert isinstance(model, DRMM)
            models.append(model.requires_grad_(False))
        calibration = None
        if (place / CALIBRATION).exists():
            calibration = Calibration(**load_file(place / CALIBRATION))
        return cls(coding, models, plain.get("weights"), calibration)

    @takes_generator
    def impute(
        self, frame: Frame, draws: int | None = None, *, generator: Generator | None = None
    ) -> Frame | list[Frame]:
        """Fills gaps in from what is known of each row.

        Args:
            frame: Rows of the table; columns that it lacks are filled in, too.
            draws: How many frames to draw. By default one is returned, with medians of numbers and
                dates, and the likeliest labels.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            The frame, or a list of frames. What is known stays as it was, and so do columns that
            the model does not have.
        """
        rows = self._rows(frame)
        if draws is None:
            return filled_in(frame, rows.filled())
        draws = check_count("draws", draws)
        return [filled_in(frame, rows.sample(1)) for _ in range(draws)]

    def anomaly(self, frame: Frame) -> Anomalies:
        """How odd rows are, and which of their cells are odd given the others.

        Args:
            frame: Rows of the table.

        Returns:
            Scores, p-values against rows that training did not see, and p-values of cells.
        """
        return find_anomalies(self._coding, self._mixture, self._calibration, frame)

    def __repr__(self) -> str:
        size = f"{self._mixture.size:,} components"
        return f"{type(self).__name__} of {len(self.schema.names)} columns, {size}"


def _held_out(size: int, share: float, seed: int) -> np.ndarray:
    """Which rows are held out, (N,)."""
    if size < 2:
        raise ValueError(f"Expected at least two rows, got {size}.")
    if not 0 <= share < 1:
        raise ValueError(f"Expected held_out to be a share from 0 to 1, got {share!r}.")
    outside = np.zeros(size, dtype=bool)
    count = min(int(share * size), MOST_HELD_OUT)
    outside[np.random.default_rng(seed).permutation(size)[:count]] = True
    return outside


def _coded(
    schema: Schema, values: Mapping[str, Values], max_bins: int, outside: np.ndarray
) -> Coded:
    """Codes of rows, by bins of those that are not held out."""
    coding = Coding.of(schema, values, max_bins, ~outside)
    codes, log_density = coding.encode_values(values)
    return Coded(coding, codes, log_density, outside)
