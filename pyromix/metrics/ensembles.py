"""How well ensembles, such as draws of a model's predictions, forecast what was observed.

Members are along the first dimension of ``samples``, and exchangeable: in no order that means
something. All other dimensions are forecasts of their own. Arrays and lists of numbers can stand
for tensors. Of ragged sequences, select what was
really observed first: ``crps(samples[:, mask], observed[mask])``.
"""

__all__ = ["coverage", "crps", "energy_score", "pit"]

import torch
from torch import Generator, Tensor

from ..core.conversions import TensorLike, as_tensors


def crps(samples: TensorLike, observed: TensorLike, *, fair: bool = False) -> Tensor:
    r"""The continuous ranked probability score of an ensemble; smaller is better.

    .. math:: \frac{1}{n} \sum_i |x_i - y| - \frac{1}{2 n^2} \sum_{i,j} |x_i - x_j|

    This is the integral of the squared difference between the ensemble's distribution function
    and that of the observation [1], in the units of the data; of one member it is the absolute
    error. It scores the ensemble as it is, which by its finite size is worse than the law that it
    was drawn from, by half the law's mean difference over n. With ``fair=True`` pairs are
    averaged over n (n - 1) instead, which makes the score an unbiased estimate of the law's own
    [2]: use it to compare ensembles of different sizes, or where few draws stand for a law.

    Takes time n log n. Gradients flow to the samples and to the observation.

    Args:
        samples: Shape (n, \*B).
        observed: Shape \*B, of the same dtype and on the same device.
        fair: Whether to estimate the score of the law behind the ensemble.

    Returns:
        A score for each observation: shape \*B.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, an entry is not finite, there is no
            member, or for the fair score fewer than two.

    Example:
        >>> samples = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
        >>> crps(samples, torch.tensor([2.0, 5.0]))
        tensor([0.2222, 5.0000])

    References:
        [1] Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation",
        2007.

        [2] Ferro, "Fair scores for ensemble forecasts", 2014.
    """
    samples, observed = _check_ensemble(samples, observed, fair=fair)
    num = len(samples)
    errors = (samples - observed).sort(0).values
    rank = torch.arange(num, dtype=errors.dtype, device=errors.device)
    rank = rank.view(num, *[1] * observed.dim())
    # Both sums in one: the pairs' share of the i-th smallest error is linear in i. No weight is
    # negative, so that nothing cancels. (pyro.ops.stats.crps_empirical takes the difference.)
    half = 0.0 if fair else 0.5
    weight = torch.where(errors > 0, num - 1 - rank, rank) + half
    return 2 * (weight * errors.abs()).sum(0) / _num_pairs(num, fair)


def energy_score(samples: TensorLike, observed: TensorLike, *, fair: bool = False) -> Tensor:
    r"""The energy score of an ensemble of vectors; smaller is better.

    .. math:: \frac{1}{n} \sum_i \|x_i - y\| - \frac{1}{2 n^2} \sum_{i,j} \|x_i - x_j\|

    The continuous ranked probability score with Euclidean distances [1]: it sees whether the
    coordinates depend on each other as they should, which scores of single coordinates do not,
    though only weakly. Coordinates in different units should be scaled first.

    Takes time n^2, and memory for one copy of the samples.

    Args:
        samples: Shape (n, \*B, D). Flatten trajectories of several features into one vector to
            score them as a whole.
        observed: Shape (\*B, D), of the same dtype and on the same device.
        fair: Whether to estimate the score of the law behind the ensemble; see `crps`.

    Returns:
        A score for each observed vector: shape \*B.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, an entry is not finite, there is no
            member, or for the fair score fewer than two.

    Example:
        >>> samples = torch.tensor([[0.0, 0.0], [6.0, 8.0]])
        >>> energy_score(samples, torch.tensor([3.0, 4.0]))
        tensor(2.5000)

    References:
        [1] Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation",
        2007, section 4.3.
    """
    samples, observed = _check_ensemble(samples, observed, fair=fair)
    num = len(samples)
    if not observed.dim() or not observed.shape[-1]:
        raise ValueError(
            f"Expected vectors along the last dimension, got observations of shape "
            f"{tuple(observed.shape)}. Use crps for numbers."
        )
    distance = (samples - observed).norm(dim=-1).mean(0)
    spread = torch.zeros_like(distance)
    for lag in range(1, num):  # every pair once, without a matrix of all of them
        spread = spread + (samples[lag:] - samples[:-lag]).norm(dim=-1).sum(0)
    return distance - spread / _num_pairs(num, fair)


