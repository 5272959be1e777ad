r"""The fold of a real line into three layers, and its gates.

A line is folded at :math:`t = \pm b` around its centre: a middle piece runs backwards, two outer
ones forwards, so that every z between -B and B has three preimages. Farther out both lines go on
straight, with one preimage each. In the notation of Dinh et al., A RAD approach to deep mixture
models (2019), Appendix A, for slopes :math:`\alpha_1, \alpha_2, \alpha_3` and half-width
:math:`\beta` (here ``b``), with :math:`B = \alpha_2 b`:

.. code-block:: text

    z                     . /
     B . . . .  /\         /          the left piece ends at t = -b, the right one begins at t = b;
            .  /  \       /           lines of slope m_1 and m_3 replace the outer parts, where z
           .  /    \     /            has one preimage
          .  /      \   /
    -B . / . . . . . \ /
        /
          x_L   -b     b   x_R

The printed formulas integrate to other numbers than one. Here, with w rising from 0 to 1 between
the ends of the fold, :math:`w = (B + z) / 2B`, the gates are

.. math::
    p(k \mid z) \propto \exp(S_k) / \alpha_k, \qquad
    S_1 = g (1 - w) (e_1 + 4 w s_1), \quad S_2 = 0, \quad
    S_3 = g w (e_3 + 4 (1 - w) s_3),

with edge scores e, free scores s of the gating network and :math:`g = \tanh b`. Two pieces that
meet, at either end, have equal scores there, for which
:math:`\log p(k \mid z) + \log |dz/dt|` is continuous. Where the fold ends, the lines outside have
the slope :math:`m_k = \alpha_k \, p(k \mid \pm B)`, for which it is continuous, too. (The paper
uses cosines for the windows; straight ones cost less, and fit as well.) As b tends to zero, the
fold tends to one straight line of slope :math:`1 / \sum_k \alpha_k^{-1}`.
"""

__all__ = ["LEFT", "MIDDLE", "NUM_PARAMETERS", "NUM_SCORES", "RIGHT", "Pieces"]

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

LEFT, MIDDLE, RIGHT = 0, 1, 2

NUM_PARAMETERS = 8  # of a folded line: two edge scores, three slopes, loc, shift, half-width
NUM_SCORES = 2  # free scores, of the left and the right piece

# Edge scores and slopes decide on the slopes outside of the fold. Unbounded, one of those can
# collapse, and rare draws lie millions away, at hardly any cost in likelihood.
MAX_EDGE_SCORE = 1.0
MAX_SLOPE_CHANGE = 0.7
# Three pieces of slope 3 cover a line as densely as one of slope 1.
NEUTRAL_LOG_SLOPE = math.log(3.0)
MAX_FREE_SCORE = 8.0
MIN_HALF_WIDTH = 1e-3

FreeScores = Callable[[Tensor], Tensor]
"""From z within the fold, shape (..., d), to free scores, shape (..., 2, d)."""


class Mapped(NamedTuple):
    """Values taken through a fold, one way or the other; all have shape (..., d)."""

    value: Tensor
    """z, if x was folded, and x, if z was unfolded."""
    log_density: Tensor
    """log p(k|z) + log |dz/dx|, by which the log-density of x exceeds that of z."""
    branch: Tensor
    """The piece k: LEFT, MIDDLE or RIGHT."""
    single: Tensor
    """Where x is the only preimage of z."""


