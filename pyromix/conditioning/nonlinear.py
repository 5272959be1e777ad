r"""Laws given observations of non-linear functions.

Given a code, or a component, and all linear evidence, x = m + F z with z standard normal. Of
:math:`y = f(x) + \text{noise}`, m numbers, the directions T of z in which f changes at its
likeliest point are told from the others, u. Others are drawn from their prior; along T points s
are sought with f(x) = v, for a value v drawn near y from :math:`q(v)`. With A = df/ds,

.. math:: \int N(s; 0, I) \, N(y; f, R) \, ds
          = E_{v \sim q} \sum_{s : f(u, s) = v} \frac{N(s; 0, I) \, N(y; v, R)}{q(v) |\det A(s)|},

over all s that there are. Where the noise is small q tends to N(y, R), and the likelihood
cancels: weights do not degenerate as the noise goes to zero.

Weights are cut at the root of their number times their mean (Ionides 2008), as volumes have no
bound where f folds. Where plain draws of the other evidence do as well, they are taken instead,
weighted by the likelihood: nothing is sought then. And where f has no such directions (it is flat,
or has more numbers than there are directions) draws are from the prior, and from a normal around
the likeliest point, in equal parts.
"""

__all__ = ["NonlinearLaw"]

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from ..core.advice import warn_user
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

# From so many places points with a value are sought, within this many standard deviations. Two
# are the same if they are nearer than the last number.
STARTS = 6
REACH = 1.5
SAME = 1e-2

# A value is met if it is off by so little, in standard deviations of what it is drawn from, or
# by so many roundings.
MET = 1e-3
ROUNDINGS = 16

# The function is taken to change along a direction if it does so by this, relative to the largest.
LEAST_CHANGE = 1e-6

# Share of draws from components by their weight without the function.
DEFENSIVE_SHARE = 0.05

# Plain draws are taken if at least this share of them counts.
ENOUGH_PLAIN = 0.2

# With fewer effective draws a warning says so; and if plain draws find more, by so many errors.
FEW_DRAWS = 30
STANDARD_ERRORS = 5.0

# A function that comes no nearer to its value than by so many standard deviations of the noise
# does not reach it.
FAR_OFF = 30.0

# Numbers that are worked on at once.
BLOCK_NUMBERS = 2**24


