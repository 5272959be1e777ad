"""One layer of mixtures, shared by all positions."""

__all__ = ["MixtureLayer"]

import math

import torch
from torch import Tensor, nn

from ..numerics.diagonal_density import LOG_2PI, component_log_prob
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
        r"""Log-density of each component plus its log-weight: (\*, D) becomes (\*, K)."""
        rows = values.reshape(-1, self.dim)
        scores = component_log_prob(rows, self.loc, self.scale, self.log_weights)
        return scores.reshape(*values.shape[:-1], self.num_components)

    def training_loss(self, values: Tensor, centroids_only: bool) -> tuple[Tensor, Tensor]:
        r"""What plain SGD minimises: minus the mean over positions of the largest smoothed score.

        .. math:: -\frac1N \sum_n \max_k \sum_j g_{kj} s_{nj}

        with scores s and weights g of the neighbourhood. Given the winners, it depends on the data
        through their number and the first two moments for every winner only. So gradients are
        those of a function of (K, D) numbers, and nothing of the size of the data is kept for
        them. Those of components whose share of the data is less than that of one of 25 are
        enlarged to make up for that, by at most K / 25.

        Args:
            values: What the mixture sees, shape (\*, D).
            centroids_only: Whether precisions and weights have gradients of zero.

        Returns:
            The loss, and the scores (\*, K) without a graph.
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
            largest = max(1.0, self.num_components / USUAL_COMPONENTS)
            rate = 1 / (USUAL_COMPONENTS * self.share).clamp(1 / largest, 1.0).unsqueeze(-1)
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
        """Scores by two products, without the bounds of their rounding errors.

        As precisions are clipped, the errors are a small part of a nat, which matters neither for
        the winner nor for what layers above learn from.

        Args:
            rows: What the mixture sees, less a centre, shape (N, D).
            squares: Their squares.
            centre: Shape (D,).
        """
        loc, precision = self.loc - centre, self.precision
        weighted = loc * precision
        constant = (precision.log() - LOG_2PI - loc * weighted).sum(-1)
        scores = torch.addmm(self.log_weights + 0.5 * constant, rows, weighted.mT)
        return scores.addmm_(squares, precision.mT, alpha=-0.5)

    @torch.no_grad()
    def clip(self) -> None:
        """Moves precisions beyond the largest one back to it."""
        self.log_precision.clamp_(max=self.largest)


def _scale_gradient(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """The same tensor, whose gradient is multiplied by a factor on its way back."""
    still = tensor.detach()
    return still + factor * (tensor - still)
