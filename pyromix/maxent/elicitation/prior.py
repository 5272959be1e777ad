"""A joint prior of named variables, as a distribution and as sites of a model."""

__all__ = ["Block", "ElicitedPrior"]

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from .copula import CopulaLaw
from .line import LineLaw
from .statistics import Statistic

NUM_DRAWS = 100_000  # where there is no quadrature
SEED = 0  # of draws for the printed table


class Block(NamedTuple):
    """Variables that depend on each other, and on no others."""

    names: tuple[str, ...]
    columns: tuple[int, ...]
    law: Any
    """Of event shape () for one variable, else (d,)."""
    statistics: tuple[Statistic, ...]
    """What was stated of them, of draws (..., d)."""

    def draws(self) -> tuple[Tensor, Tensor]:
        """Nodes of a quadrature (n, d) and their probabilities; draws where there is none."""
        if not hasattr(self.law, "nodes"):
            with torch.no_grad():
                x = self.law.sample(Size((NUM_DRAWS,)))
            return x, torch.full((NUM_DRAWS,), 1 / NUM_DRAWS).to(x)
        x, p = self.law.nodes()
        return (x.unsqueeze(-1) if x.dim() == 1 else x), p

    def check(self) -> list[tuple[float, float]]:
        """What the law has for every statement, and its standard error.

        Statements about variables with a law of their own, also in a copula, are integrated: their
        standard error is zero. Others are averaged over draws, which know nothing of the nodes
        that the law was solved on.
        """
        if isinstance(self.law, LineLaw):
            x, p = self.draws()
            return [(float(p @ s.values(x).to(p)), 0.0) for s in self.statistics]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(SEED)
            draws = self.law.sample(Size((NUM_DRAWS,))).double()
        result = []
        for s in self.statistics:
            if isinstance(self.law, CopulaLaw) and s.columns is not None and len(s.columns) == 1:
                nodes, p = self.law.laws[s.columns[0]].nodes()
                x = nodes.unsqueeze(-1).expand(-1, len(self.names))
                result.append((float(p @ s.values(x).to(p)), 0.0))
                continue
            values = s.values(draws).double()
            result.append((float(values.mean()), float(values.std()) / NUM_DRAWS**0.5))
        return result