@runtime_checkable
class HasNormals(Protocol):
    """A law given linear evidence that is made of normals."""

    def normals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (C,), means (C, D) and factors F (C, D, r) of normals, in float64.

        The weights sum to Z without inequalities; covariances are F F^T.
        """

    @property
    def relative_weights(self) -> Tensor | None:
        """Weights of the normals in I independent estimates of them, relative to their mean.

        Shape (I, C); None if they are exact.
        """

    def complete(self, real: Tensor, component: Tensor) -> Tensor:
        """Points with all columns, given the real ones (n, D) and their normals (n,)."""


class NonlinearLaw(ConditionedLaw):
    r"""The law given linear evidence and observations of functions: :math:`p(x) q(x) / Z`.

    A population of weighted draws stands for it: `sample` takes from them, so that more draws
    than `effective_sample_size` hold repetitions. Density and log Z are those of the law, and have
    no gradients in parameters and evidence.

    Args:
        law: The law given all other evidence, without a batch.
        pieces: The observations.

    Raises:
        ValueError: If the law has a batch shape or is not made of normals, if a function returns
            another shape or has no gradient, or if no draw meets the evidence.

    Attributes:
        law: The law given all other evidence.
        effective_sample_size: How many independent draws the population is worth.
    """

    def __init__(self, law: ConditionedLaw, pieces: Sequence[Nonlinear]) -> None:
        if law.batch_shape or not isinstance(law, HasNormals):
            raise ValueError(
                f"Expected one law of normals for Nonlinear evidence, without a batch, got "
                f"{type(law).__name__} of batch shape {tuple(law.batch_shape)}. Condition entry "
                f"by entry."
            )
        prior: Prior = law._prior
        if not prior.dim:
            raise ValueError("Expected functions of real columns, of which the model has none.")
        super().__init__(prior, Size(), law.event_shape)
        self._normals: HasNormals = law
        self.law, self._pieces, self._dim = law, tuple(pieces), prior.dim
        self._value = torch.cat([piece.value for piece in pieces]).to(prior.device)
        self._noise = torch.cat([piece.noise for piece in pieces]).to(prior.device)
        least = 4 * torch.finfo(prior.dtype).eps * self._value.abs()
        if bool((self._noise < least).any()):
            raise ValueError(
                f"Expected noise that numbers of {prior.dtype} resolve next to the value, at "
                f"least {least.tolist()}, got {self._noise.tolist()}."
            )
        with torch.no_grad():
            self._populate(max(piece.num_draws for piece in pieces))

    # ---- what the law is ----------------------------------------------------------------------

    @property
    def observed(self) -> Mapping[int, Tensor]:
        """Columns that were observed -> their values."""
        return self.law.observed

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
        return self.law.log_joint(value) + told

    @property
    def support(self) -> constraints.Constraint:
        """Not available.

        Raises:
            NotImplementedError: Draw with `sample` instead.
        """
        raise NotImplementedError(
            "No bijection onto the support of this evidence is known. Draw with sample()."
        )

    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points (\*S, D) meet the inequalities."""
        return self.law.holds(value)

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
            y = piece.function(x.to(self._dtype, copy=True))  # it may change them
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
        law = self._normals
        log_weight, loc, factor = law.normals()
        index = (log_weight > -math.inf).nonzero().squeeze(-1)
        log_weight, loc, factor = log_weight[index], loc[index], factor[index]
        relative = law.relative_weights
        relative = None if relative is None else relative[:, index]

        def weigh(
            code: Tensor, x: Tensor, log_ratio: Tensor, log_chosen: Tensor, *, cut: bool = False
        ) -> _Draws:
            """Points (n, D) of codes, with their ratio to a proposal that chose codes so often."""
            draws = law.complete(x.to(self._dtype), index[code])
            log_ratio = log_ratio + log_weight[code] - log_chosen
            log_ratio = torch.where(self.law.holds(draws), log_ratio, -math.inf)
            if cut:  # where a function folds, volumes have no bound
                most = log_ratio.logsumexp(0) - 0.5 * math.log(count)
                log_ratio = log_ratio.clamp(max=float(most))
            return _Draws.of(draws, log_ratio.nan_to_num(-math.inf), code, relative)

        plain = log_weight.softmax(0)
        code = torch.multinomial(plain, count, replacement=True)
        noise = torch.randn(count, factor.shape[-1]).to(loc)
        x = _point(loc[code], factor[code], noise)
        first = weigh(code, x, self._log_likelihood(self._function(x)), plain[code].log())
        best = first
        if first.effective < ENOUGH_PLAIN * count:
            size = max(1, BLOCK_NUMBERS // max(1, factor[0].numel()))
            blocks = zip(loc.split(size), factor.split(size), strict=True)
            found = [self._likeliest(*block) for block in blocks]
            guide = _Guide(*(torch.cat(part) for part in zip(*found, strict=True)))
            guess = (log_weight + guide.log_found).nan_to_num(-math.inf).softmax(0)
            guess = guess.nan_to_num(0.0)
            proposal = (1 - DEFENSIVE_SHARE) * guess + DEFENSIVE_SHARE * plain
            proposal = proposal / proposal.sum()
            code = torch.multinomial(proposal, count, replacement=True)
            x, log_ratio = self._follow(loc[code], factor[code], guide.at(code))
            best = weigh(code, x, log_ratio, proposal[code].log(), cut=True)
            if first.effective > best.effective:
                best = first
        nearest = self._nearest(best)
        if not bool(((nearest - self._value).abs() < FAR_OFF * self._noise).all()):
            raise ConflictError(
                f"Expected evidence that can hold, but none of {count} draws meets it: the "
                f"functions reach {nearest.tolist()}, and the value is {self._value.tolist()}. "
                f"Raise the noise, or num_draws."
            )
        self._draws, self._weight = best.draws, best.weight
        self.effective_sample_size = best.weight.new_tensor(best.effective).to(self._dtype)
        self._log_total, self._error = best.log_total, best.error
        self._warn(best, first)

    def _warn(self, best: "_Draws", plain: "_Draws") -> None:
        """Says so if few draws count, or if plain ones find what these do not."""
        more = float(plain.log_total - best.log_total)
        error = math.hypot(float(plain.error), float(best.error))
        if best.effective < FEW_DRAWS:
            message = (
                f"The {len(best.weight)} draws that meet the functions are worth "
                f"{best.effective:.1f} independent ones: they may miss part of the law. Raise "
                f"num_draws."
            )
        elif plain.effective > FEW_DRAWS and more > STANDARD_ERRORS * error:
            message = (
                f"Plain draws find log Z to be {float(plain.log_total):.2f}, and those that "
                f"follow the functions {float(best.log_total):.2f}: they miss part of the law. "
                f"Functions may be flat, or have the value in many places. Raise the noise."
            )
        else:
            return
        warn_user(message, RuntimeWarning)

    def _nearest(self, drawn: "_Draws") -> Tensor:
        """The functions (m,) of the draw that comes nearest to the value; NaN if none counts."""
        x = drawn.draws[drawn.weight > 0][:, : self._dim]
        if not len(x):
            return torch.full_like(self._value, math.nan)
        y = self._function(x)
        off = ((y - self._value) / self._noise).square().sum(-1).nan_to_num(math.inf)
        return y[off.argmin()]

    def _likeliest(self, loc: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
        """What guides draws of normals (C,): see `_Guide`.

        A damped Gauss-Newton search finds the likeliest points, from the means and, for functions
        that do not change there, from draws.

        Args:
            loc: Means, shape (C, D).
            factor: Factors, shape (C, D, r).
        """
        z = torch.zeros(len(loc), factor.shape[-1]).to(loc)
        y, jacobian = self._jacobian(loc)
        still = (jacobian @ factor).abs().amax((-2, -1)) <= 1e-9 * self._noise.amin()
        if bool(still.any()):
            z = torch.where(still.unsqueeze(-1), 0.5 * torch.randn_like(z), z)
            y, jacobian = self._jacobian(_point(loc, factor, z))
        score = self._score(z, y)
        for _ in range(SEARCH_ROUNDS):
            slope = (jacobian @ factor / self._noise.unsqueeze(-1)).nan_to_num(0.0, 0.0, 0.0)
            white = (self._value - y) / self._noise + _times(slope, z)
            gram = slope @ slope.mT + torch.eye(len(self._value)).to(slope)
            solved = torch.linalg.solve_ex(gram, white.unsqueeze(-1))[0].nan_to_num(0.0, 0.0, 0.0)
            step = (slope.mT @ solved).squeeze(-1) - z
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
        slope = (jacobian @ factor).nan_to_num(0.0, 0.0, 0.0)
        white = slope / self._noise.unsqueeze(-1)
        _, size, turn = torch.linalg.svd(white, full_matrices=False)
        log_det = torch.log1p(size.square()).sum(-1)
        log_found = score + 0.5 * LOG_2PI * z.shape[-1] - 0.5 * log_det
        m, r = slope.shape[-2:]
        least = size[:, -1] > LEAST_CHANGE * size[:, 0].clamp(min=1e-300)
        follows = least & (m <= r) & (size[:, -1] > 1e-3)
        return log_found, z, white, turn.mT, follows

    def _score(self, z: Tensor, y: Tensor) -> Tensor:
        """Log N(z; 0, I) N(value; y, noise), minus infinity where the function has no value."""
        score = self._log_likelihood(y) - 0.5 * z.square().sum(-1)
        return (score - 0.5 * LOG_2PI * z.shape[-1]).nan_to_num(-math.inf, -math.inf)

    def _follow(self, loc: Tensor, factor: Tensor, guide: "_Guide") -> tuple[Tensor, Tensor]:
        """Draws (n, D) from normals, and the logarithms of their ratio to the proposal (n,)."""
        x, log_ratio = torch.zeros_like(loc), loc.new_full((len(loc),), -math.inf)
        for follows, draw in ((True, self._along), (False, self._around)):
            rows = (guide.follows == follows).nonzero().squeeze(-1)
            if len(rows):
                x[rows], log_ratio[rows] = draw(loc[rows], factor[rows], guide.at(rows))
        return x, log_ratio

    def _around(self, loc: Tensor, factor: Tensor, guide: "_Guide") -> tuple[Tensor, Tensor]:
        """Draws from the prior, and from the normal around the likeliest point, half and half."""
        z = torch.randn_like(guide.centre)
        m = guide.slope.shape[-2]
        gram = guide.slope @ guide.slope.mT + torch.eye(m).to(z)
        e = torch.randn(len(z), m).to(z)
        miss = torch.linalg.solve(gram, (_times(guide.slope, z) + e).unsqueeze(-1))
        near = guide.centre + z - (guide.slope.mT @ miss).squeeze(-1)
        z = torch.where(torch.rand(len(z), 1).to(z) < 0.5, z, near)
        away = z - guide.centre
        square = away.square().sum(-1) + _times(guide.slope, away).square().sum(-1)
        log_det = torch.linalg.slogdet(gram).logabsdet
        # Both relative to the prior's density.
        own = 0.5 * z.square().sum(-1) - 0.5 * square + 0.5 * log_det
        x = _point(loc, factor, z)
        log_ratio = self._log_likelihood(self._function(x)) + math.log(2.0)
        return x, log_ratio - torch.logaddexp(torch.zeros_like(own), own)

    def _along(self, loc: Tensor, factor: Tensor, guide: "_Guide") -> tuple[Tensor, Tensor]:
        """Draws that are moved along the directions T until the function has a value."""
        n, m = len(loc), len(self._value)
        turn, centre = guide.turn, _times(guide.turn.mT, guide.centre)
        slope = guide.slope @ turn  # A in units of the noise, (n, m, m)
        # Of s, as if the function were linear: precision I + B^T B.
        middle = self._function(_point(loc, factor, guide.centre))
        miss = (self._value - middle) / self._noise + _times(slope, centre)
        precision = slope.mT @ slope + torch.eye(m).to(slope)
        tril = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve((slope.mT @ miss.unsqueeze(-1)), tril).squeeze(-1)
        e = torch.randn(n, m).to(loc)
        spread = torch.linalg.solve_triangular(tril.mT, e.unsqueeze(-1), upper=True).squeeze(-1)
        value = middle + self._noise * _times(slope, mean - centre + spread)
        log_value = (-0.5 * e.square() - 0.5 * LOG_2PI - self._noise.log()).sum(-1)
        log_value = log_value + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_value = log_value - torch.linalg.slogdet(slope).logabsdet
        inverse = torch.linalg.solve_triangular(tril, slope.mT, upper=False)
        scale = self._noise * inverse.square().sum(-2).sqrt()  # of the value, (n, m)
        # Other directions have their prior.
        rest = torch.randn_like(guide.centre)
        rest = rest - _times(turn, _times(turn.mT, rest))
        starts = REACH * torch.randn(n, STARTS, m).to(loc)
        if m == 1:  # all along a line
            starts[:, 1:, 0] = torch.linspace(-2 * REACH, 2 * REACH, STARTS - 1).to(loc)
        starts[:, 0] = mean + spread
        shape = (n * STARTS, m)
        repeated = [
            t.repeat_interleave(STARTS, 0) for t in (loc, factor, turn, rest, value, scale)
        ]
        s, log_volume = self._solve(starts.reshape(shape), *repeated)
        s, log_volume = s.reshape(n, STARTS, m), log_volume.reshape(n, STARTS)
        # Every point once.
        apart = (s.unsqueeze(1) - s.unsqueeze(2)).abs().amax(-1)  # (n, STARTS, STARTS)
        earlier = torch.ones(STARTS, STARTS, dtype=torch.bool, device=s.device).tril(-1)
        there = log_volume < math.inf
        again = ((apart < SAME) & earlier & there.unsqueeze(1)).any(-1)
        log_each = -0.5 * s.square().sum(-1) - 0.5 * LOG_2PI * m - log_volume
        log_each = torch.where(there & ~again, log_each, -math.inf)
        log_sum = log_each.logsumexp(-1)
        possible = log_sum > -math.inf
        share = torch.where(possible.unsqueeze(-1), log_each, 0.0).softmax(-1)
        chosen = torch.multinomial(share, 1)
        s = s.gather(1, chosen.unsqueeze(-1).expand(-1, -1, m)).squeeze(1)
        log_ratio = log_sum + self._log_likelihood(value) - log_value
        return _point(loc, factor, rest + _times(turn, s)), log_ratio

    def _solve(
        self,
        s: Tensor,
        loc: Tensor,
        factor: Tensor,
        turn: Tensor,
        rest: Tensor,
        value: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Points along T with a value of the function, by Newton's method.

        Args:
            s: Where to start, shape (n, m).
            loc: Means, shape (n, D).
            factor: Factors, shape (n, D, r).
            turn: T, shape (n, r, m).
            rest: What z has besides T s, shape (n, r).
            value: Values, shape (n, m).
            scale: In what units they are to be met, shape (n, m).

        Returns:
            The points (n, m), and log |det df/ds| there, (n,), plus infinity where none was found.
        """
        found, log_volume = s.clone(), s.new_full((len(s),), math.inf)
        active = torch.arange(len(s), device=s.device)
        rounding = ROUNDINGS * torch.finfo(self._dtype).eps
        for _ in range(NEWTON_ROUNDS):
            own = [t[active] for t in (s, loc, factor, turn, rest, value, scale)]
            at, mean, spread, along, other, wanted, unit = own
            y, jacobian = self._jacobian(_point(mean, spread, other + _times(along, at)))
            slope = jacobian @ spread @ along
            miss = wanted - y
            tolerance = torch.maximum(MET * unit, rounding * wanted.abs())
            met = (miss.abs() < tolerance).all(-1)
            volume = torch.linalg.slogdet(slope.nan_to_num(0.0, 0.0, 0.0)).logabsdet
            good = met & volume.isfinite()
            found[active[good]], log_volume[active[good]] = at[good], volume[good]
            step = torch.linalg.solve_ex(slope, miss.unsqueeze(-1))[0].squeeze(-1)
            step = step.nan_to_num(0.0, 0.0, 0.0)
            length = step.norm(dim=-1, keepdim=True)
            s[active] = at + step * (LONGEST_STEP / length.clamp(min=LONGEST_STEP))
            active = active[~met]
            if not len(active):
                break
        return found, log_volume


class _Guide(NamedTuple):
    """What guides draws of normals, C or n of them."""

    log_found: Tensor
    """Estimates of log E[N(value; f(x), noise)], shape (C,)."""
    centre: Tensor
    """Likeliest points z, shape (C, r)."""
    slope: Tensor
    """Derivatives of f by z there, in units of the noise, shape (C, m, r)."""
    turn: Tensor
    """Directions T in which f changes, shape (C, r, min(m, r))."""
    follows: Tensor
    """Whether f changes in m of them, shape (C,)."""

    def at(self, index: Tensor) -> "_Guide":
        """Those of normals at indices (n,)."""
        return _Guide(*(t[index] for t in self))


class _Draws(NamedTuple):
    """Weighted draws, and what they say of log Z."""

    draws: Tensor
    """Shape (n, D + columns)."""
    weight: Tensor
    """Shape (n,), summing to one; all zero if none counts."""
    effective: float
    """How many independent draws they are worth."""
    log_total: Tensor
    """Log Z."""
    error: Tensor
    """Its standard error."""

    @classmethod
    def of(
        cls, draws: Tensor, log_ratio: Tensor, code: Tensor, relative: Tensor | None
    ) -> "_Draws":
        """From draws, logarithms of weights (n,), and their normals (n,).

        Args:
            draws: Shape (n, D + columns).
            log_ratio: Shape (n,).
            code: Shape (n,).
            relative: Relative weights of normals in independent estimates, (I, C), or None.
        """
        n, total = len(log_ratio), log_ratio.logsumexp(0)
        if bool(total.isneginf()):
            return cls(draws, torch.zeros_like(log_ratio), 0.0, total, torch.zeros_like(total))
        weight = (log_ratio - total).exp()
        variance = (weight.square().sum() - 1 / n).clamp(min=0.0)
        if relative is not None:
            share = (relative.to(weight)[:, code] * weight).sum(-1)
            variance = variance + share.var() / len(share)
        effective = float(1.0 / weight.square().sum())
        return cls(draws, weight, effective, total - math.log(n), variance.sqrt())


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices (n, a, b) times vectors (n, b)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _point(loc: Tensor, factor: Tensor, z: Tensor) -> Tensor:
    """Points m + F z, shape (n, D)."""
    return loc + _times(factor, z)
