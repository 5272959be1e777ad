"""The one training loop, for every model with a `loss`."""

__all__ = ["adam", "fit"]

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..checkpoints import PathLike, read_tree
from ..core.batch import as_batch
from ..core.checks import check_positive_int
from ..core.constraints import is_over_reals
from ..core.conversions import TensorLike
from ..core.module import DistributionModule
from ..core.random import chosen_seed, draws_from, seeded
from .history import History
from .integers import warn_about_integers
from .minibatches import LoaderStream, TensorStream, make_stream, split
from .trainer import Trainer, describe_model
from .unseen import warn_about_unseen
from .verdict import Verdict

if TYPE_CHECKING:
    from lightning_fabric import Fabric

OptimizerFactory = Callable[..., Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


def adam(params: Iterable[nn.Parameter], lr: float) -> Optimizer:
    """Adam in its fused implementation: one call for all parameters."""
    return torch.optim.Adam(params, lr=lr, fused=True)


@torch.inference_mode(False)
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
    sample_weight: TensorLike | None = None,
    validation: Any = None,
    validation_from: float | None = None,
    validation_every: int | None = None,
    patience: int | None = None,
    initialize: bool | None = None,
    fabric: "Fabric | None" = None,
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
    is left in evaluation mode. A warning says if the model, as a density of vectors, is worse than
    it was, or than one normal, or if the data vary less than the smallest scale that it allows.

    Args:
        model: The model, trained in place on the device that its parameters are on.
        data: A tensor of shape (N, ...); a tuple, list or dict of such tensors; a `Dataset`; or a
            `DataLoader`, which then decides on batches itself. Batches are moved to the model's
            device. NumPy arrays and lists of numbers can stand for tensors: floats are converted
            to the model's dtype, as are integers where the model's law is over real numbers.
        steps: Number of optimisation steps.
        batch_size: Number of items in a step's batch, over all processes.
        lr: Learning rate; by default the model's own, which is 0.001 for most.
        optimizer: Makes the optimizer: called as ``optimizer(params, lr=lr)``. By default the
            model's own, which is `adam` for most.
        scheduler: Makes a PyTorch learning-rate scheduler from the optimizer. It is stepped after
            every step; a `ReduceLROnPlateau` after every validation. By default the rate follows
            the model's own `learning_rate_factor`: it is constant for most.
        gradient_clip: Largest norm of the gradient; longer ones are shortened to it.
        sample_weight: Weights of the items, (N,), not negative: in an epoch each is met as often
            as its weight says, but for one time. Those held out as a fraction weigh as much in
            the validation loss. By default all are met once.
        validation: Data to validate on, in the forms of `data`, or the fraction of the data to
            hold out for it.
        validation_from: For models of sequences (`FRMDN`), instead of `validation`: trains on the
            first steps of every sequence, and validates on those from here on, which are scored
            given the first ones. The index of a step, or the share of steps that comes before.
            The validation loss is that of the steps it scores, in nats a sequence.
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
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError(
            f"Expected a {type(model).__name__} whose parameters can be trained, got one that was "
            f"built under torch.inference_mode(). Build it outside."
        )
    if validation is not None and validation_from is not None:
        raise ValueError("Expected validation or validation_from, got both.")
    if patience is not None and validation is None and validation_from is None:
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
        seed = chosen_seed(seed)
    else:
        seed = fabric.broadcast(chosen_seed(None) if saved is None else saved["run"]["seed"])

    convert = partial(_with_tensors, model=model)
    data = convert("data", data)
    if validation_from is not None:
        data, validation = _split_in_time(model, data, validation_from)
    weight = None if sample_weight is None else torch.as_tensor(sample_weight)
    stream = make_stream(
        data, batch_size, seed, fabric.global_rank, fabric.world_size, weight=weight
    )
    held_out: TensorStream | LoaderStream | None = None
    if isinstance(validation, float):
        stream, held_out = split(stream, validation)
    elif validation is not None:
        place = fabric.global_rank, fabric.world_size
        validation = convert("validation", validation)
        held_out = make_stream(validation, batch_size, seed, *place, name="validation")
    if fabric.global_rank == 0 and held_out is not None and saved is None:
        warn_about_unseen(model, stream, held_out)

    preview: Any = None
    generators = seeded(seed, fabric.device)
    with draws_from(*generators):
        if isinstance(model, DistributionModule):
            if initialize is None:
                initialize = not bool(model.initialized)
            if initialize and saved is None:
                preview = fabric.to_device(stream.preview())
                if fabric.global_rank == 0:
                    warn_about_integers(model, preview)
                model.initialize(preview)
        if fabric.global_rank > 0:  # every process has noise of its own in its loss
            for generator in generators:
                generator.manual_seed(seed + fabric.global_rank)
        lr = getattr(model, "default_lr", DistributionModule.default_lr) if lr is None else lr
        own = _make_optimizer(model, optimizer, lr)
        if scheduler is None and _has_learning_rates(model):
            scheduler = partial(_follow_model, model=model, steps=steps)
        plan = None if scheduler is None else scheduler(own)
        if isinstance(own, torch.optim.LBFGS):
            raise ValueError("Expected an optimizer for minibatches, got LBFGS.")
        if isinstance(plan, ReduceLROnPlateau) and held_out is None:
            raise ValueError("Expected validation data with ReduceLROnPlateau, got none.")
        trainer = Trainer(
            model=model,
            stream=stream,
            held_out=held_out,
            optimizer=own,
            scheduler=plan,
            fabric=fabric,
            generators=generators,
            steps=steps,
            gradient_clip=gradient_clip,
            validation_every=validation_every or max(1, steps // 50),
            patience=patience,
            checkpoint=path,
            checkpoint_every=checkpoint_every,
            run={
                "seed": seed,
                "model": describe_model(model),
                "optimizer": type(own).__qualname__,
                "lr": lr,
                "gradient_clip": gradient_clip,
                "processes": fabric.world_size,
                **stream.description,
                "validation": None if held_out is None else str(held_out.description),
                "validation_from": validation_from,
            },
        )
        if saved is not None:
            trainer.resume(saved)
        if preview is None and saved is None and isinstance(stream, TensorStream):
            preview = fabric.to_device(stream.preview())
        verdict = Verdict(model, preview, seed)
        with torch.enable_grad():
            trainer.train(progress_bar)
        if fabric.is_global_zero and trainer.history.outcome != "interrupted":
            verdict.warn(trainer.step)
    return trainer.history


def _with_tensors(name: str, data: Any, model: nn.Module) -> Any:
    """Data for training with tensors, on the CPU, for arrays and lists of numbers."""
    floats = (p for p in model.parameters() if p.is_floating_point())
    like = torch.empty(0, dtype=next(floats, torch.empty(0)).dtype)
    return as_batch(name, data, like=like, keep_integers=not is_over_reals(model))


def _split_in_time(model: Any, data: Any, start: float) -> tuple[Any, Any]:
    """Data for training and for validation: steps before and after `start`.

    Raises:
        ValueError: If the model is not one of sequences, or the data are not tensors.
    """
    split = getattr(model, "split_in_time", None)
    if split is None:
        raise ValueError(
            f"Expected a model of sequences, FRMDN, with validation_from, got a "
            f"{type(model).__name__}. Hold items out: pass validation=0.1, say."
        )
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Dataset | DataLoader):
        raise ValueError(
            f"Expected data that are tensors with validation_from, got a {type(data).__name__}. "
            f"Split its batches with {type(model).__name__}.split_in_time, and pass what comes "
            f"after as validation."
        )
    before, after = split(data, start)
    return before, after


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


def _fabric_on(device: torch.device) -> "Fabric":
    from lightning_fabric import Fabric  # most of a second: not on import

    if device.type == "cpu":
        return Fabric(accelerator="cpu", devices=1)
    return Fabric(accelerator=device.type, devices=[device.index or 0])
