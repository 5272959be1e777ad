"""Random numbers from a generator of one's own, in place of PyTorch's global one.

`torch.distributions`, Pyro and most networks draw from the global generator of a device, and offer
no way to name another one. All threads share it: what one thread draws, the others miss.
`draws_from` names the generator for everything that its thread draws.

PyTorch's dispatcher looks for the code of an operation under the keys that are set in the thread.
The key that is used here has code for the operations that draw, which adds the generator to their
arguments. It passes all other operations on within the dispatcher, so that they take no longer
than before. All functions that draw end in these operations: dropout within an LSTM, compiled and
scripted functions, and backward passes that compute parts of the forward pass again.
"""

__all__ = ["chosen_seed", "draws_from", "generator_states", "seeded", "takes_generator"]

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from torch import Generator, Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import Library, fallthrough_kernel

from .checks import as_int

Method = TypeVar("Method", bound=Callable[..., Any])

# No tensor has this key, and nothing in PyTorch sets it.
KEY = "TESTING_ONLY_GenericMode"

# The operations that draw, of those that all others end in.
DRAWING = (
    "_fused_dropout",
    "_sample_dirichlet",
    "_standard_gamma",
    "bernoulli",
    "bernoulli_",
    "binomial",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "multinomial",
    "normal",
    "normal_",
    "poisson",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "random_",
    "randperm",
    "rrelu_with_noise",
    "rrelu_with_noise_",
    "uniform_",
)

# The forms of these that most draws use. They are called by PyTorch's own bindings, which take a
# fifth of the time.
USUAL = {
    "bernoulli.default",
    "bernoulli_.float",
    "exponential_.default",
    "multinomial.default",
    "normal.Tensor_Tensor",
    "normal_.default",
    "rand.generator",
    "randint.generator",
    "randint.low_generator",
    "randn.generator",
    "randperm.generator",
    "uniform_.default",
}

# Operations that take no generator, most of them on GPUs alone: they have dropout as a part. Where
# the argument of this name is zero, nothing is drawn.
DROPOUT = {
    "_cudnn_rnn": "dropout",
    "_scaled_dot_product_cudnn_attention": "dropout_p",
    "_scaled_dot_product_efficient_attention": "dropout_p",
    "_scaled_dot_product_flash_attention": "dropout_p",
    "native_dropout": "p",
}


def draws_from(*generators: Generator | None) -> AbstractContextManager[None]:
    """Lets everything that PyTorch draws in this thread come from a given generator.

    A generator that was seeded with ``manual_seed(seed)`` gives the numbers that follow
    ``torch.manual_seed(seed)`` on the CPU. The global generator is left as it is, and other
    threads draw as they did. In the context, functions on the global generator of the CPU, such as
    `torch.manual_seed`, `torch.get_rng_state` and `torch.random.fork_rng`, act on the given one.

    A device for which no generator is given gets one whose seed is drawn from the first that is.
    Contexts can be nested: the innermost one counts. NumPy's and Python's own random numbers are
    not concerned.

    Args:
        generators: At most one for each device. None does nothing.

    Returns:
        A context, to be entered once.

    Raises:
        ValueError: If an argument is not a generator, or two are of one device.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> with draws_from(generator):
        ...     draw = torch.distributions.Normal(0.0, 1.0).sample()
        >>> _ = torch.manual_seed(0)
        >>> torch.equal(draw, torch.distributions.Normal(0.0, 1.0).sample())
        True
    """
    given: dict[torch.device, Generator] = {}
    for generator in generators:
        if generator is None:
            continue
        if not isinstance(generator, Generator):
            raise ValueError(
                f"Expected generator to be a torch.Generator, got {type(generator).__name__}. "
                f"Make one from a seed with torch.Generator().manual_seed(seed)."
            )
        if generator.device in given:
            raise ValueError(
                f"Expected one generator for each device, got two on {generator.device}."
            )
        given[generator.device] = generator
    return _Context(given)


def takes_generator(method: Method) -> Method:
    """Lets a method draw from the generator that its argument ``generator`` names.

    The method declares the argument, for readers and type checkers, and need not use it.
    """

    @wraps(method)
    def draw(*args: Any, generator: Generator | None = None, **kwargs: Any) -> Any:
        if generator is None:
            return method(*args, **kwargs)
        with draws_from(generator):
            return method(*args, **kwargs)

    return cast(Method, draw)


