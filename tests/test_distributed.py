"""Two processes train to the same parameters as one with the same batches."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from pyromix import DCGMM, GaussianMixture, fit, fit_em
from pyromix.dcgmm import GMM, Folding


def points():
    data = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    data[:100] += 4
    return data


def images():
    data = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data[:100] *= 0.2
    return data


def expectation_maximisation(name, fabric, folder):
    """A fit to all data, of which each process sums over its part."""
    torch.manual_seed(0)
    data = points().masked_fill(torch.rand(300, 3) < 0.1, torch.nan)
    kind = name.removeprefix("em_")
    options = {"covariance": "diagonal", "tails": "student"} if kind == "student" else {}
    options = {"covariance": kind, "missing": "marginalize"} | options
    model = GaussianMixture(3, 4, **options)
    batches = DataLoader(data, batch_size=32) if name == "em_full" else data
    with torch.no_grad():
        model.initialize(data)
        model.loc[0] += 1e4  # a component without points, which is put elsewhere
    history = fit_em(
        model, batches, steps=25, initialize=False, fabric=fabric, seed=0, progress_bar=False
    )
    if fabric.is_global_zero:
        state = model.state_dict() | {"losses": torch.tensor(history.losses)}
        save_file(state, folder / f"{name}.{fabric.world_size}.safetensors")


def train(name, fabric, folder):
    """One of the trainings, of which one process writes the results to a file."""
    data = images() if name == "stages" else points()
    batches, steps = data, 40
    torch.manual_seed(0)
    if name == "stages":
        model = DCGMM((1, 4, 4), [Folding(2), GMM(4), Folding(2), GMM(4)])
        steps = 30  # too few for each process to find its own losses stationary
    else:
        model = GaussianMixture(3, 4)
    if name == "loader":
        batches = DataLoader(data, batch_size=60, shuffle=True)
    history = fit(
        model,
        batches,
        steps=steps,
        batch_size=60,
        lr=0.05,
        seed=0,
        fabric=fabric,
        progress_bar=False,
        validation=data[:101],
        validation_every=10,
        gradient_clip=1.0,
        checkpoint=folder / f"{name}.training.{fabric.world_size}",
    )
    if fabric.is_global_zero:
        state = dict(model.state_dict())
        state["losses"] = torch.tensor(history.losses)
        state["validation"] = torch.tensor(history.validation_losses)
        save_file(state, folder / f"{name}.{fabric.world_size}.safetensors")


def main(folder):
    """What each of the two processes does."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    for name in ("tensor", "loader", "stages"):
        train(name, fabric, folder)
    for name in ("em_full", "em_shared", "em_student"):
        expectation_maximisation(name, fabric, folder)
    with pytest.raises(ValueError, match="Choose a multiple of 2"):
        fit(GaussianMixture(3, 4), points(), batch_size=61, fabric=fabric, progress_bar=False)
    # Without this gloo's threads now and then abort a process that exits.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have left their results."""
    folder = tmp_path_factory.mktemp("two_processes")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", __name__, str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", ["tensor", "loader", "stages"])
def test_two_processes_equal_one(name, folder):
    """Precisions of the stages learn in the second half only: none is waited for in the first."""
    train(name, Fabric(accelerator="cpu", devices=1), folder)
    one, two = (load_file(folder / f"{name}.{count}.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    learned = [key for key in one if key.endswith(("loc", "log_precision", "logits"))]
    assert len(learned) == 6 or name != "stages"
    for key in learned if name == "stages" else one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["em_full", "em_shared", "em_student"])
def test_sums_over_two_processes_equal_one(name, folder):
    expectation_maximisation(name, Fabric(accelerator="cpu", devices=1), folder)
    one, two = (load_file(folder / f"{name}.{count}.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    assert (one["losses"].diff() <= 1e-9).all()
    assert one["loc"].abs().max() < 100
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
