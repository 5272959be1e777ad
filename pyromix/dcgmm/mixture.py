"""One layer of mixtures, shared by all positions."""

__all__ = ["MixtureLayer"]

import math

import torch
from torch import Tensor, nn

from ..mixtures.density import component_log_prob
from .neighbourhood import Neighbourhood


class MixtureLayer(nn.Module):
    """A mixture of diagonal normals over the channels of each position.

    Args:
        dim: Number of channels D that it sees.
        num_components: Number of components K.
        max_precision: Largest precision, in inverse squared units of what it sees. All components
            start there.
    """

    def __init__(self, dim: int, num_components: int, max_precision: float) -> None:
        super().__init__()
        self.dim, self.num_components = dim, num_components
        self.largest = math.log(max_precision)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(0.02 * torch.rand(num_components, dim) - 0.01)
        # Logarithms are positive however they move. Roots, as in the paper, may cross zero, and
        # move ten times more slowly at the largest precision.
        self.log_precision = nn.Parameter(torch.full((num_components, dim), self.largest))
        self.neighbourhood = Neighbourhood(num_components)

    @property
    def log_weights(self) -> Tensor:
        """Logarithms of the components' weights, shape (K,)."""
        return self.logits.log_softmax(-1)

    @property
    def scale(self) -> Tensor:
        """Standard deviations, shape (K, D)."""
        return (-0.5 * self.log_precision.clamp(max=self.largest)).exp()

    def scores(self, values: Tensor, centroids_only: bool = False) -> Tensor:
        r"""Log-density of each component plus its log-weight: (\*, D) becomes (\*, K).

        Args:
            values: What the mixture sees, shape (\*, D).
            centroids_only: Whether gradients reach neither precisions nor weights.
        """
        rows = values.reshape(-1, self.dim)
        scale, log_weights = self.scale, self.log_weights
        if centroids_only:
            scale, log_weights = scale.detach(), log_weights.detach()
        scores = component_log_prob(rows, self.loc, scale, log_weights)
        return scores.reshape(*values.shape[:-1], self.num_components)

    def smoothed_maximum(self, scores: Tensor) -> Tensor:
        r"""The largest score of each position after smoothing over neighbours: shape (\*)."""
        return (scores @ self.neighbourhood.filter).amax(-1)

    @torch.no_grad()
    def clip(self) -> None:
        """Moves precisions beyond the largest one back to it."""
        self.log_precision.clamp_(max=self.largest)
