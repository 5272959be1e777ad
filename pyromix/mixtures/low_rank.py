r"""Mixtures of normals whose precision matrix is a diagonal plus a matrix of low rank.

With the precision :math:`P = \operatorname{diag}(d) + U U^\top`, U of shape (D, r), the matrix
determinant lemma and the Woodbury identity reduce everything to the r x r capacitance matrix

.. math:: C = I + U^\top \operatorname{diag}(d)^{-1} U ,

.. math:: \log N(x) = -\tfrac D2 \log 2\pi + \tfrac12 \Big[\sum_i \log d_i + \log |C|\Big]
          - \tfrac12 \Big[\sum_i d_i b_i^2 + |U^\top b|^2\Big], \qquad b = x - m .

The family is closed: conditioning keeps the rows of d and U that stay free; integrating
coordinates out multiplies U by a triangular matrix. No D x D matrix is formed unless asked for.
"""

__all__ = [
    "LowRankPrecisions",
    "MixtureOfLowRankPrecisionNormals",
    "check_low_rank_shapes",
    "check_low_rank_values",
]

import math
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from ..core.checks import check_tensor
from ..core.registry import register
from ..numerics.batches import (
    RowLayout,
    check_weight_and_mean_values,
    check_weights_and_means,
    common_batch_shape,
    extremes,
    pick,
)
from ..numerics.diagonal_density import component_log_prob
from ..numerics.implicit_correlated import reparameterize_low_rank
from ..numerics.low_rank import (
    capacitance_tril,
    covariance,
    draw_centred,
    low_rank_term,
    marginal_variance,
    masked_capacitance_tril,
    project,
    projections,
    solve_capacitance,
    solve_right,
)
from ..numerics.triangular import half_log_det
from .finite import FiniteMixture
from .full import MixtureOfMultivariateNormals
from .tensor_law import TensorLaw


class LowRankPrecisions(TensorLaw):
    r"""One or several precision matrices :math:`\operatorname{diag}(d) + U U^\top`.

    Shapes are written for several, of K components; of a single one they lack K.
    """

    _loc: Tensor
    _diag: Tensor
    _factor: Tensor
    _mean_dim: ClassVar[int]
    """Number of dimensions of a mean after the batch: 2 for (K, D), 1 for (D)."""

    @property
    def precision_diag(self) -> Tensor:
        r"""Diagonal parts d of the precisions, shape (\*B, K, D)."""
        return self._over_batch(self._diag, self._mean_dim)

    @property
    def precision_factor(self) -> Tensor:
        r"""Factors U of the rest of the precisions, shape (\*B, K, D, r)."""
        return self._over_batch(self._factor, self._mean_dim + 1)

    @property
    def precision_matrix(self) -> Tensor:
        r"""The precision matrices themselves, shape (\*B, K, D, D)."""
        matrix = torch.diag_embed(self._diag) + self._factor @ self._factor.mT
        return self._over_batch(matrix, self._mean_dim + 1)

    @property
    def covariance_matrix(self) -> Tensor:
        r"""The covariance matrices, shape (\*B, K, D, D)."""
        return self._over_batch(covariance(self._diag, self._factor), self._mean_dim + 1)

    def _marginal_variance(self) -> Tensor:
        r"""Diagonals of the covariance matrices, shape (\*B, K, D)."""
        return self._over_batch(marginal_variance(self._diag, self._factor), self._mean_dim)


