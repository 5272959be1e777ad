"""The result of a maximum-entropy problem, and the error where there is none."""

__all__ = ["InfeasibleError", "MaximumEntropyResult", "Outcome", "Round"]

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Violations come down if each of so many rounds leaves less than this share of them, down to
# distances, in deviations, that are noise.
FALLING_ROUNDS, FALLING, CLOSE = 2, 0.9, 0.05

Outcome = Literal["running", "converged", "finished", "interrupted", "infeasible"]


@dataclass(frozen=True)
class Round:
    """The state at the end of a round, estimated from new draws."""

    entropy: float
    """Entropy, in nats."""
    violations: Tensor
    """Violations, shape (m,)."""
    scaled_violations: Tensor
    """Violations in standard deviations of their statistics, shape (m,)."""
    multipliers: Tensor
    """Multipliers after the round, shape (m,)."""
    penalty: float
    """Penalty in the round."""
    feasible: bool
    """Whether no test rejects a constraint."""
    scale: Tensor
    """Standard deviation of every coordinate of a draw, in the event's shape."""
    distance: float
    """Length of the violation in standard deviations, with correlations taken into account."""


@dataclass
class MaximumEntropyResult:
    r"""A distribution of maximum entropy, and how well its expectations meet the constraints.

    At the optimum, :math:`\log q(x) = \text{const} - \lambda^\top T(x)`.
    """

    distribution: Any
    """The distribution that was given, with the parameters of the best feasible round."""
    names: tuple[str, ...]
    """Names of the constraints, equalities first."""
    levels: Tensor
    """Targets, then bounds, shape (m,)."""
    means: Tensor
    """Expectations of the statistics, shape (m,)."""
    violations: Tensor
    """Means minus targets; of inequalities, what is above the bound. Shape (m,)."""
    standard_errors: Tensor
    """Standard errors of the means, shape (m,)."""
    scaled_violations: Tensor
    """Sizes of the violations in standard deviations of their statistics, shape (m,)."""
    multipliers: Tensor
    """Lagrange multipliers, shape (m,): by how many nats the largest entropy rises for each unit
    that a target or bound is raised."""
    entropy: float
    """Differential entropy, in nats."""
    entropy_error: float
    """Its standard error."""
    residual: float
    r"""Standard deviation of :math:`\log q(x) + \lambda^\top T(x)` under q: zero at the optimum.
    Half its square is, where it is small, the divergence from the optimum on the modes that q
    has: of one that it lacks, it says nothing."""
    feasible: bool
    """Whether no test on new draws rejects a constraint, at a level of 5% for all: means are
    within the margin of their levels, up to chance."""
    outcome: Outcome
    """``"converged"`` if the constraints hold and the entropy has settled, ``"finished"`` after
    the largest number of rounds, ``"interrupted"`` from the keyboard, or ``"infeasible"``."""
    seconds: float
    """Duration of the search, in seconds."""
    entropies: list[float] = field(default_factory=list)
    """Estimated entropy at every step."""
    rounds: list[Round] = field(default_factory=list)
    """The end of every round."""
    best_round: int = 0
    """Index of the round that was kept."""

    @property
    def falling(self) -> bool:
        """Whether violations were still coming down when the rounds were up: they were too few."""
        sizes = [r.distance for r in self.rounds[-1 - FALLING_ROUNDS :]]
        if self.feasible or self.outcome != "finished" or len(sizes) <= FALLING_ROUNDS:
            return False
        return sizes[-1] > CLOSE and all(b < FALLING * a for a, b in itertools.pairwise(sizes))

    def __str__(self) -> str:
        farthest = float(self.scaled_violations.max())
        held = "constraints hold" if self.feasible else f"constraints MISSED BY {farthest:.2g} sd"
        held += " (and coming down: raise rounds or steps)" if self.falling else ""
        lines = [
            f"entropy {self.entropy:.4f} +- {self.entropy_error:.4f} nats, {self.outcome} after "
            f"{len(self.rounds)} rounds ({self.seconds:.0f} s), "
            f"{held}, residual {self.residual:.2g}",
            f"{'':20} {'asked':>12} {'got':>12} {'violation':>12} {'+-':>10} {'in sd':>8} "
            f"{'multiplier':>12}",
        ]
        columns = (self.levels, self.means, self.violations, self.standard_errors,
                   self.scaled_violations, self.multipliers)  # fmt: skip
        for name, *row in zip(self.names, *(c.tolist() for c in columns), strict=True):
            asked, got, violation, error, scaled, multiplier = row
            lines.append(
                f"{name[:20]:20} {asked:12.5g} {got:12.5g} {violation:12.2e} {error:10.1e} "
                f"{scaled:8.4f} {multiplier:12.4g}"
            )
        return "\n".join(lines)

    def plot(self) -> "Figure":
        """Plots entropy by step, and violations and multipliers by round.

        Returns:
            A new figure with three axes.
        """
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
        per_round = max(1, len(self.entropies) // max(1, len(self.rounds)))
        steps = torch.arange(1, len(self.entropies) + 1) / per_round
        axes[0].plot(steps.numpy(), self.entropies, color="C0", alpha=0.3, lw=0.5)
        numbers = range(1, len(self.rounds) + 1)
        axes[0].plot(numbers, [r.entropy for r in self.rounds], "o-", color="C0", ms=4)
        for number, r in zip(numbers, self.rounds, strict=True):
            if r.feasible:
                axes[0].axvline(number, color="0.85", zorder=0)
        settled = sorted(self.entropies[len(self.entropies) // 20 :])
        if settled:
            low, high = settled[len(settled) // 100], settled[-1 - len(settled) // 100]
            margin = 0.1 * (high - low) + 1e-3
            axes[0].set_ylim(low - margin, high + margin)
        axes[0].set(xlabel="round", ylabel="entropy [nats]", title="grey: constraints hold")
        few = len(self.names) <= 8
        for i, name in enumerate(self.names):
            label = name if few else None
            scaled = [max(float(r.scaled_violations[i]), 1e-6) for r in self.rounds]
            axes[1].semilogy(numbers, scaled, ".-", label=label, alpha=0.8)
            prices = [float(r.multipliers[i]) for r in self.rounds]
            axes[2].plot(numbers, prices, ".-", label=label, alpha=0.8)
        axes[1].set(xlabel="round", ylabel="violation [standard deviations]")
        axes[2].set(xlabel="round", ylabel="multiplier")
        if few:
            axes[2].legend(fontsize="small")
        for ax in axes:
            ax.xaxis.get_major_locator().set_params(integer=True)
        return figure


class InfeasibleError(ValueError):
    """No distribution of the family meets the constraints.

    Args:
        message: What the error says.
        result: Where the search ended; kept as the attribute `result`.
    """

    def __init__(self, message: str, result: MaximumEntropyResult) -> None:
        super().__init__(message)
        self.result = result