def chosen_seed(seed: object) -> int:
    """A seed as it is given, or one that PyTorch's global generator draws if it is None.

    Raises:
        ValueError: If it is not an integer.
    """
    chosen = int(torch.randint(2**62, ())) if seed is None else as_int(seed)
    if chosen is None:
        raise ValueError(f"Expected seed to be an integer, got {seed!r}.")
    return chosen


def seeded(seed: int, device: torch.device | str = "cpu") -> list[Generator]:
    """Generators that draw what follows ``torch.manual_seed(seed)``.

    Args:
        seed: The seed of each.
        device: Where to draw, beside the CPU.

    Returns:
        The generator of the CPU and, if it is another one, that of the device.
    """
    devices = dict.fromkeys((torch.device("cpu"), torch.device(device)))
    return [Generator(each).manual_seed(seed) for each in devices]


def generator_states(device: torch.device) -> tuple[tuple[str, Tensor], ...]:
    """Names of devices and states of the generators that the next draws come from.

    Args:
        device: Where to draw, beside the CPU.
    """
    context: _Context | None = getattr(_local, "context", None)
    if context is not None:
        own = context.generators.items()
        return tuple((str(each), generator.get_state()) for each, generator in own)
    states = [("cpu", torch.default_generator.get_state())]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states.append((str(device), module.get_rng_state(device)))
    return tuple(states)


class _Context(AbstractContextManager[None]):
    """What `draws_from` returns; it does nothing if it has no generators."""

    def __init__(self, generators: dict[torch.device, Generator]) -> None:
        self.generators = generators
        self.outer: _Context | None = None
        self.thread = 0

    def __enter__(self) -> None:
        if not self.generators:
            return
        key = _key()
        self.outer, self.thread = getattr(_local, "context", None), threading.get_ident()
        _entered.append(self)
        _local.context = self
        torch._C._dispatch_tls_set_dispatch_key_included(key, True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.generators:
            return
        torch._C._dispatch_tls_set_dispatch_key_included(_key(), self.outer is not None)
        _local.context = self.outer
        _entered.remove(self)

    def on(self, device: torch.device) -> Generator:
        """The generator of a device."""
        if device not in self.generators:
            first = next(iter(self.generators.values()))
            seed = int(torch.randint(2**62, (), generator=first, device=first.device))
            self.generators[device] = Generator(device).manual_seed(seed)
        return self.generators[device]


_local = threading.local()  # its `context` is the innermost one of the thread
_entered: list[_Context] = []  # those of all threads


def _context() -> _Context:
    """The context that this thread is in."""
    own: _Context | None = getattr(_local, "context", None)
    if own is not None:
        return own
    # Autograd works in threads of its own on GPUs. They take over the keys of the calling thread.
    if len({context.thread for context in _entered}) != 1:
        raise RuntimeError(
            "Cannot tell whose numbers a backward pass draws: several threads draw from "
            "generators of their own. Run one at a time, or do without checkpoints of activations."
        )
    return _entered[-1]


class _DefaultGenerator:
    """The global generator of the CPU, or in a context the one that stands for it.

    `torch.get_rng_state` and its like go to this one. PyTorch's checkpoints of activations rely
    on them to draw the same numbers a second time.
    """

    def __getattr__(self, name: str) -> Any:
        inside = torch._C._dispatch_tls_is_dispatch_key_included(_key())
        return getattr(_context().on(_CPU) if inside else torch.default_generator, name)


_CPU = torch.device("cpu")
_lock = threading.Lock()
_registered: list[Any] = []  # the key, and the libraries, which end with what they registered


def _key() -> Any:
    """The dispatcher's key, for which the operations that draw are registered."""
    if not _registered:
        with _lock:
            if not _registered:
                _registered.extend(_register())
    return _registered[0]


def _register() -> list[Any]:
    try:
        key = torch._C._dispatch_key_parse(KEY)
        others, drawing = Library("_", "IMPL", KEY), Library("aten", "IMPL", KEY)
        others.fallback(fallthrough_kernel)
        for operation, target in _with_generators():
            drawing.impl(operation, _drawing(operation, target, key))
        for name, dropout in DROPOUT.items():
            operation = getattr(torch.ops.aten, name).default
            drawing.impl(operation, _dropping(operation, dropout, key))
    except (AttributeError, RuntimeError) as error:
        raise RuntimeError(
            f"PyTorch {torch.__version__} cannot draw from a generator of one's own in the way "
            f"that versions 2.6 to 2.14 do. Install one of these."
        ) from error
    torch.random.default_generator = _DefaultGenerator()  # type: ignore[assignment]
    return [key, others, drawing]


def _with_generators() -> Iterator[tuple[Any, Any]]:
    """Operations that draw, each with its form that takes a generator."""
    for name in DRAWING:
        packet = getattr(torch.ops.aten, name)
        forms = [getattr(packet, overload) for overload in packet.overloads()]
        arguments = {
            form: {(each.name, str(each.type)) for each in form._schema.arguments}
            for form in forms
        }
        for form in forms:
            expected = arguments[form] | {("generator", "Optional[Generator]")}
            for target in forms:
                if arguments[target] == expected:
                    yield form, target


def _drawing(operation: Any, target: Any, key: Any) -> Callable[..., Any]:
    """An operation that draws from the generator of the thread, unless it is given one."""
    position = _position(operation, "generator")
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    call = target
    if f"{name}.{overload}" in USUAL:
        call = getattr(Tensor if name.endswith("_") else torch._C._VariableFunctions, name)

    def draw(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("generator", args[position] if len(args) > position else None)
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, True)
        try:
            device = _real_device(args, kwargs) if given is None else None
            if device is None:
                return operation(*args, **kwargs)
            generator = _context().on(device)
            if torch._C._is_tracing():  # traces hold no generators
                return _swapped(operation, args, kwargs, generator)
            kwargs["generator"] = generator
            if torch._C._len_torch_function_stack() == 0:
                return call(*args[:position], **kwargs)
            with torch._C.DisableTorchFunction():  # the modes have seen the call already
                return call(*args[:position], **kwargs)
        finally:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)

    return draw


