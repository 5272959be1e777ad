"""Tables: data frames as what models take, and back."""

__all__ = [
    "ConditionedTable",
    "Schema",
    "TableModel",
    "boolean",
    "bounded",
    "categorical",
    "count",
    "date",
    "integer",
    "ordered",
    "positive",
    "real",
]

from .model import ConditionedTable, TableModel
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
