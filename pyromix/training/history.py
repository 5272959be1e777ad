"""The record of a training run."""

__all__ = ["History"]

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Outcome = Literal["running", "finished", "early", "interrupted"]


@dataclass
class History:
    """Losses and timings of a training run, as `fit` returns it."""

    losses: list[float] = field(default_factory=list)
    """Training loss of every step, on that step's batch."""
    learning_rates: list[float] = field(default_factory=list)
    """Learning rate of every step."""
    seconds: list[float] = field(default_factory=list)
    """Time from the start to the end of every step, without pauses between resumed runs."""
    validation_steps: list[int] = field(default_factory=list)
    """Number of steps that had been taken at each validation."""
    validation_losses: list[float] = field(default_factory=list)
    """Mean loss over the validation data at each validation."""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """What models measure beside the loss, such as likelihoods of layers: for every step."""
    stages: dict[str, int] = field(default_factory=dict)
    """Names of the stages of training, for models that have them, and the steps before each."""
    outcome: Outcome = "running"
    """How training ended: ``"finished"`` all steps, ``"early"`` as the validation loss rose, or
    ``"interrupted"`` from the keyboard."""

    @property
    def best_step(self) -> int | None:
        """Number of steps after which the validation loss was lowest; None without validation."""
        if not self.validation_losses:
            return None
        losses = self.validation_losses
        return self.validation_steps[min(range(len(losses)), key=losses.__getitem__)]

    def __repr__(self) -> str:
        parts = [f"{len(self.losses)} steps", self.outcome]
        if self.stages:
            parts.append(" > ".join(self.stages))
        if self.losses:
            parts.append(f"loss {self.losses[0]:.4g} -> {self.losses[-1]:.4g}")
            parts.append(f"{self.seconds[-1]:.1f} s")
        if self.validation_losses:
            best = min(self.validation_losses)
            parts.append(f"best validation {best:.4g} at step {self.best_step}")
        return f"History({', '.join(parts)})"

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Plots training and validation loss against steps.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
        ax.plot(_running_mean(self.losses), color="C0", label="training (running mean)")
        if self.validation_losses:
            ax.plot(
                self.validation_steps, self.validation_losses, ".-", color="C1", label="validation"
            )
            ax.axvline(self.best_step or 0, color="C1", linestyle=":", label="best")
        values = sorted(_running_mean(self.losses) + self.validation_losses)
        low, high = (values[0], values[int(0.97 * len(values))]) if values else (0.0, 0.0)
        if len(values) > 20 and high > low:  # the first few steps would flatten the rest
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        for name, step in self.stages.items():
            ax.axvline(step, color="0.8", zorder=0)
            ax.annotate(
                name, (step, 1), xycoords=("data", "axes fraction"), va="top", fontsize="small"
            )
        ax.set(xlabel="step", ylabel="loss")
        ax.legend()
        return ax

    def state(self) -> dict[str, Any]:
        """The record as tensors and strings, for a checkpoint."""
        state: dict[str, Any] = {"outcome": self.outcome, "stages": self.stages}
        for name in _LISTS:
            state[name] = torch.tensor(getattr(self, name), dtype=torch.float64)
        state["metrics"] = {
            name: torch.tensor(values, dtype=torch.float64)
            for name, values in self.metrics.items()
        }
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "History":
        """Rebuilds the record from what `state` returned."""
        lists: dict[str, Tensor] = {name: state[name] for name in _LISTS}
        values: dict[str, Any] = {name: value.tolist() for name, value in lists.items()}
        values["validation_steps"] = [int(step) for step in values["validation_steps"]]
        stages = {name: int(step) for name, step in state["stages"].items()}
        metrics = {name: column.tolist() for name, column in state["metrics"].items()}
        return cls(**values, metrics=metrics, stages=stages, outcome=state["outcome"])


_LISTS = ("losses", "learning_rates", "seconds", "validation_steps", "validation_losses")


def _running_mean(losses: list[float], window: int = 50) -> list[float]:
    """Mean over up to `window` steps, fewer at the start."""
    if not losses:
        return []
    total = torch.tensor([0.0, *losses], dtype=torch.float64).cumsum(0)
    stop = torch.arange(1, len(losses) + 1)
    start = (stop - min(window, max(1, len(losses) // 20))).clamp(min=0)
    return ((total[stop] - total[start]) / (stop - start)).tolist()
