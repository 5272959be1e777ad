"""Peak memory of a job, measured in a process of its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_fresh_process(measure: Callable[..., Result], *arguments: object) -> Result:
    """What a function of a module returns in a process that has run nothing else before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def peak_of(job: Callable[[], object], device: str = "cpu") -> float:
    """Mebibytes that a job takes at its peak, on top of what was there before.

    Run a small job of the same kind before: it loads what is loaded lazily.

    Args:
        job: What to measure.
        device: ``"cpu"``, to measure this process; or ``"cuda"``, to measure PyTorch's memory on
            that device.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        job()
        return (torch.cuda.max_memory_allocated() - allocated) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    job()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Mebibytes in a field of this process's status: ``VmRSS`` now, ``VmHWM`` at its peak.

    Raises:
        RuntimeError: If there is no such field.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")
