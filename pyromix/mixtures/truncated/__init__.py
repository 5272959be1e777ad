"""The module `pyromix.conditioning.truncated` under its earlier name."""

__all__ = ["ConflictError", "TruncatedNormals", "feasible_point"]

from ...conditioning.truncated import ConflictError, TruncatedNormals, feasible_point
