"""Models and training states as safetensors files: tensors, and a description in JSON.

Nothing is pickled: reading a file runs no code that the file brings along. A model is rebuilt by
the constructor that is registered under the name in the file.
"""

__all__ = ["Tree", "check_device", "load", "read_tree", "save", "write_tree"]

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, overload, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .core.checks import FLOAT_DTYPES
from .core.module import DistributionModule
from .core.random import draws_from
from .core.registry import NotPlainError, class_name, decode
from .core.standardize import optional_entries
from .core.version import __version__

FORMAT = 1
_KEY = "pyromix"
Kind = Literal["law", "model", "training"]
PathLike = str | os.PathLike[str]
Model = TypeVar("Model", bound=nn.Module)


@runtime_checkable
class Tree(Protocol):
    """A law given evidence, which knows how it is written to a file."""

    def as_tree(self) -> Mapping[str, Any]:
        """Nested dicts, lists and tuples of tensors, numbers and strings."""


def save(model: DistributionModule | Tree, path: PathLike) -> None:
    """Saves a model: its parameters and buffers, its class and its constructor's arguments.

    A model that holds a user's own network can be saved, too; `load` then needs ``into=``.

    A law given evidence, as a model's ``condition`` returns it, is saved as the law without
    evidence, the evidence, and the random numbers that it was made from: see `load_law`.

    Args:
        model: The model, or the law.
        path: File to write, by convention ``*.safetensors``. It is replaced only when complete.

    Raises:
        ValueError: If `model` is neither, or is a law of a `Flow`, or one given `Nonlinear`
            evidence, which holds a function.
        FileNotFoundError: If the folder does not exist.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from pyromix import GaussianMixture
        >>> model = GaussianMixture(dim=2, num_components=3)
        >>> with TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/mixture.safetensors")
        ...     copy = load(f"{folder}/mixture.safetensors")
        >>> torch.equal(copy.loc, model.loc)
        True
    """
    if not isinstance(model, DistributionModule):
        law: Any = model
        if isinstance(law, Tree):
            write_tree(law.as_tree(), path, "law")
            return
        raise ValueError(
            f"Expected a DistributionModule, got {type(model).__name__}. Save the model that it "
            f"came from; or, for other modules, use safetensors.torch.save_model."
        )
    description: dict[str, Any] = {"class": class_name(type(model))}
    try:
        description["config"] = model.config()
    except NotPlainError as error:
        description["config"], description["reason"] = None, str(error)
    _write(path, "model", description, model.state_dict())


