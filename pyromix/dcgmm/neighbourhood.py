"""Neighbourhoods of components, which shrink in the course of training."""

__all__ = ["Neighbourhood"]

import math

import torch
from torch import Tensor, nn

# Loss is averaged over so many steps, and the width shrinks by this factor whenever the average
# has hardly changed, compared with all that it has changed since the start.
WINDOW = 20
STATIONARY = 0.05
SHRINKAGE = 0.9
SMALLEST_WIDTH = 0.01


class Neighbourhood(nn.Module):
    r"""Weights of a Gaussian filter by which scores are averaged over neighbouring components.

    Components lie on a grid that wraps around. The filter makes neighbours learn alike, so that
    no component is left unused. Its width starts at :math:`0.25 \sqrt{2K}`, and shrinks to 0.01
    whenever the loss is stationary (Gepperth and Pfülb 2020). A geometric schedule bounds it from
    above, so that it reaches 0.01 in trainings of few steps, too.

    Args:
        num_components: Number of components K, on a grid as nearly square as K allows.
    """

    distances0: Tensor
    distances1: Tensor
    width: Tensor
    window: Tensor
    first: Tensor
    previous: Tensor

    def __init__(self, num_components: int) -> None:
        super().__init__()
        rows = math.isqrt(num_components)
        while num_components % rows:
            rows -= 1
        self.grid = rows, num_components // rows
        self.start = 0.25 * math.sqrt(2 * num_components)
        for axis, length in enumerate(self.grid):
            place = torch.arange(length, dtype=torch.get_default_dtype())
            along = (place.unsqueeze(-1) - place).abs()
            squared = torch.minimum(along, length - along).square()
            self.register_buffer(f"distances{axis}", squared, persistent=False)
        self.register_buffer("width", torch.tensor(max(self.start, SMALLEST_WIDTH)))
        # Sum of the losses in the present window, and their number.
        self.register_buffer("window", torch.zeros(2))
        # Mean loss in the first window and in the one before this; infinite until there is one.
        self.register_buffer("first", torch.tensor(math.inf))
        self.register_buffer("previous", torch.tensor(math.inf))

    @property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Weights along the columns and along the rows of the grid, whose product is `filter`."""
        rows, columns = (
            (-0.5 * distances / self.width.square()).softmax(-1)
            for distances in (self.distances0, self.distances1)
        )
        return rows, columns

    @property
    def filter(self) -> Tensor:
        """Weights of all components for each, shape (K, K); symmetric, with rows that sum to 1."""
        return torch.kron(*self.axes)

    def smooth(self, values: Tensor) -> Tensor:
        """Returns averages over neighbours, shape (K, D), of values of the components, (K, D)."""
        rows, columns = self.axes
        along = (columns @ values.unflatten(0, self.grid)).flatten(1)
        return (rows @ along).reshape(values.shape)

    @torch.no_grad()
    def limit(self, progress: float) -> None:
        """Lowers the width to that of the schedule, if it is above.

        Args:
            progress: From 0 at the start, to 1 where the smallest width must be reached.
        """
        share = min(1.0, max(0.0, progress))
        largest = self.start * (SMALLEST_WIDTH / self.start) ** share
        self.width.clamp_(min=SMALLEST_WIDTH, max=max(largest, SMALLEST_WIDTH))

    @torch.no_grad()
    def observe(self, loss: Tensor) -> None:
        """Adds the loss of a step to the average, and shrinks the width if it is stationary.

        Args:
            loss: The loss, a scalar.
        """
        self.window += torch.stack([loss.detach().to(self.window), self.window.new_ones(())])
        if int(self.window[1]) < WINDOW:
            return
        mean = self.window[0] / self.window[1]
        self.window.zero_()
        if bool(self.first.isinf()):
            self.first.copy_(mean)
        else:
            gain = (self.previous - mean) / (self.first - mean).abs().clamp(min=1e-12)
            if -2 * STATIONARY < float(gain) < STATIONARY:
                self.width.mul_(SHRINKAGE).clamp_(min=SMALLEST_WIDTH)
        self.previous.copy_(mean)
