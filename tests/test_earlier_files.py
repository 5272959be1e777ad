"""Files that version 0.1 wrote, before its modules were moved: they load, score and go on.

``earlier_files`` holds a small model of every class, in float64, and ``expected.safetensors``: for
each one values, contexts where it takes some, the log-densities and three draws at seed 1 that it
had. ``training.safetensors`` is a training run that was cut off after five of ten steps.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyromix import GaussianMixture, fit, load

FILES = Path(__file__).parent / "earlier_files"
EXPECTED = load_file(FILES / "expected.safetensors")
MODELS = sorted({key.partition("/")[0] for key in EXPECTED} - {"training"})

# To the last bit on the processor that wrote them: others may order sums in another way.
LAST_BITS = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_version_0_1_loads_and_scores(name):
    model = load(FILES / f"{name}.safetensors")
    assert all(p.dtype == torch.float64 for p in model.parameters())
    context = EXPECTED.get(f"{name}/context")
    if context is not None and name == "dcgmm_classes":
        context = context.long()
    law = model if context is None else model.condition(context)
    value = EXPECTED[f"{name}/value"]
    torch.testing.assert_close(law.log_prob(value), EXPECTED[f"{name}/log_prob"], **LAST_BITS)
    torch.manual_seed(1)
    drawn = law.sample((3,))
    torch.testing.assert_close(drawn, EXPECTED[f"{name}/sample"], **LAST_BITS)


def test_a_training_run_of_version_0_1_goes_on_to_the_same_numbers(tmp_path):
    checkpoint = tmp_path / "training.safetensors"
    shutil.copy(FILES / "training.safetensors", checkpoint)
    torch.manual_seed(4)
    model = GaussianMixture(2, 2).double()
    history = fit(
        model,
        EXPECTED["training/data"],
        steps=10,
        batch_size=16,
        lr=0.05,
        seed=7,
        checkpoint=checkpoint,
        checkpoint_every=5,
        progress_bar=False,
    )
    losses = torch.tensor(history.losses, dtype=torch.float64)
    torch.testing.assert_close(losses, EXPECTED["training/losses"], **LAST_BITS)
    for name in ("loc", "raw_scale"):
        expected = EXPECTED[f"training/{name}"]
        torch.testing.assert_close(getattr(model, name).detach(), expected, **LAST_BITS)