@overload
def load(path: PathLike, *, device: str | torch.device = ...) -> DistributionModule: ...
@overload
def load(path: PathLike, *, into: Model) -> Model: ...
def load(
    path: PathLike, *, into: nn.Module | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Loads a model that `save` wrote.

    Args:
        path: The file.
        into: A model of the same class and shapes, to be filled in place: for models that hold a
            user's own network. Its device and dtype are kept.
        device: Where to put the model, if it is not given. Its dtype is the saved one.

    Returns:
        The model, in evaluation mode unless it was given.

    Raises:
        ValueError: If the file is not one of pyromix, is of a later format, names an unknown
            class, or does not fit the model.
        FileNotFoundError: If there is no such file.
    """
    target = check_device("cpu" if into is not None else device)
    description, tensors = _read(path, "model", target)
    model: nn.Module
    try:
        if into is None:
            model = _rebuild(description, path)
        else:
            model = _check_alike(into, description, path)
        _check_state(model, tensors, path)
    except ValueError as error:
        raise ValueError(f"{error}{_note_of_version(description)}") from error
    if into is not None:
        into.load_state_dict(tensors)
        return into
    floats = [t for t in tensors.values() if t.is_floating_point()]
    if floats:  # for what the file lacks, and the model fills in
        model.to(floats[0])
    model.load_state_dict(tensors, assign=True)  # keeps the saved dtypes and device
    return model.eval()


def check_device(device: str | torch.device) -> torch.device:
    """Checks that this machine has a device.

    Raises:
        ValueError: If it has no CUDA.
    """
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Expected a device of this machine, got {target}: it has no CUDA.")
    return target


def write_tree(tree: Mapping[str, Any], path: PathLike, kind: Kind = "training") -> None:
    """Writes nested dicts, lists and tuples of tensors, numbers and strings.

    Args:
        tree: The tree.
        path: File to write. It is replaced only when complete.
        kind: What it describes.

    Raises:
        TypeError: If the tree holds anything else, naming where.
    """
    tensors: dict[str, Tensor] = {}
    _write(path, kind, _flatten(tree, "", tensors), tensors)


def read_tree(path: PathLike, kind: Kind = "training") -> dict[str, Any]:
    """Reads what `write_tree` wrote.

    Args:
        path: The file.
        kind: What it describes.

    Raises:
        ValueError: If the file is not one that `write_tree` wrote.
    """
    plain, tensors = _read(path, kind, "cpu")
    try:
        tree = _unflatten(plain, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}.") from error
    return tree


def _write(path: PathLike, kind: Kind, description: Any, tensors: Mapping[str, Tensor]) -> None:
    header = {"format": FORMAT, "kind": kind, "version": __version__, "description": description}
    # Tied parameters are written once under each name: safetensors refuses shared storage.
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} to.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()  # with the permissions that new files have, which save_file ignores
        mode = temporary.stat().st_mode
        save_file(own, temporary, metadata={_KEY: json.dumps(header)})
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(
    path: PathLike, kind: Kind, device: str | torch.device
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, not a safetensors file.")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}.") from error
    try:
        header = json.loads(metadata[_KEY])
        version, found, description = header["format"], header["kind"], header["description"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} was not written by pyromix: it has tensors, but no description of a model."
        ) from error
    if not isinstance(version, int) or version > FORMAT:
        raise ValueError(
            f"{path} has format {version!r}, this version of pyromix reads up to {FORMAT}. "
            f"Upgrade pyromix (the file was written by version {header.get('version')})."
        )
    if found != kind:
        remedy = {
            "model": "Load it with pyromix.load.",
            "law": "Load it with pyromix.load_law.",
            "training": "Pass it to fit(..., checkpoint=...) to resume training.",
        }.get(str(found), "")
        raise ValueError(f"Expected a {kind} file, {path} holds a {found!r}. {remedy}")
    if not isinstance(description, dict):
        raise ValueError(f"{path} does not describe a {kind}.")
    if kind == "model":
        description = {**description, "written_by": header.get("version")}
    return description, tensors


def _note_of_version(description: Mapping[str, Any]) -> str:
    """What to add to an error about a file of a later version of pyromix."""
    written = description.get("written_by")
    if not isinstance(written, str) or _numbers(written) <= _numbers(__version__):
        return ""
    return (
        f" The file was written by pyromix {written}, and this is {__version__}: upgrade pyromix."
    )


def _numbers(version: str) -> list[int]:
    """The numbers in a version, such as [0, 2, 1]."""
    return [int(part) for part in re.findall(r"\d+", version)]


def _rebuild(description: dict[str, Any], path: PathLike) -> nn.Module:
    name, config = description.get("class"), description.get("config")
    if config is None:
        raise ValueError(
            f"{path} holds a {name} that cannot be rebuilt from the file alone: "
            f"{description.get('reason')} Build the model as before saving, and call "
            f"load(path, into=model)."
        )
    try:
        with draws_from(torch.Generator()):  # constructors draw starting values
            model = decode({"object": name, "config": config})
    except (AttributeError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{path} does not describe a {name}: {error}.") from error
    if not isinstance(model, DistributionModule):
        raise ValueError(f"{path} describes a {name}, which is no DistributionModule.")
    return model


def _check_alike(model: nn.Module, description: Mapping[str, Any], path: PathLike) -> nn.Module:
    """Returns a model that a file is loaded into.

    Raises:
        ValueError: If it is of another class, or was built with other arguments, where both are
            known.
    """
    expected, saved = description.get("class"), description.get("config")
    if class_name(type(model)) != expected:
        raise ValueError(
            f"{path} holds a {expected}, got a {class_name(type(model))} to load it into."
        )
    try:
        config = model.config() if isinstance(model, DistributionModule) else None
    except NotPlainError:
        return model
    config = json.loads(json.dumps(config))
    if saved is None or config is None or saved == config:
        return model
    differing = [k for k in {*saved, *config} if saved.get(k) != config.get(k)]
    raise ValueError(
        f"{path} holds a {type(model).__name__} of other {', '.join(sorted(differing))}: its "
        f"parameters would mean another law."
    )


def _check_state(model: nn.Module, tensors: Mapping[str, Tensor], path: PathLike) -> None:
    expected = model.state_dict()
    missing = expected.keys() - tensors.keys() - optional_entries(model)
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} is unknown" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    problems += [
        f"{name} has dtype {tensors[name].dtype}, expected {value.dtype}"
        for name, value in expected.items()
        if name in tensors and not _same_kind(tensors[name].dtype, value.dtype)
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise ValueError(f"{path} does not fit the model {type(model).__name__}: {shown}.")


def _same_kind(first: torch.dtype, second: torch.dtype) -> bool:
    """Whether a tensor of one dtype may stand for the other: float32 for float64, or equals."""
    return first == second or {first, second} <= set(FLOAT_DTYPES)


def _flatten(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Plain data in which every tensor is replaced by its name among `tensors`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[where] = value
        return {"tensor": where}
    if isinstance(value, list | tuple):
        items = [_flatten(v, f"{where}.{i}", tensors) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        start = f"{where}." if where else ""
        items = [[k, _flatten(v, f"{start}{k}", tensors)] for k, v in value.items()]
        return {"dict": items}
    raise TypeError(
        f"Expected tensors, numbers, strings and collections of them, got "
        f"{type(value).__name__} at {where or 'the top'}."
    )


def _unflatten(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    match data:
        case {"tensor": name}:
            return tensors[name]
        case {"tuple": items}:
            return tuple(_unflatten(v, tensors) for v in items)
        case {"dict": items}:
            return {k: _unflatten(v, tensors) for k, v in items}
        case list():
            return [_unflatten(v, tensors) for v in data]
    return data
