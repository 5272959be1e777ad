"""A few of the many codes that each cell of a level may have."""

__all__ = ["Beams", "search", "streams"]

from typing import NamedTuple

import torch
from torch import Tensor

from ..drmm.prefix import take_entries
from .code_prior import CodePrior, Gates
from .fits import CellFits


class Beams(NamedTuple):
    """Different codes of the cells of a level, and how well what is below fits them."""

    codes: Tensor
    """Shape (N, C, B, L)."""
    fit: Tensor
    """Log-probability of all that a cell draws, given its code, (N, C, B)."""
    gates: Gates | None = None
    """What entries that cells are given add to scores of their codes."""

    def log_prior(self, prior: CodePrior, shift: Tensor | None = None) -> Tensor:
        """Log-probabilities of the codes, (N, C, B), given what the level above adds."""
        log_prob = prior.log_prob(self.codes.flatten(0, 1), shift, self.gates)
        return log_prob.reshape(self.fit.shape)

    def best(self, prior: CodePrior, shift: Tensor | None = None) -> Tensor:
        """The likeliest code of each cell, (N, C, L)."""
        return self.at((self.log_prior(prior, shift) + self.fit).argmax(-1))

    def at(self, place: Tensor) -> Tensor:
        """The codes (N, C, L) at places (N, C) of the beams."""
        index = place[..., None, None].expand(-1, -1, 1, self.codes.shape[-1])
        return self.codes.gather(2, index).squeeze(2)


def search(
    prior: CodePrior, fits: CellFits, count: int, width: int, shift: Tensor | None = None
) -> Tensor:
    """The best codes of n cells, kept layer by layer.

    Args:
        prior: The law of the codes of one cell.
        fits: How well the cells fit, before the first layer.
        count: Number n of cells.
        width: How many codes are kept at most.
        shift: What the level above adds to scores, (n, L, K).

    Returns:
        Codes of shape (n, B, L), the best first.
    """
    device, k = prior.log_weight.device, prior.num_components
    codes = torch.zeros(count, 1, 0, dtype=torch.long, device=device)
    log_prior = prior.log_weight.new_zeros(count, 1)
    for layer in range(prior.num_layers):
        fit, gate = fits.scores()
        joint = log_prior.unsqueeze(-1) + prior.log_conditional(layer, codes, shift, gate)
        score = (joint + fit).flatten(1)
        best = score.topk(min(width, score.shape[1]), -1).indices
        parent, chosen = best // k, best % k
        log_prior = joint.flatten(1).gather(1, best)
        codes = torch.cat([take_entries(codes, parent), chosen.unsqueeze(-1)], -1)
        if layer < prior.num_layers - 1:
            fits = fits.extend(parent, chosen)
    return codes


def streams(prior: CodePrior, beams: Beams, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How likely codes are, layer by layer, from beams; and what cells expect by themselves.

    Args:
        prior: The law of the codes of one cell.
        beams: Codes of the cells.
        shift: What the level above adds to scores, (N C, L, K).

    Returns:
        Two tensors of shape (N, C, L, K).
    """
    (n, cells, _, num_layers), k = beams.codes.shape, prior.num_components
    weight = beams.log_prior(prior, shift) + beams.fit
    share = weight.softmax(-1).unsqueeze(2).expand(-1, -1, num_layers, -1)
    likely = share.new_zeros(n, cells, num_layers, k)
    likely.scatter_add_(-1, beams.codes.transpose(2, 3), share)
    best = weight.argmax(-1)
    code = beams.at(best).reshape(n * cells, 1, num_layers)
    own = []
    for layer in range(num_layers):
        gate = None
        if beams.gates is not None:
            gate = beams.gates[layer]
            if layer:  # of the likeliest code
                gate = gate.gather(1, best.reshape(-1, 1, 1).expand(-1, -1, k))
        own.append(prior.log_conditional(layer, code[..., :layer], None, gate).squeeze(1).exp())
    return likely, torch.stack(own, 1).reshape(n, cells, num_layers, k)
