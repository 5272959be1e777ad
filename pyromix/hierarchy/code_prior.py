r"""What codes of a cell are likely, given what the level above says of them.

.. math:: p(h_l = k \mid h_{<l}, \tau, \gamma) = \operatorname{softmax}_k \Big(w_l[k]
          + \sum_{c<l} T_{lc}[h_c, k] + \tau_l[k] + \gamma_l(h_{<l})[k]\Big)

A cell draws the codes of its L layers one after the other. The shift :math:`\tau` is the sum of
what the codes of the cell above add to its scores; there is none at the top. The gate
:math:`\gamma` is how well each component fits what the cell is given, where it is given something.
"""

__all__ = ["CodePrior", "Gates", "draw_index"]

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..drmm.links import stacked_rows, sum_rows

Gates = Sequence[Tensor]
"""What entries that cells are given add to scores, layer by layer, (n, 1, K) before the first and
(n, B, K) after B codes."""

# Added to sums of exponentials that may be too small for the number format, so that they are never
# taken for less than they are.
TINY = 1e-37


@dataclass(frozen=True)
class CodePrior:
    """Scores of the codes of L layers of K components."""

    log_weight: Tensor
    """Scores w, shape (L, K)."""
    links: Tensor
    """Scores T of pairs of layers (1, 0), (2, 0), (2, 1), ..., one below the other: row j, column
    k is that of code k after code j, shape (L (L - 1) / 2 K, K)."""

    @property
    def num_layers(self) -> int:
        """Number of layers L."""
        return self.log_weight.shape[0]

    @property
    def num_components(self) -> int:
        """Number of components K."""
        return self.log_weight.shape[1]

    @property
    def num_codes(self) -> int:
        """Number of codes of a cell."""
        return self.num_components**self.num_layers

    def scores(self, layer: int, codes: Tensor) -> Tensor:
        """Scores of a layer's codes, not normalised, given codes (n, l) before: (n, K)."""
        rows = stacked_rows(codes[:, :layer], self.num_components)
        first = layer * (layer - 1) // 2 * self.num_components
        return self.log_weight[layer] + sum_rows(self.links, rows + first)

    def scores_given_later(self, layer: int, codes: Tensor) -> Tensor:
        """What codes (n, L) of the layers after a layer say of its own: scores (n, K).

        The columns of the tables of which `scores` sums rows.
        """
        k = self.num_components
        pairs = [later * (later - 1) // 2 + layer for later in range(layer + 1, self.num_layers)]
        table = self.links.reshape(-1, k, k)[pairs].mT.flatten(0, 1)
        return sum_rows(table, stacked_rows(codes[:, layer + 1 :], k))

    def log_conditional(
        self, layer: int, codes: Tensor, shift: Tensor | None, gate: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities of a layer's codes.

        Args:
            layer: The layer.
            codes: Codes of the layers before, of B cases for each of n cells: (n, B, l).
            shift: What the level above adds, shape (n, L, K), if there is one.
            gate: What entries that the cell is given add, shape (n, B, K), if there are any.

        Returns:
            Tensor of shape (n, B, K).
        """
        n, count = codes.shape[:2]
        scores = self.scores(layer, codes.flatten(0, 1)).reshape(n, count, -1)
        if shift is not None:
            scores = scores + shift[:, None, layer]
        if gate is not None:
            scores = scores + gate
        return scores.log_softmax(-1)

    def log_prob(
        self, codes: Tensor, shift: Tensor | None = None, gates: Gates | None = None
    ) -> Tensor:
        """Log-probability of codes (n, B, L) of n cells: shape (n, B).

        Args:
            codes: The codes.
            shift: What the level above adds, shape (n, L, K), if there is one.
            gates: What entries that the cell is given add, layer by layer.
        """
        total = self.log_weight.new_zeros(codes.shape[:2])
        for layer in range(self.num_layers):
            gate = None if gates is None else gates[layer]
            every = self.log_conditional(layer, codes[..., :layer], shift, gate)
            total = total + every.gather(-1, codes[..., layer : layer + 1]).squeeze(-1)
        return total

    def log_prob_given(self, codes: Tensor, shift: Tensor, gates: Gates | None = None) -> Tensor:
        """Log-probabilities of all codes of a cell under several shifts.

        Args:
            codes: Shape (n, B, L).
            shift: Shape (n, G, L, K).
            gates: What entries that the cell is given add, layer by layer.

        Returns:
            Tensor of shape (n, G, B).
        """
        (n, count), groups = codes.shape[:2], shift.shape[1]
        total = shift.new_zeros(n, groups, count)
        for layer in range(self.num_layers):
            # Before the first layer all codes have the same scores.
            first = 1 if layer == 0 else count
            own = self.scores(layer, codes[:, :first, :layer].flatten(0, 1))
            own = own.reshape(n, first, -1)  # (n, B or 1, K)
            if gates is not None:
                own = own + gates[layer]
            added = shift[:, :, layer]  # (n, G, K)
            index = codes[..., layer]
            chosen_own = own.expand(-1, count, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
            chosen_added = added.gather(-1, index.unsqueeze(1).expand(-1, groups, -1))
            total = total + chosen_own.unsqueeze(1) + chosen_added
            total = total - log_sum_of_sums(added, own)
        return total

    def sample(self, shift: Tensor | None, count: int | None = None) -> Tensor:
        """Draws codes (n, L), given shifts (n, L, K), or of a count of cells that have none."""
        n = count if shift is None else len(shift)
        assert n is not None
        codes = torch.zeros(n, 1, 0, dtype=torch.long, device=self.log_weight.device)
        for layer in range(self.num_layers):
            chosen = draw_index(self.log_conditional(layer, codes, shift))
            codes = torch.cat([codes, chosen.unsqueeze(-1)], -1)
        return codes.squeeze(1)


def draw_index(log_prob: Tensor) -> Tensor:
    r"""Draws an index in proportion to probabilities (\*S, K): shape (\*S).

    By inversion: for many rows `torch.multinomial` takes several times as long.
    """
    total = log_prob.exp().cumsum(-1)
    point = torch.rand_like(total[..., :1]) * total[..., -1:]
    index = torch.searchsorted(total, point, right=True).squeeze(-1)
    return index.clamp(max=log_prob.shape[-1] - 1)


def log_sum_of_sums(first: Tensor, second: Tensor) -> Tensor:
    """Log of the sums over k of exp(a[k] + b[k]), for all pairs of rows: (n, G, B).

    One matrix product, where a sum for each pair would take G B K exponentials. It is never too
    small; where rows have their large entries at different places, by 80 and more, it is too
    large.

    Args:
        first: Shape (n, G, K).
        second: Shape (n, B, K).
    """
    top, other = (t.detach().amax(-1, keepdim=True) for t in (first, second))
    product = (first - top).exp() @ (second - other).exp().mT
    return (product + TINY).log() + top + other.mT
