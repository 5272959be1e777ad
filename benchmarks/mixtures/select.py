"""Families and numbers of components: select against mclust and scikit-learn.

On four of mclust's own data sets, with K from 1 to 9: which of the 14 families and which K each
picks by BIC, with the BIC (lower is better: minus mclust's), and seconds of the processor.
scikit-learn has four of the families; it starts five times for each. A second table fits every
family from the same partition, and compares log-likelihoods with those of mclust's `me`.

It runs Rscript with mclust, which also holds the data (Debian's r-cran-mclust). Without them it
says so, and does nothing.

    python -m benchmarks.mixtures.select [--quick]
"""

import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.timing import limit_threads
from pyromix import GaussianMixture, fit_em, select
from pyromix.mixtures.covariance import FAMILIES, Moments

SKLEARN_NAMES = {"full": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII"}
SKLEARN_STARTS = 5
NO_FLOOR = 1e-10
PARTITION = 3

SCRIPT = """
suppressMessages(library(mclust))
data(diabetes); data(banknote); data(thyroid)
sets <- list(diabetes = diabetes[, -1], banknote = banknote[, -1], faithful = faithful,
             thyroid = thyroid[, -1])
for (name in names(sets)) {
  x <- as.matrix(sets[[name]])
  write.csv(x, paste0(name, ".csv"), row.names = FALSE)
  time <- system.time(best <- Mclust(x, G = 1:LARGEST, verbose = FALSE))
  cat("best", name, best$modelName, best$G, sprintf("%.4f", -best$bic), time[1] + time[2], "\n")
  set.seed(1)
  z <- unmap(kmeans(x, PARTITION, nstart = 5)$cluster)
  write.csv(z, paste0(name, "_z.csv"), row.names = FALSE)
  for (family in mclust.options("emModelNames")) {
    control <- emControl(tol = c(1e-9, 1e-9), itmax = c(2000, 500))
    found <- try(me(data = x, modelName = family, z = z, control = control), silent = TRUE)
    value <- if (inherits(found, "try-error")) NA else found$loglik
    cat("me", name, family, sprintf("%.5f", value), "\n")
  }
}
"""


class Choice(NamedTuple):
    """What a library picks."""

    family: str
    num_components: int
    bic: float
    seconds: float


class Peer(NamedTuple):
    """Data, and mclust's answers."""

    x: Tensor
    start: Tensor
    """A partition, shape (N, 3)."""
    best: Choice
    log_likelihoods: dict[str, float]
    """From that partition, of every family."""


def mclust(largest: int) -> dict[str, Peer] | None:
    """Data sets with mclust's answers, by name; None if it cannot be run."""
    if shutil.which("Rscript") is None:
        print("Rscript is not installed: nothing to compare with, and no data.")
        return None
    script = SCRIPT.replace("LARGEST", str(largest)).replace("PARTITION", str(PARTITION))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "script.R").write_text(script)
        done = subprocess.run(
            ["Rscript", "script.R"], cwd=path, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"mclust cannot be run, nothing to compare with:\n{done.stderr}")
            return None
        lines = [line.split() for line in done.stdout.splitlines()]
        peers = {}
        for _, name, family, k, bic, seconds in (line for line in lines if line[0] == "best"):
            x, start = (
                torch.tensor(np.loadtxt(path / f"{name}{end}.csv", delimiter=",", skiprows=1))
                for end in ("", "_z")
            )
            values = {line[2]: float(line[3]) for line in lines if line[:2] == ["me", name]}
            peers[name] = Peer(
                x, start, Choice(family, int(k), float(bic), float(seconds)), values
            )
    return peers


def own_choice(x: Tensor, largest: int) -> tuple[Choice, dict[tuple[str, int], float]]:
    """What `select` picks, and the BIC of all candidates."""
    start = time.process_time()
    found = select(x, range(1, largest + 1), seed=0, progress_bar=False)
    seconds, best = time.process_time() - start, found.candidate
    every = {(row.covariance, row.num_components): row.bic for row in found.table}
    return Choice(best.covariance, best.num_components, best.bic, seconds), every


def sklearn_choice(x: Tensor, largest: int) -> Choice:
    """What scikit-learn's BIC picks."""
    start, choices = time.process_time(), []
    for kind, family in SKLEARN_NAMES.items():
        for k in range(1, largest + 1):
            model = SklearnMixture(
                k, covariance_type=kind, n_init=SKLEARN_STARTS, random_state=0, max_iter=1000
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(x.numpy())
            choices.append(Choice(family, k, float(model.bic(x.numpy())), 0.0))
    best = min(choices, key=lambda choice: choice.bic)
    return best._replace(seconds=time.process_time() - start)


def from_partition(x: Tensor, start: Tensor, family: str) -> float:
    """Log-likelihood that expectation maximisation reaches from exactly a partition's moments."""
    model = GaussianMixture(x.shape[-1], start.shape[-1], family, variance_floor=NO_FLOOR)  # type: ignore[arg-type]
    model = model.double()
    model.units.adapt(x, common=model.structure.isotropic)
    points, weight = model.units(x), start.sum(0)
    loc = start.mT @ points / weight.unsqueeze(-1)
    shift = points - loc.unsqueeze(1)
    second = (start.mT.unsqueeze(-1) * shift).mT @ shift
    if not model.structure.full_moments:
        second = second.diagonal(dim1=-2, dim2=-1)
    raw = model.structure.estimate(Moments(weight, second), model._raw())
    model._assign((weight / weight.sum()).log(), loc, raw)
    fit_em(model, x, initialize=False, steps=2000, tolerance=1e-9, progress_bar=False)
    return float(model.log_prob(x).detach().sum())


def choice_table(peers: dict[str, Peer], largest: int) -> None:
    print(f"\nBIC with K = 1..{largest}; lower is better; seconds of the processor")
    print(f"{'data':>10} {'N':>4} {'D':>2} {'library':>14} {'choice':>7} {'BIC':>10} {'s':>6}")
    for name, peer in peers.items():
        own, every = own_choice(peer.x, largest)
        rows = {"mclust": peer.best, "pyromix": own}
        rows["scikit-learn"] = sklearn_choice(peer.x, largest)
        for i, (library, choice) in enumerate(rows.items()):
            shape = "" if i else f"{name:>10} {len(peer.x):>4} {peer.x.shape[-1]:>2}"
            picked = f"{choice.family},{choice.num_components}"
            print(
                f"{shape:>18} {library:>14} {picked:>7} {choice.bic:>10.2f} {choice.seconds:>6.1f}"
            )
        same = every[peer.best.family, peer.best.num_components]
        print(f"{'':>18} pyromix with mclust's choice: {same:.2f}")


def likelihood_table(peers: dict[str, Peer]) -> None:
    print(f"\nlog-likelihood from one partition with K = {PARTITION}, less that of mclust's me")
    print(f"{'':>6}" + "".join(f"{name:>10}" for name in peers))
    for family in FAMILIES:
        cells = [
            from_partition(peer.x, peer.start, family) - peer.log_likelihoods[family]
            for peer in peers.values()
        ]
        print(f"{family:>6}" + "".join(f"{cell:>10.4f}" for cell in cells))


def main() -> None:
    arguments = cli.parse(cli.make_parser(__doc__, quick="up to 4 components"))
    limit_threads(arguments.threads)
    warnings.simplefilter("ignore", UserWarning)  # whole numbers in some columns
    largest = 4 if arguments.size == "quick" else 9
    peers = mclust(largest)
    if peers is not None:
        choice_table(peers, largest)
        likelihood_table(peers)


if __name__ == "__main__":
    main()
