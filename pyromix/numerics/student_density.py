r"""The density of multivariate Student-t laws, to full accuracy for all degrees of freedom.

With :math:`q = (x - m)^\top \Sigma^{-1} (x - m)` over D coordinates,

.. math::
    \log p(x) = \underbrace{\log N(m; m, \Sigma)}_{\text{the normal's at its peak}}
    + c(\nu, D) - \tfrac12 \Big(1 + \frac D\nu\Big) \, \nu \log\Big(1 + \frac q\nu\Big), \qquad
    c = \log \Gamma\Big(\frac{\nu + D}2\Big) - \log \Gamma\Big(\frac\nu2\Big)
        - \frac D2 \log \frac\nu2 .

Written like this nothing cancels for large :math:`\nu`: c tends to zero, and the rest to the
normal's :math:`-q / 2`, which it is for infinitely many degrees of freedom.
"""

__all__ = ["log_gamma_ratio", "soften", "student_log_prob"]

import torch
from torch import Tensor

# Beyond this argument the series of log Gamma is as accurate as double precision.
LEAST_OF_SERIES = 16.0

# B_2n / (2 n (2 n - 1)), of the series of log Gamma(z) - (z - 1/2) log z + z - log(2 pi) / 2.
SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def student_log_prob(peak: Tensor, square: Tensor, df: Tensor, dim: int | Tensor) -> Tensor:
    r"""Log-density of Student-t laws.

    Args:
        peak: Log-density of normals of the same location and scale at their peak, to which a
            log-weight may have been added.
        square: Squared distances q, a shape that broadcasts with it.
        df: Degrees of freedom, positive; infinite for normals.
        dim: Number of coordinates D.

    Returns:
        Tensor of the shape that all have together.
    """
    infinite = df.isinf()
    finite = torch.where(infinite, 1.0, df)
    share = torch.where(infinite, 0.0, dim / finite)
    return peak + log_gamma_ratio(df, dim) - 0.5 * (1 + share) * soften(square, df)


def soften(square: Tensor, df: Tensor) -> Tensor:
    r"""Returns :math:`\nu \log(1 + q / \nu)`, which tends to q for large :math:`\nu`."""
    infinite = df.isinf()
    finite = torch.where(infinite, 1.0, df)
    return torch.where(infinite, square, finite * torch.log1p(square / finite))


def log_gamma_ratio(df: Tensor, dim: int | Tensor) -> Tensor:
    r"""Returns :math:`\log \Gamma(a + h) - \log \Gamma(a) - h \log a`, a = df / 2, h = dim / 2.

    It tends to zero for large a, where differences of log Gamma would lose all digits. Computed in
    the dtype of `df`, which ought to be float64.
    """
    infinite = df.isinf()
    a, h = 0.5 * torch.where(infinite, 1.0, df), 0.5 * torch.as_tensor(dim).to(df)
    large = a >= LEAST_OF_SERIES
    # Both branches have finite gradients wherever the other one is taken.
    b = torch.where(large, a, LEAST_OF_SERIES)
    by_series = (b + h - 0.5) * torch.log1p(h / b) - h + _rest(b + h) - _rest(b)
    s = torch.where(large, 1.0, a)
    direct = torch.lgamma(s + h) - torch.lgamma(s) - h * s.log()
    return torch.where(infinite, 0.0, torch.where(large, by_series, direct))


def _rest(z: Tensor) -> Tensor:
    """What the series of log Gamma(z) adds to its leading terms."""
    inverse = z.reciprocal()
    square, total = inverse.square(), torch.zeros_like(z)
    for coefficient in reversed(SERIES):
        total = total * square + coefficient
    return total * inverse
