"""Numbers with a standard error."""

__all__ = ["Estimate"]


class Estimate(float):
    """A number, and the standard error of how it was worked out; zero if it is exact.

    Attributes:
        error: The standard error, from random draws.

    Example:
        >>> p = Estimate(0.25, 0.01)
        >>> p + 0.5, p.error, p
        (0.75, 0.01, 0.25 +- 0.01)
    """

    error: float

    def __new__(cls, value: float, error: float = 0.0) -> "Estimate":
        """The number with its error."""
        self = super().__new__(cls, value)
        self.error = float(error)
        return self

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self), self.error

    def __repr__(self) -> str:
        return f"{float(self):.6g}" + (f" +- {self.error:.1g}" if self.error else "")

    __str__ = __repr__
