"""Trained models in a store, and the options of the benchmarks that train them.

What was trained or measured lies in a folder, a file for each name, and is not done again: delete
the folder to start anew.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import cli
from benchmarks.common.store import OUT, Numbers, Store
from benchmarks.dcgmm.data import Images, load_images
from benchmarks.dcgmm.models import FLATS, make_model


def key(name: str, seed: int) -> str:
    """The name of a trained model in a store."""
    return f"{name}_{seed}"


class Trained(NamedTuple):
    """Models in a store."""

    data: Images
    store: Store
    names: Sequence[str]
    seeds: Sequence[int]
    classes: int | None = None
    """Of a classifier at the top."""

    def has(self, name: str, seed: int = 0) -> bool:
        return self.store.has(key(name, seed))

    def only(self, names: Iterable[str]) -> "Trained":
        """Some of the models."""
        return self._replace(names=[name for name in names if name in self.names])

    def load(self, name: str, seed: int = 0) -> Any:
        flat = FLATS.get(name)
        model = flat.make(self.data) if flat else make_model(name, self.data, self.classes)
        return self.store.load(key(name, seed), model)

    def all(self) -> dict[str, Any]:
        """The first seed's models, by name."""
        return {name: self.load(name) for name in self.names if self.has(name)}

    def train_flat(self, name: str, seed: int, steps: int) -> Any:
        """A flat mixture, from the store if it is there."""
        if not self.has(name, seed):
            model, numbers = FLATS[name].train(seed, self.data, steps)
            self.store.save(key(name, seed), numbers, model.state_dict())
        return self.load(name, seed)

    def measure(
        self, what: str, ask: Callable[[str, Any], Numbers], seeds: Sequence[int] | None = None
    ) -> dict[str, list[Numbers]]:
        """What is found of every model, by name; a list over seeds.

        Args:
            what: Name under which results are stored.
            ask: Called with a model's name and the model, if there is no result yet.
            seeds: Some of the seeds; by default all.
        """
        found: dict[str, list[Numbers]] = {}
        for name in self.names:
            for seed in self.seeds if seeds is None else seeds:
                if self.has(name, seed):
                    found.setdefault(name, []).append(self._measure_one(what, ask, name, seed))
        return found

    def _measure_one(
        self, what: str, ask: Callable[[str, Any], Numbers], name: str, seed: int
    ) -> Numbers:
        def measure() -> Numbers:
            numbers = ask(name, self.load(name, seed))
            print(f"measured {what} of {name}, seed {seed}", flush=True)
            return numbers

        return self.store.once(f"{what}_{key(name, seed)}", measure)


# ---- options ------------------------------------------------------------------------------------


def make_parser(doc: str | None, models: Iterable[str]) -> argparse.ArgumentParser:
    """The options of a benchmark that trains models on images."""
    parser = cli.make_parser(
        doc, quick="digits, 1,000 steps, one seed", paper="15,000 steps, ten seeds: hours"
    )
    cli.add_models(parser, models)
    parser.add_argument("--data", choices=("mnist", "fashion", "digits"), help="by default MNIST")
    parser.add_argument("--full", action="store_true", help="all of MNIST, maybe downloaded")
    parser.add_argument("--steps", type=int, help="of training, another number than usual")
    parser.add_argument("--seeds", type=int, help="number of them")
    return parser


class Run(NamedTuple):
    """What the options of a benchmark ask for."""

    setting: Any
    seeds: range
    data: Images
    prefix: Path
    """Of all files that are written."""
    store: Store


def begin(
    benchmark: str,
    arguments: argparse.Namespace,
    settings: dict[str, Any],
    classes: Iterable[int] | None = None,
) -> Run:
    """Loads the images that the options ask for, and says how much is trained.

    Args:
        benchmark: Its name.
        arguments: Its options.
        settings: By size, with fields `data`, `steps` and `seeds`.
        classes: Those to train on; by default all.
    """
    setting, size = settings[arguments.size], arguments.size
    if arguments.steps:
        setting, size = setting._replace(steps=arguments.steps), f"{size}_{arguments.steps}"
    source = arguments.data or setting.data
    name = source + ("_full" if arguments.full else "")
    prefix = OUT / "dcgmm" / f"{benchmark}_{name}_{size}"
    data = load_images(source, arguments.full)
    if classes is not None:
        data = data.only(classes)
    print(f"{name}: {len(data.train)} images to train on, {setting.steps} steps", flush=True)
    return Run(setting, range(arguments.seeds or setting.seeds), data, prefix, Store(prefix))
