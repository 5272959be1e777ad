"""Modes of a mixture: components that no dip of the density parts."""

__all__ = ["Mode", "find_modes"]

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..mixtures import MixtureOfMultivariateNormals

# Components that lie nearest are looked at for each, at points of the line between their means.
NEIGHBOURS, POINTS = 12, 11
# A dip of the log-density on that line, in nats below the lower end, that parts two modes.
DIP = 0.7
# Components of less weight are no modes of their own.
LEAST_WEIGHT = 1e-4


@dataclass(frozen=True)
class Mode:
    """A mode of a posterior.

    Args:
        mass: Its share of the posterior, by importance weights.
        error: Standard error of that.
        mean: Mean of each latent variable within the mode, by the name of its site.
        best: The draw of highest posterior density, by the name of a site.
    """

    mass: float
    error: float
    mean: Mapping[str, Tensor]
    best: Mapping[str, Tensor]


@torch.no_grad()
def find_modes(law: MixtureOfMultivariateNormals) -> Tensor:
    """Numbers of the modes that components belong to, (K,), from 0.

    Two components are of one mode if the density of the mixture has no dip between their means,
    or if others connect them in that way.

    Args:
        law: The mixture.
    """
    weights, loc = law.logits.softmax(-1), law.loc
    heights = law.log_prob(loc)
    count = law.num_components
    nearest = law._joint_log_prob(loc).topk(min(count, NEIGHBOURS + 1), -1).indices
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    share = torch.linspace(0, 1, POINTS + 2, dtype=loc.dtype, device=loc.device)[1:-1]
    between = torch.lerp(loc[:, None, None], loc[nearest].unsqueeze(2), share[:, None])
    lowest = law.log_prob(between).amin(-1)  # (K, neighbours)
    ends = torch.minimum(heights.unsqueeze(-1), heights[nearest])
    # A component next to nothing, as in a tail, belongs to its neighbour.
    joined = (ends - lowest < DIP) | (weights < LEAST_WEIGHT).unsqueeze(-1)
    for i, (own, others) in enumerate(zip(joined.tolist(), nearest.tolist(), strict=True)):
        light = bool(weights[i] < LEAST_WEIGHT)
        for together, j in zip(own, others, strict=True):
            if together and j != i:
                parent[root(i)] = root(j)
                if light:  # with the nearest alone
                    break
    roots = torch.tensor([root(i) for i in range(count)])
    return roots.unique(return_inverse=True)[1].to(loc.device)