class Pieces(NamedTuple):
    """Parameters of d folded lines.

    Slopes and scores are held in the order left, right, middle: the outer two are treated alike.
    """

    edge_scores: Tensor
    """Shape (..., 2, d): left, right."""
    log_slopes: Tensor
    """Shape (..., 3, d): left, right, middle."""
    loc: Tensor
    """Shape (..., d): where the fold is in x."""
    shift: Tensor
    """Shape (..., d): and in z."""
    half_width: Tensor
    """Shape (..., d)."""

    @classmethod
    def from_raw(cls, raw: Tensor) -> "Pieces":
        """Bounds unconstrained numbers of shape (..., 8, d)."""
        bounded, rest = raw.split([5, 3], -2)
        edge_scores, log_slopes = bounded.tanh().split([2, 3], -2)
        loc, shift, half_width = rest.unbind(-2)
        return cls(
            MAX_EDGE_SCORE * edge_scores,
            MAX_SLOPE_CHANGE * log_slopes + NEUTRAL_LOG_SLOPE,
            loc,
            shift,
            softplus(half_width) + MIN_HALF_WIDTH,
        )

    def fold(self, x: Tensor, free_scores: FreeScores) -> Mapped:
        """Takes x to z; at a crease the outer piece owns the point."""
        left_slope, right_slope, middle_slope = self.log_slopes.exp().unbind(-2)
        t = x - self.loc
        side, distance = t.sign(), t.abs()
        slope = torch.where(t > 0, right_slope, left_slope)
        # The way from the centre to x: down the middle piece, and up the outer one.
        after = torch.relu(distance - self.half_width)
        before = distance - after
        limit = middle_slope * self.half_width  # B
        rise = slope * after
        rise_within = torch.minimum(rise, 2 * limit)
        within = side * torch.addcmul(rise_within, middle_slope, before, value=-1)
        z = within + self.shift
        log_gates = self._log_gates(within, limit, free_scores(z))
        outer = distance >= self.half_width
        branch = (side * outer).long() + MIDDLE
        log_density = _pick(log_gates + self.log_slopes, branch)
        # Where there is a rest, it goes on with the slope that the density has there.
        rest = rise - rise_within
        z = z + side * rest * log_density.exp() / slope
        return Mapped(z, log_density, branch, rest > 0)

    def unfold(self, z: Tensor, free_scores: FreeScores, branch: Tensor | None = None) -> Mapped:
        """Takes z to x: to the preimage in given pieces, or in pieces drawn from the gates.

        Where a given piece has no preimage, be it by rounding, its end is returned.
        """
        w = z - self.shift
        limit = self.log_slopes[..., 2, :].exp() * self.half_width
        within = torch.maximum(torch.minimum(w, limit), -limit)
        log_gates = self._log_gates(within, limit, free_scores(within + self.shift))
        if branch is None:
            branch = _draw(log_gates)
            branch = torch.where(w >= limit, RIGHT, torch.where(w <= -limit, LEFT, branch))
        slope = _pick(self.log_slopes.expand_as(log_gates), branch).exp()
        log_density = _pick(log_gates + self.log_slopes, branch)
        side = (branch - MIDDLE).to(z.dtype)
        rest = torch.relu(side * w - limit)
        outer = side * (
            self.half_width + (side * within + limit) / slope + rest / log_density.exp()
        )
        x = torch.where(branch == MIDDLE, -within / slope, outer) + self.loc
        return Mapped(x, log_density, branch, w.abs() > limit)

    def log_branch(self, mapped: Mapped) -> Tensor:
        """Logarithms of p(k|z), of shape (..., d)."""
        log_slope = _pick(self.log_slopes.expand(*mapped.branch.shape[:-1], 3, -1), mapped.branch)
        return torch.where(mapped.single, 0.0, mapped.log_density - log_slope)

    def _log_gates(self, within: Tensor, limit: Tensor, free_scores: Tensor) -> Tensor:
        """Logarithms of p(k|z) within the fold, (..., 3, d) in the order left, right, middle."""
        # Distances from the end where a piece has the middle one's score, in [0, 1].
        apart = torch.stack([limit - within, limit + within], -2) / (2 * limit).unsqueeze(-2)
        window = 1 - apart
        scores = apart * torch.addcmul(
            self.edge_scores, window, free_scores.tanh(), value=4 * MAX_FREE_SCORE
        )
        strength = self.half_width.tanh().unsqueeze(-2)
        return (pad(strength * scores, (0, 0, 0, 1)) - self.log_slopes).log_softmax(-2)


def _pick(values: Tensor, branch: Tensor) -> Tensor:
    """Entries of pieces from values in the order left, right, middle."""
    return values.gather(-2, (-branch % 3).unsqueeze(-2)).squeeze(-2)


def _draw(log_gates: Tensor) -> Tensor:
    """Draws pieces from their probabilities."""
    left, right, _ = log_gates.detach().exp().unbind(-2)
    uniform = torch.rand_like(left)
    return torch.where(uniform < left, LEFT, torch.where(uniform < left + right, RIGHT, MIDDLE))
