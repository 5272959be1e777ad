r"""The fold of a real line into three pieces, and its gates.

A line is folded at :math:`t = \pm b` around its centre: a middle piece runs backwards, two outer
ones forwards, so that every z between -B and B has three preimages. Farther out both lines go on
straight, with one preimage each. In the notation of Dinh et al., A RAD approach to deep mixture
models (2019), Appendix A, for slopes :math:`\alpha_1, \alpha_2, \alpha_3` and half-width
:math:`\beta` (here ``b``), with :math:`B = \alpha_2 b`:

.. code-block:: text

    z                         /
     B | . . . . . /\ . . . ./. . .       left piece: slope alpha_1, ends at t = -b
       |          /  \      /             middle piece: slope -alpha_2
       |         /    \    /              right piece: slope alpha_3, begins at t = b
       |        /      \  /
    -B | . . . / . . . .\/. . . . .       outside of x_L and x_R: slopes m_1 and m_3
       |      /
             x_L    -b   b    x_R

The formulas of the paper give densities that do not integrate to one. Here, with
:math:`w = (B + z) / 2B`, which rises from 0 to 1 between the ends of the fold, the gates are

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

__all__ = ["NUM_PARAMETERS", "NUM_SCORES", "FreeScores", "Mapped", "Pieces"]

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

NUM_PARAMETERS = 8  # of a folded line: two edge scores, three slopes, loc, shift, half-width
NUM_SCORES = 2  # free scores, of the right and the left piece

# Slopes outside of the fold depend on edge scores, which lie within -1 and 1, and on the slopes
# within. Without bounds one of those may tend to zero, and rare draws lie millions away, at hardly
# any cost in likelihood.
MAX_SLOPE_CHANGE = 0.7
# Three pieces of slope 3 cover a line as densely as one of slope 1.
NEUTRAL_LOG_SLOPE = math.log(3.0)
# Free scores make a piece improbable where it would have draws between modes. With a bound of 8,
# five times as many draws for a ring of narrow normals were between modes.
MAX_FREE_SCORE = 16.0
# In units of the data, which models standardise. Wider folds reach beyond the data, and so do
# draws in their outer pieces.
MAX_HALF_WIDTH = 2.0
MIN_HALF_WIDTH = 1e-3

FreeScores = Callable[[Tensor], Tensor]
"""From z within the fold, shape (..., d), to free scores, shape (2, ..., d): right, left."""


class Mapped(NamedTuple):
    """Values mapped by a fold, from x to z or from z to x; all have shape (..., d)."""

    value: Tensor
    """z if x was given, and x if z was given."""
    log_density: Tensor
    """log p(k|z) + log |dz/dx|, by which the log-density of x exceeds that of z."""
    side: Tensor
    """The piece k: -1.0 for the left one, 0.0 for the middle one, 1.0 for the right one."""
    rest: Tensor
    """How far z is outside of the fold, positive where x is its only preimage."""

    @property
    def branch(self) -> Tensor:
        """The piece k as an integer: 0 for the left, 1 for the middle, 2 for the right one."""
        return self.side.long() + 1


class Pieces(NamedTuple):
    """Parameters of d folded lines.

    The first dimension is that of pieces, in the order middle, right, left: normalising over it
    is several times as fast as over another one.
    """

    edge_scores: Tensor
    """Shape (2, ..., d): right, left."""
    log_slopes: Tensor
    """Shape (3, ..., d): middle, right, left."""
    loc: Tensor
    """Shape (..., d): the centre of the fold in x."""
    shift: Tensor
    """Shape (..., d): the centre of the fold in z."""
    half_width: Tensor
    """Shape (..., d)."""

    @classmethod
    def from_raw(cls, raw: Tensor) -> "Pieces":
        """Returns parameters within their bounds, from unconstrained ones of shape (8, ..., d)."""
        bounded, rest = raw.split([5, 3])
        edge_scores, slope_changes = bounded.tanh().split([2, 3])
        loc, shift, half_width = rest.unbind()
        log_slopes = MAX_SLOPE_CHANGE * slope_changes + NEUTRAL_LOG_SLOPE
        half_width = MAX_HALF_WIDTH * half_width.sigmoid() + MIN_HALF_WIDTH
        return cls(edge_scores, log_slopes, loc, shift, half_width)

    @property
    def limit(self) -> Tensor:
        """B: within the fold, z lies between shift - B and shift + B."""
        return self.log_slopes[0].exp() * self.half_width

    # The speed depends on the number of operations: hence the form of what follows.

    def fold(self, x: Tensor, free_scores: FreeScores) -> Mapped:
        """Maps x to z. A point where two pieces meet belongs to the outer one."""
        middle_slope, right_slope, left_slope = self.log_slopes.exp().unbind()
        t = x - self.loc
        side = torch.ones_like(t).copysign(t.detach())
        distance = side * t
        slope = torch.where(t > 0, right_slope, left_slope)
        # The way from the centre to x: down the middle piece, up the outer one, and the rest.
        after = torch.relu(distance - self.half_width)
        before = distance - after
        limit = middle_slope * self.half_width  # B
        rise = slope * after
        rest = torch.relu(rise - 2 * limit)
        within = side * torch.addcmul(rise - rest, middle_slope, before, value=-1)
        z = within + self.shift
        log_gates = self._log_gates(within / limit, free_scores(z))
        piece = side * (distance >= self.half_width)
        log_density = _pick(log_gates + self.log_slopes, piece)
        # The rest goes on with the slope that makes the density continuous.
        z = torch.addcmul(z, side * rest, log_density.exp() / slope)
        return Mapped(z, log_density, piece, rest)

    def unfold(self, z: Tensor, free_scores: FreeScores, branch: Tensor | None = None) -> Mapped:
        """Maps z to x: to the preimage in given pieces, or in pieces drawn from the gates.

        Where a given piece has no preimage, which may be due to rounding, its end is returned.
        """
        w = z - self.shift
        limit = self.limit
        rest = torch.relu(w.abs() - limit)
        within = torch.maximum(torch.minimum(w, limit), -limit)
        log_gates = self._log_gates(within / limit, free_scores(within + self.shift))
        if branch is None:
            piece = torch.where(w.abs() < limit, _draw(log_gates), w.sign())
        else:
            piece = (branch - 1).to(z.dtype)
        slope = _pick(self.log_slopes.expand_as(log_gates), piece).exp()
        log_density = _pick(log_gates + self.log_slopes, piece)
        beyond = torch.relu(piece * w - limit) / log_density.exp()
        outer = piece * (self.half_width + (piece * within + limit) / slope + beyond)
        x = torch.where(piece == 0, -within / slope, outer) + self.loc
        return Mapped(x, log_density, piece, rest)

    def log_branch(self, mapped: Mapped) -> Tensor:
        """Logarithms of p(k|z), of shape (..., d)."""
        log_slope = _pick(self.log_slopes.expand(3, *mapped.side.shape), mapped.side)
        return torch.where(mapped.rest > 0, 0.0, mapped.log_density - log_slope)

    def _log_gates(self, u: Tensor, free_scores: Tensor) -> Tensor:
        """Logarithms of p(k|z) at z = u B, u in [-1, 1], of shape (3, ..., d)."""
        halves = torch.linspace(0.5, -0.5, 2, dtype=u.dtype, device=u.device)
        # From 0 at the end where an outer piece meets the middle one to 1 at its free end.
        apart = halves.view(2, *[1] * u.dim()) * u + 0.5
        scores = torch.addcmul(
            self.edge_scores, 1 - apart, free_scores.tanh(), value=4 * MAX_FREE_SCORE
        )
        scores = self.half_width.tanh() * apart * scores
        scores = pad(scores, [0, 0] * u.dim() + [1, 0])
        return (scores - self.log_slopes).log_softmax(0)


def _pick(values: Tensor, side: Tensor) -> Tensor:
    """Entries of pieces from values in the order middle, right, left."""
    return values.gather(0, side.long().remainder(3).unsqueeze(0)).squeeze(0)


def _draw(log_gates: Tensor) -> Tensor:
    """Draws pieces: -1, 0 or 1."""
    _, right, left = log_gates.detach().exp().unbind()
    uniform = torch.rand_like(left)
    side = (uniform < left + right).to(left.dtype)
    return torch.where(uniform < left, -side, side)