class MixtureOfLowRankPrecisionNormals(LowRankPrecisions, FiniteMixture):
    r"""Finite mixture of normals with low-rank plus diagonal precision matrices.

    .. math:: p(x) = \sum_{k=1}^K w_k \,
              N\big(x; m_k, (\operatorname{diag}(d_k) + U_k U_k^\top)^{-1}\big)

    `log_prob` and draws cost O(N K D r). `rsample` has exact pathwise gradients, in a backward
    pass of O(N K D r + K D r^3).

    Args:
        logits: Unnormalised log-weights, shape (\*B, K). Minus infinity removes a component.
        loc: Means, shape (\*B, K, D).
        precision_diag: Diagonals d, positive, shape (\*B, K, D).
        precision_factor: Factors U, shape (\*B, K, D, r), r >= 0.
        validate_args: Whether to check the values of parameters and of scored samples.

    Raises:
        ValueError: For shapes, dtypes or devices that do not match, K = 0 or D = 0 and, under
            validation, NaN or a diagonal that is not positive.

    Example:
        >>> mixture = MixtureOfLowRankPrecisionNormals(
        ...     torch.zeros(3), torch.randn(3, 50), torch.ones(3, 50), torch.randn(3, 50, 2)
        ... )
        >>> mixture.log_prob(mixture.sample((4,))).shape
        torch.Size([4])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "precision_diag": constraints.independent(constraints.positive, 2),
        "precision_factor": constraints.independent(constraints.real, 3),
    }
    _mean_dim = 2
    _tensors: ClassVar[dict[str, int]] = {"_loc": 2, "_diag": 2, "_factor": 3}

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        precision_diag: Tensor,
        precision_factor: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        got = check_weights_and_means(logits, loc)
        batch_shape = check_low_rank_shapes(
            got, loc, precision_diag, precision_factor, self._mean_dim, logits.shape[:-1]
        )
        super().__init__(batch_shape, loc.shape[-1], validate_args)
        if self._checks_values:
            check_weight_and_mean_values(logits, loc)
            check_low_rank_values(precision_diag, precision_factor)
        self._logits, self._loc = logits, loc
        self._diag, self._factor = precision_diag, precision_factor

    @property
    def component_variance(self) -> Tensor:
        r"""Variance of every coordinate in every component, shape (\*B, K, D)."""
        return self._marginal_variance()

    @property
    def component_covariance(self) -> Tensor:
        r"""Covariances with no more batch dimensions than the precisions have: (\*, K, D, D)."""
        return covariance(self._diag, self._factor)

    def with_covariances(self, logits: Tensor, loc: Tensor, scale_tril: Tensor) -> FiniteMixture:
        """The mixture of other normals, correlated ones."""
        return MixtureOfMultivariateNormals(logits, loc, scale_tril, validate_args=False)

    def _joint_log_prob(self, value: Tensor, observed: Tensor | None = None) -> Tensor:
        own = common_batch_shape(
            "", self._loc.shape[:-2], self._diag.shape[:-2], self._factor.shape[:-3]
        )
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        layout = RowLayout(leading, own)
        x, loc, diag = layout.rows(value), *map(layout.components, (self._loc, self._diag))
        factor = layout.components(self._factor, tail=3)
        log_weights = self._logits.log_softmax(-1)
        offset = log_weights if log_weights.dim() == 1 else layout.rows(log_weights)
        if x.shape[-2] == 1 and observed is None and factor.shape[-1]:  # a law for every point
            low_rank = low_rank_term(x - loc, diag, factor).unsqueeze(-2)
            return layout.restore(component_log_prob(x, loc, diag.rsqrt(), offset) + low_rank)
        offset = offset + half_log_det(capacitance_tril(diag, factor)).unsqueeze(-2)
        seen = None if observed is None else layout.rows(observed)
        scores = component_log_prob(x, loc, diag.rsqrt(), offset, seen)
        projected = projections(x, loc, factor, seen)  # (*batch, N, K, r)
        if seen is not None:
            # Of the coordinates that are integrated out; in place of C, |C| / |C_missing|.
            missing = masked_capacitance_tril(diag, factor, 1 - seen)
            projected = torch.linalg.solve_triangular(
                missing, projected.unsqueeze(-1), upper=False
            ).squeeze(-1)
            scores = scores - half_log_det(missing)
        return layout.restore(scores - 0.5 * projected.square().sum(-1))

    def _joint_log_prob_observed(self, value: Tensor, observed: Tensor) -> Tensor:
        return self._joint_log_prob(value, observed.to(value.dtype))

    def _draw(self, component: Tensor, noise: Tensor) -> Tensor:
        loc, diag = pick(self._loc, component, 1), pick(self._diag, component, 1)
        return loc + draw_centred(diag, pick(self._factor, component, 2), noise)

    @property
    def _num_noise(self) -> int:
        return self.event_shape[0] + self._factor.shape[-1]

    def _reparameterize(self, x: Tensor) -> Tensor:
        parameters = self._logits, self._loc, self._diag, self._factor
        return reparameterize_low_rank(x, len(self.batch_shape), *parameters)

    def _in_units(self, loc: Tensor, scale: Tensor) -> "MixtureOfLowRankPrecisionNormals":
        diag, factor = self._diag / scale.square(), self._factor / scale.unsqueeze(-1)
        moved = self._loc * scale + loc
        make = MixtureOfLowRankPrecisionNormals
        return make(self._logits, moved, diag, factor, validate_args=False)

    def _marginal(self, kept: list[int]) -> "MixtureOfLowRankPrecisionNormals":
        out = [d for d in range(self.event_shape[0]) if d not in kept]
        tril = capacitance_tril(self._diag[..., out].double(), self._factor[..., out, :].double())
        factor = solve_right(tril, self._factor[..., kept, :].double()).to(self._factor.dtype)
        return MixtureOfLowRankPrecisionNormals(
            self._logits,
            self._loc[..., kept],
            self._diag[..., kept],
            factor,
            validate_args=False,
        )

    def _condition(
        self, given: list[int], free: list[int], value: Tensor
    ) -> "MixtureOfLowRankPrecisionNormals":
        logits = self._marginal(given)._joint_log_prob(value)
        diag, factor = self._diag[..., free], self._factor[..., free, :]
        b = value.unsqueeze(-2) - self._loc[..., given]  # (*N, K, given)
        pull = project(b, self._factor[..., given, :])  # (*N, K, r)
        scaled = factor / diag.sqrt().unsqueeze(-1)
        shift = diag.rsqrt() * solve_capacitance(scaled, pull)
        return MixtureOfLowRankPrecisionNormals(
            logits, self._loc[..., free] - shift, diag, factor, validate_args=False
        )


register(MixtureOfLowRankPrecisionNormals)


def check_low_rank_shapes(
    got: str,
    loc: Tensor,
    diag: object,
    factor: object,
    tail: int,
    *shapes: Size,
    kind: str = "precision",
) -> Size:
    """Checks types and shapes of precisions; their values are left to `check_low_rank_values`.

    Args:
        got: Shapes of the other parameters as text, for the error.
        loc: Means, which have been checked.
        diag: Diagonal parts d.
        factor: Factors U.
        tail: Number of dimensions of a mean after the batch: 2 for (K, D), 1 for (D).
        shapes: Batch shapes of other parameters.
        kind: What the parameters are called by: ``"precision"``, or ``"cov"`` for covariances.

    Returns:
        The batch shape of all parameters together.

    Raises:
        ValueError: If they do not fit.
    """
    diag = check_tensor(f"{kind}_diag", diag, like=loc)
    factor = check_tensor(f"{kind}_factor", factor, like=loc)
    got += f", {kind}_diag {tuple(diag.shape)}, {kind}_factor {tuple(factor.shape)}"
    event = loc.shape[loc.dim() - tail :]
    names = "(*B, K, D" if tail == 2 else "(*B, D"
    fits = diag.shape[diag.dim() - tail :] == event and factor.dim() > tail
    if not fits or factor.shape[factor.dim() - tail - 1 : -1] != event:
        raise ValueError(
            f"Expected {kind}_diag of shape {names}) and {kind}_factor of shape {names}, r) "
            f"that fit loc, got {got}."
        )
    own = loc.shape[:-tail], diag.shape[:-tail], factor.shape[: -tail - 1]
    return common_batch_shape(got, *shapes, *own)


def check_low_rank_values(diag: Tensor, factor: Tensor, kind: str = "precision") -> None:
    """Checks the values of precisions, or of covariances.

    Raises:
        ValueError: If a diagonal is not positive, or for NaN and infinity.
    """
    smallest, largest = extremes(diag)
    if not (smallest > 0 and largest < math.inf):
        raise ValueError(
            f"Expected a positive, finite {kind}_diag, got values from {smallest} to "
            f"{largest}. Map unconstrained numbers with exp or softplus first."
        )
    if not math.isfinite(factor.sum().item()) and not factor.isfinite().all():
        raise ValueError(f"Expected finite values of {kind}_factor, got NaN or infinity.")
