r"""Exact pathwise gradients through samples of a mixture of correlated normals or Student-t laws.

As for diagonal normals (see `pyromix.numerics.implicit_diagonal`), a sample moves with the
parameters such that the uniforms

.. math::
    u_d = F_d(x_d \mid x_{<d}) = \sum_k r_{dk} \, \Phi(z_{dk}), \qquad
    r_{dk} \propto w_k \prod_{e<d} \varphi(z_{ek}) R_{k,ee}

stay fixed, where :math:`z_k = R_k (x - m_k)` whitens the k-th component by a lower triangular
matrix. A parameter's gradient is :math:`-\sum_d v_d \, \partial F_d / \partial \theta`, with
v from :math:`J^\top v = g`, the Jacobian J of F in x, and the incoming gradient g. J is lower
triangular, and v follows from the last coordinate to the first, in

.. math::
    \sum_{d > j} v_d J_{dj} = \sum_k \sum_{i \ge j} R_{k,ij} \Big( [i > j] \, v_i r_{ik}
    \varphi(z_{ik}) - z_{ik} \sum_{d > i} v_d \, r_{dk} (\Phi(z_{dk}) - F_d) \Big) .

For covariance matrices that costs O(N K D^2). With precision :math:`\operatorname{diag}(d) + U
U^\top` every row of R is a product of vectors of length r,

.. math::
    R_{ij} = q_i \cdot U_j \quad (j < i), \qquad q_i = \pi_i^{-1/2} M_i U_i, \qquad
    R_{ii} = \pi_i^{1/2}, \qquad \pi_i = d_i + U_i^\top M_i U_i, \qquad
    M_i = \Big(I + \sum_{j > i} \frac{U_j U_j^\top}{d_j}\Big)^{-1},

and the cost is O(N K D r + K D r^3). With covariance :math:`\operatorname{diag}(d) + W W^\top`,

.. math::
    R_{ij} = q_i \cdot W_j / d_j \quad (j < i), \qquad q_i = - R_{ii} M_i W_i, \qquad
    R_{ii} = (d_i + W_i^\top M_i W_i)^{-1/2}, \qquad
    M_i = \Big(I + \sum_{j < i} \frac{W_j W_j^\top}{d_j}\Big)^{-1} .

A Student-t component given the coordinates before d is one of :math:`\nu + d - 1` degrees of
freedom, whose scale is that of the normal times

.. math:: s_d = \sqrt{\frac{\nu + q_{<d}}{\nu + d - 1}}, \qquad q_{<d} = \sum_{e<d} z_e^2 .

With :math:`\tau_d = z_d / s_d`, its distribution function T and density t in place of the
normal's, the same equations hold once :math:`r \varphi` is :math:`r \, t(\tau) / s`, and
:math:`r (\Phi - F)` is

.. math:: \frac{r}{\nu + q_{<d}} \big((\nu + d - 1) (T(\tau_d) - F_d) + \tau_d \, t(\tau_d)\big) .

All is computed in float64.
"""

__all__ = [
    "reparameterize_factors",
    "reparameterize_full",
    "reparameterize_low_rank",
    "reparameterize_student",
]

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .implicit_diagonal import mass_from_nearer_end
from .student_cdf import student_tails
from .student_density import student_log_prob
from .triangular import inverse_tril

# Numbers z of samples that are worked on together.
BLOCK_NUMBERS = 2**20

# Coordinates that are substituted one by one before a matrix product takes them all further.
BLOCK_COLUMNS = 16


def reparameterize_full(
    x: Tensor, batch_dim: int, logits: Tensor, loc: Tensor, scale_tril: Tensor
) -> Tensor:
    r"""Lets gradients flow from samples of a mixture to its parameters.

    Args:
        x: Samples of the mixture, shape (\*S, \*B, D), without a graph.
        batch_dim: Number of dimensions of B.
        logits: Unnormalised log-weights, shape broadcastable to (\*B, K).
        loc: Means, shape broadcastable to (\*B, K, D).
        scale_tril: Cholesky factors of the covariances, shape broadcastable to (\*B, K, D, D).

    Returns:
        The samples, with a backward pass by implicit differentiation (differentiable once).
    """
    return _Implicit.apply(_Full, False, batch_dim, x, logits, loc, scale_tril)


