"""Draws of indices, by PyTorch's random state."""

__all__ = ["draw_rows", "uniform"]

import numpy as np
import torch

# Weights that are compared with random numbers at once.
BLOCK_NUMBERS = 2**22


def draw_rows(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Draws indices (N,), each with probabilities proportional to a row of weights (R, n).

    Args:
        weights: The weights.
        rows: Which row, (N,).
    """
    total = np.cumsum(weights, -1)
    u = uniform(len(rows))
    if len(total) == 1:
        return np.minimum(
            np.searchsorted(total[0], u * total[0, -1], side="right"), weights.shape[1] - 1
        )
    if len(rows) * weights.shape[1] <= BLOCK_NUMBERS and len(total) > len(rows) / 8:
        own = total[rows]
        return np.minimum((own <= (u * own[:, -1])[:, None]).sum(-1), weights.shape[1] - 1)
    order = np.argsort(rows, kind="stable")
    found = np.empty(len(rows), dtype=int)
    for group in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
        own = total[rows[group[0]]] if len(group) else total[0]
        found[group] = np.searchsorted(own, u[group] * own[-1], side="right")
    return np.minimum(found, weights.shape[1] - 1)


def uniform(count: int) -> np.ndarray:
    """Uniform random numbers (N,) in [0, 1), by PyTorch's random state."""
    drawn: np.ndarray = torch.rand(count, dtype=torch.float64).numpy()
    return drawn
