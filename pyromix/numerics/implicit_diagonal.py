r"""Exact pathwise gradients through samples of a mixture of diagonal normals.

The multivariate distributional transform maps a sample to uniforms one coordinate at a time,

.. math::
    u_d = F_d(x_d \mid x_{<d}) = \sum_k r_{dk} \, \Phi(z_{dk}), \qquad
    r_{dk} \propto w_k \prod_{e<d} N(x_e; m_{ke}, s_{ke}^2), \qquad
    z_{dk} = (x_d - m_{kd}) / s_{kd},

and a sample moves with the parameters such that u stays fixed: :math:`dx/d\theta = -(\partial
F/\partial x)^{-1} \, \partial F/\partial \theta` (Figurnov, Mohamed, Mnih 2018). The Jacobian is
triangular, so that the backward pass is a back substitution. With q_dk = r_dk (Phi(z_dk) - F_d)
and p_d the conditional density of x_d,

.. math::
    v_d = \Big(g_d + \sum_k \frac{z_{dk}}{s_{kd}} A_{dk}\Big) / p_d, \qquad
    A_{dk} = \sum_{e>d} v_e q_{ek},

for the incoming gradient g, and every parameter's gradient follows from v and A: time and memory
are O(N K D), and no D x D matrix is formed.
"""

__all__ = ["mass_from_nearer_end", "reparameterize"]

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Pairs of sample and component that are worked on together, and numbers in each of the dozen
# temporaries. Small enough for the cache, and together they bound the memory that the backward
# pass takes, about 100 MiB at D = 784 in float32, whatever the number of samples.
BLOCK_PAIRS = 2**16
CHUNK_NUMBERS = 2**19


def reparameterize(x: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""Lets gradients flow from samples of a mixture to its parameters.

    Args:
        x: Samples of the mixture, shape (\*S, \*B, D), without a graph.
        logits: Unnormalised log-weights, shape broadcastable to (\*B, K).
        loc: Means, shape broadcastable to (\*B, K, D).
        scale: Standard deviations, shape broadcastable to (\*B, K, D).

    Returns:
        The samples, with a backward pass by implicit differentiation (differentiable once).
    """
    return _ImplicitReparameterization.apply(x, logits, loc, scale)


class _ImplicitReparameterization(torch.autograd.Function):
    """The identity on samples, with their implicit gradients in the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, logits, loc, scale)
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_backward(grad, *ctx.saved_tensors)


