"""Which log-likelihoods are usual, position by position."""

__all__ = ["Calibration"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMALLEST_DEVIATION = 1e-3  # nats


class Calibration(nn.Module):
    """Means and standard deviations of maps of log-likelihoods, position by position (eq. 6).

    Args:
        sizes: Rows and columns of each map.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.num_maps = len(sizes)
        for index, size in enumerate(sizes):
            self.register_buffer(f"mean{index}", torch.full(size, math.inf))
            self.register_buffer(f"deviation{index}", torch.full(size, math.inf))

    @torch.no_grad()
    def set(self, log_likelihoods: Sequence[Tensor]) -> None:
        """Takes note of log-likelihoods: for each map a tensor (N, rows, columns).

        Raises:
            ValueError: For fewer than two images.
        """
        if log_likelihoods and len(log_likelihoods[0]) < 2:
            raise ValueError(
                f"Expected at least two images to calibrate on, got {len(log_likelihoods[0])}."
            )
        for index, values in enumerate(log_likelihoods):
            self.get_buffer(f"mean{index}").copy_(values.mean(0))
            deviation = values.std(0)
            # Where nothing ever varied, as in blank corners, rounding must not look unusual.
            least = SMALLEST_DEVIATION + 1e-3 * deviation.mean()
            self.get_buffer(f"deviation{index}").copy_(deviation.clamp(min=least))

    def deviations(self, index: int, log_likelihood: Tensor) -> Tensor:
        """How many standard deviations log-likelihoods fall short of their mean.

        Raises:
            RuntimeError: Before anything was set.
        """
        index %= self.num_maps
        mean, deviation = (self.get_buffer(f"{name}{index}") for name in ("mean", "deviation"))
        if bool(mean.isinf().any()):
            raise RuntimeError(
                "What is usual is not known yet: call calibrate(images) with the training data "
                "first."
            )
        return (mean - log_likelihood) / deviation
