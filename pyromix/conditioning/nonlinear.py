r"""Laws given observations of non-linear functions.

Given a code, or a component, and all linear evidence, x = m + F z with z standard normal. Of
:math:`y = f(x) + \text{noise}`, m numbers, the directions T of z in which f changes at its
likeliest point are told from the others. Others are drawn from their prior; along T a point is
sought with f(x) = v, for a value v drawn near y. With A = df/ds along T, this proposal has the
density

.. math:: q(z) = N(u; 0, I) \; N(f(x); \hat v, \hat \Sigma) \; |\det A(z)|,

and the weight of a draw is :math:`N(z; 0, I) N(y; f(x), R) / q(z)`. Where the noise is small
:math:`\hat\Sigma` tends to R, and the likelihood cancels: weights do not degenerate as the noise
goes to zero.
"""

__all__ = ["NonlinearLaw"]

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Size, Tensor

from ..core.checks import check_value
from ..evidence.pieces import Nonlinear
from ..numerics.diagonal_density import LOG_2PI
from .law import ConditionedLaw, Prior
from .truncated import ConflictError

# Rounds of a search for the likeliest point, each with so many halvings of its step.
SEARCH_ROUNDS = 20
HALVINGS = 8

# Rounds of Newton's method towards a value of the function, and the longest step, in standard
# deviations of the normal.
NEWTON_ROUNDS = 30
LONGEST_STEP = 1.0

# A value is met if it is off by so little, in standard deviations of the noise.
MET = 1e-2

# The function is taken to change along a direction if it does so by this, relative to the largest.
LEAST_CHANGE = 1e-7

# Share of draws from components by their weight without the function.
DEFENSIVE_SHARE = 0.05

# A function that comes no nearer to its value than by so many standard deviations of the noise
# does not reach it.
FAR_OFF = 30.0

# With fewer effective draws a warning says so.
FEW_DRAWS = 30

# Numbers that are worked on at once.
BLOCK_NUMBERS = 2**24