def reparameterize_low_rank(
    x: Tensor, batch_dim: int, logits: Tensor, loc: Tensor, diag: Tensor, factor: Tensor
) -> Tensor:
    r"""Lets gradients flow from samples of a mixture with low-rank precisions to its parameters.

    Args:
        x: Samples of the mixture, shape (\*S, \*B, D), without a graph.
        batch_dim: Number of dimensions of B.
        logits: Unnormalised log-weights, shape broadcastable to (\*B, K).
        loc: Means, shape broadcastable to (\*B, K, D).
        diag: Diagonal parts d of the precisions, shape broadcastable to (\*B, K, D).
        factor: Factors U, with precisions diag(d) + U U^T; broadcastable to (\*B, K, D, r).

    Returns:
        The samples, with a backward pass by implicit differentiation (differentiable once).
    """
    return _Implicit.apply(_LowRank, False, batch_dim, x, logits, loc, diag, factor)


def reparameterize_student(
    x: Tensor,
    batch_dim: int,
    logits: Tensor,
    df: Tensor,
    loc: Tensor,
    scale: Tensor,
    *,
    diagonal: bool,
) -> Tensor:
    r"""Lets gradients flow from samples of a mixture of Student-t laws to its parameters.

    Args:
        x: Samples of the mixture, shape (\*S, \*B, D), without a graph.
        batch_dim: Number of dimensions of B.
        logits: Unnormalised log-weights, shape broadcastable to (\*B, K).
        df: Degrees of freedom, shape broadcastable to (\*B, K).
        loc: Locations, shape broadcastable to (\*B, K, D).
        scale: Scales, shape broadcastable to (\*B, K, D); or Cholesky factors of the scale
            matrices, shape broadcastable to (\*B, K, D, D).
        diagonal: Which of them they are.

    Returns:
        The samples, with a backward pass by implicit differentiation (differentiable once).
    """
    whitening = _Diagonal if diagonal else _Full
    return _Implicit.apply(whitening, True, batch_dim, x, logits, loc, scale, df)


def reparameterize_factors(
    x: Tensor, batch_dim: int, logits: Tensor, loc: Tensor, diag: Tensor, factor: Tensor
) -> Tensor:
    r"""Lets gradients flow from samples of a mixture with low-rank covariances to its parameters.

    Args:
        x: Samples of the mixture, shape (\*S, \*B, D), without a graph.
        batch_dim: Number of dimensions of B.
        logits: Unnormalised log-weights, shape broadcastable to (\*B, K).
        loc: Means, shape broadcastable to (\*B, K, D).
        diag: Diagonal parts d of the covariances, shape broadcastable to (\*B, K, D).
        factor: Factors W, with covariances diag(d) + W W^T; broadcastable to (\*B, K, D, r).

    Returns:
        The samples, with a backward pass by implicit differentiation (differentiable once).
    """
    return _Implicit.apply(_Factors, False, batch_dim, x, logits, loc, diag, factor)


class _Whitening(ABC):
    """Whitened samples of all components, and what the matrices R do in back substitution."""

    z: Tensor
    """Shape (N, *B, K, D)."""
    rate: Tensor
    """Diagonals of the matrices R, shape (*B, K, D)."""

    @abstractmethod
    def cross(self, j: int) -> Tensor:
        """Sum over k and i > j of R_ij h_i, for all h that were added; shape (N, *B)."""

    @abstractmethod
    def add(self, j: int, h: Tensor) -> None:
        """Takes in h_j, shape (N, *B, K)."""


