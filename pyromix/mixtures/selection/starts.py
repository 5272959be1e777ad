r"""Where expectation maximisation starts from, of several kinds: responsibilities (N, K).

Starts are for points without gaps in standardised columns, and do not depend on the family of
covariances: all families share them. Long parallel clusters look round in whitened coordinates.
"""

__all__ = ["KINDS", "Starts", "merged", "split"]

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..clusters import k_means
from ..em.statistics import joint_log_prob
from ..learnable import GaussianMixture

KINDS = ("k-means", "hierarchical", "random", "annealed")

# Hierarchies take memory in proportion to the square of the number of points.
HIERARCHY_POINTS = 2_000

# Inverse temperatures of annealed starts, each with so many iterations, and their floor.
INVERSE_TEMPERATURES = (0.4, 0.6, 0.8, 1.0)
ANNEALED_STEPS = 4
ANNEALED_FLOOR = 1e-6

# Directions of less than this share of the largest standard deviation are left out.
SMALLEST_SPREAD = 1e-6

# How many pairs are merged and components split, one at a time.
NEIGHBOURS = 3


class Starts:
    """Responsibilities to start from, for any number of components.

    Args:
        x: Points without gaps, shape (N, D).
        kinds: Of which kinds, of `KINDS`.
    """

    def __init__(self, x: Tensor, kinds: tuple[str, ...]) -> None:
        self.kinds = kinds
        x = x - x.mean(0)
        spread = x.square().mean(0).sqrt()
        self.x = x / torch.where(spread > 0, spread, 1.0)
        left, values, _ = torch.linalg.svd(self.x, full_matrices=False)
        kept = values > SMALLEST_SPREAD * values.amax().clamp(min=SMALLEST_SPREAD)
        left, values = left[:, kept], values[kept]
        # Whitened coordinates; and between these and principal components, of which hierarchies
        # keep the order (Scrucca and Raftery 2015).
        self.white = left * len(x) ** 0.5
        self.between = left * values.sqrt()
        self.trees = self._trees() if "hierarchical" in kinds else []

    def __call__(self, num_components: int) -> Iterator[Tensor]:
        """Responsibilities (N, K) of all kinds."""
        if num_components == 1:
            yield self.x.new_ones(len(self.x), 1)
            return
        for kind in self.kinds:
            yield from getattr(self, "_" + kind.replace("-", "_"))(num_components)

    def _k_means(self, k: int) -> Iterator[Tensor]:
        for x in (self.x, self.white):
            yield one_hot(k_means(x, k)[0], k).to(x)

    def _hierarchical(self, k: int) -> Iterator[Tensor]:
        from scipy.cluster.hierarchy import fcluster

        for x, rows, tree in self.trees:
            label = torch.from_numpy(fcluster(tree, k, "maxclust").astype(np.int64) - 1)
            given = one_hot(label.to(x.device), k).to(x)
            if len(rows) < len(x):  # the others belong to the nearest mean
                loc = given.mT @ x[rows] / given.sum(0).clamp(min=1).unsqueeze(-1)
                given = one_hot(torch.cdist(x, loc).argmin(1), k).to(x)
            yield given

    def _random(self, k: int) -> Iterator[Tensor]:
        for x in (self.x, self.white):
            seeds = x[torch.randperm(len(x), device=x.device)[:k]]
            yield one_hot(torch.cdist(x, seeds).argmin(1), k).to(x)

    def _annealed(self, k: int) -> Iterator[Tensor]:
        """Deterministic annealing of one covariance matrix for all (Ueda and Nakano 1998)."""
        model = GaussianMixture(
            *(self.x.shape[-1], k, "tied"), variance_floor=ANNEALED_FLOOR, standardize=False
        ).to(self.x)
        _, start = self._random(k)
        for power in INVERSE_TEMPERATURES:
            for _ in range(ANNEALED_STEPS):
                model.initialize(self.x, responsibilities=start)
                start = (power * joint_log_prob(model.law, self.x)).softmax(-1)
        yield start

    def _trees(self) -> list[tuple[Tensor, Tensor, np.ndarray]]:
        """Coordinates, the rows that are looked at, and their hierarchy by Ward's criterion."""
        rows = torch.randperm(len(self.x), device=self.x.device)[:HIERARCHY_POINTS]
        if len(rows) < 2:
            return []
        from scipy.cluster.hierarchy import linkage

        return [
            (x, rows, linkage(x[rows].cpu().numpy(), "ward")) for x in (self.between, self.white)
        ]


def split(responsibilities: Tensor, x: Tensor) -> Iterator[Tensor]:
    """Each of the heaviest components in two, across its longest axis.

    Args:
        responsibilities: Probabilities of K components, shape (N, K).
        x: Points without gaps, shape (N, D).

    Yields:
        Probabilities of K + 1 components, shape (N, K + 1).
    """
    weight = responsibilities.sum(0)
    for k in weight.argsort(descending=True)[:NEIGHBOURS].tolist():
        r = responsibilities[:, k]
        shift = x - (r @ x) / weight[k]
        second = (r.unsqueeze(-1) * shift).mT @ shift
        along = shift @ torch.linalg.eigh(second).eigenvectors[:, -1]
        part = torch.where(along > 0, r, 0.0)
        rest = responsibilities.clone()
        rest[:, k] = r - part
        yield torch.cat([rest, part.unsqueeze(-1)], -1)


def merged(responsibilities: Tensor) -> Iterator[Tensor]:
    """Pairs of components that share most points in one (Ueda et al. 2000).

    Args:
        responsibilities: Probabilities of K components, shape (N, K).

    Yields:
        Probabilities of K - 1 components, shape (N, K - 1).
    """
    k = responsibilities.shape[-1]
    norm = responsibilities.square().sum(0).sqrt()
    overlap = (responsibilities.mT @ responsibilities) / torch.outer(norm, norm).clamp(min=1e-300)
    i, j = torch.triu_indices(k, k, 1, device=norm.device)
    for pair in overlap[i, j].argsort(descending=True)[:NEIGHBOURS].tolist():
        first, other = int(i[pair]), int(j[pair])
        joined = responsibilities.clone()
        joined[:, first] += joined[:, other]
        yield joined[:, [c for c in range(k) if c != other]]
