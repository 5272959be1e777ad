"""Whether constraints hold, by tests on independent draws."""

__all__ = ["rejected"]

import torch
from torch import Tensor

LEVEL = 0.05

# Of the precision of the numbers: differences below it are from rounding.
ROUNDING = 16


def rejected(
    values: Tensor,
    levels: Tensor,
    one_sided: Tensor,
    margin: float = 0.0,
    level: float = LEVEL,
) -> Tensor:
    r"""Which constraints are rejected: their means are farther from the levels than by chance.

    The hypothesis is that a mean is within a margin of its level. It is tested by the mean of the
    draws over its standard error, t, with Bonferroni's correction for the number of constraints.
    Statistics such as fourth powers and rare events are skewed, so that t is far from normal. Its
    monotone transform (Hall 1992)

    .. math:: g(t) = t + \frac{\gamma}{3 \sqrt n} t^2 + \frac{\gamma^2}{27 n} t^3
                     + \frac{\gamma}{6 \sqrt n}

    with the skewness :math:`\gamma` of the draws is normal up to terms of order 1 / n.

    Args:
        values: Statistics of independent draws, shape (n, m).
        levels: Targets and bounds, shape (m,).
        one_sided: Which constraints are violated only above their level, shape (m,).
        margin: Violations of so many standard deviations of a statistic are none.
        level: Probability of rejecting any constraint of those that hold.

    Returns:
        Booleans, shape (m,).
    """
    count, m = values.shape
    excess = values.double() - levels.double()
    mean = excess.mean(0)
    centred = excess - mean
    sd = centred.square().mean(0).sqrt()
    size = values.double().abs().mean(0) + levels.double().abs()
    allowed = margin * sd + ROUNDING * torch.finfo(values.dtype).eps * size
    error = sd / count**0.5
    safe = torch.where(sd > 0, sd, 1.0)
    skew = (centred / safe).pow(3).mean(0) / count**0.5

    def normal(distance: Tensor) -> Tensor:
        t = distance / torch.where(error > 0, error, 1.0)
        t = t + skew / 3 * t.square() + skew.square() / 27 * t.pow(3) + skew / 6
        # A statistic without spread is where it is.
        return torch.where(error > 0, t, torch.sign(distance) * torch.inf)

    above = torch.special.ndtr(-normal(mean - allowed))
    below = torch.special.ndtr(normal(mean + allowed))
    p_values = torch.where(one_sided, above, 2 * torch.minimum(above, below))
    return p_values < level / m
