"""Log-densities in units that compare across data sets."""

__all__ = ["bits_per_dim"]

import math

from torch import Tensor

from ..core.checks import check_positive_int
from ..core.conversions import TensorLike, as_tensor


def bits_per_dim(log_prob: TensorLike, num_dims: int) -> Tensor:
    r"""The negative log-density in bits per dimension.

    .. math:: -\frac{\log p(x)}{D \log 2}

    Of dequantised integers it bounds from above, in expectation, the bits that a code built on
    the model takes for each integer; see `pyromix.dequantize`. It depends on the unit of the
    data: that of pixels is one level, so score them in [0, 256), or add ``log2(256)`` to what
    was scored in [0, 1). Smaller is better.

    Args:
        log_prob: Log-densities, or log-probabilities, in nats; any shape.
        num_dims: Number D of dimensions that each of them covers, such as 784 for an image of
            28 x 28.

    Returns:
        Of the shape of ``log_prob``.

    Raises:
        ValueError: If ``log_prob`` holds no floats, or the number is not positive.

    Example:
        A uniform law over 256 levels takes 8 bits.

        >>> import torch
        >>> bits_per_dim(torch.tensor(256.0).log() * -784, 784)
        tensor(8.)
    """
    return -as_tensor("log_prob", log_prob) / (
        check_positive_int("num_dims", num_dims) * math.log(2)
    )
