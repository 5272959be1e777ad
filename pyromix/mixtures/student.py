"""A finite mixture of multivariate Student-t laws with tensors for parameters."""

__all__ = ["MixtureOfStudentT"]

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from ..conditioning.parts import register_part
from ..conditioning.student import StudentPrior, Students
from ..conditioning.student_quantiles import student_quantile
from ..core.checks import check_tensor, is_traced
from ..core.registry import register
from ..numerics.batches import (
    RowLayout,
    check_weight_and_mean_values,
    check_weights_and_means,
    common_batch_shape,
    extremes,
    pick,
)
from ..numerics.diagonal_density import LOG_2PI
from ..numerics.full_precision import in_full_precision
from ..numerics.implicit_correlated import reparameterize_student
from ..numerics.squared_distances import squared_distances
from ..numerics.student_cdf import student_tails
from ..numerics.student_density import student_log_prob
from ..numerics.triangular import half_log_det
from .diagonal import MixtureOfNormals
from .finite import FiniteMixture
from .full import MixtureOfMultivariateNormals


class MixtureOfStudentT(FiniteMixture):
    r"""Finite mixture of multivariate Student-t laws, whose tails are heavier than a normal's.

    .. math:: p(x) = \sum_{k=1}^K w_k \frac{\Gamma((\nu_k + D) / 2)}{\Gamma(\nu_k / 2)
              (\nu_k \pi)^{D/2} |\Sigma_k|^{1/2}}
              \Big(1 + \frac{(x - m_k)^\top \Sigma_k^{-1} (x - m_k)}{\nu_k}\Big)^{-(\nu_k + D)/2}

    A component is a normal whose scale is random: with z standard normal and g of a chi-squared
    law of :math:`\nu_k` degrees of freedom, :math:`x = m_k + L_k z \sqrt{\nu_k / g}`. Coordinates
    of a component are thus dependent also where :math:`\Sigma_k` is diagonal. It tends to the
    normal for many degrees of freedom, and is one for infinitely many. Marginals and conditionals
    are Student-t again: given values of q coordinates there are :math:`\nu_k + q` degrees of
    freedom.

    The density is computed in float64 whatever the dtype. `rsample` has exact pathwise gradients
    in all parameters, by implicit differentiation of the mixture. Gradients of
    `rsample_with_score` and `rsample_weighted` in `df` are those of PyTorch's gamma law; the
    latter spreads z evenly, and draws g independently.

    Args:
        logits: Unnormalised log-weights, shape (\*B, K). Minus infinity removes a component.
        df: Degrees of freedom, shape (\*B, K), positive; they may be infinite.
        loc: Locations, shape (\*B, K, D): means where there are more than one degree of freedom.
        scale: Scales of diagonal components, shape (\*B, K, D).
        scale_tril: In place of `scale`, lower Cholesky factors of the scale matrices
            :math:`\Sigma`, shape (\*B, K, D, D), or (\*B, 1, D, D) for one that is tied between
            components. Covariances are these times :math:`\nu / (\nu - 2)`.
        validate_args: Whether to check the values of parameters and of scored samples.

    All may have batch shapes of their own that broadcast to B.

    Raises:
        ValueError: For shapes, dtypes or devices that do not match, K = 0 or D = 0, none or both
            of the scales and, under validation, NaN or parameters that are not positive.

    Example:
        >>> from pyromix import Observed
        >>> loc = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
        >>> df = torch.tensor([3.0, 5.0])
        >>> mixture = MixtureOfStudentT(torch.zeros(2), df, loc, torch.ones(2, 2))
        >>> mixture.log_prob(torch.tensor([1e8, 0.0])) > -1000
        tensor(True)
        >>> mixture.condition(Observed({0: 2.0})).free().df
        tensor([4., 6.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "df": constraints.independent(constraints.positive, 1),
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
        "scale_tril": constraints.independent(constraints.lower_cholesky, 1),
    }

    _has_normals = False

    def __init__(
        self,
        logits: Tensor,
        df: Tensor,
        loc: Tensor,
        scale: Tensor | None = None,
        *,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        batch_shape = _check_shapes(logits, df, loc, scale, scale_tril)
        super().__init__(batch_shape, loc.shape[-1], validate_args)
        if self._checks_values:
            _check_values(logits, df, loc, scale, scale_tril)
        self._logits, self._df, self._loc = logits, df, loc
        self._scale, self._scale_tril = scale, scale_tril

    @classmethod
    def of(cls, normals: FiniteMixture, df: Tensor) -> "MixtureOfStudentT":
        r"""The mixture that has weights, locations and scales of another one, of normals.

        Args:
            normals: The other mixture, of diagonal normals or of such with scale factors.
            df: Degrees of freedom, shape (\*B, K).

        Raises:
            ValueError: If the scales of the other mixture are of another kind.
        """
        given: dict[str, Tensor] = {}
        if isinstance(normals, MixtureOfNormals):
            given["scale"] = normals._scale
        elif isinstance(normals, MixtureOfMultivariateNormals):
            given["scale_tril"] = normals._scale_tril
        else:
            raise ValueError(
                f"Expected a MixtureOfNormals or a MixtureOfMultivariateNormals, got a "
                f"{type(normals).__name__}, which has no scale factors."
            )
        law = cls(normals._logits, df, normals._loc, **given, validate_args=False)
        law._validate_args = normals._validate_args
        return law

    @property
    def df(self) -> Tensor:
        r"""Degrees of freedom, shape (\*B, K)."""
        return self._df.expand(*self.batch_shape, self.num_components)

    @property
    def is_diagonal(self) -> bool:
        """Whether the scale matrices are diagonal by construction."""
        return self._scale is not None

    @property
    def scale(self) -> Tensor:
        r"""Roots of the diagonals of the scale matrices, shape (\*B, K, D)."""
        return self._squared_scale.sqrt()

    @property
    def scale_tril(self) -> Tensor:
        r"""Cholesky factors of the scale matrices, shape (\*B, K, D, D)."""
        tril = torch.diag_embed(self._scale) if self._scale is not None else self._full.tril()
        return tril.expand(*self.batch_shape, self.num_components, -1, -1)

    @property
    def mean(self) -> Tensor:
        r"""Mean, shape (\*B, D); NaN where a component has no more than one degree of freedom."""
        return torch.where(self._fewest_df.unsqueeze(-1) > 1, self._centre, math.nan)

    @property
    def variance(self) -> Tensor:
        r"""Variance of every coordinate, shape (\*B, D).

        Infinite where a component has no more than two degrees of freedom, and NaN where one has
        no more than one.
        """
        fewest = self._fewest_df.unsqueeze(-1)
        deviation = self.loc - self._centre.unsqueeze(-2)
        weight = self.logits.exp().unsqueeze(-1)
        counts = (self.df > 2).unsqueeze(-1)  # others have no weight, or decide the result
        own = torch.where(counts, self.component_variance, 0.0)
        variance = (weight * (own + deviation.square())).sum(-2)
        variance = torch.where(fewest > 2, variance, math.inf)
        return torch.where(fewest > 1, variance, math.nan)

    @property
    def component_variance(self) -> Tensor:
        r"""Variance of every coordinate in every component, shape (\*B, K, D)."""
        return self._squared_scale * _inflation(self.df).unsqueeze(-1)

    @property
    def _squared_scale(self) -> Tensor:
        return self._normals.component_variance.expand(self.loc.shape)

    @property
    def component_covariance(self) -> Tensor:
        r"""Covariances with no more batch dimensions than their parameters: (\*, K, D, D)."""
        return self._normals.component_covariance * _inflation(self._df)[..., None, None]

    def with_covariances(self, logits: Tensor, loc: Tensor, scale_tril: Tensor) -> FiniteMixture:
        """The mixture of normals, correlated ones."""
        return MixtureOfMultivariateNormals(logits, loc, scale_tril, validate_args=False)

    def with_scales(
        self, logits: Tensor, df: Tensor, loc: Tensor, scale_tril: Tensor
    ) -> "MixtureOfStudentT":
        """The mixture of other Student-t laws, with scale factors; see the constructor."""
        return MixtureOfStudentT(logits, df, loc, scale_tril=scale_tril, validate_args=False)

    def evidence_prior(self) -> StudentPrior:
        """The mixture as what evidence is added to."""
        return StudentPrior(self)

    def _component_cdf(self, value: Tensor) -> Tensor:
        if self.event_shape != (1,):
            return super()._component_cdf(value)
        z = ((value.unsqueeze(-2) - self._loc) / self.scale).squeeze(-1).double()
        tail = student_tails(z, self._df.double()).to(value.dtype)
        return torch.where(z < 0, tail, 1 - tail)

    def _quantile_of_line(self, probs: Tensor) -> Tensor:
        log_weight, loc, scale = self._on_the_line(self.scale)
        df = self.df.detach().double().reshape(loc.shape)
        return student_quantile(probs, log_weight, df, loc, scale)

    def students_given(self, given: list[int], free: list[int], value: Tensor) -> Students:
        r"""The components given values (\*N, given) of some coordinates, for conditioning."""
        log_joint = self._logits.log_softmax(-1)
        if not given:
            return Students(log_joint, self._df, self._loc, self._factor)
        if not free:
            log_joint = self._marginal(given)._joint_log_prob(value)
            none = self._loc[..., :0]
            return Students(log_joint, self._df, none, none.unsqueeze(-1))
        law = self._condition(given, free, value)
        return Students(law._logits, law._df, law._loc, law._factor)

    # ---- what a component is --------------------------------------------------------------

    @property
    def _tensors(self) -> dict[str, int]:  # type: ignore[override]
        name, tail = ("_scale", 2) if self.is_diagonal else ("_scale_tril", 3)
        return {"_df": 1, "_loc": 2, name: tail}

    def _remade(self, tensors: Sequence[Tensor]) -> Self:
        logits, df, loc, scale = tensors
        name = "scale" if self.is_diagonal else "scale_tril"
        make: Any = type(self)
        law: Self = make(logits, df, loc, **{name: scale}, validate_args=False)
        return law

    @property
    def _full(self) -> Tensor:
        """The scale factors as given, of components that are not diagonal."""
        assert self._scale_tril is not None
        return self._scale_tril

    @property
    def _factor(self) -> Tensor:
        r"""Scale factors, with no more batch dimensions than given: (\*, K or 1, D, D)."""
        return torch.diag_embed(self._scale) if self._scale is not None else self._full.tril()

    @property
    def _normals(self) -> MixtureOfNormals | MixtureOfMultivariateNormals:
        """The normals that have these locations and scales."""
        return self._normals_at(self._loc)

    def _normals_at(self, loc: Tensor) -> MixtureOfNormals | MixtureOfMultivariateNormals:
        if self._scale is not None:
            return MixtureOfNormals(self._logits, loc, self._scale, validate_args=False)
        return MixtureOfMultivariateNormals(self._logits, loc, self._full, validate_args=False)

    @property
    def _fewest_df(self) -> Tensor:
        """Degrees of freedom of the heaviest tail that has a weight, shape (*B,)."""
        return torch.where(self.logits > -math.inf, self.df, math.inf).amin(-1)

    @in_full_precision
    def _joint_log_prob(self, value: Tensor, observed: Tensor | None = None) -> Tensor:
        double = self.map_tensors(Tensor.double)
        seen = None if observed is None else observed.double()
        scores = double._joint_of(value.double(), seen).to(value.dtype)
        return scores.expand(*torch.broadcast_shapes(value.shape[:-1], self.batch_shape), -1)

    def _joint_of(self, value: Tensor, observed: Tensor | None) -> Tensor:
        """The joint log-densities of mixture and values in float64."""
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        dim: int | Tensor = value.shape[-1]
        if observed is not None:
            dim = observed.sum(-1, keepdim=True)
        if self._scale is not None:
            peak, square = self._diagonal_parts(value, observed, leading)
        elif observed is not None:
            normals: Any = self._normals
            log_det, square = normals._masked_squares(value, observed)
            peak = self._logits.log_softmax(-1) - log_det - 0.5 * LOG_2PI * dim
        else:
            square = self._squares(value)
            peak = self._logits.log_softmax(-1) - half_log_det(self._full) - 0.5 * LOG_2PI * dim
        return student_log_prob(peak, square, self._df, dim)

    def _diagonal_parts(
        self, value: Tensor, observed: Tensor | None, leading: Size
    ) -> tuple[Tensor, Tensor]:
        """Log-densities at the peak, with weights, and squared distances, of diagonal scales."""
        assert self._scale is not None
        own = torch.broadcast_shapes(self._loc.shape[:-2], self._scale.shape[:-2])
        layout = RowLayout(leading, own)
        loc, scale = layout.components(self._loc), layout.components(self._scale)
        df = layout.rows(self._df) if self._df.dim() > 1 else self._df
        seen = None if observed is None else layout.rows(observed)
        square = squared_distances(layout.rows(value), loc, scale, df, seen)
        each = -self._scale.log() - 0.5 * LOG_2PI  # (*, K, D)
        counted = each if observed is None else each * observed.unsqueeze(-2)
        peak = counted.sum(-1)
        return self._logits.log_softmax(-1) + peak, layout.restore(square)

    def _squares(self, value: Tensor) -> Tensor:
        """Squared distances (*S, *B, K) of values in units of the scale factors."""
        normals: Any = self._normals
        tril = self._full
        if tril.shape[-3] == 1 and tril.dim() == 3 and self._loc.dim() == 2:
            # Whitened once, points and locations are those of spherical components.
            points, loc = normals._whitened(value.reshape(-1, value.shape[-1]))
            square = squared_distances(points, loc, torch.ones_like(loc), self._unit)
            return square.reshape(*value.shape[:-1], self.num_components)
        if self.batch_shape:
            found: Tensor = normals._squares(value)
            return found
        found = normals._squares(value.reshape(-1, value.shape[-1]))
        return found.reshape(*value.shape[:-1], self.num_components)

    @property
    def _unit(self) -> Tensor:
        """Distances next to which smaller ones need not be accurate, shape (K,)."""
        return self._df.reshape(-1, self.num_components).amin(0)

    def _joint_log_prob_observed(self, value: Tensor, observed: Tensor) -> Tensor:
        if self.is_diagonal or is_traced():  # which patterns there are depends on values
            return self._joint_log_prob(value, observed)
        return self._scores_by_pattern(value, observed)

    def _draw(self, component: Tensor, noise: Tensor) -> Tensor:
        deviation = self._normals_at(torch.zeros_like(self._loc))._draw(component, noise)
        df = pick(self._df, component, 0)
        infinite = df.isinf()
        half = torch.where(infinite, 1.0, 0.5 * df)
        tiny = torch.finfo(half.dtype).tiny
        ratio = (torch._standard_gamma(half) / half).clamp(min=tiny)  # g / df
        stretch = torch.where(infinite, 1.0, ratio.rsqrt()).unsqueeze(-1)
        return pick(self._loc, component, 1) + deviation * stretch

    def _reparameterize(self, x: Tensor) -> Tensor:
        scale = self._scale if self._scale is not None else self._full
        parameters = self._logits, self._df, self._loc, scale
        batch_dim = len(self.batch_shape)
        return reparameterize_student(x, batch_dim, *parameters, diagonal=self.is_diagonal)

    def _in_units(self, loc: Tensor, scale: Tensor) -> "MixtureOfStudentT":
        return MixtureOfStudentT.of(self._normals._in_units(loc, scale), self._df)

    def _marginal(self, kept: list[int]) -> "MixtureOfStudentT":
        return MixtureOfStudentT.of(self._normals._marginal(kept), self._df)

    def _condition(self, given: list[int], free: list[int], value: Tensor) -> "MixtureOfStudentT":
        double = self.map_tensors(Tensor.double)
        law = double._condition_in_double(given, free, value.double())
        return law.map_tensors(lambda tensor: tensor.to(self._loc.dtype))

    def _condition_in_double(
        self, given: list[int], free: list[int], value: Tensor
    ) -> "MixtureOfStudentT":
        count, df = len(given), self._df
        if self._scale is not None:
            scale, loc = self._scale[..., given], self._loc[..., given]
            square = ((value.unsqueeze(-2) - loc) / scale).square().sum(-1)  # (*N, K)
            peak = self._logits.log_softmax(-1) - (scale.log() + 0.5 * LOG_2PI).sum(-1)
            loc, factor, tail = self._loc[..., free], self._scale[..., free], 1
        else:
            normals: Any = self._normals
            peak, square, loc, factor = normals._regress(given, free, value)
            tail = 2
        logits = student_log_prob(peak, square, df, count)
        infinite = df.isinf()
        finite = torch.where(infinite, 1.0, df)
        stretch = torch.where(infinite, 1.0, (finite + square) / (finite + count)).sqrt()
        scale = factor * stretch.reshape(*stretch.shape, *[1] * tail)
        name = "scale" if self.is_diagonal else "scale_tril"
        make: Any = MixtureOfStudentT
        law: MixtureOfStudentT = make(
            logits, df + count, loc, **{name: scale}, validate_args=False
        )
        return law


register(MixtureOfStudentT)


def _parts_of(mixture: MixtureOfStudentT) -> Mapping[str, Any]:
    """What a mixture is made of, for files."""
    return {
        "tensors": [mixture._logits, mixture._df, mixture._loc],
        "scale": mixture._scale,
        "scale_tril": mixture._scale_tril,
        "validate_args": bool(mixture._validate_args),
    }


def _from_parts(
    tensors: list[Tensor], scale: Tensor | None, scale_tril: Tensor | None, validate_args: bool
) -> MixtureOfStudentT:
    logits, df, loc = tensors
    law = MixtureOfStudentT(logits, df, loc, scale, scale_tril=scale_tril, validate_args=False)
    law._validate_args = validate_args
    return law


register_part(MixtureOfStudentT, _parts_of, _from_parts)


def _inflation(df: Tensor) -> Tensor:
    """Variance over squared scale: infinite up to two degrees of freedom, NaN up to one."""
    finite = torch.where((df > 2) & df.isfinite(), df, 4.0)
    ratio = torch.where(df.isinf(), 1.0, finite / (finite - 2))
    ratio = torch.where(df > 2, ratio, math.inf)
    return torch.where(df > 1, ratio, math.nan)


def _check_shapes(
    logits: Tensor, df: Tensor, loc: Tensor, scale: Tensor | None, scale_tril: Tensor | None
) -> Size:
    """Checks everything about the parameters but their values; returns the batch shape."""
    got = f"{check_weights_and_means(logits, loc)}, "
    check_tensor("df", df, like=loc)
    if (scale is None) == (scale_tril is None):
        raise ValueError(
            f"Expected one of scale and scale_tril, got {'neither' if scale is None else 'both'}."
        )
    name, factor = ("scale", scale) if scale is not None else ("scale_tril", scale_tril)
    factor = check_tensor(name, factor, like=loc)
    got += f"df {tuple(df.shape)}, {name} {tuple(factor.shape)}"
    k, dim = loc.shape[-2:]
    if df.dim() < 1 or df.shape[-1] != k:
        raise ValueError(
            f"Expected df of shape (*B, K), one for every component, got {got}. Degrees of "
            f"freedom that components share must be expanded."
        )
    if scale is not None:
        tail, fits = 2, factor.dim() >= 2 and factor.shape[-2:] == (k, dim)
        wanted = "scale of shape (*B, K, D); scales that components share must be expanded"
    else:
        tail = 3
        fits = factor.dim() >= 3 and factor.shape[-2:] == (dim, dim)
        fits = fits and factor.shape[-3] in (1, k)
        wanted = "scale_tril of shape (*B, K, D, D), or (*B, 1, D, D) if it is tied"
    if not fits:
        raise ValueError(f"Expected loc of shape (*B, K, D) and {wanted}, got {got}.")
    own = factor.shape[: factor.dim() - tail]
    return common_batch_shape(got, logits.shape[:-1], df.shape[:-1], loc.shape[:-2], own)


def _check_values(
    logits: Tensor, df: Tensor, loc: Tensor, scale: Tensor | None, scale_tril: Tensor | None
) -> None:
    """Checks the values of the parameters."""
    check_weight_and_mean_values(logits, loc)
    smallest, largest = extremes(df)
    if not smallest > 0:  # also if it is NaN
        raise ValueError(
            f"Expected positive degrees of freedom df, got values from {smallest} to {largest}. "
            f"Map unconstrained numbers with exp or softplus first."
        )
    if scale is not None:
        smallest, largest = extremes(scale)
        if not (smallest > 0 and largest < math.inf):
            raise ValueError(
                f"Expected positive, finite scales, got values from {smallest} to {largest}. Map "
                f"unconstrained numbers with exp or softplus first."
            )
        return
    assert scale_tril is not None
    smallest, largest = extremes(scale_tril.diagonal(dim1=-2, dim2=-1))
    if not (smallest > 0 and math.isfinite(scale_tril.tril().sum().item())):
        raise ValueError(
            f"Expected finite Cholesky factors with a positive diagonal, got a diagonal from "
            f"{smallest} to {largest}. Make them of scale matrices with torch.linalg.cholesky."
        )
