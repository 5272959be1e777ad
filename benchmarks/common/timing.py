"""Times of several methods in one run, in which they take turns: noise then hits all alike."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from threadpoolctl import threadpool_limits

Job = Callable[[], object]


def timed(job: Job) -> float:
    """Seconds that a job takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def interleaved_medians(jobs: Mapping[str, Job], seconds: float) -> dict[str, float]:
    """Median seconds of every job, of at least three turns each.

    The first turn warms up, and counts only for a job that has then used up the time.

    Args:
        jobs: What to time, by name.
        seconds: For how long to go on, all jobs together.
    """
    first = {name: timed(job) for name, job in jobs.items()}
    times = {name: [t] if t > seconds else [] for name, t in first.items()}
    fast = {name: job for name, job in jobs.items() if not times[name]}
    end = time.perf_counter() + seconds
    for turn in itertools.count():
        if not fast or (turn >= 3 and time.perf_counter() > end):
            break
        for name, job in fast.items():
            times[name].append(timed(job))
    return {name: statistics.median(values) for name, values in times.items()}


def block_medians(jobs: Mapping[str, Job], rounds: int, block: int) -> dict[str, float]:
    """Median seconds of every job, timed in blocks as if it ran in a loop.

    Args:
        jobs: What to time, by name.
        rounds: How many blocks to time of each, after a run of each that warms up.
        block: How often a job runs in a block, after one run that is not timed.
    """
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            job()
            times[name] += [timed(job) for _ in range(block)]
    return {name: statistics.median(values) for name, values in times.items()}


def limit_threads(threads: int) -> None:
    """Limits PyTorch, and the thread pools of all libraries that have been imported."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def synchronised(job: Job, device: str) -> Job:
    """The job, which then waits until a graphics processor has done its work."""

    def run() -> None:
        job()
        if device != "cpu":
            torch.cuda.synchronize()

    return run
