"""A training run: steps, validation, checkpoints and resuming."""

__all__ = ["NonFiniteLossError", "Trainer"]

import copy
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from ..checkpoints import write_tree
from ..core.module import DistributionModule
from ..core.random import draws_from, seeded
from ..core.registry import NotPlainError
from .history import History
from .interrupt import deferred_interrupt
from .minibatches import LoaderStream, TensorStream, list_tensors

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message names the step and the parameters."""


class _LossModule(nn.Module):
    """The loss as a forward pass: DistributedDataParallel synchronises through `forward` only."""

    def __init__(self, model: DistributionModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: "_Batch", progress: float) -> Tensor:
        return self.model.loss(batch.content, progress)


class _Batch:
    """Hides tensors from Fabric, which would round data to a mixed precision's lower one."""

    def __init__(self, content: Any) -> None:
        self.content = content


@dataclass
class Trainer:
    """A training run: its parts, and how far it has come."""

    model: DistributionModule
    stream: TensorStream | LoaderStream
    held_out: TensorStream | LoaderStream | None
    optimizer: Optimizer
    scheduler: LRScheduler | ReduceLROnPlateau | None
    fabric: "Fabric"
    generators: list[torch.Generator]
    steps: int
    gradient_clip: float | None
    validation_every: int
    patience: int | None
    checkpoint: Path | None
    checkpoint_every: int
    run: dict[str, Any]
    history: History = field(default_factory=History)
    best_state: dict[str, Tensor] | None = None

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.history.losses)

    def train(self, progress_bar: bool) -> None:
        """Takes the remaining steps, and restores the best weights."""
        # Only the first process would see the interrupt in time; the others would wait for it.
        deferred = self.fabric.world_size == 1
        self.module, self.stepper = self.fabric.setup(_LossModule(self.model), self.optimizer)
        if isinstance(self.model, DistributionModule):
            self.model.initialized.fill_(True)
        self.model.train()
        if self.step < self.steps and not self._out_of_patience():
            self.history.outcome = "running"
        elapsed = self.history.seconds[-1] if self.history.seconds else 0.0
        start = time.perf_counter() - elapsed
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            disable=not (progress_bar and self.fabric.is_global_zero),
        )
        with bar, deferred_interrupt(deferred) as interrupted:
            batches = self.stream.batches(self.step)
            while self.history.outcome == "running":
                if self.step >= self.steps:
                    self.history.outcome = "finished"
                    break
                self._take_step(next(batches))
                self.history.seconds.append(time.perf_counter() - start)
                if self.held_out is not None and (
                    self.step % self.validation_every == 0 or self.step == self.steps
                ):
                    self._validate()
                if interrupted.is_set() and self.history.outcome == "running":
                    self.history.outcome = "interrupted"
                elif self.step % self.checkpoint_every == 0:
                    self._write_checkpoint()
                self._report(bar)
        self._anneal()
        self._write_checkpoint()
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)
        self.model.eval()

    def _anneal(self) -> None:
        if isinstance(self.model, DistributionModule):
            self.model.anneal(min(1.0, self.step / self.steps))

    def _take_step(self, batch: Any) -> None:
        batch = self.fabric.to_device(batch)
        self.stepper.zero_grad()
        self._anneal()
        loss: Tensor = self.module(_Batch(batch), self.step / self.steps)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"Expected the loss to be a scalar tensor with a graph, got "
                f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}. Take "
                f"the mean over the batch, and detach nothing."
            )
        if isinstance(self.model, DistributionModule):
            stage = self.model.stage(self.step / self.steps)
            if stage is not None:
                self.history.stages.setdefault(stage, self.step)
        self.history.learning_rates.append(self.optimizer.param_groups[0]["lr"])
        value = self._mean_over_processes(loss.detach())
        if not math.isfinite(value):
            self.fabric.backward(loss)
            self._explain(f"The loss is {value}", batch)
        self.fabric.backward(loss)
        self._check_gradients(batch)
        if self.gradient_clip is not None:
            self.fabric.clip_gradients(
                self.module, self.stepper, max_norm=self.gradient_clip, error_if_nonfinite=False
            )
        self.stepper.step()
        if isinstance(self.scheduler, LRScheduler) and not isinstance(
            self.scheduler, ReduceLROnPlateau
        ):
            self.scheduler.step()
        self.history.losses.append(value)
        if isinstance(self.model, DistributionModule):
            for name, measured in self.model.metrics().items():
                self.history.metrics.setdefault(name, []).append(measured)

    def _check_gradients(self, batch: Any) -> None:
        """Stops before a step that would spoil the parameters."""
        if getattr(self.fabric.strategy.precision, "scaler", None) is not None:
            return  # scaled gradients may overflow: Fabric then skips the step
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not nn.utils.get_total_norm(gradients).isfinite():
            self._explain("The loss is finite, but not its gradient", batch)

    @torch.no_grad()
    def _validate(self) -> None:
        assert self.held_out is not None
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.fabric.device)
        # The noise in a loss is the same at every validation, and not missing from training.
        with draws_from(*seeded(self.run["seed"], self.fabric.device)):
            for batch, size in self.held_out.once():
                batch = _Batch(self.fabric.to_device(batch))
                loss = self.module(batch, self.step / self.steps)
                total += torch.tensor([loss.double() * size, size], device=total.device)
        self.model.train()
        sums: Any = self.fabric.all_reduce(total, reduce_op="sum")
        if sums[1] == 0:
            raise ValueError("Expected at least one item to validate on, got none.")
        value = float(sums[0] / sums[1])
        if not math.isfinite(value):
            raise NonFiniteLossError(f"The validation loss is {value} after step {self.step}.")
        history = self.history
        if value < min(history.validation_losses, default=math.inf):
            self.best_state = copy.deepcopy(self.model.state_dict())
        history.validation_steps.append(self.step)
        history.validation_losses.append(value)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)
        if self._out_of_patience():
            history.outcome = "early"

    def _out_of_patience(self) -> bool:
        steps, best = self.history.validation_steps, self.history.best_step
        if self.patience is None or best is None:
            return False
        return len(steps) - 1 - steps.index(best) >= self.patience

    def _mean_over_processes(self, loss: Tensor) -> float:
        if self.fabric.world_size == 1:
            return loss.item()
        mean: Any = self.fabric.all_reduce(loss, reduce_op="mean")
        return mean.item()

    def _report(self, bar: tqdm) -> None:
        bar.update()
        if bar.disable:
            return
        shown = {"loss": f"{self.history.losses[-1]:.4g}"}
        if self.history.validation_losses:
            shown["validation"] = f"{self.history.validation_losses[-1]:.4g}"
        bar.set_postfix(shown, refresh=False)

    def _explain(self, what: str, batch: Any) -> NoReturn:
        """Raises an error that says where the loss or its gradient is not finite."""
        named = list(self.model.named_parameters())
        bad = [_describe(name, p) for name, p in named if not p.isfinite().all()]
        if bad:
            where = f"parameters are not finite: {', '.join(bad)}"
        else:
            bad = [
                _describe(name, p.grad)
                for name, p in named
                if p.grad is not None and not p.grad.isfinite().all()
            ]
            where = f"all parameters are finite, but not the gradients of: {', '.join(bad)}"
            where = where if bad else "all parameters and gradients are finite"
        remedy = "Lower lr, or set gradient_clip."
        if any(t.is_floating_point() and not t.isfinite().all() for t in list_tensors(batch)):
            remedy = "The batch itself holds NaN or infinity: clean the data."
        step = len(self.history.learning_rates)
        raise NonFiniteLossError(f"{what} at step {step} of {self.steps}; {where}. {remedy}")

    def _write_checkpoint(self) -> None:
        if self.checkpoint is None or not self.fabric.is_global_zero:
            return
        cpu, *cuda = (generator.get_state() for generator in self.generators)
        write_tree(
            {
                "run": self.run,
                "model": self.model.state_dict(),
                "best_model": self.best_state,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "random": cpu,
                "random_cuda": cuda,
                "history": self.history.state(),
            },
            self.checkpoint,
        )

    def resume(self, saved: dict[str, Any]) -> None:
        """Restores what `_write_checkpoint` wrote.

        Raises:
            ValueError: If it is the state of another training run.
        """
        differing = [
            f"{name} {saved['run'].get(name)!r}, now {value!r}"
            for name, value in self.run.items()
            if saved["run"].get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{self.checkpoint} is of another training run: {'; '.join(differing)}. Delete "
                f"the file to start anew, or name another."
            )
        if (saved["scheduler"] is None) != (self.scheduler is None):
            raise ValueError(
                f"{self.checkpoint} was written {'without' if self.scheduler else 'with'} a "
                f"learning-rate scheduler. Pass the same scheduler to resume."
            )
        try:
            self.model.load_state_dict(saved["model"])
        except RuntimeError as error:
            raise ValueError(f"{self.checkpoint} does not fit the model: {error}") from error
        self.best_state = saved["best_model"]
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(saved["scheduler"])
        self.fabric.strategy.precision.load_state_dict(saved["precision"])
        if self.fabric.is_global_zero:
            states = [saved["random"], *saved["random_cuda"]]
            for generator, state in zip(self.generators, states, strict=False):
                generator.set_state(state)
        self.history = History.from_state(saved["history"])


def describe_model(model: nn.Module) -> str:
    name, config = type(model).__qualname__, getattr(model, "config", None)
    try:
        return f"{name} {json.dumps(config())}" if callable(config) else name
    except NotPlainError:  # it holds a user's network
        return name


def _describe(name: str, tensor: Tensor) -> str:
    return f"{name!r} ({int((~tensor.isfinite()).sum())} of {tensor.numel()} entries)"
