"""Tables: data frames as what models take, and back."""

__all__ = [
    "Anomalies",
    "Estimate",
    "Event",
    "Expression",
    "Schema",
    "TableLaw",
    "TableModel",
    "TableRows",
    "boolean",
    "bounded",
    "categorical",
    "col",
    "count",
    "date",
    "integer",
    "ordered",
    "plot_missing",
    "positive",
    "real",
]

from .anomalies import Anomalies
from .estimate import Estimate
from .events import Event, Expression, col
from .law import TableLaw
from .model import TableModel
from .plots import plot_missing
from .rows import TableRows
from .schema import (
    Schema,
    boolean,
    bounded,
    categorical,
    count,
    date,
    integer,
    ordered,
    positive,
    real,
)
