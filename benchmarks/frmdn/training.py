"""Training of sequence models on integers, such as recordings and pixels.

A density of integers is trained on integers plus uniform noise, which is drawn anew in every step
and, at validation, is the same every time (`Noisy`). All models of a benchmark are trained by one
rule, `train`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.training import falling
from pyromix import DistributionModule, History, fit
from pyromix.core.batch import Batch

CLIP = 10.0  # norm of a gradient, of losses in nats per vector of a sequence
VALIDATIONS, PATIENCE = 48, 8

AddNoise = Callable[[Batch], Batch]


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
