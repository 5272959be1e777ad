"""Two processes train to the same parameters as one with the same batches."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from pyromix import GaussianMixture, fit

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
folder, processes, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
data = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
data[:100] += 4
fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto")
fabric.launch()
torch.manual_seed(0)
model = GaussianMixture(3, 4)
batches = data if kind == "tensor" else DataLoader(data, batch_size=60, shuffle=True)
history = fit(
    model, batches, steps=40, batch_size=60, lr=0.05, seed=0, fabric=fabric, progress_bar=False,
    validation=data[:101], validation_every=10, gradient_clip=1.0,
    checkpoint=f"{folder}/training.{processes}",
)
if fabric.is_global_zero:
    state = dict(model.state_dict())
    state["losses"] = torch.tensor(history.losses)
    state["validation"] = torch.tensor(history.validation_losses)
    save_file(state, f"{folder}/{processes}.safetensors")
if processes > 1:  # without this gloo's threads now and then abort a process that exits
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def run(folder, processes, kind, text=SCRIPT):
    script = folder / "train.py"
    script.write_text(text)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script)]
    result = subprocess.run(
        [*command, str(folder), str(processes), kind], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(folder / f"{processes}.safetensors")


@pytest.mark.parametrize("kind", ["tensor", "loader"])
def test_two_processes_equal_one(kind, tmp_path):
    one, two = run(tmp_path, 1, kind), run(tmp_path, 2, kind)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-10, atol=1e-10)


def test_two_processes_train_in_stages(tmp_path):
    """Precisions learn in the second half only; processes do not wait for them in the first."""
    script = SCRIPT
    for old, new in (
        (
            "import GaussianMixture, fit",
            "import DCGMM, fit\nfrom pyromix.dcgmm import GMM, Folding",
        ),
        ("GaussianMixture(3, 4)", "DCGMM((1, 4, 4), [Folding(2), GMM(4), Folding(2), GMM(4)])"),
        ("torch.randn(300, 3,", "torch.rand(300, 1, 4, 4,"),
        ("data[:100] += 4", "data[:100] *= 0.2"),
        # Too few for each process to find its own losses stationary.
        ("steps=40", "steps=30"),
    ):
        assert old in script
        script = script.replace(old, new)
    one, two = (run(tmp_path, processes, "tensor", script) for processes in (1, 2))
    learned = [name for name in one if name.endswith(("loc", "log_precision", "logits"))]
    assert len(learned) == 6
    for name in learned:
        torch.testing.assert_close(two[name], one[name], rtol=1e-10, atol=1e-10)


def test_batches_that_cannot_be_shared(tmp_path):
    script = SCRIPT.replace("batch_size=60, lr", "batch_size=61, lr")
    (tmp_path / "train.py").write_text(script)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(tmp_path / "train.py"), str(tmp_path), "2", "tensor"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "Choose a multiple of 2" in result.stderr
