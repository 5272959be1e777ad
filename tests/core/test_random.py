"""Draws from a generator of one's own: the numbers of a seed, and nothing else disturbed."""

import os
import random
import subprocess
import sys
import threading
import warnings
from functools import cache

import numpy
import pyro
import pytest
import torch
from torch import Generator, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from pyromix.core import random as core_random
from pyromix.core.random import DRAWING, DROPOUT, draws_from, seeded

from ..test_conformance import CASES


def seeded_globally(draw, seed=7):
    """What a function draws after `torch.manual_seed`, and the state that it leaves."""
    torch.manual_seed(seed)
    drawn = draw()
    return drawn, torch.get_rng_state()


def seeded_here(draw, seed=7):
    """What a function draws from a generator, and the state that it leaves."""
    torch.manual_seed(100)
    before = torch.get_rng_state()
    generator = Generator().manual_seed(seed)
    with draws_from(generator):
        drawn = draw()
    assert torch.equal(torch.get_rng_state(), before)
    return drawn, generator.get_state()


def check(draw):
    """Checks that both ways of seeding draw the same numbers, and equally many."""
    expected, expected_state = seeded_globally(draw)
    drawn, state = seeded_here(draw)
    assert torch.equal(drawn, expected)
    assert torch.equal(state, expected_state)
    assert not torch.equal(seeded_here(draw, seed=8)[0], drawn)


X = torch.arange(40, dtype=torch.float64).reshape(5, 2, 4) / 7


class Noise(nn.Module):
    """For TorchScript."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, 0.3, True) + torch.rand_like(x)


def trace():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but Pyro has use for it
        return torch.jit.trace(Noise(), X, check_trace=False)


@cache
def graphs():
    """The noise in TorchScript."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Noise()), trace()


def _forked():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = torch.rand(2)
    return torch.cat([torch.rand(2), first])


