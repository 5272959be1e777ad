r"""A conjugate prior of mixtures, as points that are added to the data."""

__all__ = ["ConjugatePrior", "PseudoPoints", "check_prior", "spread_of"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.checks import number
from ...core.conversions import TensorLike, as_tensor
from ..covariance import CovarianceStructure, Moments
from ..covariance.full import Full
from ..finite import FiniteMixture
from ..full import MixtureOfMultivariateNormals
from .products import Expectation
from .rows import Rows
from .statistics import Statistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Steps of expectation maximisation for the covariance of data with gaps.
SPREAD_STEPS = 30

# A column that does not vary is expected to have this share of the others' variance.
CONSTANT_SHARE = 1e-6


@dataclass(frozen=True, eq=False)
class ConjugatePrior:
    r"""A prior of means, covariances and weights that acts as points added to the data.

    .. math:: \log p(\theta) = \sum_{k=1}^K \Big[ \frac{s}{2} \big( \log |\Lambda_k|
              - \operatorname{tr}(V \Lambda_k) \big) + \kappa \log N(\mu; m_k, \Lambda_k^{-1})
              + (a - 1) \log w_k \Big] + \text{const}

    Every component is given s points of covariance V around its own mean, and :math:`\kappa`
    points at the mean :math:`\mu` of the data: a normal-Wishart distribution of mean and precision
    :math:`\Lambda_k`, with a normal-gamma one for variances. A covariance that all components
    share is given s points in all. The weights have a Dirichlet distribution.

    The defaults are those that Fraley and Raftery (2007) choose by the data: V is the covariance
    of the data divided by :math:`K^{2/D}`, as K components share the volume of the data among
    them; with s = 1 the Wishart distribution has D + 2 degrees of freedom, and :math:`\kappa` is
    0.01. (They take the mode in covariances, and this is the mode in precisions, where the prior
    is no more than its points.) V is in the data's units, so that these do not matter.

    Args:
        strength: Number of points s, positive: what it counts against is the number of points of
            a component. Covariances of more columns want a larger one.
        shrinkage: Number of points :math:`\kappa` at the mean of the data.
        concentration: a of the Dirichlet distribution, at least one. `pyromix.fit_vb` has an
            argument of its own in its place.
        scale: V, in the user's units: a variance, variances of shape (D,), or a covariance
            (D, D), of which diagonal structures take the diagonal. By default as above; `fit_vb`
            starts at its diagonal, and chooses that by the bound.

    Raises:
        ValueError: For an argument that is out of range.

    Example:
        >>> from pyromix import GaussianMixture, fit_em
        >>> x = torch.randn(30, 5)
        >>> model = GaussianMixture(dim=5, num_components=4, covariance="full")
        >>> history = fit_em(model, x, prior=ConjugatePrior(strength=5), progress_bar=False)
        >>> bool(model.scale.min() > 0.1)
        True
    """

    strength: float = 1.0
    shrinkage: float = 0.01
    concentration: float = 1.0
    scale: TensorLike | None = None

    def __post_init__(self) -> None:
        for name, least in (("strength", 0.0), ("shrinkage", 0.0), ("concentration", 1.0)):
            object.__setattr__(self, name, number(least)(name, getattr(self, name)))
        if self.strength == 0:
            raise ValueError("Expected a positive strength, got 0. Without a prior, leave it out.")
        if self.scale is not None:
            object.__setattr__(self, "scale", _check_scale(as_tensor("scale", self.scale)))

    def covariance(
        self,
        structure: CovarianceStructure,
        rows: Rows,
        total: float,
        unit: Tensor,
        fabric: "Fabric | None" = None,
    ) -> Tensor:
        """V in the units of the data, (D, D) or, where a structure has no use for it, (D,).

        Args:
            structure: Of K components.
            rows: The data, centred.
            total: Sum of the weights of all rows.
            unit: What the units of the rows are in the user's ones, shape (D,).
            fabric: Over which processes the rows are divided.
        """
        matrix, dim = structure.full_moments, structure.dim
        if self.scale is None:
            share = structure.num_components ** (2 / dim)
            return spread_of(rows, total, matrix=matrix, fabric=fabric) / share
        scale = torch.as_tensor(self.scale).to(unit)
        if scale.dim() and scale.shape[-1] != dim:
            raise ValueError(
                f"Expected scale of shape (), ({dim},) or ({dim}, {dim}), got "
                f"{tuple(scale.shape)}."
            )
        if scale.dim() < 2:
            scale = torch.diag_embed(scale.expand(dim))
        scale = scale / (unit.unsqueeze(-1) * unit)
        return scale if matrix else scale.diagonal()


def check_prior(prior: object) -> ConjugatePrior | None:
    """Checks that an argument is a prior, or None for none."""
    if prior is not None and not isinstance(prior, ConjugatePrior):
        raise ValueError(f"Expected prior to be a ConjugatePrior, got {type(prior).__name__}.")
    return prior


class PseudoPoints:
    """A prior's points, in the units of centred data.

    Args:
        prior: The prior.
        structure: Of the covariances.
        covariance: V, see `ConjugatePrior.covariance`.
    """

    def __init__(
        self, prior: ConjugatePrior, structure: CovarianceStructure, covariance: Tensor
    ) -> None:
        self._structure = structure
        self._added, self._shrinkage = prior.concentration - 1, prior.shrinkage
        k, dim = structure.num_components, structure.dim
        ones = covariance.new_ones(k)
        shared = k > 1 and len(structure.outer(ones, covariance.new_zeros(k, dim))) == 1
        self._share = prior.strength / (k if shared else 1)  # points of one component
        self._second = structure.pool(self._share * covariance.expand(k, *covariance.shape))
        # D points with the second moments of V.
        full = structure.full_moments
        root = torch.linalg.cholesky(covariance).mT if full else covariance.sqrt().diag()
        self._points = math.sqrt(dim) * root

    def log_prob(self, law: FiniteMixture, raw: Mapping[str, Tensor]) -> Tensor:
        """Log-density of the points under a mixture, and of its weights; a scalar.

        Args:
            law: The mixture, in the units of the data.
            raw: The parameters of its covariances.
        """
        k, zero = law.num_components, torch.zeros_like(law.loc)
        around = self._structure.mixture(torch.zeros_like(law.logits), zero, raw)
        of_scale = around._joint_log_prob(self._points).mean(0).sum() + k * math.log(k)
        of_mean = (law._joint_log_prob(zero[:1]) - law.logits).sum()
        of_weight = self._added * law.logits.sum() if self._added else 0.0
        return self._share * of_scale + self._shrinkage * of_mean + of_weight

    def maximize(
        self, statistics: Statistics, current: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The parameters of highest expected log-likelihood, of the data and of the points.

        Args:
            statistics: Of the data.
            current: The parameters of the covariances as they are.

        Returns:
            Logits, means, and parameters of the covariances.
        """
        outer, tiny = self._structure.outer, torch.finfo(statistics.weight.dtype).tiny
        logits = ((statistics.weight + self._added).clamp(min=tiny)).log()
        weight = (statistics.weight + self._shrinkage).clamp(min=tiny)
        # The data's mean is the origin.
        first = statistics.first - self._shrinkage * statistics.reference
        added = outer(torch.full_like(weight, self._shrinkage), statistics.reference)
        shift = first / weight.unsqueeze(-1)
        second = statistics.second + added - outer(weight, shift) + self._second
        moments = Moments(weight + self._share, second)
        raw = self._structure.estimate(moments, current)
        return logits.log_softmax(-1), statistics.reference + shift, raw


def spread_of(rows: Rows, total: float, *, matrix: bool, fabric: "Fabric | None" = None) -> Tensor:
    """Variances (D,) or covariance (D, D) of centred data, in float64.

    A matrix is positive definite, whatever the data: one point is added whose columns are
    independent. That of data with gaps is that of the normal distribution of highest likelihood.

    Args:
        rows: The data.
        total: Sum of the weights of all rows.
        matrix: Whether to return a matrix.
        fabric: Over which processes the rows are divided.
    """
    variance = rows.mean_square
    typical = variance.mean()
    typical = torch.where(typical > 0, typical, 1.0)
    variance = variance.clamp(min=CONSTANT_SHARE * typical)
    if not matrix:
        return variance
    expectation = Expectation(Full(rows.dim, 1, 0.0), rows)
    loc, diagonal = torch.zeros_like(variance).unsqueeze(0), variance.diag()
    covariance = diagonal
    for _ in range(SPREAD_STEPS if rows.has_gaps else 1):
        tril = torch.linalg.cholesky(covariance).unsqueeze(0)
        law = MixtureOfMultivariateNormals(loc.new_zeros(1), loc, tril, validate_args=False)
        statistics = expectation.around_origin(law).over_processes(fabric)
        loc = statistics.first / total
        covariance = (statistics.second[0] - total * loc.mT @ loc + diagonal) / (total + 1)
    return covariance


def _check_scale(scale: Tensor) -> Tensor:
    """A variance, variances or a covariance that are as they should be."""
    scale = scale.double()
    good = scale.dim() < 3 and bool(scale.isfinite().all())
    if good and scale.dim() < 2:
        good = bool((scale > 0).all())
    elif good:
        good = scale.shape[0] == scale.shape[1] and torch.equal(scale, scale.mT)
        good = good and not bool(torch.linalg.cholesky_ex(scale).info)
    if not good:
        raise ValueError(
            "Expected scale to be a positive variance, positive variances (D,) or a positive "
            "definite covariance (D, D), got another one."
        )
    return scale
