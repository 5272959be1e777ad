"""One layer of mixtures, shared by all positions."""

__all__ = ["MixtureLayer"]

import math

import torch
from torch import Tensor, nn

from ..mixtures.density import component_log_prob
from .neighbourhood import Neighbourhood

# The published step size suits mixtures of 25 components. A component moves in proportion to its
# share of the data, so that with more of them each would move more slowly.
USUAL_COMPONENTS = 25

# Steps over which shares are averaged.
SHARE_STEPS = 100


class MixtureLayer(nn.Module):
    """A mixture of diagonal normals over the channels of each position.

    Args:
        dim: Number of channels D that it sees.
        num_components: Number of components K.
        max_precision: Largest precision, in inverse squared units of what it sees. All components
            start there.
    """

    share: Tensor

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
        self.register_buffer("share", torch.full((num_components,), 1 / num_components))

    @property
    def log_weights(self) -> Tensor:
        """Logarithms of the components' weights, shape (K,)."""
        return self.logits.log_softmax(-1)

    @property
    def scale(self) -> Tensor:
        """Standard deviations, shape (K, D)."""
        return (-0.5 * self.log_precision.clamp(max=self.largest)).exp()

    def scores(self, values: Tensor) -> Tensor:
        r"""Log-density of each component plus its log-weight: (\*, D) becomes (\*, K)."""
        return self._scores(values, self.loc, self.scale, self.log_weights)

    def training_scores(self, values: Tensor, centroids_only: bool) -> Tensor:
        r"""The same, with gradients to learn from by plain SGD.

        Those of components whose share of the data is less than that of one of 25 are enlarged,
        to make up for that, by at most K / 25.

        Args:
            values: What the mixture sees, shape (\*, D).
            centroids_only: Whether gradients reach neither precisions nor weights.
        """
        largest = max(1.0, self.num_components / USUAL_COMPONENTS)
        rate = 1 / (USUAL_COMPONENTS * self.share).clamp(min=1 / largest)
        rate = rate.clamp(min=1.0).unsqueeze(-1)
        loc, scale, log_weights = _scale_gradient(self.loc, rate), self.scale, self.log_weights
        if centroids_only:
            scale, log_weights = scale.detach(), log_weights.detach()
        return self._scores(values, loc, _scale_gradient(scale, rate), log_weights)

    def smoothed_maximum(self, scores: Tensor) -> Tensor:
        r"""The largest score of each position after smoothing over neighbours: shape (\*)."""
        weights = self.neighbourhood.filter
        largest, winner = (scores @ weights).max(-1)
        with torch.no_grad():
            counts = torch.bincount(winner.flatten(), minlength=self.num_components)
            share = weights @ (counts / winner.numel()).to(weights)
            self.share.lerp_(share, 1 / SHARE_STEPS)
        return largest

    @torch.no_grad()
    def clip(self) -> None:
        """Moves precisions beyond the largest one back to it."""
        self.log_precision.clamp_(max=self.largest)

    def _scores(self, values: Tensor, loc: Tensor, scale: Tensor, log_weights: Tensor) -> Tensor:
        rows = values.reshape(-1, self.dim)
        scores = component_log_prob(rows, loc, scale, log_weights)
        return scores.reshape(*values.shape[:-1], self.num_components)


def _scale_gradient(tensor: Tensor, factor: Tensor) -> Tensor:
    """The same tensor, whose gradient is multiplied by a factor on its way back."""
    still = tensor.detach()
    return still + factor * (tensor - still)
