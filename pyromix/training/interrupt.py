"""Interrupts that wait for the end of a step."""

__all__ = ["deferred_interrupt"]

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt(enabled: bool) -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into a flag, so that no update is left half done."""
    flag = threading.Event()
    previous = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not (enabled and in_main_thread and callable(previous)):
        yield flag
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
