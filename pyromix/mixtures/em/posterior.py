r"""Variational posteriors of a mixture's parameters, and the evidence of grouped points.

With the prior of `ConjugatePrior` and responsibilities, means and precisions of the components
have normal-Wishart posteriors, or normal-gamma ones where precisions are those of coordinates
(Bishop 2006, section 10.2); weights have a Dirichlet posterior, or one of sticks that are broken
off (Blei and Jordan 2006). A gamma distribution is a Wishart distribution of one dimension, and
so all structures share the formulas here.
"""

__all__ = [
    "ComponentPosterior",
    "ComponentPrior",
    "DirichletProcess",
    "FiniteDirichlet",
    "Groups",
    "WeightPosterior",
    "WeightPrior",
]

import copy
import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import digamma

from ...numerics.triangular import half_log_det, inverse_tril
from ..covariance import CovarianceStructure, Moments
from ..diagonal import MixtureOfNormals
from ..finite import FiniteMixture
from ..full import MixtureOfMultivariateNormals
from .statistics import Statistics

# V is kept above this share of the one that was given.
LEAST_SHARE = 1e-6


class Groups(NamedTuple):
    """Points by component, each counted as often as the component is responsible for it."""

    weight: Tensor
    """Number of points, (K,)."""
    mean: Tensor
    """Their mean, (K, D); any where there are none."""
    second: Tensor
    """Second moments around the means, pooled by the structure."""

    @classmethod
    def of(cls, statistics: Statistics, structure: CovarianceStructure) -> "Groups":
        """The groups of some statistics."""
        weight = statistics.weight
        shift = statistics.first / weight.clamp(min=torch.finfo(weight.dtype).tiny).unsqueeze(-1)
        second = statistics.second - structure.outer(weight, shift)
        return cls(weight, statistics.reference + shift, second)

    def merged(self, a: int, b: int, structure: CovarianceStructure) -> "Groups":
        """The groups with the points of the second of two components given to the first."""
        pair = self.weight[[a, b]]
        share = pair / pair.sum().clamp(min=torch.finfo(pair.dtype).tiny)
        weight, mean = self.weight.clone(), self.mean.clone()
        weight[a], weight[b] = pair.sum(), 0.0
        mean[a] = share @ self.mean[[a, b]]
        between = torch.zeros_like(weight)
        between[a] = pair[0] * share[1]
        second = self.second + structure.outer(between, self.mean - self.mean[b])
        if len(second) == len(weight):
            second[a] += second[b]
            second[b] = 0.0
        return Groups(weight, mean, second)

    def take(self, index: Tensor) -> "Groups":
        """The groups of some components, in an order."""
        own = len(self.second) == len(self.weight)
        second = self.second[index] if own else self.second
        return Groups(self.weight[index], self.mean[index], second)

    def padded(self, count: int, structure: CovarianceStructure) -> "Groups":
        """The groups with as many more without points as make so many."""
        more = count - len(self.weight)
        weight, mean, second = (torch.cat([t, t.new_zeros(more, *t.shape[1:])]) for t in self)
        return Groups(weight, mean, structure.pool(second))


