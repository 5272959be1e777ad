"""Points at which the density of a relaxed mixture is taken."""

__all__ = ["inner_points"]

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..numerics.sobol import MAX_DIM, even_uniforms


@lru_cache(maxsize=64)
def inner_points(num_components: int, num_inner: int, seed: int = 0) -> Tensor:
    """Logarithms of the ratios R for an even set of weights; see `RelaxedMixtureOfNormals`.

    Args:
        num_components: Number of components K.
        num_inner: Number of points, rounded up to a multiple of K.
        seed: Scrambles the set.

    Returns:
        Tensor of shape (K, M, K), with M points for every component that may be the largest. It
        is shared by all calls with these arguments: copy it before changing it.

    Raises:
        ValueError: For more components than a Sobol sequence has dimensions.
    """
    k = num_components
    each = -(-num_inner // k)
    points = torch.full((k, each, k), -math.inf, dtype=torch.float64)
    if k == 1:
        return points
    if k - 1 > MAX_DIM:
        raise ValueError(f"Expected at most {MAX_DIM + 1} components, got {k}.")
    u = even_uniforms(k * each, k - 1, seed)
    powers = torch.arange(1, k, dtype=torch.float64)
    # R_i = (1 + R_1 + ... + R_(i-1)) (q_i - 1) with q_i = (1 - u_i)^(-1/i): products of q's.
    log_q = -torch.log1p(-u) / powers
    log_sum = log_q.cumsum(-1) - log_q  # log(1 + R_1 + ... + R_(i-1))
    log_ratio = log_sum + log_q.expm1().log()
    log_ratio = log_ratio.reshape(k, each, k - 1)
    for i in range(k):
        others = [(i + j) % k for j in range(1, k)]
        points[i][:, others] = log_ratio[i]
    return points
