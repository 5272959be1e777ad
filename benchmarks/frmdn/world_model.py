"""World models: the law of the next code of a frame, given those before and an action.

The application of Razavi et al. (2020, Table 1): p(z_{t+1} | z_1, ..., z_t, a_t) by a recurrent
mixture density network (RMDN) and by one through a flow (FRMDN), for K = 1, 3 and 5 components and
precisions of rank 0 (diagonal) to 3. These 24 models have the same recurrent network, and are
trained on the same data, with the same batches, number of steps and bound of gradients; those
parameters are kept that are best on validation data. The flow of all FRMDNs is the same, and so is
the learning rate of all models of a kind: `--tune` trains candidates, and prints what they reach
on validation data. Codes are those of

- by default, pinball.py: a puck on a table with bumpers that fire at random, seen by a shaking
  camera, 8 numbers a frame;
- with `--env CarRacing-v3`, or another environment of gymnasium that shows images: frames under
  smooth random actions, encoded by a convolutional autoencoder (frames.py), 32 numbers a frame.
  Recording and encoding take ten minutes; the result is kept.

Prints, on test data:

- nats a step, from the second frame on, in the paper's table; by how much FRMDN is ahead of RMDN
  at equal K and rank, and every rank ahead of the one before, each with its standard error (of the
  difference, over sequences); numbers of parameters, and milliseconds a training step;
- dreams: models go on by themselves from the first frames of a test sequence, under its actions.
  Means, standard deviations and steps from frame to frame of dreams against those of what really
  followed, beside those of other real sequences, which are never exactly the same. And the energy
  score (the fair one; the lower the better) of 20 dreams of a sequence, beside that of 20 frames
  at random and, for pinball, of 20 runs of the true system from the true state: a bound, as no
  model is shown speeds.

Figures out/frmdn/world_model_<world>_*.png: the table; dreams beside what happens (for frames, as
film strips). Every model has a file of results and one of parameters in
out/frmdn/world_model_<world>/, so that processes can share the work by `--models`; `--report`
makes tables and figures of what is there, without training.

    python -m benchmarks.frmdn.world_model [--quick | --paper] [--env ID] [--models PATTERN ...]
        [--tune | --report] [--threads N]
"""

import fnmatch
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.distributions.transforms import affine_coupling, spline_coupling
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.couplings import alternating
from benchmarks.common.store import OUT, Numbers, Store, beside
from benchmarks.common.summary import plus_minus
from benchmarks.common.training import falling, num_parameters
from benchmarks.frmdn.dreams import draw_dreams, report_dreams
from benchmarks.frmdn.world_figures import draw_table
from benchmarks.frmdn.worlds import SETTINGS, Batch, Setting, World, environment, pinball
from pyromix import FRMDN, fit

BATCH = 64
CLIP = 5.0


class Kind(NamedTuple):
    """A model of the table."""

    name: str  # RMDN or FRMDN
    components: int
    rank: int

    def __str__(self) -> str:
        return f"{self.name}-{self.components}-{self.rank}"


# ---- models -------------------------------------------------------------------------------------


def affine(dim: int, split: int, hidden: int = 64) -> Any:
    """One of the paper's two couplings: affine, of networks with a hidden layer."""
    return affine_coupling(dim, [hidden], split_dim=split)


def spline(dim: int, split: int, hidden: int = 32) -> Any:
    """Transforms both halves: one as it is, the other given the first."""
    return spline_coupling(dim, split, [hidden], count_bins=8, bound=5.0)


FLOWS: dict[str, Callable[[int], list[Any]]] = {
    "two affine": partial(alternating, count=2, make=affine),
    "four affine": partial(alternating, count=4, make=affine),
    "two splines": partial(alternating, count=2, make=spline),
}
RATES = (3e-3, 1e-2, 2e-2)
# Nats a step on validation data of pinball, by `--tune` (750 steps, K = 3, rank 1), by rate: no
# flow 3.37, 3.60, 3.70; two affine couplings 5.40, 5.71; four 5.63, 5.94, 5.99; two splines 5.39
# at 3e-3. After 2,000 steps at K = 5 and rank 3 (5e-3, 1e-2, 2e-2): no flow 5.27, 5.36; four
# affine 6.13, 6.19, 6.17. Of CarRacing (24 episodes, 400 steps): no flow 2.20, 4.25; two affine
# 10.81 at 1e-2; four 11.18, 11.17.
FLOW = "four affine"
CHOSEN = {"RMDN": 1e-2, "FRMDN": 1e-2}