class _Full(_Whitening):
    """Whitening by the inverse Cholesky factors of covariances."""

    def __init__(self, x: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
        matrix = inverse_tril(scale_tril.tril())
        # A matrix product of a row per sample; a broadcast one would copy R for every sample.
        self.z = torch.einsum("...kij,n...kj->n...ki", matrix, x.unsqueeze(-2) - loc)
        self.rate = matrix.diagonal(dim1=-2, dim2=-1)
        self._matrix = matrix.detach()
        self._h = torch.empty_like(self.z).detach()
        # What coordinates after the present block add to those before, by matrix products.
        self._carried = torch.zeros_like(x)

    def cross(self, j: int) -> Tensor:
        after = slice(j + 1, j - j % BLOCK_COLUMNS + BLOCK_COLUMNS)
        within = (self._matrix[..., after, j] * self._h[..., after]).sum((-2, -1))
        return within + self._carried[..., j]

    def add(self, j: int, h: Tensor) -> None:
        self._h[..., j] = h
        if j % BLOCK_COLUMNS == 0:
            block = slice(j, j + BLOCK_COLUMNS)
            self._carried[..., :j] += torch.einsum(
                "...kij,n...ki->n...j", self._matrix[..., block, :j], self._h[..., block]
            )


class _Diagonal(_Whitening):
    """Whitening by scales of every coordinate."""

    def __init__(self, x: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.rate = scale.reciprocal().expand(torch.broadcast_shapes(loc.shape, scale.shape))
        self.z = (x.unsqueeze(-2) - loc) * self.rate
        self._nothing = torch.zeros_like(x[..., 0])

    def cross(self, j: int) -> Tensor:  # noqa: ARG002
        return self._nothing

    def add(self, j: int, h: Tensor) -> None:
        """No other coordinate depends on it."""


class _LowRank(_Whitening):
    """Whitening by the Cholesky factors of precisions of low rank, row by row."""

    def __init__(self, x: Tensor, loc: Tensor, diag: Tensor, factor: Tensor) -> None:
        self.rate, row = self._rows(diag, factor)
        factor = self._columns(diag, factor)
        difference = x.unsqueeze(-2) - loc
        terms = factor * difference.unsqueeze(-1)  # (N, *B, K, D, r)
        before = _sums_before(terms, -2)
        self.z = self.rate * difference + (row * before).sum(-1)
        self._row, self._factor = row.detach(), factor.detach()
        self._sum = torch.zeros_like(before[..., 0, :]).detach()

    @staticmethod
    def _rows(diag: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Diagonals of R, shape (*B, K, D), and vectors q, shape (*B, K, D, r)."""
        gain = _solve(_outer(diag, factor), factor, after=True)  # M_i U_i
        rate = (diag + (factor * gain).sum(-1)).sqrt()
        return rate, gain / rate.unsqueeze(-1)

    @staticmethod
    def _columns(diag: Tensor, factor: Tensor) -> Tensor:  # noqa: ARG004
        """What the vectors q are multiplied by, shape (*B, K, D, r)."""
        return factor

    def cross(self, j: int) -> Tensor:
        return (self._factor[..., j, :] * self._sum).sum((-2, -1))

    def add(self, j: int, h: Tensor) -> None:
        self._sum = self._sum + h.unsqueeze(-1) * self._row[..., j, :]


class _Factors(_LowRank):
    """Whitening by the inverse Cholesky factors of covariances of low rank, row by row."""

    @staticmethod
    def _rows(diag: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        gain = _solve(_outer(diag, factor), factor, after=False)  # M_i W_i
        rate = (diag + (factor * gain).sum(-1)).rsqrt()
        return rate, -gain * rate.unsqueeze(-1)

    @staticmethod
    def _columns(diag: Tensor, factor: Tensor) -> Tensor:
        return factor / diag.unsqueeze(-1)


class _Implicit(torch.autograd.Function):
    """The identity on samples, with their implicit gradients in the parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        whitening: type[_Whitening],
        heavy: bool,
        batch_dim: int,
        x: Tensor,
        logits: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.whitening, ctx.heavy, ctx.batch_dim = whitening, heavy, batch_dim
        ctx.save_for_backward(x, logits, *parameters)
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        grads = _backward(ctx.whitening, ctx.heavy, ctx.batch_dim, grad, x, parameters)
        return None, None, None, None, *grads


def _backward(
    whitening: Any, heavy: bool, batch_dim: int, grad: Tensor, x: Tensor, parameters: list[Tensor]
) -> list[Tensor]:
    """Gradients in the parameters, summed over blocks of samples."""
    logits, *rest = leaves = [p.detach().double().requires_grad_() for p in parameters]
    df = rest.pop() if heavy else None
    batch_shape = x.shape[x.dim() - 1 - batch_dim : -1]
    x, grad = (t.reshape(-1, *batch_shape, t.shape[-1]).double() for t in (x, grad))
    rows = max(1, BLOCK_NUMBERS // (batch_shape.numel() * rest[0].shape[-2:].numel()))
    total = [torch.zeros_like(p) for p in leaves]
    for x_part, grad_part in zip(x.split(rows), grad.split(rows), strict=True):
        with torch.enable_grad():
            whitened = whitening(x_part, *rest)
            if df is None:
                cdf, slope, excess = _normal_distribution(whitened, logits)
            else:
                cdf, slope, excess = _student_distribution(whitened, logits, df)
        with torch.no_grad():
            v = _back_substitute(whitened, grad_part, slope.detach(), excess.detach())
        for accumulated, part in zip(total, torch.autograd.grad(cdf, leaves, -v), strict=True):
            accumulated += part
    return [t.to(p.dtype) for t, p in zip(total, parameters, strict=True)]


def _normal_distribution(whitened: _Whitening, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F less a constant, (N, *B, D), and r phi and r (Phi - F), (N, *B, K, D)."""
    z = whitened.z
    log_prob = whitened.rate.log() - 0.5 * z.square()
    before = logits.log_softmax(-1).unsqueeze(-1) + _sums_before(log_prob, -1)
    weights = before.softmax(-2)
    mass = mass_from_nearer_end(z, weights, -2)
    cdf = (weights * mass).sum(-2)
    slope = weights * torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return cdf, slope, weights * (mass - cdf.unsqueeze(-2))


def _student_distribution(
    whitened: _Whitening, logits: Tensor, df: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of Student-t components, with what stands for r phi and r (Phi - F)."""
    z, df = whitened.z, df.unsqueeze(-1)  # (N, *B, K, D), (*B, K, 1)
    place = torch.arange(z.shape[-1], dtype=z.dtype, device=z.device)
    before = _sums_before(z.square(), -1)  # q of the coordinates before each one
    infinite = df.isinf()
    finite = torch.where(infinite, 1.0, df)
    # s^2, with a well-defined gradient where it is one.
    stretch = torch.where(infinite, 1.0, (finite + before) / (finite + place))
    tau = z / stretch.sqrt()
    peak = whitened.rate.log() - 0.5 * math.log(2 * math.pi) - 0.5 * stretch.log()
    own_df = df + place
    log_prob = student_log_prob(peak, tau.square(), own_df, 1)
    weights = logits.log_softmax(-1).unsqueeze(-1) + _sums_before(log_prob, -1)
    weights = weights.softmax(-2)
    mass = _student_mass(tau, own_df, weights)
    cdf = (weights * mass).sum(-2)
    # The density of z_d, in whose units the matrices R are.
    slope = weights * (log_prob - whitened.rate.log()).exp()
    pull = torch.where(infinite, 1.0, (finite + place) / (finite + before))
    extra = torch.where(infinite, 0.0, z * slope / (finite + before))
    return cdf, slope, weights * pull * (mass - cdf.unsqueeze(-2)) + extra


def _student_mass(tau: Tensor, df: Tensor, weights: Tensor) -> Tensor:
    """The distribution function from the nearer end; see `mass_from_nearer_end`."""
    tail = student_tails(tau, df)
    lower = torch.where(tau < 0, tail, 1 - tail)
    negative_upper = torch.where(tau < 0, tail - 1, -tail)
    above = (weights * lower).sum(-2, keepdim=True) > 0.5
    return torch.where(above, negative_upper, lower)


def _back_substitute(whitened: _Whitening, grad: Tensor, slope: Tensor, excess: Tensor) -> Tensor:
    """Solves J^T v = g for v, shape (N, *B, D)."""
    z, rate = whitened.z.detach(), whitened.rate.detach()
    later = torch.zeros_like(slope[..., 0])  # sum over d > j of v_d r_d (Phi_d - F_d)
    v = torch.empty_like(grad)
    for j in reversed(range(grad.shape[-1])):
        pull = z[..., j] * later
        density = (slope[..., j] * rate[..., j]).sum(-1)
        rest = whitened.cross(j) - (rate[..., j] * pull).sum(-1)
        v[..., j] = (grad[..., j] - rest) / density
        step = v[..., j].unsqueeze(-1)
        whitened.add(j, step * slope[..., j] - pull)
        later = later + step * excess[..., j]
    return v


def _outer(diag: Tensor, factor: Tensor) -> Tensor:
    """Outer products of the rows of factors over the diagonal, shape (*B, K, D, r, r)."""
    return factor.unsqueeze(-1) * (factor / diag.unsqueeze(-1)).unsqueeze(-2)


def _solve(outer: Tensor, factor: Tensor, *, after: bool) -> Tensor:
    """Products of M_i and the rows of factors, with sums over rows after i, or before it."""
    sums = _sums_before(outer.flip(-3), -3).flip(-3) if after else _sums_before(outer, -3)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve(identity + sums, factor.unsqueeze(-1)).squeeze(-1)


def _sums_before(terms: Tensor, dim: int) -> Tensor:
    """Sums along a dimension of all terms before each one, itself not among them.

    Subtracting a term from the sum that includes it would cancel.
    """
    sums = terms.cumsum(dim)
    return torch.cat(
        [torch.zeros_like(sums.narrow(dim, 0, 1)), sums.narrow(dim, 0, sums.shape[dim] - 1)], dim
    )
