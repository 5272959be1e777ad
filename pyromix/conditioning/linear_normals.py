"""Normals given linear observations, exact and noisy, in terms of factors of covariances."""

__all__ = ["observe", "solve"]

import torch
from torch import Tensor

from ..numerics.triangular import log_scale

# Equations are taken to be dependent if they differ by less than this, or so many roundings.
DEPENDENT, ROUNDINGS = 1e-9, 16


def solve(
    loc: Tensor,
    factor: Tensor,
    matrix: Tensor,
    y: Tensor,
    coarsest: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normals N(loc, F F^T) given y = A x exactly.

    Args:
        loc: Means, shape (*B, K, D).
        factor: Factors, shape (*own, K, D, Q), whose batch shape expands to B.
        matrix: A, shape (m, D).
        y: Shape (*B, m).
        coarsest: In which the equations were given: to its rounding they are known.

    Returns:
        Means and factors given y, of Q - m columns, and the log-density of y, shape (*B, K).

    Raises:
        ValueError: If an equation is a combination of others and of observed values.
    """
    # The sources are rotated such that y determines the first m, and the rest are free.
    seen = matrix @ factor  # (*own, K, m, Q)
    count = len(matrix)
    if count > seen.shape[-1]:
        raise ValueError(_dependent(seen.shape[-1], coarsest))
    first, r = torch.linalg.qr(seen.mT)  # (*own, K, Q, m), (*own, K, m, m)
    tril = r.mT
    least = max(DEPENDENT, ROUNDINGS * torch.finfo(coarsest).eps)
    own = tril.diagonal(dim1=-2, dim2=-1).abs() <= least * seen.norm(dim=-1)
    if bool(own.any()):
        raise ValueError(_dependent(int(own.flatten(0, -2).any(0).int().argmax()), coarsest))
    # A complete decomposition has no gradient; any basis of the rest, projected, has one.
    rest = torch.linalg.qr(first.detach(), mode="complete").Q[..., count:]
    rest = rest - first @ (first.mT @ rest)
    gram = torch.linalg.cholesky(rest.mT @ rest)
    rest = torch.linalg.solve_triangular(gram.mT, rest, upper=True, left=False)
    residual = (y.unsqueeze(-2) - loc @ matrix.mT).unsqueeze(-1)  # (*B, K, m, 1)
    z = torch.linalg.solve_triangular(tril, residual, upper=False)
    log_prob = -0.5 * z.square().sum((-2, -1)) - log_scale(tril)
    return loc + (factor @ (first @ z)).squeeze(-1), factor @ rest, log_prob


def _dependent(row: int, coarsest: torch.dtype) -> str:
    return (
        f"Expected equations that are independent of each other and of observed values, but "
        f"equation {row}, counted from zero, is a combination of those before it and of values, "
        f"up to the rounding of {coarsest}. Leave it out if it says the same; else they "
        f"contradict each other."
    )


def observe(
    loc: Tensor, factor: Tensor, matrix: Tensor, y: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Normals N(loc, F F^T) given y = A x + noise.

    Args:
        loc: Means, shape (*B, K, D).
        factor: Factors, shape (*own, K, D, Q), whose batch shape expands to B.
        matrix: A, shape (m, D).
        y: Shape (*B, m).
        noise: Covariance of the noise, shape (m, m).

    Returns:
        Means and factors given y, of Q columns, and the log-density of y, shape (*B, K).
    """
    # In units of the noise, and of the sources z, z minimises |W z - r|^2 + |z|^2. Solved by
    # orthogonal steps, so that many precise readings of the same do no harm: W F^T F W^T + I, or
    # the covariance of y, is then singular to all digits.
    tril = torch.linalg.cholesky(noise)
    seen = torch.linalg.solve_triangular(tril, matrix @ factor, upper=False)  # (*own, K, m, Q)
    residual = (y.unsqueeze(-2) - loc @ matrix.mT).unsqueeze(-1)  # (*B, K, m, 1)
    residual = torch.linalg.solve_triangular(tril, residual, upper=False)
    count, sources = seen.shape[-2:]
    identity = torch.eye(sources, dtype=seen.dtype, device=seen.device)
    stacked = torch.cat([seen, identity.expand(*seen.shape[:-2], -1, -1)], -2)
    basis, r = torch.linalg.qr(stacked)  # r^T r = I + W^T W
    z = torch.linalg.solve_triangular(r, basis[..., :count, :].mT @ residual, upper=True)
    missed = (residual - seen @ z).square().sum((-2, -1)) + z.square().sum((-2, -1))
    scales = r.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    log_prob = -0.5 * missed - scales - log_scale(tril)
    loc = loc + (factor @ z).squeeze(-1)
    return loc, torch.linalg.solve_triangular(r, factor, upper=True, left=False), log_prob
