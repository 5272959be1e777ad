"""One layer of mixtures, shared by all positions."""

__all__ = ["MixtureLayer"]

import math

import torch
from torch import Tensor, nn

from ..numerics.diagonal_density import LOG_2PI, component_log_prob
from .neighbourhood import Neighbourhood

# The published step size suits mixtures of 25 components. A component moves in proportion to its
# share of the data, so that with more of them each would move more slowly.
PUBLISHED_COMPONENTS = 25

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
        # move five times more slowly at the largest precision.
        self.log_precision = nn.Parameter(torch.full((num_components, dim), self.largest))
        self.neighbourhood = Neighbourhood(num_components)
        self.register_buffer("share", torch.full((num_components,), 1 / num_components))

    @property
    def log_weights(self) -> Tensor:
        """Logarithms of the components' weights, shape (K,)."""
        return self.logits.log_softmax(-1)

    @property
    def precision(self) -> Tensor:
        """Inverse variances, shape (K, D)."""
        return self.log_precision.clamp(max=self.largest).exp()

    @property
    def scale(self) -> Tensor:
        """Standard deviations, shape (K, D)."""
        return self.precision.rsqrt()

    def scores(self, values: Tensor) -> Tensor:
        r"""Returns the log-density of each component plus its log-weight.

        Args:
            values: What the mixture sees, shape (\*S, D).

        Returns:
            Tensor of shape (\*S, K).
        """
        rows = values.reshape(-1, self.dim)
        scores = component_log_prob(rows, self.loc, self.scale, self.log_weights)
        return scores.reshape(*values.shape[:-1], self.num_components)

    def training_loss(self, values: Tensor, centroids_only: bool) -> tuple[Tensor, Tensor]:
        r"""Returns minus the mean over positions of the largest smoothed score, and all scores.

        .. math:: -\frac1N \sum_n \max_k \sum_j g_{kj} s_{nj}

        with scores s and weights g of the neighbourhood. The winner of a position is its component
        with the largest smoothed score. Given the winners, the loss depends on the data only
        through the number of positions that each has won and the first two moments of these. So
        its gradients are those of a function of (K, D) numbers, and no graph of the size of the
        data is kept. Gradients of components whose share of the data is less than 1 / 25 are
        enlarged in inverse proportion to it, by at most K / 25.

        Args:
            values: What the mixture sees, shape (\*S, D).
            centroids_only: Whether precisions and weights have gradients of zero.

        Returns:
            The loss, a scalar, and the scores without a graph, of shape (\*S, K).
        """
        rows = values.reshape(-1, self.dim)
        with torch.no_grad():
            # Differences are small compared to values that lie far from zero.
            centre = self.loc.mean(0)
            rows = rows - centre
            squares = rows.square()
            scores = self._product_scores(rows, squares, centre)
            winner = (scores @ self.neighbourhood.filter).argmax(-1)
            sums = torch.zeros_like(self.loc)
            counts = torch.bincount(winner, minlength=self.num_components).to(sums)
            shares, first, second = (
                self.neighbourhood.smooth(moment) / len(rows)
                for moment in (
                    counts.unsqueeze(-1),
                    sums.index_add(0, winner, rows),
                    sums.index_add(0, winner, squares),
                )
            )
            self.share.lerp_(shares.squeeze(-1), 1 / SHARE_STEPS)
            largest = max(1.0, self.num_components / PUBLISHED_COMPONENTS)
            rate = 1 / (PUBLISHED_COMPONENTS * self.share).clamp(1 / largest, 1.0).unsqueeze(-1)
        # Gradients of zero, not none: several processes wait for each other's of all parameters.
        others = 0.0 if centroids_only else 1.0
        loc = _scale_gradient(self.loc - centre, rate)
        precision = _scale_gradient(self.precision, others * rate)
        log_weights = _scale_gradient(self.log_weights, others)
        deviations = second - 2 * loc * first + shares * loc.square()
        log_density = shares * (precision.log() - LOG_2PI) - precision * deviations
        loss = -(0.5 * log_density.sum() + (shares.squeeze(-1) * log_weights).sum())
        return loss, scores.reshape(*values.shape[:-1], self.num_components)

    def _product_scores(self, rows: Tensor, squares: Tensor, centre: Tensor) -> Tensor:
        """Returns scores of shape (N, K) by two matrix products, faster than `scores`.

        Rounding errors are not bounded as there. As precisions are clipped, they are a small part
        of a nat, which matters neither for the winner nor for what layers above learn from.

        Args:
            rows: What the mixture sees, less a centre, shape (N, D).
            squares: Their squares, shape (N, D).
            centre: Shape (D,).
        """
        loc, precision = self.loc - centre, self.precision
        weighted = loc * precision
        constant = (precision.log() - LOG_2PI - loc * weighted).sum(-1)
        scores = torch.addmm(self.log_weights + 0.5 * constant, rows, weighted.mT)
        return scores.addmm_(squares, precision.mT, alpha=-0.5)

    @torch.no_grad()
    def clip(self) -> None:
        """Sets precisions above the largest one to it."""
        self.log_precision.clamp_(max=self.largest)


def _scale_gradient(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """Returns a tensor of equal values, whose gradient is multiplied by a factor."""
    still = tensor.detach()
    return still + factor * (tensor - still)
