"""Expectation maximisation of many rows: time over its matrix products, memory, and scikit-learn.

Prints, for diagonal covariances of 1,024 components in 128 dimensions,

- seconds of an iteration of `fit_em` in float64 and in float32, over those of the two matrix
  products that it cannot do without: features (coordinates and squares) times coefficients, and
  responsibilities times features, of the same rows in blocks of the same size;
- memory that an iteration takes on top of the data, which are mapped from a file;
- seconds of an iteration of scikit-learn's GaussianMixture in float32, on as many rows as fit
  memory (it keeps a few matrices of rows by components), over those of `fit_em` on the same rows,
  from the same start, and the mean log-likelihoods that both come to;
- the same ratios for other covariances, of fewer components, and for rows with gaps;
- the largest difference between the parameters that two processes and one find.

    python -m benchmarks.mixtures.scale [--quick] [--threads N]
"""

import itertools
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

from benchmarks.common import cli
from benchmarks.common.memory import in_fresh_process, resident
from benchmarks.common.timing import limit_threads
from pyromix import GaussianMixture, fit_em
from pyromix.mixtures.em.statistics import CACHED_NUMBERS, LEAST_ROWS

DIM, COMPONENTS = 128, 1024
ROWS = {"quick": 50_000, "default": 1_000_000}
PEER_ROWS = {"quick": 10_000, "default": 100_000}
STEPS = 4
# Of variances, of the library and its peer: components of few points do not collapse.
FLOOR = 0.1
OTHERS = {"diagonal": 64, "shared": 64, "tied": 64, "full": 16}


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Overlapping groups, in float32."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((200, DIM), np.float32)
    label = generator.integers(0, 200, count)
    x = generator.standard_normal((count, DIM), np.float32)
    x += centres[label]
    return x


def started(x: np.ndarray, covariance: Any, k: int, gaps: bool = False) -> GaussianMixture:
    """A mixture that starts from clusters of some rows."""
    torch.manual_seed(0)
    missing = "marginalize" if gaps else "error"
    options: dict[str, Any] = {"standardize": False, "variance_floor": FLOOR}
    model = GaussianMixture(DIM, k, covariance, missing=missing, **options)
    sample = torch.from_numpy(x[:50_000].copy())
    model.initialize(sample)
    # Components that lose their points at the start are moved, which takes time of its own.
    fit_em(model, sample, steps=3, initialize=False, precision="single", progress_bar=False)
    return model


def seconds_of_steps(model: GaussianMixture, data: Any, precision: Any) -> list[float]:
    """Of every iteration but the first, which also reads what is read once."""
    history = fit_em(
        model, data, steps=STEPS, tolerance=0.0, initialize=False, precision=precision,
        progress_bar=False,
    )  # fmt: skip
    times = history.seconds
    return [b - a for a, b in itertools.pairwise(times)]