class ElicitedPrior(TorchDistribution):
    """The joint law of named variables: what `elicit` returns.

    It is a distribution over vectors with an entry for every variable, in the order of `names`:
    ``pyro.sample("prior", prior)``. Within a model, `sites` gives named values instead. Laws are
    kept, and computed, in double precision on the CPU; draws have the default dtype, and
    log-densities that of the values, on their device.

    Args:
        blocks: Laws of variables that depend on each other.
        supports: Constraints on the variables, by name, in the order of the entries.
    """

    has_rsample = False
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as PyTorch declares it

    def __init__(
        self, blocks: Sequence[Block], supports: Mapping[str, constraints.Constraint]
    ) -> None:
        self.blocks, self.supports = tuple(blocks), dict(supports)
        super().__init__(event_shape=Size((len(self.supports),)), validate_args=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries."""
        return tuple(self.supports)

    @property
    def support(self) -> constraints.Constraint:
        """Where values lie, of event shape (d,)."""
        return joint_support(list(self.supports.values()))

    def expand(self, batch_shape: _size, _instance: Any = None) -> Any:
        """Independent copies, in a batch."""
        from pyro.distributions.torch_distribution import ExpandedDistribution

        return ExpandedDistribution(self, Size(batch_shape))

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        """Draws of all variables, of the given shape, then (d,)."""
        with torch.no_grad():
            parts = [block.law.sample(Size(sample_shape)) for block in self.blocks]
        columns: list[Tensor] = [parts[0]] * len(self.supports)
        for block, x in zip(self.blocks, parts, strict=True):
            x = x if block.law.event_shape else x.unsqueeze(-1)
            for column, entry in zip(block.columns, x.unbind(-1), strict=True):
                columns[column] = entry
        return torch.stack(columns, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of values (..., d), shape (...); NaN where a value is.

        Raises:
            ValueError: If values have another last dimension.
        """
        if value.dim() < 1 or value.shape[-1] != len(self.supports):
            raise ValueError(
                f"Expected values of shape (..., {len(self.supports)}), an entry for each of "
                f"{', '.join(map(repr, self.names))}, got {tuple(value.shape)}."
            )
        total = torch.zeros_like(value[..., 0])
        for block in self.blocks:
            x = value[..., list(block.columns)]
            total = total + block.law.log_prob(x if block.law.event_shape else x.squeeze(-1))
        return torch.where(value.isnan().any(-1), math.nan, total)

    def split(self, value: Tensor) -> dict[str, Tensor]:
        """The entries of values (..., d) by name, each of shape (...)."""
        return dict(zip(self.names, value.unbind(-1), strict=True))

    def sites(self, prefix: str = "") -> dict[str, Tensor]:
        """Draws the variables as sites of a Pyro model, and returns them by name.

        A variable that depends on no other is a site of its own name. Variables that depend on
        each other are drawn at one site, named by all of them (``"rate_share"``), with a
        deterministic site for each. Guides, NUTS and `pyro.condition` work on these sites.

        Args:
            prefix: What all names start with.
        """
        values: dict[str, Tensor] = {}
        for block in self.blocks:
            x = pyro.sample(prefix + "_".join(block.names), block.law)
            if not block.law.event_shape:
                values[block.names[0]] = x
                continue
            for name, entry in zip(block.names, x.unbind(-1), strict=True):
                values[name] = pyro.deterministic(prefix + name, entry)
        return {name: values[name] for name in self.names}

    def entropy(self) -> Tensor:
        """Differential entropy in nats, by quadrature; by draws where blocks are flows."""
        total = torch.zeros(())
        for block in self.blocks:
            try:
                total = total + block.law.entropy()
            except NotImplementedError:
                x, p = block.draws()
                with torch.no_grad():
                    total = total - p @ block.law.log_prob(x)
        return total

    @property
    def mean(self) -> Tensor:
        """Means, shape (d,)."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Variances, shape (d,)."""
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        means, variances = torch.zeros(2, len(self.supports))
        for block in self.blocks:
            try:
                centre, spread = block.law.mean, block.law.variance
            except NotImplementedError:
                x, p = block.draws()
                centre = p @ x
                spread = p @ (x - centre).square()
            means[list(block.columns)] = centre.to(means)
            variances[list(block.columns)] = spread.to(means)
        return means, variances

    def __str__(self) -> str:
        lines = [f"{'':36} {'stated':>12} {'got':>12} {'error':>10} {'multiplier':>12}"]
        for block in self.blocks:
            law = block.law
            what = law.description if isinstance(law, LineLaw) else type(law).__name__
            lines.append(f"{', '.join(block.names)}: {what}")
            # What was stated comes first, unless the law is a member of a family.
            found = law.exponent.multipliers.tolist() if hasattr(law, "exponent") else []
            prices = found or [math.nan] * len(block.statistics)
            rows = zip(block.statistics, block.check(), prices, strict=False)
            for s, (average, error), price in rows:
                got = s.sign * average
                margin = f"{error:10.2g}" if error else f"{'exact':>10}"
                relation = ("" if not s.is_inequality else "<=") if s.sign > 0 else ">="
                stated = f"{relation}{s.sign * s.level:.5g}"
                shown = f"{s.sign * price:12.4g}" if math.isfinite(price) else f"{'':12}"
                lines.append(f"  {s.name[:34]:34} {stated:>12} {got:12.5g} {margin} {shown}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"ElicitedPrior({', '.join(self.names)})"


def joint_support(supports: Sequence[constraints.Constraint]) -> constraints.Constraint:
    """The constraint on vectors whose entries have constraints of their own."""
    return constraints.independent(
        constraints.cat(list(supports), dim=-1, lengths=[1] * len(supports)), 1
    )
