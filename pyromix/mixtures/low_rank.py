r"""Normals whose precision matrix is a diagonal plus a matrix of low rank, and mixtures of them.

With the precision :math:`P = \operatorname{diag}(d) + U U^\top`, U of shape (D, r), the matrix
determinant lemma and the Woodbury identity reduce everything to the r x r capacitance matrix

.. math:: C = I + U^\top \operatorname{diag}(d)^{-1} U ,

.. math:: \log N(x) = -\tfrac D2 \log 2\pi + \tfrac12 \Big[\sum_i \log d_i + \log |C|\Big]
          - \tfrac12 \Big[\sum_i d_i b_i^2 + |U^\top b|^2\Big], \qquad b = x - m .

The family is closed: conditioning keeps the rows of d and U that stay free; integrating
coordinates out multiplies U by a triangular matrix. No D x D matrix is formed unless asked for.
"""

__all__ = ["LowRankPrecisionNormal", "MixtureOfLowRankPrecisionNormals"]

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from ..core.checks import check_expandable, check_tensor, check_value, is_traced
from ..core.registry import register
from ..numerics.batches import (
    RowLayout,
    check_weight_and_mean_values,
    check_weights_and_means,
    common_batch_shape,
    pick,
)
from ..numerics.diagonal_density import LOG_2PI, component_log_prob
from ..numerics.implicit_correlated import reparameterize_low_rank
from ..numerics.low_rank import (
    _spread,
    capacitance_tril,
    covariance,
    draw_centred,
    log_det,
    low_rank_term,
    marginal_variance,
    masked_capacitance_tril,
    project,
    projections,
    solve_right,
)
from ..numerics.triangular import half_log_det
from .finite import FiniteMixture


