"""Tables: data frames as what models take, and back."""

__all__ = [
    "Schema",
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