def _backward(
    grad: Tensor, x: Tensor, logits: Tensor, loc: Tensor, scale: Tensor
) -> tuple[Tensor, ...]:
    """Gradients in the parameters, summed over blocks of samples."""
    parameters = logits, loc, scale
    batch_dim = max(logits.dim() - 1, loc.dim() - 2, scale.dim() - 2)
    batch_shape = x.shape[x.dim() - 1 - batch_dim : -1]
    x, grad = (t.reshape(-1, *batch_shape, t.shape[-1]) for t in (x, grad))
    rows = max(1, BLOCK_PAIRS // (batch_shape.numel() * logits.shape[-1]))
    total = tuple(torch.zeros_like(p) for p in parameters)
    for block in zip(grad.split(rows), x.split(rows), strict=True):
        for accumulated, part in zip(total, _backward_block(*block, *parameters), strict=True):
            accumulated += part
    return total


def _backward_block(
    grad: Tensor, x: Tensor, logits: Tensor, loc: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the parameters of one block of samples."""
    # Dimensions come first and components last throughout: (D, S, *B, K), broadcast.
    num_dims = x.shape[-1]
    per_dim = x[..., 0].numel() * logits.shape[-1]
    width = max(1, CHUNK_NUMBERS // per_dim)
    chunks = [slice(i, min(i + width, num_dims)) for i in range(0, num_dims, width)]
    x, grad = (t.movedim(-1, 0).unsqueeze(-1) for t in (x, grad))
    loc, scale = (t.movedim(-1, 0) for t in (loc, scale))

    # log r_dk up to a constant, at the first dimension of every chunk.
    log_prefix = [logits.log_softmax(-1).expand(*x.shape[1:-1], -1)]
    for chunk in chunks[:-1]:
        log_prob = _log_prob(*_standardize(x, loc, scale, chunk)).sum(0)
        log_prefix.append((log_prefix[-1] + log_prob).log_softmax(-1))

    # A_dk, from the last dimension to the first.
    carried = torch.zeros_like(log_prefix[0])
    grad_loc, grad_scale = torch.empty_like(loc), torch.empty_like(scale)
    for chunk in reversed(chunks):
        z, inverse_scale = _standardize(x, loc, scale, chunk)
        log_prob = _log_prob(z, inverse_scale)
        before = torch.cat([torch.zeros_like(log_prob[:1]), log_prob[:-1]]).cumsum(0)
        weights = (log_prefix.pop() + before).softmax(-1)  # r_dk
        mass = mass_from_nearer_end(z, weights)
        slope = weights * log_prob.exp() / math.sqrt(2 * math.pi)  # -dF_d/dm_kd, direct part
        excess = weights * (mass - (weights * mass).sum(-1, keepdim=True))  # q_dk
        rate = z * inverse_scale
        density = slope.sum(-1, keepdim=True)

        v = torch.empty_like(density)
        later = torch.empty_like(excess)
        for d in reversed(range(len(z))):
            later[d] = carried
            v[d] = (grad[chunk][d] + _product(rate[d], carried).sum(-1, keepdim=True)) / density[d]
            carried = torch.addcmul(carried, v[d], excess[d])

        direct = v * slope
        moved = _product(rate, later)
        grad_loc[chunk] = _sum_to(direct - moved, loc[chunk])
        # Not z^2 / s, which may overflow where all that it is multiplied by is zero.
        stretched = _product(z, direct - moved) + _product(inverse_scale, later)
        grad_scale[chunk] = _sum_to(stretched, scale[chunk])
    grad_logits = (-carried).sum_to_size(logits.shape)
    return grad_logits, grad_loc.movedim(0, -1), grad_scale.movedim(0, -1)


def _product(factor: Tensor, share: Tensor) -> Tensor:
    """Factor times share, zero where the share is: a component so far away counts for nothing."""
    return torch.where(share == 0, 0.0, factor * share)


def _standardize(x: Tensor, loc: Tensor, scale: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
    """Samples less means over scales, in some of the dimensions, and one over the scales."""
    inverse_scale = _align(scale[chunk], x).reciprocal()
    return (x[chunk] - _align(loc[chunk], x)) * inverse_scale, inverse_scale


def _align(parameter: Tensor, x: Tensor) -> Tensor:
    """Inserts sample dimensions after the first, so that (D, *B, K) broadcasts with x."""
    missing = x.dim() - parameter.dim()
    return parameter[(slice(None), *[None] * missing)]


def _sum_to(value: Tensor, parameter: Tensor) -> Tensor:
    """Gradients summed over samples and batch entries that share a parameter (D, *B, K)."""
    return value.sum_to_size(_align(parameter, value).shape).reshape(parameter.shape)


def _log_prob(z: Tensor, inverse_scale: Tensor) -> Tensor:
    """Log-density of each coordinate, without the constant log sqrt(2 pi)."""
    return inverse_scale.log() - 0.5 * z.square()


def mass_from_nearer_end(z: Tensor, weights: Tensor, components: int = -1) -> Tensor:
    """The normal distribution function of samples, in each case from the nearer end.

    Only differences between components matter, and in the upper tail they cancel unless the
    small upper masses are computed themselves.

    Args:
        z: Standardised samples.
        weights: Weights of the components, of the same shape.
        components: The dimension along which components lie.

    Returns:
        Phi(z), or Phi(z) - 1 where most of the mixture's mass lies below the sample.
    """
    tail = 0.5 * torch.erfc(z.abs() * math.sqrt(0.5))
    lower = torch.where(z < 0, tail, 1 - tail)
    negative_upper = torch.where(z < 0, tail - 1, -tail)
    above = (weights * lower).sum(components, keepdim=True) > 0.5
    return torch.where(above, negative_upper, lower)
