"""What benchmarks leave on disk: a folder for each model, and in it a file for each result.

A benchmark writes to ``out/<model>/<benchmark>_<size>``: with an ending for figures and summaries,
and as a folder for a `Store`. A model of a store has a file of numbers and one of weights, so that
several processes can train models of one benchmark, and a run that was stopped can go on. Delete
the folder to start anew.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.training import num_parameters
from pyromix import DistributionModule, load, save

OUT = Path("out")

Numbers = dict[str, Any]


def beside(prefix: Path, ending: str) -> Path:
    """The file of a run that has an ending, such as ``"samples.png"``."""
    return prefix.with_name(f"{prefix.name}_{ending}")


class Store:
    """Numbers and weights of models, a file each for every name.

    Args:
        folder: Where they are; it is made when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self, name: str, numbers: Numbers, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Saves numbers, and maybe weights, for `load`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if weights is not None:
            self._write(name, "pt", lambda path: torch.save(dict(weights), path))
        # Numbers appear last and at once: a run that is killed leaves no half of a result.
        self._write(name, "json", lambda path: path.write_text(json.dumps(numbers)))

    def save_model(self, name: str, numbers: Numbers, model: DistributionModule) -> None:
        """Saves numbers, and a model with its settings, for `load_model`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save(model, self._path(name, "safetensors"))
        self.save(name, numbers)

    def train(
        self,
        names: Iterable[str],
        make: Callable[[str], Any],
        measure: Callable[[Any], Numbers] = lambda model: {},  # noqa: ARG005
    ) -> None:
        """Trains and saves the models that are missing, with their sizes and times.

        Args:
            names: Of the models.
            make: Makes a trained model.
            measure: What else to note of it.
        """
        for name in names:
            if self.has(name):
                continue
            torch.manual_seed(0)
            start = time.perf_counter()
            model = make(name).eval()
            minutes = (time.perf_counter() - start) / 60
            numbers = {"parameters": num_parameters(model), "minutes": minutes} | measure(model)
            self.save_model(name, numbers, model)
            print(f"{name}: {numbers}", flush=True)

    def has(self, name: str) -> bool:
        """Whether there are numbers of a name."""
        return self._path(name, "json").exists()

    def names(self, start: str) -> list[str]:
        """Names of numbers, in order, that begin with a text."""
        paths = self.folder.glob("*.json")
        return sorted(path.stem for path in paths if path.stem.startswith(start))

    def numbers(self, names: Iterable[str]) -> dict[str, Numbers]:
        """Numbers by name, of the names that there are numbers of."""
        return {
            name: json.loads(self._path(name, "json").read_text())
            for name in names
            if self.has(name)
        }

    def once(self, name: str, measure: Callable[[], Numbers]) -> Numbers:
        """Numbers of a name, measured if there are none yet."""
        if not self.has(name):
            self.save(name, measure())
        return self.numbers([name])[name]

    def weights(self, name: str) -> dict[str, Tensor]:
        """The weights that were saved."""
        return torch.load(self._path(name, "pt"))

    def load(self, name: str, model: Any) -> Any:
        """The model with the weights that were saved, frozen and in evaluation mode."""
        model.load_state_dict(self.weights(name))
        return model.eval().requires_grad_(False)

    def load_model(self, name: str) -> Any:
        """The model that was saved with its settings, in evaluation mode."""
        return load(self._path(name, "safetensors")).eval()

    def _path(self, name: str, suffix: str) -> Path:
        file = name.replace(", ", "_").replace(" ", "-")
        return self.folder / f"{file}.{suffix}"

    def _write(self, name: str, suffix: str, write: Callable[[Path], object]) -> None:
        path = self._path(name, suffix)
        new = path.with_name(f"{path.name}.new")
        write(new)
        new.replace(path)


def best(results: Mapping[str, Numbers], kind: str, measure: str) -> str | None:
    """The name that begins with `kind` and has the least of a measure; None if there is none."""
    names = [name for name in results if name.startswith(kind)]
    return min(names, key=lambda name: results[name][measure], default=None)
