"""float64 by default, and a fresh state of everything global for every test."""

import signal

import pyro
import pytest
import torch
from torch.distributions import Distribution

# In the background, or under nohup, interrupts are ignored; tests of them send some.
signal.signal(signal.SIGINT, signal.default_int_handler)

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device that tests build models on")
    parser.addoption("--dtype", default="float64", choices=DTYPES, help="default dtype of tests")


def pytest_collection_modifyitems(items):
    """Tutorials take longest: of two processes, none should be left with them at the end."""
    items.sort(key=lambda item: item.path.name != "test_tutorials.py")
    for item in items:
        is_long = getattr(getattr(item, "module", None), "is_long", None)
        if is_long is not None and is_long(item.name):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def device(request):
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def _clean_state(request):
    dtype, validates = torch.get_default_dtype(), Distribution._validate_args
    torch.set_default_dtype(DTYPES[request.config.getoption("--dtype")])
    Distribution.set_default_validate_args(True)
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    Distribution.set_default_validate_args(validates)