class ComponentPrior:
    r"""The prior of means and precisions.

    .. math:: m_k \sim N(0, (\kappa \Lambda_k)^{-1}), \qquad
              \Lambda_k \sim \mathcal{W}(\nu_0, \Psi_0^{-1})

    around the origin, the centre of the data. With s points of covariance V, :math:`\Psi_0 = s V`,
    and :math:`\nu_0 = D + 1 + s`, so that V is the mean of the covariance.

    Args:
        structure: Of the covariances.
        strength: s.
        shrinkage: :math:`\kappa`.
        covariance: V, (D, D) or (D,).
    """

    def __init__(
        self,
        structure: CovarianceStructure,
        strength: float,
        shrinkage: float,
        covariance: Tensor,
    ) -> None:
        self.structure, self.shrinkage = structure, shrinkage
        self.matrix = structure.full_moments
        self.size = structure.dim if self.matrix else 1  # p of a p x p Wishart distribution
        one = covariance.new_full((1,), strength)
        # The second moments of the points of one component, and how many numbers they are of.
        self.scatter = structure.pool(strength * covariance.unsqueeze(0))
        count = structure._count(Moments(one, self.scatter))
        self.degrees = self.size + 1 + float(count)
        self._given = self.scatter

    @property
    def log_det(self) -> Tensor:
        """Log-determinants of the scatter, one of each Wishart distribution: (1,) or (1, E)."""
        return self.log_dets(self.scatter)

    def log_dets(self, scatter: Tensor) -> Tensor:
        """Log-determinants (R, 1) of matrices (R, D, D), or logarithms of numbers (R, E)."""
        if not self.matrix:
            return scatter.log()
        return 2 * half_log_det(torch.linalg.cholesky(scatter)).unsqueeze(-1)

    def posterior(self, groups: Groups) -> "ComponentPosterior":
        """The posterior given points."""
        weight, mean, second = groups
        count = weight + self.shrinkage
        pull = self.structure.outer(weight * self.shrinkage / count, mean)
        degrees = self.structure._count(Moments(weight, second)).reshape(-1, 1) + self.degrees
        mean = (weight / count).unsqueeze(-1) * mean
        return ComponentPosterior(self, count, mean, degrees, self.scatter + second + pull)

    def log_evidence(self, groups: Groups) -> Tensor:
        """Log-density of points given their components, parameters integrated out; a scalar."""
        found, dim = self.posterior(groups), self.structure.dim
        value = -0.5 * dim * groups.weight.sum() * math.log(math.pi)
        value = value - 0.5 * dim * (found.points / self.shrinkage).log().sum()
        return value + (self.log_norm(found.degrees, found.scatter) - self._log_norm).sum()

    def log_norm(self, degrees: Tensor | float, scatter: Tensor) -> Tensor:
        """Log of the integral that normalises a Wishart density, less its power of two."""
        degrees = torch.as_tensor(degrees, dtype=scatter.dtype, device=scatter.device)
        half = 0.5 * degrees
        return torch.mvlgamma(half, self.size) - half * self.log_dets(scatter)

    @property
    def _log_norm(self) -> Tensor:
        return self.log_norm(self.degrees, self.scatter)

    def adapted(self, precision: Tensor) -> "ComponentPrior":
        r"""The prior with the diagonal V of highest bound in place of its own.

        The bound has the terms :math:`R \nu_0 \log |\Psi_0| - \sum_r \operatorname{tr}(\Psi_0
        E \Lambda_r)` of V. Where few points, or a constant column, would let it fall to zero, the
        V that was given has a say: it counts as one more precision, see `penalty`. (A matrix V of
        highest bound follows a few components so well that the bound says nothing of them.)

        Args:
            precision: Expected precisions of any components, of the scatter's shape.
        """
        adapted, given = copy.copy(self), self._diagonal(self._given)
        mean = torch.cat([self._diagonal(precision), self.degrees / given]).mean(0, keepdim=True)
        scatter = (self.degrees / mean).clamp(min=LEAST_SHARE * given)
        adapted.scatter = scatter.diag_embed() if self.matrix else scatter
        return adapted

    def penalty(self) -> Tensor:
        r"""Log of what V is worth beside the one that was given, a scalar: zero for this one.

        .. math:: \frac{\nu_0}{2} \sum_d (\log v_d - v_d + 1) \le 0

        with v the ratio of the two.
        """
        ratio = self._diagonal(self.scatter) / self._diagonal(self._given)
        return 0.5 * self.degrees * (ratio.log() - ratio + 1).sum()

    def _diagonal(self, scatter: Tensor) -> Tensor:
        """The diagonal of matrices (R, D, D); numbers (R, E) as they are."""
        return scatter.diagonal(dim1=-2, dim2=-1) if self.matrix else scatter