DRAWS = {
    "rand": lambda: torch.rand(3),
    "rand into": lambda: torch.rand(3, out=torch.empty(3)),
    "randn": lambda: torch.randn(20),
    "randn complex": lambda: torch.randn(3, dtype=torch.complex64),
    "randint": lambda: torch.randint(9, (9,)),
    "randint low": lambda: torch.randint(3, 90, (5,)),
    "randperm": lambda: torch.randperm(20),
    "randperm into": lambda: torch.randperm(20, out=torch.empty(20, dtype=torch.int64)),
    "rand_like": lambda: torch.rand_like(X),
    "randn_like": lambda: torch.randn_like(X),
    "randint_like": lambda: torch.randint_like(X, 3, 90),
    "normal": lambda: torch.normal(X, X + 1),
    "normal numbers": lambda: torch.normal(0.0, 1.0, (3,)),
    "normal mean": lambda: torch.normal(X, 1.0),
    "normal deviation": lambda: torch.normal(0.0, X + 1),
    "normal into": lambda: torch.normal(X, X, out=torch.empty_like(X)),
    "bernoulli": lambda: torch.bernoulli(torch.full((40,), 0.5)),
    "bernoulli p": lambda: torch.bernoulli(torch.zeros(40), 0.3),
    "multinomial": lambda: torch.multinomial(torch.ones(50), 3),
    "multinomial replaced": lambda: torch.multinomial(torch.ones(50), 9, True),
    "poisson": lambda: torch.poisson(10 * X),
    "binomial": lambda: torch.binomial(torch.full((20,), 9.0), torch.full((20,), 0.3)),
    "uniform_": lambda: torch.empty(3).uniform_(2, 3),
    "normal_": lambda: torch.empty(3).normal_(2, 3),
    "exponential_": lambda: torch.empty(3).exponential_(2),
    "geometric_": lambda: torch.empty(9).geometric_(0.1),
    "cauchy_": lambda: torch.empty(3).cauchy_(),
    "log_normal_": lambda: torch.empty(3).log_normal_(),
    "random_": lambda: torch.empty(3).random_(),
    "random_ to": lambda: torch.empty(20).random_(5),
    "random_ from": lambda: torch.empty(20).random_(2, 5),
    "bernoulli_": lambda: torch.empty(40).bernoulli_(0.5),
    "bernoulli_ each": lambda: torch.empty(40).bernoulli_(torch.full((40,), 0.5)),
    "gamma": lambda: torch.distributions.Gamma(X + 1, 1.0).sample(),
    "dirichlet": lambda: torch.distributions.Dirichlet(X + 1).sample(),
    "beta": lambda: torch.distributions.Beta(X + 1, 2.0).sample(),
    "student": lambda: torch.distributions.StudentT(X + 1).sample(),
    "poisson law": lambda: torch.distributions.Poisson(X + 9).sample(),
    "von mises": lambda: torch.distributions.VonMises(X, 2.0).sample(),
    "lkj": lambda: torch.distributions.LKJCholesky(3).sample(),
    "gumbel": lambda: functional.gumbel_softmax(X),
    "rrelu": lambda: functional.rrelu(-X - 1, training=True),
    "fractional pool": lambda: functional.fractional_max_pool2d(
        torch.arange(9000.0).reshape(10, 30, 30), 2, output_size=13
    ),
    "dropout": lambda: functional.dropout(X + 1),
    "dropout2d": lambda: functional.dropout2d(X.expand(9, -1, -1, -1) + 1, 0.5),
    "alpha dropout": lambda: functional.alpha_dropout(X + 1, 0.5, True),
    "native dropout": lambda: torch.native_dropout(X + 1, 0.5, True)[0],
    "attention": lambda: functional.scaled_dot_product_attention(X, X, X + 1, dropout_p=0.5),
    "multi-head": lambda: nn.MultiheadAttention(4, 2, dropout=0.3)(X, X, X)[0].detach(),
    "lstm": lambda: nn.LSTM(4, 3, num_layers=3, dropout=0.5)(X)[0].detach(),
    "linear": lambda: nn.Linear(3, 4).weight.detach(),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(3, 3)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(3, 3)),
    "sparse": lambda: nn.init.sparse_(torch.empty(9, 9), 0.5),
    "sobol": lambda: torch.quasirandom.SobolEngine(3, scramble=True).draw(3),
    "low rank": lambda: torch.svd_lowrank(torch.eye(6), 2)[0],
    "scripted": lambda: graphs()[0](X),
    "traced": lambda: graphs()[1](X),
    "traced now": lambda: trace()(X),
    "vmap": lambda: torch.vmap(lambda x: x + torch.randn(4), randomness="different")(X),
    "vmap same": lambda: torch.vmap(lambda x: functional.dropout(x + 1), randomness="same")(X),
    "grad": lambda: torch.func.grad(lambda x: functional.dropout(x).sum())(X),
    "pyro": lambda: pyro.sample("x", pyro.distributions.Normal(X, 1.0)),
    "seeded inside": lambda: torch.cat([torch.rand(3), torch.manual_seed(5) and torch.rand(2)]),
    "forked inside": _forked,
}


@pytest.mark.parametrize("name", DRAWS)
def test_every_function_draws_what_follows_the_seed(name):
    check(DRAWS[name])


def test_every_operation_that_draws_is_known():
    """A PyTorch with a new one would draw from the global generator without a word."""
    composite = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")
    missing = set()
    for schema in torch._C._jit_get_all_schemas():
        qualified = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
        name = schema.name.removeprefix("aten::")
        try:
            kernels = [
                key
                for key in ("CPU", *composite)
                if torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key)
            ]
        except RuntimeError:  # of TorchScript alone
            continue
        operation = getattr(getattr(torch.ops, schema.name.split("::")[0]), name.split("::")[-1])
        operation = getattr(operation, schema.overload_name or "default")
        takes = any(argument.name == "generator" for argument in schema.arguments)
        draws = takes or torch.Tag.nondeterministic_seeded in operation.tags
        if draws and "CPU" in kernels and name not in {*DRAWING, *DROPOUT}:
            missing.add(name)
    # These choose among operations, or are for inference alone.
    assert missing <= {"_fused_sdp_choice", "_scaled_dot_product_flash_attention_for_cpu"}


def test_a_named_generator_is_used():
    other = Generator().manual_seed(3)
    with draws_from(Generator().manual_seed(4)):
        drawn = torch.rand(3, generator=other), torch.empty(3).normal_(generator=other)
    other.manual_seed(3)
    assert torch.equal(drawn[0], torch.rand(3, generator=other))
    assert torch.equal(drawn[1], torch.empty(3).normal_(generator=other))