def pit(
    samples: TensorLike, observed: TensorLike, *, generator: Generator | None = None
) -> Tensor:
    r"""The randomised probability integral transform of observations under an ensemble.

    Where r of the n members are less than the observation and t equal to it,

    .. math:: u \sim \mathrm{Uniform}\left(\frac{r}{n + 1}, \frac{r + t + 1}{n + 1}\right)

    If the observation is one more draw from the law of the members, then its rank among all
    n + 1, ties broken at random, is uniform, and so is u: exactly, for any n, and for discrete
    laws as well. A histogram in the shape of a U shows ensembles that are too narrow, a hump
    those that are too wide, a slope a bias. Values of neighbouring steps of one sequence may
    depend on each other even then.

    Args:
        samples: Shape (n, \*B).
        observed: Shape \*B, of the same dtype and on the same device.
        generator: Source of the random numbers.

    Returns:
        Numbers strictly between 0 and 1: shape \*B.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, an entry is not finite, or there is
            no member.

    Example:
        >>> samples = torch.linspace(0.0, 1.0, 99)
        >>> u = pit(samples, torch.tensor(0.5))
        >>> bool((u > 0.49) & (u < 0.51))
        True
    """
    samples, observed = _check_ensemble(samples, observed)
    low, high = _rank_interval(samples, observed)
    uniform = torch.rand(
        low.shape, generator=generator, dtype=torch.float64, device=observed.device
    )
    # Rounding may reach either end, where quantiles of laws on the line are infinite.
    limits = torch.finfo(observed.dtype)
    return (low + (high - low) * uniform).to(observed.dtype).clamp(limits.tiny, 1 - limits.eps)


def coverage(samples: TensorLike, observed: TensorLike, level: float) -> float:
    r"""The fraction of observations inside the central interval of their ensembles.

    The interval leaves out (1 - level) / 2 on each side. An ensemble tells it only up to the gap
    between two members: of n of them, an observation between the i-th and the next is taken to
    be uniform on the quantiles from i / (n + 1) to (i + 1) / (n + 1), as `pit` draws it, and
    counts by the share of these that is inside. So calibrated ensembles of any size, of
    continuous and discrete laws, cover the given level in expectation; empirical quantiles of
    small ensembles would cover less.

    Args:
        samples: Shape (n, \*B).
        observed: Shape \*B, of the same dtype and on the same device.
        level: Of the interval, such as 0.9.

    Returns:
        The fraction among all of B. Call it on slices for that of each step of a forecast.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, an entry is not finite, there is no
            member or no observation, or the level is not between 0 and 1.

    Example:
        >>> samples = torch.linspace(-1.0, 1.0, 99)[:, None]
        >>> coverage(samples.expand(99, 3), torch.tensor([-0.95, 0.0, 0.7]), level=0.8)
        0.6666666666666666
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected a level between 0 and 1, such as 0.9, got {level!r}.")
    samples, observed = _check_ensemble(samples, observed)
    low, high = _rank_interval(samples, observed)
    if not low.numel():
        raise ValueError(f"Expected observations, got shape {tuple(observed.shape)}.")
    inside = high.clamp(max=(1 + level) / 2) - low.clamp(min=(1 - level) / 2)
    return (inside.clamp(min=0) / (high - low)).mean().item()


def _rank_interval(samples: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The quantiles that an observation may have, lowest and highest, in float64."""
    num = len(samples)
    below = (samples < observed).sum(0, dtype=torch.float64)
    tied = (samples == observed).sum(0, dtype=torch.float64)
    return below / (num + 1), (below + tied + 1) / (num + 1)


def _num_pairs(num: int, fair: bool) -> int:
    return num * (num - 1) if fair else num**2


def _check_ensemble(
    samples: TensorLike, observed: TensorLike, *, fair: bool = False
) -> tuple[Tensor, Tensor]:
    """Checks that an ensemble fits what was observed, and returns both as tensors."""
    samples, observed = as_tensors(samples=samples, observed=observed)
    if not samples.dim() or samples.shape[1:] != observed.shape:
        raise ValueError(
            f"Expected samples of shape (n, *B), with the members of the ensemble first, and "
            f"observations of shape *B, got shapes {tuple(samples.shape)} and "
            f"{tuple(observed.shape)}. Move the members to the front with .movedim(..., 0)."
        )
    least = 2 if fair else 1
    if len(samples) < least:
        raise ValueError(
            f"Expected at least {least} member(s) in the ensemble, got {len(samples)}. Draw more."
        )
    for name, values in (("samples", samples), ("observed", observed)):
        wrong = int((~values.isfinite()).sum())
        if wrong:
            raise ValueError(
                f"Expected finite values of {name}, got {wrong} NaN or infinite among "
                f"{values.numel()} entries. Select what was observed with a mask."
            )
    return samples, observed
