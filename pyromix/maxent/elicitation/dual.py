r"""The dual of maximum entropy on the nodes of a quadrature, solved by Newton's method.

Of all laws with E[T] = t, that of least divergence from a measure b is

.. math:: q(x) = b(x) e^{-\lambda^\top T(x)} / Z, \qquad
          \lambda = \arg\min_\lambda \log \int b(x) e^{-\lambda^\top (T(x) - t)} dx,

a convex problem with as many unknowns as there are statements. With Lebesgue's measure for b it
is the law of largest entropy.
"""

__all__ = ["Dual", "Solution"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_STEPS = 200
HALVINGS = 40
CLOSE = 1e-9  # largest violation, in standard deviations
# Of a step, one change of the multiplier moves the ratio of densities by this much at most. Where
# a side has next to no mass, the quadratic model would move it by more than halving takes back.
LARGEST_SPAN = 2.0
LARGEST_CHANGE = 10.0
RIDGE = 1e-12  # statistics may depend on each other


class Solution(NamedTuple):
    """Multipliers, and the law on the nodes."""

    multipliers: Tensor
    """Shape (m,)."""
    probabilities: Tensor
    """Of the nodes, shape (n,)."""
    log_normalizer: float
    """log Z."""
    violations: Tensor
    """Of the statements, in standard deviations, shape (m,)."""

    @property
    def converged(self) -> bool:
        """Whether all statements hold."""
        return bool((self.violations.abs() < 1e-6).all())


class Dual:
    r"""Statements on the nodes of a quadrature.

    Steps may be smooth in the density and exact in what they state: then the law is
    :math:`q \propto b e^{-\lambda^\top S}` with smooth S, and :math:`E_q[T] = t` holds for the
    steps T themselves, where the multipliers are the root of a system with the Jacobian
    :math:`-\operatorname{Cov}(T, S)`.

    Args:
        values: T at the nodes, shape (n, m).
        levels: t, shape (m,).
        log_weight: Logarithms of weights times the density of the measure, shape (n,).
        is_inequality: Which statements are E[T] <= t, shape (m,).
        smooth: S at the nodes, shape (n, m); by default T.
    """

    def __init__(
        self,
        values: Tensor,
        levels: Tensor,
        log_weight: Tensor,
        is_inequality: Tensor,
        smooth: Tensor | None = None,
    ) -> None:
        self.excess = values - levels
        self.log_weight, self.is_inequality = log_weight, is_inequality
        self.levels = levels
        self.smooth = None if smooth is None else smooth - levels

    def solve(self, start: Tensor) -> Solution:
        """The multipliers, from where to start, shape (m,)."""
        exponent = self.excess if self.smooth is None else self.smooth
        multipliers = self._minimize(exponent, start.clone())
        if self.smooth is not None:
            multipliers = self._correct(multipliers)
        log_z, p = self._law(exponent, multipliers)
        violations = self.excess.mT @ p
        scale = self._scale(self.excess, p)
        violations = torch.where(self.is_inequality, violations.clamp(min=0), violations)
        log_normalizer = float(log_z - multipliers @ self.levels)
        return Solution(multipliers, p, log_normalizer, violations / scale)

    def _law(self, exponent: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the normaliser, and probabilities of the nodes."""
        log_p = self.log_weight - exponent @ multipliers
        log_z = log_p.logsumexp(0)
        return log_z, (log_p - log_z).exp()

    @staticmethod
    def _scale(values: Tensor, p: Tensor) -> Tensor:
        """Standard deviations; ones where there is none."""
        centred = values - values.mT @ p
        variance = centred.square().mT @ p
        return torch.where(variance > 1e-24, variance, torch.ones_like(variance)).sqrt()

    def _minimize(self, exponent: Tensor, multipliers: Tensor) -> Tensor:
        """Newton's method with halved steps; multipliers of inequalities stay above zero."""
        log_z, p = self._law(exponent, multipliers)
        spans = exponent.amax(0) - exponent.amin(0)
        limit = torch.where(spans <= LARGEST_SPAN, LARGEST_CHANGE / spans, math.inf)
        for _ in range(MAX_STEPS):
            means = exponent.mT @ p
            scale = self._scale(exponent, p)
            held = self.is_inequality & (multipliers <= 0) & (means < 0)
            if bool(((means / scale).abs() < CLOSE)[~held].all()):
                break
            centred = (exponent - means) / scale
            step = _solve((centred * p.unsqueeze(-1)).mT @ centred, means / scale, held) / scale
            step = step * (limit / step.abs().clamp(min=1e-300)).amin().clamp(max=1.0)
            slope = float(step @ means)
            for _ in range(HALVINGS):
                trial = multipliers + step
                trial = torch.where(self.is_inequality, trial.clamp(min=0), trial)
                new_log_z, new_p = self._law(exponent, trial)
                if float(new_log_z) <= float(log_z) - 1e-4 * slope:
                    break
                step, slope = step / 2, slope / 2
            else:
                break
            multipliers, log_z, p = trial, new_log_z, new_p
        return multipliers

    def _correct(self, multipliers: Tensor) -> Tensor:
        """Newton's method on the exact statements, from the solution of the smooth ones."""
        smooth = self.excess if self.smooth is None else self.smooth
        held = self.is_inequality & (multipliers <= 0)

        def state(at: Tensor) -> tuple[Tensor, Tensor, float]:
            _, p = self._law(smooth, at)
            means = self.excess.mT @ p
            size = float((means / self._scale(self.excess, p))[~held].norm())
            return p, means, size

        p, means, size = state(multipliers)
        for _ in range(MAX_STEPS):
            if size < CLOSE:
                break
            scale = self._scale(smooth, p)
            centred = (smooth - smooth.mT @ p) / scale
            rows = (self.excess - means) / scale
            step = _solve((rows * p.unsqueeze(-1)).mT @ centred, means / scale, held) / scale
            for _ in range(HALVINGS):
                trial = state(multipliers + step)
                if trial[2] < size:
                    break
                step = step / 2
            else:
                break
            multipliers = multipliers + step
            p, means, size = trial
        return multipliers


def _solve(matrix: Tensor, vector: Tensor, held: Tensor) -> Tensor:
    """Solves a linear system in the unknowns that are not held; the others are zero."""
    free = ~held
    inner = matrix[free][:, free]
    inner = inner + RIDGE * torch.eye(len(inner)).to(inner)
    result = torch.zeros_like(vector)
    result[free] = torch.linalg.lstsq(inner, vector[free].unsqueeze(-1)).solution.squeeze(-1)
    return result