def test_contexts_are_nested():
    outer, inner = Generator().manual_seed(1), Generator().manual_seed(2)
    with draws_from(outer):
        first = torch.rand(2)
        with draws_from(inner):
            second = torch.rand(2)
            with draws_from(None):
                third = torch.rand(2)
        fourth = torch.rand(2)
    assert torch.equal(torch.cat([first, fourth]), torch.rand(4, generator=outer.manual_seed(1)))
    assert torch.equal(torch.cat([second, third]), torch.rand(4, generator=inner.manual_seed(2)))


def test_none_is_the_global_generator():
    expected, _ = seeded_globally(lambda: torch.rand(3))
    torch.manual_seed(7)
    with draws_from(None):
        drawn = torch.rand(3)
    assert torch.equal(drawn, expected)


def test_an_error_ends_the_context():
    generator = Generator().manual_seed(1)
    torch.manual_seed(5)

    def fail():
        with draws_from(generator):
            torch.rand(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    state = generator.get_state()
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("wrong", [0, "cpu", torch.zeros(1), numpy.random.default_rng(0)])
def test_other_things_than_generators_are_rejected(wrong):
    with pytest.raises(ValueError, match=r"Expected generator to be a torch\.Generator"):
        draws_from(wrong)


def test_two_generators_of_one_device_are_rejected():
    with pytest.raises(ValueError, match="got two on cpu"):
        draws_from(Generator(), Generator())


def test_other_random_numbers_are_left_alone():
    random.seed(1)
    numpy.random.seed(1)  # noqa: NPY002
    states = random.getstate(), numpy.random.get_state()[1].tolist()  # noqa: NPY002
    with draws_from(Generator()):
        torch.rand(3)
    assert states == (random.getstate(), numpy.random.get_state()[1].tolist())  # noqa: NPY002


def test_threads_draw_what_they_draw_alone():
    """Two threads with generators, and the main thread with the global one, at the same time."""
    law = CASES["mixture-2d"].build()
    start = threading.Barrier(3)
    found = {}

    def draw(seed):
        with draws_from(Generator().manual_seed(seed)):
            start.wait()
            found[seed] = torch.cat([law.sample((3,)) for _ in range(100)])

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    torch.manual_seed(3)
    start.wait()
    found[3] = torch.cat([law.sample((3,)) for _ in range(100)])
    for thread in threads:
        thread.join()
    for seed, drawn in found.items():
        torch.manual_seed(seed)
        assert torch.equal(drawn, torch.cat([law.sample((3,)) for _ in range(100)]))


def test_a_new_thread_has_the_global_generator():
    found = []
    with draws_from(Generator().manual_seed(1)):
        torch.manual_seed(0)
        thread = threading.Thread(target=lambda: found.append(torch.get_rng_state()))
        thread.start()
        thread.join()
    assert torch.equal(found[0], torch.default_generator.get_state())


def gradient(reentrant, first, second):
    """Gradient through dropout that is computed again in the backward pass."""
    x = torch.ones(50, requires_grad=True)
    with first:
        hidden = checkpoint(lambda x: functional.dropout(x, 0.5) * x, x, use_reentrant=reentrant)
        out = hidden + functional.dropout(x, 0.5)
    with second:
        out.sum().backward()
        after = torch.rand(1)
    return torch.cat([x.grad, out.detach(), after])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_draw_the_same_numbers_again(reentrant):
    torch.manual_seed(7)
    nothing = draws_from(None)
    expected = gradient(reentrant, nothing, nothing)
    generator = Generator().manual_seed(7)
    torch.manual_seed(100)
    before = torch.get_rng_state()
    drawn = gradient(reentrant, draws_from(generator), draws_from(generator))
    assert torch.equal(drawn, expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_may_be_outside(reentrant):
    torch.manual_seed(7)
    nothing = draws_from(None)
    expected = gradient(reentrant, nothing, nothing)
    generator = Generator().manual_seed(7)
    drawn = gradient(reentrant, draws_from(generator), nothing)
    assert torch.equal(drawn[:-1], expected[:-1])


def test_autograd_threads_draw_from_the_generator_of_their_caller():
    """On GPUs autograd has threads of its own, which take over the dispatcher's keys."""
    found = []

    def work():
        torch._C._dispatch_tls_set_dispatch_key_included(core_random._key(), True)
        found.append(torch.rand(3))

    generator = Generator().manual_seed(1)
    with draws_from(generator):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert torch.equal(found[0], torch.rand(3, generator=generator.manual_seed(1)))


def test_autograd_threads_of_two_callers_are_an_error():
    errors = []

    def work():
        torch._C._dispatch_tls_set_dispatch_key_included(core_random._key(), True)
        try:
            torch.rand(3)
        except RuntimeError as error:
            errors.append(str(error))

    def enter():
        with draws_from(Generator()):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    with draws_from(Generator()):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "several threads draw" in errors[0]


class Seen(TorchFunctionMode):
    """Notes calls of functions."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.functions.append(function)
        return function(*args, **(kwargs or {}))


class Plain(TorchDispatchMode):
    """Passes operations on, as profilers do."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return operation(*args, **(kwargs or {}))


def test_function_modes_see_a_call_once():
    with Seen() as seen, draws_from(Generator()):
        torch.rand(3)
    assert seen.functions.count(torch.rand) == 1


@pytest.mark.parametrize("name", ["rand", "rand_like", "normal", "randperm", "dropout", "lstm"])
def test_dispatch_modes_do_not_hide_draws(name):
    if name == "rand_like" and not hasattr(torch.ops.aten.rand_like, "generator"):
        pytest.skip("takes no generator in this version of PyTorch")

    def draw():
        with Plain():
            return DRAWS[name]()

    check(draw)


def test_tensors_without_numbers_draw_nothing():
    generator = Generator().manual_seed(1)
    with draws_from(generator):
        assert torch.rand(3, device="meta").is_meta
        assert torch.empty(3, device="meta").normal_().is_meta
    assert torch.equal(generator.get_state(), Generator().manual_seed(1).get_state())


@pytest.mark.parametrize("compiled_inside", [False, True])
def test_compiled_functions(compiled_inside):
    def draw(x):
        return functional.dropout(x, 0.3) + torch.rand_like(x) * torch.randn(4)

    torch._dynamo.reset()
    compiled = torch.compile(draw, backend="aot_eager")
    with draws_from(Generator() if compiled_inside else None):
        compiled(X)
    seeded_here(lambda: compiled(X))  # PyTorch watches the first run
    check(lambda: compiled(X))


def test_the_default_device_is_respected():
    generator = Generator().manual_seed(1)
    with torch.device("meta"), draws_from(generator):
        assert torch.rand(3).is_meta
        assert torch.rand(3, device="cpu").device.type == "cpu"


class Items(Dataset):
    """Random items."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.rand(3) + index


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loaders(workers):
    def draw():
        loader = DataLoader(Items(), batch_size=4, shuffle=True, num_workers=workers)
        return torch.cat(list(loader))

    check(draw)


def test_seeded_generators():
    (generator,) = seeded(3)
    assert generator.device == torch.device("cpu")
    assert torch.equal(torch.rand(3, generator=generator), seeded_globally(DRAWS["rand"], 3)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["rand", "dropout", "lstm", "gamma"])
def test_on_a_gpu(name):
    with torch.device("cuda"):
        x = X.cuda()
        draw = {
            "rand": lambda: torch.rand(3),
            "dropout": lambda: functional.dropout(x + 1),
            "lstm": lambda: nn.LSTM(4, 3, num_layers=3, dropout=0.5)(x)[0].detach(),
            "gamma": lambda: torch.distributions.Gamma(x + 1, 1.0).sample(),
        }[name]
    torch.cuda.manual_seed(9)
    before = torch.cuda.get_rng_state()
    for generators in (lambda: seeded(7, "cuda:0"), lambda: seeded(7)):
        with torch.device("cuda"), draws_from(*generators()):
            first = draw()
        with torch.device("cuda"), draws_from(*generators()):
            assert torch.equal(draw(), first)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_forked_process_can_draw():
    """As the workers of a DataLoader do, whatever other threads were doing."""
    script = """
import os, torch
from pyromix.core.random import draws_from
with draws_from(torch.Generator().manual_seed(1)):
    child = os.fork()
    drawn = torch.rand(3)
    with draws_from(torch.Generator().manual_seed(1)):
        same = torch.equal(drawn, torch.rand(3))
    if child == 0:
        os._exit(0 if same else 1)
assert same and os.waitpid(child, 0)[1] == 0
"""
    if hasattr(os, "fork"):
        subprocess.run([sys.executable, "-c", script], check=True)
