"""Expectation maximisation of data in files, from loaders, with weights, in streams."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyromix import GaussianMixture, MixtureOfNormals, OnlineEM, fit_em
from pyromix.mixtures.covariance import STRUCTURES
from pyromix.mixtures.em import rows

from .test_fit_em import data, with_gaps

every_covariance = pytest.mark.parametrize("covariance", STRUCTURES)


def started(covariance, x, k=3, **options):
    """A mixture that starts at some clusters, the same each time."""
    torch.manual_seed(0)
    missing = "marginalize" if x.isnan().any() else "error"
    model = GaussianMixture(x.shape[-1], k, covariance, rank=2, missing=missing, **options)
    model.initialize(x)
    return model


def parameters(model):
    return {name: value.detach() for name, value in model.state_dict().items()}


class InFile:
    """An array that can be read part by part alone, as those of HDF5 files."""

    def __init__(self, array):
        self.array, self.shape, self.reads = array, array.shape, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        self.reads.append(len(self.array[index]))
        return self.array[index]


@pytest.fixture
def few_numbers(monkeypatch):
    """As if there were little memory: nothing is kept, and twenty rows are read at once."""
    monkeypatch.setattr(rows, "KEPT_NUMBERS", 0)
    monkeypatch.setattr(rows, "CHUNK_NUMBERS", 80)


@every_covariance
@pytest.mark.parametrize("gaps", [False, True])
def test_the_same_from_every_source(covariance, gaps, tmp_path, few_numbers, monkeypatch):
    x = data(150) + 5.0
    x = with_gaps(x) if gaps else x
    options = {"steps": 6, "tolerance": 0.0, "progress_bar": False, "initialize": False}
    with monkeypatch.context() as patch:
        patch.setattr(rows, "KEPT_NUMBERS", 2**24)
        expected = started(covariance, x)
        losses = fit_em(expected, x, **options).losses
    mapped = np.memmap(tmp_path / "rows.bin", np.float64, "w+", shape=tuple(x.shape))
    mapped[:] = x.numpy()
    in_file = InFile(x.numpy())
    batches = [part.numpy() for part in x.split(40)]
    sources = {
        "tensor": x,
        "memory map": mapped,
        "file": in_file,
        "dataset": TensorDataset(x),
        "loader": DataLoader(x, batch_size=32, shuffle=True),
        "batches": Batches(batches),
        "list of batches": batches,
    }
    for name, source in sources.items():
        model = started(covariance, x)
        history = fit_em(model, source, **options)
        assert history.losses == pytest.approx(losses, abs=1e-9), name
        for key, value in parameters(expected).items():
            torch.testing.assert_close(parameters(model)[key], value, rtol=1e-6, atol=1e-6)
    assert max(in_file.reads) == 20


class Batches:
    """Batches that can be gone through again."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@every_covariance
@pytest.mark.parametrize("gaps", [False, True])
def test_a_row_of_weight_two_counts_as_two_rows(covariance, gaps):
    x = with_gaps(data(120)) if gaps else data(120)
    weight = (torch.arange(120) % 4).double()
    options = {"steps": 8, "tolerance": 0.0, "progress_bar": False, "initialize": False}
    repeated, weighted, paired = (started(covariance, x) for _ in range(3))
    expected = fit_em(repeated, x.repeat_interleave(weight.long(), 0), **options)
    got = fit_em(weighted, x, sample_weight=weight, **options)
    loader = DataLoader(TensorDataset(x, weight), batch_size=50)
    assert fit_em(paired, loader, **options).losses == pytest.approx(expected.losses, abs=1e-9)
    assert got.losses == pytest.approx(expected.losses, abs=1e-9)
    for key, value in parameters(repeated).items():
        torch.testing.assert_close(parameters(weighted)[key], value, rtol=1e-6, atol=1e-6)


def test_weights_of_any_size_find_the_same_law():
    x = data(300)
    weight = torch.rand(300, generator=torch.Generator().manual_seed(0))
    losses = []
    for factor in (1.0, 1e-6, 1e6):
        model = GaussianMixture(4, 3, "full")
        history = fit_em(model, x, sample_weight=factor * weight, seed=0, progress_bar=False)
        losses.append(history.losses[-1])
    assert losses == pytest.approx(losses[:1] * 3, abs=1e-6)
    alone = GaussianMixture(4, 1, "full")
    fit_em(alone, x, sample_weight=weight, seed=0, progress_bar=False)
    torch.testing.assert_close(alone.mean, weight @ x / weight.sum(), rtol=1e-9, atol=1e-9)


@every_covariance
def test_products_in_float32_lose_little(covariance):
    x = data(500) + 3.0
    models = [started(covariance, x) for _ in range(2)]
    losses = [
        fit_em(m, x, steps=20, tolerance=0.0, initialize=False, precision=p, progress_bar=False)
        for m, p in zip(models, ("double", "single"), strict=True)
    ]
    assert losses[1].losses[-1] == pytest.approx(losses[0].losses[-1], abs=1e-4)
    a, b = (float(model.log_prob(x).detach().mean()) for model in models)
    assert b == pytest.approx(a, abs=1e-4)


