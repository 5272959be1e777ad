"""Laws given evidence in files, and on other devices and of other dtypes."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributions import ExpTransform

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    CategoricalPrior,
    Flow,
    GaussianMixture,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    LowRankPrecisionNormal,
    Nonlinear,
    Observed,
    load,
    load_law,
    save,
)

INF = math.inf
MODELS = {
    "diagonal": lambda: GaussianMixture(3, 4, "diagonal"),
    "full": lambda: GaussianMixture(3, 4, "full").float(),
    "low rank": lambda: LowRankPrecisionNormal(torch.zeros(3), torch.ones(3), torch.ones(3, 1)),
    "factors": lambda: GaussianMixture(3, 2, "low_rank"),
    "residual": lambda: DRMM(3, 2, 4),
    "maps": lambda: DRMM(3, 3, 4, maps=("shift", "triangular", "low_rank"), max_exact=64),
    "population": lambda: DRMM(3, 4, 8, max_exact=1).float(),
    "categories": lambda: DRMM(3, 2, 4, categories=(3, 2)),
}
QUESTIONS = {
    "values": (Observed({0: 0.5}), {1: torch.tensor([0.1, 0.2]).double()}),
    "numbers": (Box(np.array([-1.0, 0.0, -INF]), [2.0, 3.0, 4.0]), {np.int64(2): np.float32(0.3)}),
    "prior": (GaussianPrior(0.0, torch.tensor([1.0, 2.0, INF])),),
    "observations": (
        LinearGaussian(torch.ones(1, 3), torch.tensor([0.4]), 0.3),
        LinearEquality(torch.tensor([1.0, -1.0, 0.0])),
        Box(-2.0),
    ),
    "rows": (LinearInequality(torch.tensor([[1.0, 1.0, 0.3], [-1.0, 0.5, 2.0]]), 1.5),),
    "alternatives": (
        AnyOf(Box(0.5), (Box(high=1.0), LinearInequality(torch.ones(3), 0.2))),
        GaussianPrior(0.0, 2.0),
    ),
}


@pytest.mark.filterwarnings("ignore:The .* codes that were found")
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_laws_come_back_to_the_last_bit(name, question, tmp_path):
    model = MODELS[name]()
    evidence = QUESTIONS[question]
    if name == "categories":
        evidence = (*evidence, CategoricalPrior(3, torch.tensor([0.2, 0.0, 0.8])))
    law = model.condition(*evidence)
    path = tmp_path / "law.safetensors"
    before = torch.get_rng_state()
    save(law, path)
    again = load_law(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(again) is type(law)
    assert again.batch_shape == law.batch_shape
    x = law.sample((7,))
    torch.manual_seed(3)
    drawn = law.sample((7,))
    torch.manual_seed(3)
    assert torch.equal(again.sample((7,)), drawn)
    assert torch.equal(again.log_prob(x), law.log_prob(x).detach())
    for mine, theirs in zip(again.log_evidence(), law.log_evidence(), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad
    # Twice there and back, and with further evidence.
    save(again, path)
    assert torch.equal(load_law(path).log_prob(x), again.log_prob(x))
    more = GaussianPrior(0.3, 1.0)
    torch.manual_seed(4)
    expected = law.condition(more).log_evidence()[0]
    torch.manual_seed(4)
    assert torch.equal(again.condition(more).log_evidence()[0], expected)


def test_a_generator_of_ones_own_is_remembered(tmp_path):
    model = DRMM(3, 4, 8, max_exact=1)
    law = model.condition({0: 0.5}, generator=torch.Generator().manual_seed(7), num_particles=64)
    save(law, tmp_path / "law.safetensors")
    again = load_law(tmp_path / "law.safetensors")
    assert again.num_particles == law.num_particles
    assert torch.equal(again.log_evidence()[0], law.log_evidence()[0])


@pytest.mark.parametrize("name", ["diagonal", "residual", "maps", "categories"])
def test_laws_take_another_dtype(name):
    law = MODELS[name]().condition(Observed({0: 0.5}), Box(high=1.0))
    other = law.to(torch.float32)
    x = other.sample((100,))
    assert x.dtype == torch.float32
    assert other.log_prob(x).dtype == torch.float32
    assert bool((x[:, 1:3] <= 1.0).all())
    torch.testing.assert_close(
        other.log_evidence()[0].double(), law.log_evidence()[0].detach(), rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(
        other.log_prob(x).double(), law.log_prob(x.double()).detach(), rtol=1e-3, atol=1e-3
    )
    # Numbers that were observed in single precision are the same ones in double precision.
    rounded = MODELS[name]().float().condition(Observed({0: 0.3}))
    x = rounded.sample((20,))
    assert bool(rounded.to(torch.float64).log_prob(x.double()).isfinite().all())
    same = law.to(dtype=torch.float64, device="cpu")
    assert torch.equal(same.log_evidence()[0], law.log_evidence()[0])
    assert not same.log_evidence()[0].requires_grad


def test_what_cannot_be_saved_says_so(tmp_path):
    path = tmp_path / "law.safetensors"
    model = GaussianMixture(2, 3).requires_grad_(False)
    law = model.condition(Nonlinear(lambda x: x.sum(-1, keepdim=True), 0.5, 0.1))
    with pytest.raises(ValueError, match="holds a Nonlinear"):
        save(law, path)
    law = Flow(model, [ExpTransform()]).condition({0: 1.0})
    with pytest.raises(ValueError, match="holds a FlowPrior"):
        save(law, path)
    with pytest.raises(NotImplementedError, match="stays where it is"):
        law.to(torch.float32)
    part = model.condition(AnyOf(Box(1.0), Box(high=-1.0))).alternatives[0]
    for ask in (lambda: save(part, path), lambda: part.to(torch.float32), part.condition):
        with pytest.raises(ValueError, match="part of another"):
            ask()
    assert not path.exists()


def damaged(path, change):
    """Writes a file again, its header changed."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = metadata["pyromix"]
    assert change[0] in header
    save_file(tensors, path, {"pyromix": header.replace(*change)})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("pyromix.Box", "pyromix.Sphere"), "knows nothing"),
        (("pyromix.MixturePrior", "pyromix.Box"), "does not describe a law"),
        (("pyromix.Box", "os.system"), "knows nothing"),
        (('"prior"', '"posterior"'), "does not describe a law"),
        (('"kind": "law"', '"kind": "model"'), "holds a 'model'"),
    ],
)
def test_files_that_hold_no_law_are_refused(change, match, tmp_path):
    path = tmp_path / "law.safetensors"
    save(GaussianMixture(2, 3).condition(Box(0.0)), path)
    with pytest.raises(ValueError, match="load_law"):
        load(path)
    damaged(path, change)
    with pytest.raises(ValueError, match=match):
        load_law(path)


def test_models_are_no_laws(tmp_path):
    save(GaussianMixture(2, 3), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"pyromix\.load"):
        load_law(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        load_law(tmp_path / "none.safetensors")