class LowRankPrecisionNormal(TorchDistribution):
    r"""Normal with precision matrix :math:`\operatorname{diag}(d) + U U^\top`.

    Few directions in which coordinates are tied closely together cost few columns of U. Density
    and draws cost O(D r + r^3); rank 0 is the diagonal normal. The small matrix is factorised in
    float64.

    Args:
        loc: Mean, shape (\*B, D).
        precision_diag: Diagonal d, positive, shape (\*B, D).
        precision_factor: Factor U, shape (\*B, D, r), r >= 0.
        validate_args: Whether to check the values of parameters and of scored samples.

    Raises:
        ValueError: For shapes, dtypes or devices that do not match, D = 0 and, under validation,
            NaN or a diagonal that is not positive.

    Example:
        >>> normal = LowRankPrecisionNormal(torch.zeros(2), torch.ones(2), torch.ones(2, 1))
        >>> normal.precision_matrix
        tensor([[2., 1.],
                [1., 2.]])
        >>> normal.rsample((3,)).shape
        torch.Size([3, 2])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "precision_diag": constraints.independent(constraints.positive, 1),
        "precision_factor": constraints.independent(constraints.real, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        precision_diag: Tensor,
        precision_factor: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        loc = check_tensor("loc", loc)
        if loc.dim() < 1 or loc.shape[-1] == 0:
            raise ValueError(f"Expected loc of shape (*B, D), D >= 1, got {tuple(loc.shape)}.")
        got = f"loc {tuple(loc.shape)}"
        batch_shape = _check_precision(loc, precision_diag, precision_factor, 1, got, [])
        if validate_args is None:
            validate_args = Distribution._validate_args
        if validate_args and not is_traced():
            if not math.isfinite(loc.sum().item()) and not loc.isfinite().all():
                raise ValueError("Expected finite values of loc, got NaN or infinity.")
            _check_precision_values(precision_diag, precision_factor)
        self._loc, self._diag, self._factor = loc, precision_diag, precision_factor
        super().__init__(batch_shape, loc.shape[-1:], validate_args=False)
        self._validate_args = validate_args

    @property
    def loc(self) -> Tensor:
        r"""Mean, shape (\*B, D)."""
        return self._loc.expand(*self.batch_shape, -1)

    @property
    def precision_diag(self) -> Tensor:
        r"""Diagonal part of the precision, shape (\*B, D)."""
        return self._diag.expand(*self.batch_shape, -1)

    @property
    def precision_factor(self) -> Tensor:
        r"""Factor of the rest of the precision, shape (\*B, D, r)."""
        return self._factor.expand(*self.batch_shape, -1, -1)

    @property
    def mean(self) -> Tensor:
        r"""Mean, shape (\*B, D)."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        r"""Variance of every coordinate, shape (\*B, D)."""
        return marginal_variance(self._diag, self._factor).expand(self.loc.shape)

    @property
    def precision_matrix(self) -> Tensor:
        r"""The precision matrix itself, shape (\*B, D, D)."""
        matrix = torch.diag_embed(self._diag) + self._factor @ self._factor.mT
        return matrix.expand(*self.batch_shape, *matrix.shape[-2:])

    @property
    def covariance_matrix(self) -> Tensor:
        r"""The covariance matrix, shape (\*B, D, D)."""
        matrix = covariance(self._diag, self._factor)
        return matrix.expand(*self.batch_shape, *matrix.shape[-2:])

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "LowRankPrecisionNormal":
        """Returns the same law with a larger batch shape; nothing is copied."""
        batch_shape = check_expandable(self, batch_shape)
        new = self._get_checked_instance(LowRankPrecisionNormal, _instance)
        new._loc, new._diag, new._factor = self._loc, self._diag, self._factor
        super(LowRankPrecisionNormal, new).__init__(batch_shape, self.event_shape, False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of points of shape (\*S, \*B, D); shape (\*S, \*B)."""
        value = check_value(self, value, like=self._loc)
        b = value - self.loc
        log_prob = 0.5 * (self._diag.log() - self._diag * b.square() - LOG_2PI).sum(-1)
        projected = project(b, self._factor)
        tril = capacitance_tril(self._diag, self._factor)
        return log_prob + half_log_det(tril) - 0.5 * projected.square().sum(-1)

    def entropy(self) -> Tensor:
        r"""Differential entropy in nats, shape (\*B)."""
        tril = capacitance_tril(self._diag, self._factor)
        dim = self._loc.shape[-1]
        entropy = 0.5 * (dim * (1 + LOG_2PI) - log_det(self._diag, tril))
        return entropy.expand(self.batch_shape)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws with pathwise gradients; shape (\*S, \*B, D)."""
        dim, rank = self._factor.shape[-2:]
        noise = self._loc.new_empty(*sample_shape, *self.batch_shape, dim + rank).normal_()
        return self._loc + draw_centred(self._diag, self._factor, noise)

    def marginal(self, dims: int | Iterable[object]) -> "LowRankPrecisionNormal":
        """Law of some of the coordinates; see `MixtureOfLowRankPrecisionNormals.marginal`."""
        return self._component(self._as_mixture().marginal(dims))

    def condition(self, observed: Mapping[int, float | Tensor]) -> "LowRankPrecisionNormal":
        """Law of the others given some; see `MixtureOfLowRankPrecisionNormals.condition`."""
        return self._component(self._as_mixture().condition(observed))

    def _as_mixture(self) -> "MixtureOfLowRankPrecisionNormals":
        one = self._loc.new_zeros(*self.batch_shape, 1)
        parts = self._loc.unsqueeze(-2), self._diag.unsqueeze(-2), self._factor.unsqueeze(-3)
        mixture = MixtureOfLowRankPrecisionNormals(one, *parts, validate_args=False)
        mixture._validate_args = self._validate_args
        return mixture

    def _component(self, mixture: FiniteMixture) -> "LowRankPrecisionNormal":
        assert isinstance(mixture, MixtureOfLowRankPrecisionNormals)
        loc, diag, factor = mixture.loc, mixture.precision_diag, mixture.precision_factor
        law = LowRankPrecisionNormal(
            loc.squeeze(-2), diag.squeeze(-2), factor.squeeze(-3), validate_args=False
        )
        law._validate_args = self._validate_args
        return law


class MixtureOfLowRankPrecisionNormals(FiniteMixture):
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
        shapes = [logits.shape[:-1]]
        batch_shape = _check_precision(loc, precision_diag, precision_factor, 2, got, shapes)
        if validate_args is None:
            validate_args = Distribution._validate_args
        if validate_args and not is_traced():
            check_weight_and_mean_values(logits, loc)
            _check_precision_values(precision_diag, precision_factor)
        self._logits, self._loc = logits, loc
        self._diag, self._factor = precision_diag, precision_factor
        TorchDistribution.__init__(self, batch_shape, loc.shape[-1:], validate_args=False)
        self._validate_args = validate_args

    @property
    def precision_diag(self) -> Tensor:
        r"""Diagonal parts of the precisions, shape (\*B, K, D)."""
        return self._diag.expand(*self.batch_shape, -1, -1)

    @property
    def precision_factor(self) -> Tensor:
        r"""Factors of the rest of the precisions, shape (\*B, K, D, r)."""
        return self._factor.expand(*self.batch_shape, -1, -1, -1)

    @property
    def component_variance(self) -> Tensor:
        r"""Variance of every coordinate in every component, shape (\*B, K, D)."""
        return marginal_variance(self._diag, self._factor).expand(self.loc.shape)

    @property
    def precision_matrix(self) -> Tensor:
        r"""The precision matrices themselves, shape (\*B, K, D, D)."""
        matrix = torch.diag_embed(self._diag) + self._factor @ self._factor.mT
        return matrix.expand(*self.batch_shape, *matrix.shape[-3:])

    @property
    def covariance_matrix(self) -> Tensor:
        r"""Covariance matrices of the components, shape (\*B, K, D, D)."""
        matrix = self.component_covariance
        return matrix.expand(*self.batch_shape, *matrix.shape[-3:])

    @property
    def component_covariance(self) -> Tensor:
        r"""Covariances with no more batch dimensions than the precisions have: (\*, K, D, D)."""
        return covariance(self._diag, self._factor)

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
        shift = diag.rsqrt() * _spread(scaled, pull)
        return MixtureOfLowRankPrecisionNormals(
            logits, self._loc[..., free] - shift, diag, factor, validate_args=False
        )


for _cls in (LowRankPrecisionNormal, MixtureOfLowRankPrecisionNormals):
    register(_cls)


def _check_precision(
    loc: Tensor,
    diag: object,
    factor: object,
    tail: int,
    got: str,
    shapes: list[Size],
) -> Size:
    """Checks all but the values; returns the batch shape. `tail` is the rank of a mean."""
    diag = check_tensor("precision_diag", diag, like=loc)
    factor = check_tensor("precision_factor", factor, like=loc)
    got += f", precision_diag {tuple(diag.shape)}, precision_factor {tuple(factor.shape)}"
    event = loc.shape[loc.dim() - tail :]
    names = "(*B, K, D" if tail == 2 else "(*B, D"
    fits = diag.shape[diag.dim() - tail :] == event and factor.dim() > tail
    if not fits or factor.shape[factor.dim() - tail - 1 : -1] != event:
        raise ValueError(
            f"Expected precision_diag of shape {names}) and precision_factor of shape {names}, r) "
            f"that fit loc, got {got}."
        )
    shapes = [*shapes, loc.shape[:-tail], diag.shape[:-tail], factor.shape[: -tail - 1]]
    return common_batch_shape(got, *shapes)


def _check_precision_values(diag: Tensor, factor: Tensor) -> None:
    smallest, largest = (t.item() for t in diag.aminmax())
    if not (smallest > 0 and largest < math.inf):
        raise ValueError(
            f"Expected a positive, finite precision_diag, got values from {smallest} to "
            f"{largest}. Map unconstrained numbers with exp or softplus first."
        )
    if not math.isfinite(factor.sum().item()) and not factor.isfinite().all():
        raise ValueError("Expected finite values of precision_factor, got NaN or infinity.")
