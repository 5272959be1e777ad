"""What benchmarks of sequence models share: flows, training on integers, and a store of results.

Recordings and pixels are integers. A density of them is trained on integers plus uniform noise,
which is drawn anew in every step and, at validation, is the same every time (`Noisy`). All models
of a benchmark are trained by one rule, `train`.

What was trained lies in a folder, a file of numbers and one of weights for every model, so that
several processes can train models of one benchmark at the same time.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyro.distributions.transforms as transforms
import torch
from pyro.nn import DenseNN
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pyromix import DistributionModule, History, fit, near_identity
from pyromix.core.batch import Batch

CLIP = 10.0  # norm of a gradient, of losses in nats per vector of a sequence
VALIDATIONS, PATIENCE = 48, 8

AddNoise = Callable[[Batch], Batch]


# ---- flows --------------------------------------------------------------------------------------


def affine_couplings(dim: int, count: int = 2, hidden: int = 64) -> list[Any]:
    """Affine couplings as in the paper: four linear layers, with leaky rectifiers between."""

    def make() -> Any:
        half = dim // 2
        network = DenseNN(half, [hidden] * 3, [half, half], nn.LeakyReLU(0.1))
        return transforms.AffineCoupling(half, network)

    return in_turns(dim, count, make)


def spline_couplings(
    dim: int, count: int = 2, hidden: int = 64, bins: int = 8, bound: float = 5.0
) -> list[Any]:
    """Couplings that also put the kept half through splines, one for each coordinate."""

    def make() -> Any:
        return transforms.spline_coupling(dim, dim // 2, [hidden] * 2, bins, bound)

    return in_turns(dim, count, make)


def in_turns(dim: int, count: int, make: Callable[[], Any]) -> list[Any]:
    """Couplings of which each changes the other half: of the even coordinates or of the odd ones.

    Neighbours in a row of pixels, or in a wave, say most about each other.
    """
    half = dim // 2
    swap, interleave = torch.arange(dim).roll(half), torch.arange(dim).view(2, half).T.flatten()
    layers = [near_identity(make())]
    for _ in range(count - 1):
        layers += [transforms.permute(dim, swap), near_identity(make())]
    return [*layers, transforms.permute(dim, interleave)]


# ---- training -----------------------------------------------------------------------------------


class Noisy(nn.Module):
    """A model that is trained on integers, to which it adds noise.

    Args:
        model: The model of integers plus noise.
        add_noise: Makes a batch for the model out of one of integers.
    """

    def __init__(self, model: DistributionModule, add_noise: AddNoise) -> None:
        super().__init__()
        self.model, self.add_noise = model, add_noise

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:
        return self.model.loss(self.add_noise(batch), progress)


def train(
    model: DistributionModule,
    add_noise: AddNoise,
    data: Batch,
    validation: Batch,
    *,
    steps: int,
    batch_size: int,
    lr: float,
) -> History:
    """Maximises the likelihood of integers by Adam; rates fall to 2% over the second half.

    Training stops where the validation loss has had no new minimum for a sixth of all steps, and
    the parameters with which it was lowest are restored.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.initialize(add_noise(data))

    wrapped: Any = Noisy(model, add_noise)
    return fit(
        wrapped, data, steps=steps, batch_size=batch_size, lr=lr, scheduler=falling(steps),
        gradient_clip=CLIP, validation=validation, validation_every=max(1, steps // VALIDATIONS),
        patience=PATIENCE, seed=0, progress_bar=False,
    )  # fmt: skip


def falling(steps: int) -> Callable[[Optimizer], LambdaLR]:
    """Learning rates that are constant over the first half, and then fall to 2%."""

    def schedule(optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps) + 0.02))

    return schedule


# ---- results ------------------------------------------------------------------------------------


class Store:
    """Numbers and weights of models, a file each for every model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, numbers: dict[str, Any], model: nn.Module | None) -> None:
        if model is not None:
            torch.save(model.state_dict(), self.folder / f"{name}.pt")
        (self.folder / f"{name}.json").write_text(json.dumps(numbers))

    def numbers(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What was saved of those models that were trained."""
        files = {name: self.folder / f"{name}.json" for name in names}
        return {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}

    def load(self, name: str, model: Any) -> Any:
        """Sets a model's parameters to those that were saved, and freezes them."""
        model.load_state_dict(torch.load(self.folder / f"{name}.pt"))
        return model.eval().requires_grad_(False)
