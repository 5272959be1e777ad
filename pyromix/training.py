"""The one training loop, for every model with a `loss`."""

__all__ = ["History", "NonFiniteLossError", "adam", "deferred_interrupt", "fit"]

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from .checkpoints import PathLike, read_tree, write_tree
from .core import DistributionModule
from .history import History
from .minibatches import LoaderStream, TensorStream, list_tensors, make_stream, split
from .registry import NotPlainError
from .validation import as_int, check_positive_int

OptimizerFactory = Callable[..., Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message names the step and the parameters."""


def adam(params: Iterable[nn.Parameter], lr: float) -> Optimizer:
    """Adam in its fused implementation: one call for all parameters."""
    return torch.optim.Adam(params, lr=lr, fused=True)


def fit(
    model: DistributionModule,
    data: Any,
    *,
    steps: int = 1000,
    batch_size: int = 256,
    lr: float | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    gradient_clip: float | None = None,
    validation: Any = None,
    validation_every: int | None = None,
    patience: int | None = None,
    initialize: bool | None = None,
    fabric: Fabric | None = None,
    checkpoint: PathLike | None = None,
    checkpoint_every: int = 1000,
    seed: int | None = None,
    progress_bar: bool = True,
) -> History:
    """Trains a model by minimising ``model.loss`` over minibatches.

    The result depends on the seed alone: the order of the data is a permutation that `fit` draws
    and shards over processes itself, and PyTorch's global random state is left as it was. With
    validation data the best weights are restored at the end. Ctrl-C stops training after the
    step under way (a second one at once) and returns as if training had ended there. The model
    is left in evaluation mode.

    Args:
        model: The model, trained in place on the device that its parameters are on.
        data: A tensor of shape (N, ...); a tuple, list or dict of such tensors; a `Dataset`; or a
            `DataLoader`, which then decides on batches itself. Batches are moved to the model's
            device.
        steps: Number of optimisation steps.
        batch_size: Number of items in a step's batch, over all processes.
        lr: Learning rate; by default the model's own, which is 0.001 for most.
        optimizer: Makes the optimizer: called as ``optimizer(params, lr=lr)``. By default the
            model's own, which is `adam` for most.
        scheduler: Makes a PyTorch learning-rate scheduler from the optimizer. It is stepped after
            every step; a `ReduceLROnPlateau` after every validation. By default the rate follows
            the model's own `learning_rate_factor`: it is constant for most.
        gradient_clip: Largest norm of the gradient; longer ones are shortened to it.
        validation: Data to validate on, in the forms of `data`, or the fraction of the data to
            hold out for it.
        validation_every: Steps between validations; by default about 50 in all.
        patience: Number of validations without a new best loss after which to stop early; by
            default training runs to its end, and the best weights are restored.
        initialize: Whether to call ``model.initialize`` on (at most 10,000 items of) the data; by
            default if it was never called and `fit` never trained the model. Pass False if you
            set the parameters yourself, or trained them in a loop of your own.
        fabric: Where and how to train: devices, processes, precision. By default the model's own
            device, one process. With several processes call ``fabric.launch()`` first, and end
            the script with ``torch.distributed.barrier()`` and
            ``torch.distributed.destroy_process_group()``: a process that exits without may abort.
        checkpoint: File for the state of training, by convention ``*.safetensors``. If it exists,
            training resumes from it, on one device to the same numbers as if it had not stopped.
            More `steps` and `patience` may be given than before; all else must be the same. (A
            model with a curriculum of its own divides all steps: there, more of them are another
            training, which goes on from where the first one ended.)
        checkpoint_every: Steps between checkpoints; one is always written at the end.
        seed: Seed of everything random; by default drawn from PyTorch's global generator.
        progress_bar: Whether to show a bar with loss and rate.

    Returns:
        Losses and timings.

    Raises:
        ValueError: For an argument that does not fit, or a checkpoint of another training run.
        NonFiniteLossError: If the loss becomes NaN or infinite.

    Example:
        >>> from pyromix import GaussianMixture
        >>> data = torch.randn(1000, 2)
        >>> model = GaussianMixture(dim=2, num_components=2)
        >>> history = fit(model, data, steps=20, validation=0.1, seed=0, progress_bar=False)
        >>> len(history.losses), history.outcome
        (20, 'finished')
    """
    check_positive_int("steps", steps)
    check_positive_int("batch_size", batch_size)
    check_positive_int("checkpoint_every", checkpoint_every)
    for name, value in (("validation_every", validation_every), ("patience", patience)):
        if value is not None:
            check_positive_int(name, value)
    if not isinstance(model, nn.Module) or not callable(getattr(model, "loss", None)):
        raise ValueError(
            f"Expected a model with a loss(batch, progress) method, got {type(model).__name__}. "
            f"Derive it from pyromix.DistributionModule."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameters that require gradients.")
    if patience is not None and validation is None:
        raise ValueError("Expected validation data with patience: pass validation=0.1, say.")
    for name, factory in (("optimizer", optimizer), ("scheduler", scheduler)):
        if factory is not None and not callable(factory):
            raise ValueError(
                f"Expected {name} to be a class or function that makes one, got an instance of "
                f"{type(factory).__name__}. Pass functools.partial(torch.optim.SGD, "
                f"momentum=0.9), say."
            )
    if gradient_clip is not None and not gradient_clip > 0:
        raise ValueError(f"Expected a positive gradient_clip, got {gradient_clip}.")

    fabric = fabric or _fabric_on(next(model.parameters()).device)
    model.to(fabric.device)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    saved = read_tree(path) if path is not None and path.exists() else None
    if seed is not None:
        given, seed = seed, as_int(seed)
        if seed is None:
            raise ValueError(f"Expected seed to be an integer, got {given!r}.")
    else:
        seed = int(torch.randint(2**62, ())) if saved is None else saved["run"]["seed"]
        seed = fabric.broadcast(seed)

    stream = make_stream(data, batch_size, seed, fabric.global_rank, fabric.world_size)
    held_out: TensorStream | LoaderStream | None = None
    if isinstance(validation, float):
        stream, held_out = split(stream, validation)
    elif validation is not None:
        place = fabric.global_rank, fabric.world_size
        held_out = make_stream(validation, batch_size, seed, *place, name="validation")

    with torch.random.fork_rng(devices=_cuda_devices(fabric)):
        torch.manual_seed(seed)
        if isinstance(model, DistributionModule):
            if initialize is None:
                initialize = not bool(model.initialized)
            if initialize and saved is None:
                model.initialize(fabric.to_device(stream.preview()))
        if fabric.global_rank > 0:  # every process has noise of its own in its loss
            torch.manual_seed(seed + fabric.global_rank)
        lr = getattr(model, "default_lr", DistributionModule.default_lr) if lr is None else lr
        own = _make_optimizer(model, optimizer, lr)
        if scheduler is None and _has_learning_rates(model):
            scheduler = partial(_follow_model, model=model, steps=steps)
        plan = None if scheduler is None else scheduler(own)
        if isinstance(own, torch.optim.LBFGS):
            raise ValueError("Expected an optimizer for minibatches, got LBFGS.")
        if isinstance(plan, ReduceLROnPlateau) and held_out is None:
            raise ValueError("Expected validation data with ReduceLROnPlateau, got none.")
        trainer = _Trainer(
            model=model,
            stream=stream,
            held_out=held_out,
            optimizer=own,
            scheduler=plan,
            fabric=fabric,
            steps=steps,
            gradient_clip=gradient_clip,
            validation_every=validation_every or max(1, steps // 50),
            patience=patience,
            checkpoint=path,
            checkpoint_every=checkpoint_every,
            run={
                "seed": seed,
                "model": _describe_model(model),
                "optimizer": type(own).__qualname__,
                "lr": lr,
                "gradient_clip": gradient_clip,
                "processes": fabric.world_size,
                **stream.description,
                "validation": None if held_out is None else str(held_out.description),
            },
        )
        if saved is not None:
            trainer.resume(saved)
        with torch.enable_grad():
            trainer.train(progress_bar)
    return trainer.history


def _make_optimizer(model: nn.Module, factory: OptimizerFactory | None, lr: float) -> Optimizer:
    """The optimizer asked for, or the model's own, or Adam."""
    if factory is None and isinstance(model, DistributionModule):
        own = model.make_optimizer(lr)
        if own is not None:
            return own
    return (factory or adam)([p for p in model.parameters() if p.requires_grad], lr=lr)


def _has_learning_rates(model: nn.Module) -> bool:
    """Whether a model changes the learning rate in the course of training."""
    inherited = DistributionModule.learning_rate_factor
    return getattr(type(model), "learning_rate_factor", inherited) is not inherited


def _follow_model(optimizer: Optimizer, model: Any, steps: int) -> LRScheduler:
    """Learning rates as the model wants them."""
    return LambdaLR(optimizer, lambda step: model.learning_rate_factor(min(1.0, step / steps)))


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
class _Trainer:
    """A training run: its parts, and how far it has come."""

    model: DistributionModule
    stream: TensorStream | LoaderStream
    held_out: TensorStream | LoaderStream | None
    optimizer: Optimizer
    scheduler: LRScheduler | ReduceLROnPlateau | None
    fabric: Fabric
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
        with torch.random.fork_rng(devices=_cuda_devices(self.fabric)):
            torch.manual_seed(self.run["seed"])
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
        devices = _cuda_devices(self.fabric)
        write_tree(
            {
                "run": self.run,
                "model": self.model.state_dict(),
                "best_model": self.best_state,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "random": torch.get_rng_state(),
                "random_cuda": [torch.cuda.get_rng_state(device) for device in devices],
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
            torch.set_rng_state(saved["random"])
            devices = _cuda_devices(self.fabric)
            for device, state in zip(devices, saved["random_cuda"], strict=False):
                torch.cuda.set_rng_state(state, device)
        self.history = History.from_state(saved["history"])


@contextmanager
def deferred_interrupt(enabled: bool) -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into a flag, so that no update is left half done."""
    flag = threading.Event()
    previous = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not (enabled and in_main_thread and callable(previous)):
        yield flag
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)


def _fabric_on(device: torch.device) -> Fabric:
    if device.type == "cpu":
        return Fabric(accelerator="cpu", devices=1)
    return Fabric(accelerator=device.type, devices=[device.index or 0])


def _cuda_devices(fabric: Fabric) -> list[torch.device]:
    return [fabric.device] if fabric.device.type == "cuda" else []


def _describe_model(model: nn.Module) -> str:
    name, config = type(model).__qualname__, getattr(model, "config", None)
    try:
        return f"{name} {json.dumps(config())}" if callable(config) else name
    except NotPlainError:  # it holds a user's network
        return name


def _describe(name: str, tensor: Tensor) -> str:
    return f"{name!r} ({int((~tensor.isfinite()).sum())} of {tensor.numel()} entries)"
