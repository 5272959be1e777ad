"""From the state of a recurrent network to the mixture of the next value."""

__all__ = ["MixtureHead"]

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.constraints import Floored
from ..core.networks import make_network
from ..mixtures import MixtureOfLowRankPrecisionNormals, MixtureOfNormals
from ..mixtures.clusters import Clusters
from ..mixtures.finite import FiniteMixture

# Bound of the length of a column of W: it shortens a deviation by this factor at most.
MAX_COLUMN = 100.0

# At the start, columns are long enough to have gradients (at zero those vanish), and outputs
# depend little on the state.
INITIAL_COLUMN = 0.1
INITIAL_INFLUENCE = 0.1


class MixtureHead(nn.Module):
    r"""A network from states to mixtures of normals.

    From its outputs o, a component k has

    .. math:: w = \operatorname{softmax}(o^w), \quad m_k = o^m_k, \quad
              s_k = f + g(o^s_k), \quad
              P_k = \operatorname{diag}(s_k^{-2}) + U_k U_k^\top

    with :math:`U_k = \operatorname{diag}(s_k^{-1}) W_k` and :math:`W_k = b(o^W_k)`, or with one
    free :math:`U_k = b(\cdot)` for all states. g is softplus or exp, f the floor. b bounds the
    length of columns by 100, so that the variance is at least :math:`f^2 / (1 + 10^4 r)` in every
    direction.

    Args:
        num_inputs: Width of a state.
        hidden_dims: Hidden layers between state and parameters.
        dim: Dimension D of a value.
        num_components: K.
        rank: Columns r of every U.
        shared_factor: Whether U is a free parameter, not an output.
        floored: From outputs to scales: f and g.
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
        floored: Floored,
    ) -> None:
        super().__init__()
        self.dim, self.num_components, self.rank = dim, num_components, rank
        self.floored = floored
        per_component = 1 + 2 * dim + (0 if shared_factor else rank * dim)
        self.network = make_network(num_inputs, hidden_dims, num_components * per_component)
        # Columns come first, so that sums over D run along memory.
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
        """Sets the mixture that outputs give where a state adds nothing to them.

        Args:
            clusters: Weights, means and variances of the components.
        """
        raw = self.floored.inverse(clusters.second.sqrt())
        start = torch.cat([clusters.weights.log(), clusters.loc.flatten(), raw.flatten()])
        self._output.bias[: len(start)] = start

    def forward(self, state: Tensor) -> FiniteMixture:
        r"""Returns the mixture given states.

        Args:
            state: Shape (\*B, number of inputs).

        Returns:
            A mixture over D numbers, of batch shape B.
        """
        k, dim, rank = self.num_components, self.dim, self.rank
        # Mixed precision may have rounded the outputs. The law is made in full precision.
        outputs = self.network(state).to(self._output.weight.dtype)
        sizes = [k, k * dim, k * dim]
        # One split: its gradient is one copy, where each slice's would be as large as the whole.
        logits, loc, raw_scale, *rest = outputs.split([*sizes, outputs.shape[-1] - sum(sizes)], -1)
        loc = loc.unflatten(-1, (k, dim))
        scale = self.floored(raw_scale.unflatten(-1, (k, dim)))
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