class HasNormals(Protocol):
    """A law given linear evidence that is made of normals."""

    def normals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (C,), means (C, D) and factors F (C, D, r) of normals, in float64.

        The weights sum to Z without inequalities; covariances are F F^T.
        """

    def complete(self, real: Tensor, component: Tensor) -> Tensor:
        """Points with all columns, given the real ones (n, D) and their normals (n,)."""


class NonlinearLaw(ConditionedLaw):
    r"""The law given linear evidence and observations of functions: :math:`p(x) q(x) / Z`.

    A population of weighted draws stands for it: `sample` takes from them, so that more draws
    than `effective_sample_size` hold repetitions. Density and log Z are those of the law.

    Args:
        law: The law given all other evidence, without a batch.
        pieces: The observations.

    Raises:
        ValueError: If the law has a batch shape or is not made of normals, if a function returns
            another shape or has no gradient, or if no draw meets the evidence.

    Attributes:
        effective_sample_size: How many independent draws the population is worth.
    """

    def __init__(self, law: ConditionedLaw, pieces: Sequence[Nonlinear]) -> None:
        if law.batch_shape or not hasattr(law, "normals"):
            raise ValueError(
                f"Expected one law of normals for Nonlinear evidence, without alternatives and "
                f"without a batch, got {type(law).__name__} of batch shape "
                f"{tuple(law.batch_shape)}. Condition entry by entry."
            )
        prior: Prior = law._prior
        super().__init__(prior, Size(), law.event_shape)
        self._law, self._pieces, self._dim = law, tuple(pieces), prior.dim
        self._value = torch.cat([piece.value for piece in pieces]).to(prior.device)
        self._noise = torch.cat([piece.noise for piece in pieces]).to(prior.device)
        with torch.no_grad():
            self._populate(max(piece.num_draws for piece in pieces))

    # ---- what the law is ----------------------------------------------------------------------

    @property
    def observed(self) -> Mapping[int, Tensor]:
        """Columns that were observed -> their values."""
        return self._law.observed

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the draws, shape (D + columns,)."""
        return (self._weight.unsqueeze(-1) * self._draws.double()).sum(0).to(self._dtype)

    @property
    def variance(self) -> Tensor:
        """Weighted variance of the draws, shape (D + columns,)."""
        spread = (self._draws.double() - self.mean.double()).square()
        return (self._weight.unsqueeze(-1) * spread).sum(0).to(self._dtype)

    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error, from the weights of the draws."""
        return self._log_total, self._error

    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) of points (\*S, D), in float64, as if there were no inequalities."""
        value = check_value(self, value)
        real = value[..., : self._dim].reshape(-1, self._dim)
        told = self._log_likelihood(self._function(real)).reshape(value.shape[:-1])
        return self._law.log_joint(value) + told

    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points (\*S, D) meet the inequalities."""
        return self._law.holds(value)

    def draw(self, entry: Tensor) -> Tensor:
        """Draws (n, D) for n entries, all of them zero: of the population, by weight."""
        chosen = torch.multinomial(self._weight, max(1, len(entry)), replacement=True)
        return self._draws[chosen[: len(entry)]]

    def _shown(self) -> dict[str, Any]:
        return {"effective_sample_size": round(float(self.effective_sample_size), 1)}

    # ---- the function -------------------------------------------------------------------------

    def _function(self, x: Tensor) -> Tensor:
        """All functions of points (n, D), in float64: (n, m)."""
        parts = []
        for piece in self._pieces:
            y = piece.function(x.to(self._dtype))
            if not isinstance(y, Tensor) or y.shape != (len(x), len(piece.value)):
                got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
                wanted = len(x), len(piece.value)
                raise ValueError(
                    f"Expected the function to return a tensor of shape {wanted} for points of "
                    f"shape {tuple(x.shape)}, got {got}."
                )
            parts.append(y.double())
        return torch.cat(parts, -1)

    def _jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The functions of points (n, D), shape (n, m), and their derivatives, (n, m, D)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self._function(x)
            if not y.requires_grad:
                raise ValueError("Expected a differentiable function, got one without gradients.")
            rows = [
                torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0]
                for i in range(y.shape[-1])
            ]
        return y.detach(), torch.stack(rows, 1)

    def _log_likelihood(self, y: Tensor) -> Tensor:
        """Log N(value; y, noise), shape (n,), of functions (n, m)."""
        white = (self._value - y) / self._noise
        return (-0.5 * white.square() - self._noise.log() - 0.5 * LOG_2PI).sum(-1)

    # ---- the population -----------------------------------------------------------------------

    def _populate(self, count: int) -> None:
        """Draws weighted points, and sums their weights up."""
        law: Any = self._law
        log_weight, loc, factor = law.normals()
        kept = log_weight > -math.inf
        index = kept.nonzero().squeeze(-1)
        log_weight, loc, factor = log_weight[kept], loc[kept], factor[kept]
        size = max(1, BLOCK_NUMBERS // max(1, factor[0].numel()))
        blocks = zip(loc.split(size), factor.split(size), strict=True)
        found = [self._likeliest(*block) for block in blocks]
        log_found, centre, turn, slope = (torch.cat(part) for part in zip(*found, strict=True))
        guess = (log_weight + log_found).softmax(0)
        proposal = (1 - DEFENSIVE_SHARE) * guess + DEFENSIVE_SHARE * log_weight.softmax(0)
        code = torch.multinomial(proposal, count, replacement=True)
        x, log_ratio = self._draw_given(
            loc[code], factor[code], centre[code], turn[code], slope[code]
        )
        self._draws = law.complete(x.to(self._dtype), index[code])
        log_ratio = log_ratio + log_weight[code] - proposal[code].log()
        log_ratio = torch.where(law.holds(self._draws), log_ratio, -math.inf)
        total = log_ratio.logsumexp(0)
        nearest = self._nearest(x[log_ratio > -math.inf])
        if not bool(((nearest - self._value).abs() < FAR_OFF * self._noise).all()):
            raise ConflictError(
                f"Expected evidence that can hold, but none of {count} draws meets it: the "
                f"functions reach {nearest.tolist()}, and the value is {self._value.tolist()}. "
                f"Raise the noise, or num_draws."
            )
        self._weight = log_ratio.softmax(0)
        self.effective_sample_size = (1.0 / self._weight.square().sum()).to(self._dtype)
        self._log_total = total - math.log(count)
        self._error = (self._weight.square().sum() - 1 / count).clamp(min=0.0).sqrt()
        if float(self.effective_sample_size) < FEW_DRAWS:
            warnings.warn(
                f"The {count} draws that meet the functions are worth "
                f"{float(self.effective_sample_size):.1f} independent ones: they may miss part of "
                f"the law. Raise num_draws.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _nearest(self, x: Tensor) -> Tensor:
        """The functions (m,) of the point (n, D) that comes nearest to the value; NaN of none."""
        if not len(x):
            return torch.full_like(self._value, math.nan)
        y = self._function(x)
        off = ((y - self._value) / self._noise).square().sum(-1).nan_to_num(math.inf)
        return y[off.argmin()]

    def _likeliest(self, loc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The likeliest points of normals, by a damped Gauss-Newton search from their means.

        Args:
            loc: Means, shape (C, D).
            factor: Factors, shape (C, D, r).

        Returns:
            Estimates of log E[N(value; f(x), noise)], shape (C,); the points z, (C, r); the
            directions T in which the function changes there, (C, r, m); and how it does,
            A = df/ds, (C, m, m).
        """
        z = loc.new_zeros(len(loc), factor.shape[-1])
        y, jacobian = self._jacobian(loc)
        score = self._score(z, y)
        for _ in range(SEARCH_ROUNDS):
            slope = jacobian @ factor / self._noise.unsqueeze(-1)  # in units of the noise
            white = (self._value - y) / self._noise + (slope @ z.unsqueeze(-1)).squeeze(-1)
            gram = slope @ slope.mT + torch.eye(len(self._value)).to(slope)
            step = slope.mT @ torch.linalg.solve(gram, white.unsqueeze(-1))
            step = step.squeeze(-1) - z
            moved, pace = z, loc.new_ones(len(loc), 1)
            for _ in range(HALVINGS):
                trial = z + pace * step
                better = self._score(trial, self._function(_point(loc, factor, trial))) > score
                moved = torch.where(better.unsqueeze(-1), trial, moved)
                pace = torch.where(better.unsqueeze(-1), pace, 0.5 * pace)
                if bool(better.all()):
                    break
            far = (moved - z).abs().amax()
            z = moved
            y, jacobian = self._jacobian(_point(loc, factor, z))
            score = self._score(z, y)
            if float(far) < 1e-3:
                break
        slope = jacobian @ factor
        _, size, turn = torch.linalg.svd(slope / self._noise.unsqueeze(-1), full_matrices=False)
        turn = turn.mT  # (C, r, m)
        log_det = torch.log1p(size.square()).sum(-1)
        changes = size[:, -1] > LEAST_CHANGE * size[:, 0].clamp(min=1e-300)
        log_found = score + 0.5 * LOG_2PI * z.shape[-1] - 0.5 * log_det
        return log_found.masked_fill(~changes, -math.inf), z, turn, slope @ turn

    def _score(self, z: Tensor, y: Tensor) -> Tensor:
        """Log N(z; 0, I) N(value; y, noise), minus infinity where the function has no value."""
        score = self._log_likelihood(y) - 0.5 * z.square().sum(-1)
        return (score - 0.5 * LOG_2PI * z.shape[-1]).nan_to_num(-math.inf, -math.inf)

    def _draw_given(
        self, loc: Tensor, factor: Tensor, centre: Tensor, turn: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draws (n, D) from normals, and the logarithms of their ratio to the proposal (n,).

        Args:
            loc: Means, shape (n, D).
            factor: Factors, shape (n, D, r).
            centre: Likeliest points z, shape (n, r).
            turn: T, shape (n, r, m).
            slope: A at the centre, shape (n, m, m).
        """
        middle = self._function(_point(loc, factor, centre))
        # Of the value, as if the function were linear: covariance (A^-T A^-1 + R^-1)^-1.
        inverse = torch.linalg.solve_ex(slope, torch.eye(slope.shape[-1]).to(slope))[0]
        precision = inverse.mT @ inverse + torch.diag(self._noise.square().reciprocal())
        tril = torch.linalg.cholesky_ex(precision.nan_to_num(0.0, 0.0, 0.0)).L
        e = torch.randn_like(middle).unsqueeze(-1)
        value = middle + torch.linalg.solve_triangular(tril.mT, e, upper=True).squeeze(-1)
        log_value = -0.5 * e.square().sum((-2, -1)) - 0.5 * LOG_2PI * middle.shape[-1]
        log_value = log_value + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        # Other directions have their prior.
        rest = torch.randn_like(centre)
        rest = rest - _times(turn, _times(turn.mT, rest))
        s = _times(turn.mT, centre)
        for _ in range(NEWTON_ROUNDS):
            x = _point(loc, factor, rest + _times(turn, s))
            y, jacobian = self._jacobian(x)
            slope = jacobian @ factor @ turn
            miss = value - y
            off = (miss / self._noise).abs().amax(-1)
            met = off < MET
            if bool(met.all()):
                break
            step = torch.linalg.solve_ex(slope, miss.unsqueeze(-1))[0].squeeze(-1)
            length = step.norm(dim=-1, keepdim=True)
            step = step * (LONGEST_STEP / length.clamp(min=LONGEST_STEP))
            s = torch.where(met.unsqueeze(-1), s, s + step.nan_to_num(0.0, 0.0, 0.0))
        log_volume = torch.linalg.slogdet(slope).logabsdet
        log_prior = (-0.5 * s.square() - 0.5 * LOG_2PI).sum(-1)
        log_ratio = log_prior + self._log_likelihood(y) - log_value - log_volume
        return x, torch.where(met & log_ratio.isfinite(), log_ratio, -math.inf)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices (n, a, b) times vectors (n, b)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _point(loc: Tensor, factor: Tensor, z: Tensor) -> Tensor:
    """Points m + F z, shape (n, D)."""
    return loc + _times(factor, z)
