"""Exact inference where codes form a tree."""

__all__ = ["Tree"]

import torch
from torch import Tensor

from ..numerics.diagonal_density import log_sum_exp
from .law import TopDownLaw, draw
from .wiring import Wiring


class Tree:
    """Sums over all codes, as every patch and every code depends on a single code above.

    On the way up, messages are computed: the log-likelihood, for each code of a position, of all
    patches below that position.

    Args:
        law: A law whose architecture is exact.
        images: Shape (N, H, W, C).
        evidence: 1 for pixels that are known, 0 for others, shape (N, H, W, C); by default all
            are known.
    """

    def __init__(self, law: TopDownLaw, images: Tensor, evidence: Tensor | None = None) -> None:
        self.law = law
        messages = [law.patch_log_prob(images, evidence)]
        self.links: list[tuple[Tensor, Tensor]] = []
        for layer, control in enumerate(law.control):
            wiring = law.blocks[layer + 1].wiring.to(law.loc)
            table, parent = link(control, wiring)
            self.links.append((table, parent))
            below = log_matmul(messages[-1], table)
            above = below.new_zeros(len(images), law.blocks[layer + 1].num_positions, len(control))
            messages.append(above.index_add(1, parent, below))
        self.messages = messages
        weights = law.log_weights.log_softmax(-1).unsqueeze(-2)
        self.top = messages[-1] + weights
        self.log_evidence = log_sum_exp(self.top).sum(-1)

    def marginals(self) -> Tensor:
        """Returns probabilities of all codes of the bottom patches, shape (N, P, K)."""
        probability = self.top.softmax(-1)
        for message, (table, parent) in self._down():
            above = probability[:, parent]  # (N, P, K above)
            sums = log_matmul(message, table)
            likelihood = (message - message.amax(-1, keepdim=True)).exp()
            scaled = above * (message.amax(-1, keepdim=True) - sums).exp()
            probability = likelihood * torch.einsum("npa,pab->npb", scaled, table)
        return probability

    def draw(self) -> Tensor:
        """Draws codes of the bottom patches, shape (N, P)."""
        codes = draw(self.top.softmax(-1))
        for message, (table, parent) in self._down():
            position = torch.arange(len(parent), device=codes.device)
            chosen = table[position, codes[:, parent]]  # (N, P, K)
            codes = draw((message + chosen.log()).softmax(-1))
        return codes

    def _down(self) -> list[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Messages of all layers but the top, and their links to the layer above, downwards."""
        return list(zip(self.messages[:-1], self.links, strict=True))[::-1]


def link(control: Tensor, wiring: Wiring) -> tuple[Tensor, Tensor]:
    """Returns probabilities of codes below given the one above, and the position of that one.

    Args:
        control: Probabilities of codes below, for every slice, shape (K, J, K below).
        wiring: A wiring whose positions below have a single parent.

    Returns:
        Tables of shape (P below, K, K below), and positions above of shape (P below,).
    """
    tables = (control[:, wiring.slice] * wiring.weight.unsqueeze(-1)).sum(-2)  # (K, G, K below)
    return tables.movedim(0, 1)[wiring.group], wiring.parent[:, 0][wiring.group]


def log_matmul(message: Tensor, table: Tensor) -> Tensor:
    """Returns the log-likelihood of codes above, by a sum over the codes below.

    Args:
        message: Log-likelihood of codes below, shape (N, P, K below).
        table: Probabilities of these given a code above, shape (P, K, K below).

    Returns:
        Tensor of shape (N, P, K).
    """
    largest = message.detach().amax(-1, keepdim=True)
    return torch.einsum("npb,pab->npa", (message - largest).exp(), table).log() + largest
