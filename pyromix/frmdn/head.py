"""From the state of a recurrent network to the mixture of the next value."""

__all__ = ["POSITIVE", "MixtureHead"]

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..core.networks import make_network
from ..mixtures import MixtureOfLowRankPrecisionNormals, MixtureOfNormals
from ..mixtures.clusters import Clusters
from ..mixtures.finite import FiniteMixture

POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {"softplus": softplus, "exp": torch.exp}

# Bound of the length of a column of W: it shortens a deviation by this factor at most.
MAX_COLUMN = 100.0

# Start: columns long enough for gradients to reach them (at zero they vanish), and outputs that
# depend little on the state.
INITIAL_COLUMN = 0.1
INITIAL_INFLUENCE = 0.1


class MixtureHead(nn.Module):
    r"""Mixtures of normals of which every parameter is a function of a state.

    Of every component k the outputs o of a network become

    .. math:: w = \operatorname{softmax}(o^w), \quad m_k = o^m_k, \quad
              s_k = f + g(o^s_k), \quad
              P_k = \operatorname{diag}(s_k^{-2}) + U_k U_k^\top

    with :math:`U_k = \operatorname{diag}(s_k^{-1}) W_k` and :math:`W_k = b(o^W_k)`, or with one
    free :math:`U_k = b(\cdot)` for all states. g is softplus or exp, f the floor, and b keeps the
    length of columns below 100: no direction's variance is less than :math:`f^2 / (1 + 10^4 r)`.

    Args:
        num_inputs: Width of a state.
        hidden_dims: Hidden layers between state and parameters.
        dim: Dimension D of a value.
        num_components: K.
        rank: Columns r of every U.
        shared_factor: Whether U is a free parameter, not an output.
        positivity: Name of g.
        floor: f.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden_dims: Sequence[int],
        dim: int,
        num_components: int,
        *,
        rank: int,
        shared_factor: bool,
        positivity: str,
        floor: float,
    ) -> None:
        super().__init__()
        self.dim, self.num_components, self.rank = dim, num_components, rank
        self.positivity, self.floor = positivity, floor
        per_component = 1 + 2 * dim + (0 if shared_factor else rank * dim)
        self.network = make_network(num_inputs, hidden_dims, num_components * per_component)
        # Columns first: sums over D run along memory.
        noise = INITIAL_COLUMN * torch.randn(rank, num_components, dim) / math.sqrt(dim)
        self.raw_factor: Any = nn.Parameter(noise) if shared_factor and rank else None
        with torch.no_grad():
            self._output.weight.mul_(INITIAL_INFLUENCE)
            if not shared_factor:
                self._output.bias[num_components * (1 + 2 * dim) :] = noise.flatten()
        loc = 0.5 * torch.randn(num_components, dim)
        shares = torch.full((num_components,), 1 / num_components)
        self.start_from(Clusters(shares, loc, torch.ones(num_components, dim)))

    @property
    def _output(self) -> Any:
        return self.network[-1]

    @torch.no_grad()
    def start_from(self, clusters: Clusters) -> None:
        """Sets the mixture around which states let the parameters vary.

        Args:
            clusters: Weights, means and variances of the components.
        """
        scale = clusters.second.sqrt()
        excess = (scale - self.floor).clamp(min=1e-3 * self.floor)
        # The inverse of softplus is x + log(1 - e^-x).
        raw = excess.log()
        raw = raw if self.positivity == "exp" else excess + (-(-excess).expm1()).log()
        parts = [clusters.weights.log(), clusters.loc.flatten(), raw.flatten()]
        start = torch.cat(parts)
        self._output.bias[: len(start)] = start

    def forward(self, state: Tensor) -> FiniteMixture:
        r"""The mixture given states.

        Args:
            state: Shape (\*B, number of inputs).

        Returns:
            A mixture over D numbers, of batch shape B.
        """
        k, dim, rank = self.num_components, self.dim, self.rank
        outputs = self.network(state)
        sizes = [k, k * dim, k * dim]
        # One split: its gradient is one copy, where each slice's would be as large as the whole.
        logits, loc, raw_scale, *rest = outputs.split([*sizes, outputs.shape[-1] - sum(sizes)], -1)
        loc = loc.unflatten(-1, (k, dim))
        scale = self.floor + POSITIVE[self.positivity](raw_scale.unflatten(-1, (k, dim)))
        if rank == 0:
            return MixtureOfNormals(logits, loc, scale, validate_args=False)
        # Entries up to a bound, such that no column of W is longer than its own.
        bound = MAX_COLUMN / math.sqrt(dim)
        if self.raw_factor is not None:
            columns = bound * (self.raw_factor / bound).tanh()
        else:
            raw = rest[0].unflatten(-1, (rank, k, dim))
            columns = (raw / bound).tanh() * (bound / scale).unsqueeze(-3)
        precision = scale.square().reciprocal(), columns.movedim(-3, -1)
        return MixtureOfLowRankPrecisionNormals(logits, loc, *precision, validate_args=False)