class ComponentPosterior(NamedTuple):
    r"""The posterior of means and precisions, :math:`N(m_k, (\beta_k \Lambda)^{-1})` and so on."""

    prior: ComponentPrior
    points: Tensor
    """beta, with those of the prior, (K,)."""
    mean: Tensor
    """m, (K, D)."""
    degrees: Tensor
    """nu, (R, 1), with one row where covariances are shared, and else K."""
    scatter: Tensor
    """Psi, pooled as second moments are."""

    @property
    def precision(self) -> Tensor:
        """Means of the precisions, of the shape of the scatter."""
        if self.prior.matrix:
            inverse = inverse_tril(torch.linalg.cholesky(self.scatter))
            return self.degrees.unsqueeze(-1) * (inverse.mT @ inverse)
        return self.degrees / self.scatter

    @property
    def covariance(self) -> Tensor:
        """Means of the covariances, of the shape of the scatter."""
        left = self.degrees - self.prior.size - 1
        return self.scatter / (left.unsqueeze(-1) if self.prior.matrix else left)

    def law(self, logits: Tensor) -> FiniteMixture:
        r"""The mixture of normals at the means of means and precisions.

        Args:
            logits: Expected logarithms of weights, (K,).

        Returns:
            A mixture whose logits are shifted such that ``law._logits`` and component densities
            add up to :math:`E \log w_k N(x; m_k, \\Lambda_k^{-1})`.
        """
        (k, dim), half = self.mean.shape, 0.5 * self.degrees
        # E log |Lambda| - log |E Lambda|.
        excess = _digammas(half, self.prior.size) - self.prior.size * half.log()
        excess = excess.squeeze(-1) * (dim // self.prior.size)
        logits = logits + 0.5 * (excess - dim / self.points)
        if self.prior.matrix:
            tril = torch.linalg.cholesky(self.scatter / self.degrees.unsqueeze(-1))
            return MixtureOfMultivariateNormals(logits, self.mean, tril, validate_args=False)
        scale = (self.scatter / self.degrees).sqrt().expand(k, dim)
        return MixtureOfNormals(logits, self.mean, scale, validate_args=False)

    def adapted(self) -> "ComponentPosterior":
        """The posterior with the prior's V of highest bound in place of its own."""
        return self._replace(prior=self.prior.adapted(self.precision))

    def divergence(self) -> Tensor:
        r"""KL divergence from the prior, a scalar.

        With normalisers :math:`Z(\nu, \Psi)` of Wishart densities that of precisions is

        .. math:: \log \frac{Z(\nu_0, \Psi_0)}{Z(\nu, \Psi)} + \frac{\nu - \nu_0}{2}
                  E \log |\Lambda| + \frac{1}{2} \operatorname{tr}((\Psi_0 - \Psi) E \Lambda) .
        """
        prior, dim = self.prior, self.mean.shape[-1]
        ratio = self.points / prior.shrinkage
        of_means = dim * (ratio.log() - 1 + 1 / ratio).sum()
        of_means = of_means + prior.shrinkage * self._squared_lengths().sum()
        half, first = 0.5 * self.degrees, 0.5 * prior.degrees
        trace = self.precision * prior.scatter
        if prior.matrix:
            trace = trace.sum((-2, -1)).unsqueeze(-1)
        digammas = _digammas(half, prior.size)
        # Log |Psi| of E log |Lambda| and of the normaliser add up with the prior's degrees.
        of_scales = first * (prior.log_dets(self.scatter) - prior.log_det)
        of_scales = of_scales + 0.5 * trace - half * prior.size
        of_scales = of_scales + torch.mvlgamma(torch.full_like(half, first), prior.size)
        of_scales = of_scales - torch.mvlgamma(half, prior.size) + (half - first) * digammas
        return 0.5 * of_means + of_scales.sum()

    def _squared_lengths(self) -> Tensor:
        """Squared lengths of the means, in units of the expected precisions: (K,)."""
        precision = self.precision
        if self.prior.matrix:
            return ((self.mean.unsqueeze(-2) @ precision).squeeze(-2) * self.mean).sum(-1)
        return (precision * self.mean.square()).sum(-1)


class WeightPosterior(NamedTuple):
    """What is to be known of the weights' posterior."""

    log_weight: Tensor
    """Expected logarithms, (K,)."""
    weight: Tensor
    """Means, (K,), which sum to one."""
    divergence: Tensor
    """KL divergence from the prior, a scalar."""


class WeightPrior(ABC):
    """A prior of weights. Components that are not named have no points.

    Args:
        concentration: Of all components together.
    """

    def __init__(self, concentration: float) -> None:
        self.concentration = concentration

    @abstractmethod
    def posterior(self, count: Tensor) -> WeightPosterior:
        """The posterior given numbers of points (K,)."""

    @abstractmethod
    def log_evidence(self, count: Tensor) -> Tensor:
        """Log-probability of components, weights integrated out; a scalar."""

    def order(self, count: Tensor) -> Tensor | None:  # noqa: ARG002
        """The order of components of highest evidence, or None if any is as good."""
        return None


class FiniteDirichlet(WeightPrior):
    """A Dirichlet distribution of so many weights, of equal concentration.

    Args:
        concentration: Of all components together.
        num_components: Their number, with those that have no points.
    """

    def __init__(self, concentration: float, num_components: int) -> None:
        super().__init__(concentration)
        self._own = concentration / num_components

    def posterior(self, count: Tensor) -> WeightPosterior:
        """The posterior given numbers of points (K,)."""
        found = count + self._own
        total = count.sum() + self.concentration
        log_weight = digamma(found) - digamma(total)
        divergence = (count * log_weight).sum() - self.log_evidence(count)
        return WeightPosterior(log_weight, found / found.sum(), divergence)

    def log_evidence(self, count: Tensor) -> Tensor:
        """Log-probability of components, weights integrated out; a scalar."""
        total = torch.lgamma(count.sum() + self.concentration) - math.lgamma(self.concentration)
        return (torch.lgamma(count + self._own) - math.lgamma(self._own)).sum() - total


class DirichletProcess(WeightPrior):
    """A Dirichlet process: each weight is a share of what the ones before left of a stick."""

    def posterior(self, count: Tensor) -> WeightPosterior:
        """The posterior given numbers of points (K,)."""
        taken, left = self._shares(count)
        both = digamma(taken + left)
        log_left = (digamma(left) - both).cumsum(0)
        log_weight = digamma(taken) - both + log_left - (digamma(left) - both)
        passed = (left / (taken + left)).log().cumsum(0)
        weight = (taken / left).log() + passed
        divergence = (count * log_weight).sum() - self.log_evidence(count)
        return WeightPosterior(log_weight, weight.softmax(0), divergence)

    def log_evidence(self, count: Tensor) -> Tensor:
        """Log-probability of components, weights integrated out; a scalar."""
        taken, left = self._shares(count)
        value = torch.lgamma(taken) + torch.lgamma(left) - torch.lgamma(taken + left)
        return (value + math.log(self.concentration)).sum()

    def order(self, count: Tensor) -> Tensor:
        """The heaviest first."""
        return count.argsort(descending=True, stable=True)

    def _shares(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """Both parameters of the beta distributions of the shares."""
        later = count.sum() - count.cumsum(0)
        return 1 + count, self.concentration + later.clamp(min=0)


def _digammas(half: Tensor, size: int) -> Tensor:
    """Derivative of the logarithm of the multivariate gamma function."""
    steps = 0.5 * torch.arange(size, dtype=half.dtype, device=half.device)
    return digamma(half.unsqueeze(-1) - steps).sum(-1)
