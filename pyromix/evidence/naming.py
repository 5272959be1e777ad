"""What messages about evidence call a coordinate.

Evidence about arrays or tables becomes evidence about vectors. Its messages must speak of what the
caller wrote: while a namer is in force, they do.
"""

__all__ = ["called", "coordinate", "coordinates", "term"]

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Namer = Callable[[int], str]

_NAMERS: ContextVar[tuple[Namer, Namer] | None] = ContextVar("namers", default=None)


@contextmanager
def called(name: Namer, symbol: Namer) -> Iterator[None]:
    """Names of coordinates within a block.

    Args:
        name: Of a coordinate in a sentence, such as ``"entry (0, 2, 3)"``.
        symbol: In a formula, such as ``"x[0, 2, 3]"``.
    """
    token = _NAMERS.set((name, symbol))
    try:
        yield
    finally:
        _NAMERS.reset(token)


def coordinate(d: int) -> str:
    """What to call a coordinate in a sentence."""
    namers = _NAMERS.get()
    return f"coordinate {d}" if namers is None else namers[0](d)


def coordinates(every: Iterable[int]) -> str:
    """What to call several of them."""
    namers = _NAMERS.get()
    if namers is None:
        return f"columns {list(every)}"
    return ", ".join(namers[0](d) for d in every)


def term(d: int) -> str:
    """What to call it in a formula."""
    namers = _NAMERS.get()
    return f"x[{d}]" if namers is None else namers[1](d)