def test_far_data_are_not_summed_in_float32():
    """Columns 10,000 deviations from their mean, where seven digits would not do."""
    x = data(400)
    x[:200] += 1e4
    losses = []
    for precision in ("double", "single"):
        model = started("full", x, k=4, standardize=False)
        history = fit_em(model, x, initialize=False, precision=precision, progress_bar=False)
        losses.append(history.losses[-1])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_dead_components_of_data_in_a_file_are_revived(few_numbers):
    truth = MixtureOfNormals(
        torch.zeros(3), torch.tensor([[0.0], [20.0], [40.0]]), torch.ones(3, 1)
    )
    x = truth.sample((400,))
    model = GaussianMixture(1, 3)
    with torch.no_grad():
        model.loc.copy_(torch.tensor([[0.0], [30.0], [1e4]]))
    history = fit_em(model, InFile(x.numpy()), initialize=False, seed=0, progress_bar=False)
    assert (torch.tensor(history.losses).diff() <= 1e-9).all()
    assert model.loc.abs().max() < 80
    assert -history.losses[-1] > float(truth.log_prob(x).mean()) - 0.02


# ---- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("covariance", "gaps"),
    [("diagonal", True), ("shared", False), ("full", False), ("tied", True), ("low_rank", False)],
)
def test_a_stream_comes_near_all_data(covariance, gaps):
    x = (with_gaps(data(6000), 0.1) if gaps else data(6000)) + 1e5
    missing = "marginalize" if gaps else "error"
    torch.manual_seed(0)
    model = GaussianMixture(4, 3, covariance, rank=2, missing=missing)
    online = OnlineEM(model)
    scores = [online.update(batch) for batch in x.split(50)]
    assert math.isnan(scores[0])
    assert online.num_batches == 119  # sixty rows were waited for
    whole = GaussianMixture(4, 3, covariance, rank=2, missing=missing)
    fit_em(whole, x, seed=0, progress_bar=False)
    assert float((whole.log_prob(x) - model.log_prob(x)).detach().mean()) < 0.05
    assert sum(scores[-20:]) / 20 > float(whole.log_prob(x).detach().mean()) - 0.2


def test_a_stream_that_drifts_is_followed():
    torch.manual_seed(0)
    found = []
    for forget in (0.0, 0.1):
        model = GaussianMixture(1, 1)
        online = OnlineEM(model, forget=forget)
        for t in range(100):
            online.update(torch.randn(50, 1) + 0.03 * t)
        found.append(float(model.mean.detach()))
    assert found[1] == pytest.approx(2.7, abs=0.25)  # ten batches behind
    assert found[0] < found[1] - 0.1


def test_a_trained_mixture_is_changed_little_by_a_batch():
    x = data(2000)
    model = GaussianMixture(4, 3, "full")
    fit_em(model, x, seed=0, progress_bar=False)
    before = float(model.log_prob(x).detach().mean())
    OnlineEM(model, num_batches=1000).update(x[:10])
    assert before - 0.05 < float(model.log_prob(x).detach().mean()) <= before


# ---- bad input --------------------------------------------------------------------------------

X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: fit_em(m, iter([X])), "more than once"),
        (lambda m: fit_em(m, Batches([torch.zeros(4, 3)])), r"shape \(n, 2\)"),
        (lambda m: fit_em(m, Batches([])), "at least one point"),
        (lambda m: fit_em(m, Batches([(X, torch.ones(4), X)])), "3 parts"),
        (lambda m: fit_em(m, Batches([(X, torch.ones(4).long())])), "Leave labels out"),
        (lambda m: fit_em(m, Batches([X]), sample_weight=torch.ones(4)), "pairs of rows"),
        (lambda m: fit_em(m, Batches([X]), batch_size=2), "no batch_size"),
        (lambda m: fit_em(m, InFile(np.zeros((4, 3)))), r"shape \(N, 2\)"),
        (lambda m: fit_em(m, X, sample_weight=torch.ones(3)), r"shape \(4,\)"),
        (lambda m: fit_em(m, X, sample_weight=[1.0, -1.0, 1.0, 1.0]), "not negative"),
        (lambda m: fit_em(m, X, sample_weight=torch.zeros(4)), "some are positive"),
        (lambda m: fit_em(m, Batches([X / 0])), "8 entries that are not"),
        (lambda m: fit_em(m, X, precision="half"), "'double' or 'single'"),
        (lambda m: OnlineEM(m, forget=2.0), "less than 1"),
        (lambda m: OnlineEM(m).update(torch.zeros(0, 2)), "at least one point"),
        (lambda m: OnlineEM(m).update(X / 0), "not"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(GaussianMixture(2, 2))
