"""Binary data sets of the literature on probabilistic circuits: residual mixtures of codes alone.

Mean log-likelihood of test rows in nats, beside figures that others have published for random
sum-product networks (RAT-SPN; Peharz et al., 2019) and einsum networks (EiNet; Peharz et al.,
2020). The published figures are quoted from memory, and were not measured here. Residual mixtures
are trained as those of tables are, by densities of whole rows alone, some deep and some shallow,
and averaged with the weights that are best in the validation set.

    python -m benchmarks.tables.binary [--quick] [--sets NAME ...]
"""

import time
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.store import OUT, Numbers, Store
from benchmarks.common.training import num_parameters
from benchmarks.tables.data import find
from pyromix.tables.mixture import Mixture, weights_of
from pyromix.tables.training import Plan, train

# Layers and components, and strengths of the prior.
SHAPES, SHRINKAGES = ((6, 4), (2, 64)), {"quick": (1.0,), "default": (1.0, 4.0)}
STEPS, BATCH, LR = {"quick": 100, "default": 1500}, 256, 0.1


class Published(NamedTuple):
    """Mean test log-likelihoods that others have published."""

    rat_spn: float
    einet: float


# Of a table in Peharz et al., "Einsum networks" (2020). Quoted from memory: check them before they
# are quoted anywhere else.
PUBLISHED = {
    "nltcs": Published(-6.01, -6.02),
    "plants": Published(-13.44, -13.68),
    "baudio": Published(-39.96, -39.88),
    "jester": Published(-52.97, -52.56),
    "bnetflix": Published(-56.85, -56.54),
    "accidents": Published(-35.49, -35.59),
    "pumsb_star": Published(-32.53, -31.95),
    "dna": Published(-97.23, -96.09),
    "bbc": Published(-252.14, -248.33),
}
# In the folder, and without figures that we recall.
OTHERS = ("mushrooms", "nips", "voting")


class Bits(NamedTuple):
    """Rows of zeros and ones, (N, D) each."""

    train: Tensor
    valid: Tensor
    test: Tensor


def load(name: str) -> Bits:
    """A data set."""
    with np.load(find(f"{name}.npz", "binary")) as file:
        columns = int(file["columns"])
        parts = [np.unpackbits(file[part], axis=1)[:, :columns] for part in Bits._fields]
    return Bits(*(torch.from_numpy(part).float() for part in parts))


def measure(name: str, size: str) -> Numbers:
    """Trains residual mixtures, and scores rows of the test set by their average."""
    bits = load(name)
    columns = bits.train.shape[1]
    start = time.perf_counter()
    valid = bits.valid.long().numpy()
    models = []
    for (layers, components), shrinkage in product(SHAPES, SHRINKAGES[size]):
        plan = Plan(
            layers, components, STEPS[size], BATCH, LR, shrinkage=shrinkage, conditional=0.0
        )
        models.append(
            train(
                bits.train.long().numpy(),
                valid,
                (2,) * columns,
                (False,) * columns,
                plan,
                seed=len(models),
                progress_bar=False,
            )
        )
    minutes = (time.perf_counter() - start) / 60
    parts = [Mixture.of(model) for model in models]
    weights = weights_of(parts, valid)
    mixture = Mixture.average(parts, weights)
    scores = mixture.log_prob(bits.test.long().numpy())
    return {
        "log_prob": float(scores.mean()),
        "error": float(scores.std() / len(scores) ** 0.5),
        "weights": weights.tolist(),
        "parameters": sum(num_parameters(model) for model in models),
        "minutes": minutes,
        "columns": columns,
    }


def tell(results: dict[str, Numbers]) -> None:
    """A table in Markdown."""
    print("\n| | columns | DRMM, here | RAT-SPN, as recalled | EiNet, as recalled |")
    print("| --- | --: | --: | --: | --: |")
    for name, result in results.items():
        others = PUBLISHED.get(name)
        cells = [f"{value:.2f}" for value in others] if others else ["", ""]
        own = f"{result['log_prob']:.2f} ± {result['error']:.2f}"
        print(f"| {name} | {result['columns']} | {own} | " + " | ".join(cells) + " |")
    print("\nPublished figures are quoted from memory, and were not measured here.")


def main() -> None:
    names = [*PUBLISHED, *OTHERS]
    parser = cli.make_parser(__doc__, quick="few steps, one set")
    parser.add_argument("--sets", nargs="+", choices=names, help="by default all")
    arguments = cli.parse(parser)
    quick = arguments.size == "quick"
    store = Store(OUT / "tables" / f"binary_{arguments.size}")
    chosen = arguments.sets or (["nltcs"] if quick else names)
    for name in chosen:
        try:
            numbers = store.once(name, lambda n=name: measure(n, arguments.size))
        except FileNotFoundError as error:
            print(f"{name} is skipped: {error}")
            continue
        print(f"{name}: {numbers['log_prob']:.3f} nats, {numbers['minutes']:.1f} min", flush=True)
    tell(store.numbers(names))


if __name__ == "__main__":
    main()