def make_model(kind: Kind, world: World, setting: Setting, flow: str = FLOW) -> FRMDN:
    return FRMDN(
        world.dim,
        world.length,
        kind.components,
        rank=kind.rank,
        hidden_dim=setting.hidden,
        context_dim=world.test["context"].shape[-1],
        transforms=FLOWS[flow](world.dim) if kind.name == "FRMDN" else (),
        validate_args=False,
    )


def kinds(setting: Setting) -> list[Kind]:
    names = "RMDN", "FRMDN"
    return [
        Kind(name, k, rank)
        for name, rank, k in itertools.product(names, setting.ranks, setting.components)
    ]


def train(model: FRMDN, world: World, steps: int, lr: float) -> Any:
    return fit(
        model, world.train, steps=steps, batch_size=BATCH, lr=lr, scheduler=falling(steps),
        gradient_clip=CLIP, validation=world.validation, validation_every=max(1, steps // 40),
        seed=0, progress_bar=False,
    )  # fmt: skip


@torch.no_grad()
def nats_per_step(model: FRMDN, batch: Batch) -> Tensor:
    """Mean log-density of a step after the first, of every sequence."""
    law = model.condition(batch["context"])
    return law.log_prob_per_step(batch["value"])[:, 1:].mean(-1)


def evaluate(kind: Kind, world: World, setting: Setting, store: Store) -> None:
    """Trains one model, and keeps it and its results."""
    torch.manual_seed(0)
    model = make_model(kind, world, setting)
    history = train(model, world, world.steps, CHOSEN[kind.name])
    nats = nats_per_step(model, world.test)
    result = {
        "nats": nats.tolist(),
        "validation": float(nats_per_step(model, world.validation).mean()),
        "parameters": num_parameters(model),
        "lr": CHOSEN[kind.name],
        "best step": history.best_step,
        "steps": len(history.losses),
        "seconds": history.seconds[-1],
    }
    store.save_model(str(kind), result, model)
    print(
        f"{kind!s:>10}: {float(nats.mean()):8.4f} nats a step (validation "
        f"{result['validation']:.4f}), best step {history.best_step} of {world.steps}, "
        f"{history.outcome}, {history.seconds[-1]:.0f} s",
        flush=True,
    )


def tune(world: World, setting: Setting) -> None:
    """What flows and learning rates reach on validation data in a quarter of the steps."""
    steps = world.steps // 4
    kind = Kind("FRMDN", 3, 1)
    print(f"\nnats a step on validation data after {steps} steps, K = 3, rank 1")
    print(f"{'':>14}" + "".join(f"{rate:>10g}" for rate in RATES) + f"{'ms a step':>12}")
    for name in ("none", *FLOWS):
        cells, seconds = [], 0.0
        for rate in RATES:
            torch.manual_seed(0)
            of = kind if name != "none" else kind._replace(name="RMDN")
            model = make_model(of, world, setting, name if name in FLOWS else FLOW)
            history = train(model, world, steps, rate)
            cells.append(float(nats_per_step(model, world.validation).mean()))
            seconds = history.seconds[-1]
        row = "".join(f"{cell:>10.3f}" for cell in cells)
        print(f"{name:>14}{row}{1e3 * seconds / steps:>12.1f}", flush=True)


# ---- the table ----------------------------------------------------------------------------------


def read_results(store: Store, setting: Setting) -> dict[Kind, Numbers]:
    found = store.numbers(map(str, kinds(setting)))
    return {kind: found[str(kind)] for kind in kinds(setting) if str(kind) in found}


def report(results: dict[Kind, Numbers], world: World) -> None:
    components = sorted({kind.components for kind in results})
    ranks = sorted({kind.rank for kind in results})
    head = "".join(f"{f'K = {k}':>20}" for k in components)
    rows = list(itertools.product(("RMDN", "FRMDN"), ranks))

    def table(
        title: str, cell: Callable[[Kind], str], rows: Iterable[tuple[str, int]] = rows
    ) -> None:
        print(f"\n{title}\n{'':>16}{head}")
        for name, rank in rows:
            cells = "".join(f"{cell(Kind(name, k, rank)):>20}" for k in components)
            print(f"{f'{name}, rank {rank}':>16}{cells}", flush=True)

    def nats(kind: Kind) -> str:
        return f"{-statistics.mean(results[kind]['nats']):.3f}" if kind in results else ""

    def ahead(one: Kind, other: Kind) -> str:
        if one not in results or other not in results:
            return ""
        one_nats, other_nats = (torch.tensor(results[kind]["nats"]) for kind in (one, other))
        return plus_minus(one_nats - other_nats, sign="+")

    num, length = world.test["value"].shape[:2]
    table(
        f"{world.label}: negative log-likelihood, nats a step, of {num} test sequences of "
        f"{length} frames",
        nats,
    )
    table(
        "by how many nats a step FRMDN is ahead of RMDN, with standard error",
        lambda kind: ahead(kind, kind._replace(name="RMDN")),
        [("FRMDN", rank) for rank in ranks],
    )
    table(
        "by how many nats a step a rank is ahead of the one before",
        lambda kind: ahead(kind, kind._replace(rank=ranks[ranks.index(kind.rank) - 1])),
        [row for row in rows if row[1] != ranks[0]],
    )
    table("parameters", lambda kind: f"{results[kind]['parameters']:,}" if kind in results else "")

    def milliseconds(kind: Kind) -> str:
        if kind not in results:
            return ""
        return f"{1e3 * results[kind]['seconds'] / results[kind]['steps']:.1f}"

    table("milliseconds a step of training, validation included", milliseconds)


def dreamers(results: dict[Kind, Numbers], store: Store) -> dict[str, FRMDN]:
    """The smallest RMDN, and the best of either kind on validation data."""
    chosen: list[Kind] = sorted(kind for kind in results if kind.name == "RMDN")[:1]
    for name in ("RMDN", "FRMDN"):
        of_kind = [kind for kind in results if kind.name == name]
        if of_kind:
            chosen.append(max(of_kind, key=lambda kind: results[kind]["validation"]))
    return {str(kind): store.load_model(str(kind)) for kind in dict.fromkeys(chosen)}


# ---- all ----------------------------------------------------------------------------------------


def main() -> None:
    parser = cli.make_parser(
        __doc__, quick="few small models", paper="the paper's network: days on a CPU"
    )
    parser.add_argument("--env", metavar="ID", help="an environment of gymnasium")
    parser.add_argument("--models", nargs="+", default=["*"], help="such as RMDN-3-1 or FRMDN-*-0")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--tune", action="store_true", help="compare flows and rates, briefly")
    task.add_argument("--report", action="store_true", help="train nothing")
    arguments = cli.parse(parser)
    setting = SETTINGS[arguments.size]
    world = environment(arguments.env, setting) if arguments.env else pinball(setting)
    if arguments.tune:
        tune(world, setting)
        return
    start = time.perf_counter()
    prefix = OUT / "frmdn" / f"world_model_{world.label}"
    store = Store(prefix)
    if not arguments.report:
        chosen = [
            kind
            for kind in kinds(setting)
            if any(fnmatch.fnmatch(str(kind), pattern) for pattern in arguments.models)
        ]
        if not chosen:
            parser.error(f"no model is named so; there are {', '.join(map(str, kinds(setting)))}")
        for kind in chosen:
            evaluate(kind, world, setting, store)
    results = read_results(store, setting)
    if not results:
        parser.error(f"no results in {prefix}: train first")
    report(results, world)
    models = dreamers(results, store)
    report_dreams(models, world)
    scores = {tuple(kind): -statistics.mean(r["nats"]) for kind, r in results.items()}
    num, length = world.test["value"].shape[:2]
    title = f"{world.label}: {num} test sequences of {length} frames"
    draw_table(scores, title, beside(prefix, "table.png"))
    draw_dreams(models, world, prefix)
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
