r"""A mixture whose components draw the codes of all columns independently.

.. math:: P(c_1, \dots, c_J) = \sum_h P(h) \prod_j P(c_j \mid h)

It is a residual mixture of categorical columns with all its codes written out, so that every
question is a few products of matrices.
"""

__all__ = ["LEAST", "Mixture", "log_sum", "normalized", "weights_of"]

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..drmm import DRMM

# Rows times components that are worked on at once.
BLOCK_NUMBERS = 2**22
# Rows that the weight of each part of an average starts from, and rounds of EM.
PRIOR_ROWS, ROUNDS = 2.0, 200
# Smallest probability of a code: logarithms stay finite.
LEAST = 1e-30


class Mixture:
    """The components of a mixture of codes.

    Args:
        log_prior: Log-probabilities of components, (H,).
        probs: Probabilities of the codes of each column given them, (H, codes) each.
    """

    def __init__(self, log_prior: np.ndarray, probs: Sequence[np.ndarray]) -> None:
        self.log_prior = log_prior - np.logaddexp.reduce(log_prior)
        self.probs = [np.maximum(own, LEAST) for own in probs]
        self.log_probs = [np.log(own) for own in self.probs]

    @classmethod
    @torch.no_grad()
    def of(cls, model: DRMM) -> "Mixture":
        """All codes of a residual mixture of categorical columns."""
        law = model.law
        codes, log_prior = law.all_codes()
        probs = [
            part.double().softmax(-1).cpu().numpy()
            for logits in law.columns.logits(codes)
            for part in logits.unbind(1)
        ]
        return cls(log_prior.double().cpu().numpy(), probs)

    @classmethod
    def average(
        cls, parts: Sequence["Mixture"], weights: Sequence[float] | np.ndarray | None = None
    ) -> "Mixture":
        """The mixture of several, by default with equal weights."""
        columns = zip(*(part.probs for part in parts), strict=True)
        shares = np.log(np.ones(len(parts)) if weights is None else np.asarray(weights))
        return cls(
            np.concatenate([p.log_prior + own for p, own in zip(parts, shares, strict=True)]),
            [np.concatenate(own) for own in columns],
        )

    @property
    def size(self) -> int:
        """Number of components."""
        return len(self.log_prior)

    def blocks(self, count: int) -> Iterator[slice]:
        """Few rows at a time."""
        size = max(1, BLOCK_NUMBERS // self.size)
        return (slice(start, start + size) for start in range(0, count, size))

    def log_joint(self, codes: np.ndarray, without: int | None = None) -> np.ndarray:
        """Log-probabilities of components together with codes (N, J), (N, H).

        Args:
            codes: Minus one where nothing is known.
            without: A column that counts as not known.
        """
        total = np.tile(self.log_prior, (len(codes), 1))
        for j, table in enumerate(self.log_probs):
            if j == without:
                continue
            known = codes[:, j] >= 0
            if known.all():
                total += table.T[codes[:, j]]
            elif known.any():
                total[known] += table.T[codes[known, j]]
        return total

    def log_prob(self, codes: np.ndarray) -> np.ndarray:
        """Log-probabilities of codes (N, J), summed over what is not known: (N,)."""
        found = [log_sum(self.log_joint(codes[part])) for part in self.blocks(len(codes))]
        return np.concatenate([np.zeros(0), *found])


def log_sum(x: np.ndarray) -> np.ndarray:
    """Log of the sum of exponentials over the last dimension."""
    top = x.max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total: np.ndarray = np.log(np.exp(x - top).sum(-1)) + top[..., 0]
    return total


def normalized(x: np.ndarray) -> np.ndarray:
    """Probabilities from log-weights, over the last dimension."""
    weight: np.ndarray = np.exp(x - x.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    return weight


def weights_of(parts: Sequence[Mixture], codes: np.ndarray) -> np.ndarray:
    """Weights with which the average of mixtures makes rows that none was trained on likeliest.

    Args:
        parts: The mixtures.
        codes: The rows, (N, J); without any, weights are equal.
    """
    weights = np.full(len(parts), 1 / len(parts))
    if len(parts) == 1 or not len(codes):
        return weights
    scores = np.stack([part.log_prob(codes) for part in parts], 1)
    for _ in range(ROUNDS):
        counts = normalized(scores + np.log(weights)).sum(0) + PRIOR_ROWS
        weights = counts / counts.sum()
    return weights
