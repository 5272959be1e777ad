r"""A hierarchy in which every cell has few codes: sums over all of them, by matrix products.

The probability of code j of a cell at position o of its parent's window, given the parent's code
g, is a table :math:`P_o[g, j]` that all cells share. With how well what is below a cell fits its
code, :math:`S_p(j)`, messages go up as

.. math:: S_c(g) = \prod_{p \ of\ c} \sum_j P_{o(p)}[g, j] \, S_p(j),

one matrix product for each position of a window. Probabilities of codes given all that is known,
and draws of them, come down by the same tables.
"""

__all__ = ["DenseTree"]

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..core.checks import is_traced
from .code_law import CodeLaw
from .code_prior import CodePrior, draw_index

# Sums of products below this are added up anew as logarithms: single precision ends at 1e-38.
SMALL = 1e-25
# Numbers in an intermediate result of that.
CHUNK_NUMBERS = 2**22


class DenseTree:
    """All codes of all cells of the lowest levels of a hierarchy.

    Args:
        tables: Of each level above the bottom, log-probabilities of codes below given its own, at
            every position of its window, (O, G, J).
        top: Log-probabilities of the codes of the last level, (G,).
        levels: The levels above the bottom.
        everything: The codes of all levels, (J, L) each.
    """

    def __init__(
        self,
        tables: Sequence[Tensor],
        top: Tensor,
        levels: Sequence[CodeLaw],
        everything: Sequence[Tensor],
    ) -> None:
        self.tables, self.top = list(tables), top
        self.tilings = [level.tiling for level in levels]
        self.everything = list(everything)

    @classmethod
    def of(
        cls, priors: Sequence[CodePrior], levels: Sequence[CodeLaw], max_codes: int
    ) -> Self | None:
        """The tree, if no cell has more than so many codes; else None."""
        everything = [_all_codes(prior) for prior in priors if prior.num_codes <= max_codes]
        if len(everything) < len(priors):
            return None
        tables = []
        for place, level in enumerate(levels):
            shift = level.shifts_by_position(everything[place + 1])  # (O, G, L', K')
            prior = priors[place]
            if prior.num_layers == 1:  # codes are components: a pass over the table will do
                tables.append((prior.log_weight[0] + shift.squeeze(2)).log_softmax(-1))
                continue
            below = everything[place].expand(len(shift), -1, -1)
            tables.append(prior.log_prob_given(below, shift))
        top = priors[-1].log_prob(everything[-1].unsqueeze(0)).squeeze(0)
        return cls(tables, top, levels, everything)

    # ---- up ---------------------------------------------------------------------------------

    def log_prob(self, fit: Tensor) -> Tensor:
        """Log-probability of all that is below, (N,), from fits (N, C, J) of the windows."""
        return (self.top + self._up(fit)[0][-1]).logsumexp(-1).sum(-1)

    def _up(self, fit: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """How well what is below cells fits their codes, and the codes of the cells above.

        Returns:
            Of each level (N, C, J); of each but the last (N, C, G).
        """
        fits, messages = [fit], []
        for table, tiling in zip(self.tables, self.tilings, strict=True):
            parts = [
                log_product(part, own)
                for part, own in zip(
                    fits[-1][:, tiling.order].split(tiling.counts, 1), table, strict=True
                )
            ]
            messages.append(torch.cat(parts, 1)[:, tiling.order.argsort()])
            fits.append(tiling.sum_drawn(messages[-1]))
        return fits, messages

    # ---- down -------------------------------------------------------------------------------

    @torch.no_grad()
    def marginals(self, fit: Tensor) -> Tensor:
        """Probabilities of the codes of windows given all that is known, (N, C, J).

        Args:
            fit: How well what is known fits codes of windows, (N, C, J); zero where nothing is.
        """
        fits, messages = self._up(fit)
        posterior = (self.top + fits[-1]).log_softmax(-1)
        for below, message, table, tiling in zip(
            fits[-2::-1], messages[::-1], self.tables[::-1], self.tilings[::-1], strict=True
        ):
            share = (posterior[:, tiling.owner] - message)[:, tiling.order]  # (N, P, G)
            back = [
                log_product(part, own.mT)
                for part, own in zip(share.split(tiling.counts, 1), table, strict=True)
            ]
            posterior = torch.cat(back, 1)[:, tiling.order.argsort()] + below
            posterior = posterior.log_softmax(-1)
        return posterior.exp()

    @torch.no_grad()
    def sample(self, fit: Tensor, draws: int) -> Tensor:
        """Draws codes of windows given all that is known, (N, C, draws, L); see `marginals`."""
        fits = self._up(fit)[0]
        top = (self.top + fits[-1]).log_softmax(-1)
        index = draw_index(top.unsqueeze(2).expand(-1, -1, draws, -1))  # (N, C, draws)
        for below, table, tiling in zip(
            fits[-2::-1], self.tables[::-1], self.tilings[::-1], strict=True
        ):
            parent = index[:, tiling.owner]  # (N, P, draws)
            index = torch.stack(
                [
                    draw_index((table[o][parent[:, p]] + below[:, p, None]).log_softmax(-1))
                    for p, o in enumerate(tiling.offset.tolist())
                ],
                1,
            )
        return self.everything[0][index]


def _all_codes(prior: CodePrior) -> Tensor:
    """All codes of a cell, (J, L)."""
    each = [torch.arange(prior.num_components, device=prior.log_weight.device)] * prior.num_layers
    return torch.cartesian_prod(*each).reshape(-1, prior.num_layers)


def log_product(fit: Tensor, table: Tensor) -> Tensor:
    r"""Logarithms of :math:`\sum_j e^{t[g, j] + s[j]}`.

    Args:
        fit: Logarithms s, shape (\*S, J).
        table: Logarithms t, shape (G, J).

    Returns:
        Tensor of shape (\*S, G).
    """
    if is_traced():
        return (fit.unsqueeze(-2) + table).logsumexp(-1)
    flat = fit.reshape(-1, fit.shape[-1])
    top = flat.detach().amax(-1, keepdim=True)
    scale = table.detach().amax()
    total = (flat - top).exp() @ (table - scale).exp().mT
    small = (total < SMALL).any(-1)
    if not bool(small.any()):
        return (total.log() + top + scale).reshape(*fit.shape[:-1], -1)
    rows = small.nonzero().squeeze(-1)
    size = max(1, CHUNK_NUMBERS // table.numel())
    anew = torch.cat(
        [(part.unsqueeze(1) + table).logsumexp(-1) for part in flat[rows].split(size)]
    )
    result = total.clamp(min=SMALL).log() + top + scale
    return result.index_copy(0, rows, anew).reshape(*fit.shape[:-1], -1)