def _dropping(operation: Any, dropout: str, key: Any) -> Callable[..., Any]:
    """An operation with dropout that draws from the generator of the thread."""
    position = _position(operation, dropout)

    def draw(*args: Any, **kwargs: Any) -> Any:
        dropped = kwargs.get(dropout, args[position] if len(args) > position else 0.0)
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, True)
        try:
            device = _real_device(args, kwargs) if dropped else None
            if device is None:
                return operation(*args, **kwargs)
            return _swapped(operation, args, kwargs, _context().on(device))
        finally:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)

    return draw


def _position(operation: Any, name: str) -> int:
    """Where an argument is; the number of arguments if there is no such."""
    names = [argument.name for argument in operation._schema.arguments]
    return names.index(name) if name in names else len(names)


def _real_device(args: Any, kwargs: Any) -> torch.device | None:
    """The device on which an operation draws; None if it draws nothing, as while compiling."""
    if torch._C._len_torch_dispatch_stack() > 0:
        kinds = torch._C._TorchDispatchModeKey
        for kind in (kinds.FAKE, kinds.FUNCTIONAL, kinds.PROXY):
            if torch._C._get_dispatch_mode(kind) is not None:
                return None
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return None if value.is_meta or isinstance(value, FakeTensor) else value.device
    device: torch.device = kwargs.get("device") or _CPU
    if device.type == "meta":
        return None
    known = device.type == "cpu" or device.index is not None
    return device if known else torch.empty(0, device=device).device


def _swapped(operation: Any, args: Any, kwargs: Any, generator: Generator) -> Any:
    """Calls an operation with the state of a generator in the global one, which gets its own back.

    It is the only place where threads can disturb each other: if another one draws from the
    global generator at that moment.
    """
    everyone = torch.default_generator
    if generator.device != _CPU:
        module = torch.get_device_module(generator.device)
        if not hasattr(module, "default_generators"):
            raise NotImplementedError(
                f"{operation} draws from the global generator of {generator.device} alone: it "
                f"cannot be used where numbers come from a generator of one's own."
            )
        everyone = module.default_generators[generator.device.index]
    with _lock:
        saved = everyone.get_state()
        everyone.set_state(generator.get_state())
        try:
            return operation(*args, **kwargs)
        finally:
            generator.set_state(everyone.get_state())
            everyone.set_state(saved)