def seconds_of_products(count: int, k: int, features: int, dtype: torch.dtype) -> float:
    """Of the two matrix products, in the blocks that `fit_em` takes."""
    size = max(LEAST_ROWS, CACHED_NUMBERS // (features + k))
    a, f = torch.randn(k, features, dtype=dtype), torch.randn(size, features, dtype=dtype)
    scores, sums = torch.randn(k, size, dtype=dtype), torch.zeros(k, features, dtype=dtype)
    blocks = max(1, min(count, 100_000) // size)
    start = time.perf_counter()
    for _ in range(blocks):
        torch.mm(a, f.mT, out=scores)
        sums.addmm_(scores, f)
    return (time.perf_counter() - start) * count / (blocks * size)


def memory_of_a_step(path: str, count: int) -> float:
    """Mebibytes of memory that an iteration takes, on top of rows mapped from a file."""
    data = np.memmap(path, np.float32, "r", shape=(count, DIM))
    model = started(data, "diagonal", COMPONENTS)
    fit_em(model, data[:5000].copy(), steps=1, initialize=False, progress_bar=False)
    before = resident("RssAnon")
    peak = _Peak()
    with peak:
        fit_em(model, data, steps=1, initialize=False, precision="single", progress_bar=False)
    return peak.highest - before


class _Peak:
    """The highest anonymous memory of this process, looked at a hundred times a second."""

    def __enter__(self) -> "_Peak":
        self.highest, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self.highest = max(self.highest, resident("RssAnon"))


class TimedPeer(SklearnMixture):
    """Notes when every E-step ends."""

    times: list[float]

    def _e_step(self, X: Any, **options: Any) -> Any:  # noqa: N803
        result = super()._e_step(X, **options)
        self.times.append(time.perf_counter())
        return result


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Inverses of positive matrices, symmetric to the last bit."""
    inverse = torch.linalg.inv(matrix.double())
    return 0.5 * (inverse + inverse.mT)


def peer_seconds(x: np.ndarray, start: GaussianMixture) -> tuple[float, float]:
    """Seconds of an iteration of scikit-learn from the same start, and the likelihood it has."""
    law = start.law
    kind = {"diagonal": "diag"}.get(start.covariance, start.covariance)
    variance = law.component_variance.detach()
    options: dict[str, Any] = {
        "diag": lambda: 1 / variance,
        "full": lambda: _inverse(law.component_covariance.detach()),
        "tied": lambda: _inverse(law.component_covariance.detach()[0]),
    }
    peer = TimedPeer(
        start.num_components,
        covariance_type=kind,
        weights_init=law.logits.detach().exp().double().numpy(),
        means_init=law.loc.detach().numpy(),
        precisions_init=options[kind]().numpy(),
        max_iter=STEPS,
        tol=0.0,
        reg_covar=start.variance_floor,
    )
    peer.weights_init /= peer.weights_init.sum()
    peer.weights_init = peer.weights_init.astype(np.float32)
    peer.times = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer.fit(x)
    times = [b - a for a, b in itertools.pairwise(peer.times)]
    return statistics.median(times), float(peer.score(x[:20_000]))


def large(size: str) -> None:
    """The large problem."""
    count = ROWS[size]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows.bin")
        mapped = np.memmap(path, np.float32, "w+", shape=(count, DIM))
        for i in range(0, count, 50_000):
            part = rows(min(50_000, count - i), seed=i)
            mapped[i : i + len(part)] = part
        mapped.flush()
        data = np.memmap(path, np.float32, "r", shape=(count, DIM))
        print(f"{count:,} rows of {DIM}, {COMPONENTS:,} components, diagonal, mapped from a file")
        for precision, dtype in (("double", torch.float64), ("single", torch.float32)):
            model = started(data, "diagonal", COMPONENTS)
            own = statistics.median(seconds_of_steps(model, data, precision))
            floor = seconds_of_products(count, COMPONENTS, 2 * DIM, dtype)
            print(
                f"  {precision}: {own:.1f} s an iteration, its products {floor:.1f} s: "
                f"{own / floor:.2f} times",
                flush=True,
            )
        extra = in_fresh_process(memory_of_a_step, path, count)
        print(f"  memory on top of the data: {extra:.0f} MiB", flush=True)


def against_peer(size: str) -> None:
    """Ratios to scikit-learn in float32."""
    x = rows(PEER_ROWS[size])
    print(f"\n{len(x):,} rows, float32, seconds of an iteration and mean log-likelihood")
    for covariance, k in {
        "diagonal": COMPONENTS,
        **{f"{c}, {n}": n for c, n in OTHERS.items()},
    }.items():
        name = covariance.split(",")[0]
        own = started(x, name, k)
        seconds = statistics.median(seconds_of_steps(own, torch.from_numpy(x), "single"))
        with torch.no_grad():
            score = float(own.log_prob(torch.from_numpy(x[:20_000])).double().mean())
        line = f"  {name}, {k} components: {seconds:.2f} s, {score:.4f}"
        if name != "shared":
            peer, peer_score = peer_seconds(x, started(x, name, k))
            line += f"; scikit-learn {peer:.2f} s, {peer_score:.4f}: {peer / seconds:.1f} times"
        gaps = torch.from_numpy(x).clone()
        gaps[torch.rand(gaps.shape) < 0.1] = torch.nan
        if k < COMPONENTS:  # rows of correlated columns are worked on one by one
            gaps = gaps[: len(gaps) // (100 if name in ("tied", "full") else 10)]
        model = started(x, name, k, gaps=True)
        own_gaps = statistics.median(seconds_of_steps(model, gaps, "single"))
        line += f"; with 10% gaps {own_gaps / seconds * len(x) / len(gaps):.1f} times as long"
        print(line, flush=True)


def main() -> None:
    parser = cli.make_parser(__doc__, quick="few rows: a minute")
    arguments = cli.parse(parser)
    limit_threads(arguments.threads)
    large(arguments.size)
    against_peer(arguments.size)


if __name__ == "__main__":
    main()
