"""The training loop: reproducible, resumable, interruptible, and clear about what went wrong."""

import copy
import math
import os
import signal
import threading

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from pyro.distributions.transforms import Spline
from torch import nn
from torch.distributions import constraints
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from pyromix import (
    DCGMM,
    DRMM,
    FRMDN,
    RAD,
    DistributionModule,
    Flow,
    GaussianMixture,
    History,
    RelaxedGaussianMixture,
    class_conditional,
    fit,
    near_identity,
)
from pyromix.dcgmm import GMM, Folding
from pyromix.training.minibatches import make_stream
from pyromix.training.trainer import NonFiniteLossError

DATA = torch.randn(200, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Quadratic(DistributionModule):
    """Records what training shows it; its best location is the mean of the data."""

    def __init__(self, dim=2, noise=0.0):
        super().__init__(event_shape=(dim,))
        self.dim, self.noise = dim, noise
        self.loc = nn.Parameter(torch.zeros(dim))
        self.batches, self.progress, self.preview, self.modes = [], [], None, []

    def initialize(self, data):
        self.preview = data

    def loss(self, batch, progress=1.0):
        x = batch[0] if isinstance(batch, tuple | list) else batch
        self.modes.append(self.training)
        if self.training:
            self.batches.append(x.clone())
            self.progress.append(progress)
        noise = self.noise * torch.randn(self.dim)
        return (x - self.loc - noise).square().sum(-1).mean()


def train(model=None, data=DATA, **kwargs):
    model = GaussianMixture(2, 3) if model is None else model
    kwargs = {"steps": 20, "batch_size": 50, "lr": 0.05, "seed": 0, "progress_bar": False} | kwargs
    return model, fit(model, data, **kwargs)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---- data -------------------------------------------------------------------------------------


class Items(Dataset):
    def __len__(self):
        return len(DATA)

    def __getitem__(self, i):
        return DATA[i]


class Stream(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randn(2)


def test_an_epoch_shows_every_item_once():
    model, _ = train(Quadratic(), steps=8)
    for epoch in (model.batches[:4], model.batches[4:]):
        seen = torch.cat(epoch)
        assert torch.equal(seen[seen[:, 0].argsort()], DATA[DATA[:, 0].argsort()])
    assert not torch.equal(model.batches[0], model.batches[4])
    assert model.progress == [i / 8 for i in range(8)]


def test_all_forms_of_data_give_the_same_batches():
    expected, _ = train(Quadratic())
    arrays = DATA.numpy(), DATA.tolist(), (DATA.numpy(),), [DATA.numpy()], (DATA.tolist(),)
    for data in (Items(), TensorDataset(DATA), (DATA,), [DATA], *arrays):
        model, _ = train(Quadratic(), data)
        assert all(torch.equal(a, b) for a, b in zip(model.batches, expected.batches, strict=True))
    with pytest.raises(ValueError, match="Wrap it in a DataLoader"):
        train(Quadratic(), Stream())


def test_mappings_of_tensors():
    model = GaussianMixture(2, 3)
    train(model, {"value": DATA})
    assert model.initialized


def test_arrays_are_trained_on_in_the_dtype_of_the_model():
    integers = np.random.default_rng(0).integers(0, 500, (200, 2))
    floats = torch.tensor(integers).float()
    model, expected = train(GaussianMixture(2, 3).float(), floats, validation=floats)
    for data in (integers, integers.astype(np.float64), integers.tolist(), {"value": integers}):
        other, history = train(GaussianMixture(2, 3).float(), data, validation=data)
        assert history.losses == expected.losses
        assert history.validation_losses == expected.validation_losses
        assert same(model, other)


def test_arrays_of_labels():
    labels = DATA[:, 0].gt(0).long()

    def classes():
        torch.manual_seed(0)  # of the network's starting weights
        return class_conditional(GaussianMixture(2, 2, context_dim=2, hidden_dims=(4,)), 2)

    model, _ = train(classes(), (DATA, labels))
    arrays = (DATA.numpy(), labels.numpy().astype(np.uint8)), (DATA.numpy(), labels.tolist())
    for data in arrays:
        other, _ = train(classes(), data)
        assert same(model, other)


def test_contexts_of_integers():
    codes = (DATA[:, :1] > 0).long()

    def conditional(context):
        torch.manual_seed(0)
        return train(GaussianMixture(2, 2, context_dim=1, hidden_dims=(4,)), (DATA, context))[0]

    model = conditional(codes.double())
    for context in (codes, codes.numpy(), codes.tolist()):
        assert same(model, conditional(context))
    assert torch.equal(
        model.condition(codes).log_prob(DATA), model.condition(codes.double()).log_prob(DATA)
    )


def test_integers_of_a_discrete_law_stay_integers():
    class Counts(DistributionModule):
        support = constraints.nonnegative_integer

        def __init__(self):
            super().__init__()
            self.log_rate = nn.Parameter(torch.zeros(()))

        def log_prob(self, value):
            assert value.dtype == torch.int64
            return torch.distributions.Poisson(self.log_rate.exp()).log_prob(value)

    train(Counts(), np.arange(60))


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders(workers):
    def run(start):
        torch.manual_seed(start)  # the loader's order depends on fit's seed, not on this
        loader = DataLoader(Items(), batch_size=40, shuffle=True, num_workers=workers)
        return train(Quadratic(), loader, steps=7)

    (first, a), (_, b) = run(1), run(2)
    assert a.losses == b.losses
    assert torch.cat(first.batches[:5]).shape == DATA.shape
    assert not torch.equal(first.batches[0], first.batches[5])
    assert len(first.preview) == 200
    endless = DataLoader(Stream(), batch_size=10)
    _, history = train(Quadratic(), endless, steps=7, initialize=False)
    assert len(history.losses) == 7


def test_small_and_large_batches():
    model, _ = train(Quadratic(), batch_size=1000, steps=2)
    assert [len(b) for b in model.batches] == [200, 200]
    model, _ = train(Quadratic(), batch_size=150, steps=2)
    assert [len(b) for b in model.batches] == [150, 150]
    assert not torch.equal(model.batches[0], model.batches[1])


# ---- reproducibility --------------------------------------------------------------------------


def test_the_seed_decides_everything_and_global_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = Quadratic(noise=0.1)
    start = copy.deepcopy(model)
    train(model)
    assert torch.equal(torch.rand(3), expected)
    assert same(train(copy.deepcopy(start))[0], model)
    assert not same(train(copy.deepcopy(start), seed=1)[0], model)


def test_without_a_seed_the_global_generator_decides():
    def run():
        torch.manual_seed(3)
        return train(seed=None)[0]

    assert same(run(), run())
    torch.manual_seed(4)
    assert not same(train(seed=None)[0], run())


# ---- validation and stopping ------------------------------------------------------------------


def test_best_weights_are_restored():
    """The learning rate jumps in the middle: validation is best before."""
    model, history = train(
        Quadratic(),
        steps=40,
        optimizer=torch.optim.SGD,
        lr=0.005,
        validation=0.25,
        validation_every=5,
        scheduler=lambda optimizer: LambdaLR(optimizer, lambda step: 1.0 if step < 20 else 400.0),
    )
    assert history.best_step == 20
    assert history.validation_steps == list(range(5, 45, 5))
    assert history.outcome == "finished"
    held_out = torch.cat(model.batches)
    assert held_out.unique(dim=0).shape[0] == 150  # a quarter was never trained on
    model.modes.clear()
    order = {tuple(x.tolist()) for x in held_out}
    validation = torch.stack([x for x in DATA if tuple(x.tolist()) not in order])
    assert math.isclose(
        model.loss(validation).item(), min(history.validation_losses), rel_tol=1e-12
    )


def test_early_stopping():
    _, history = train(
        Quadratic(),
        steps=500,
        lr=0.5,
        validation=DATA[:50],
        validation_every=2,
        patience=4,
        optimizer=torch.optim.SGD,
        batch_size=10,
    )
    assert history.outcome == "early"
    assert len(history.losses) < 500
    since = (history.validation_steps[-1] - history.best_step) / 2
    assert since == 4
    assert len(history.validation_losses) == history.validation_steps[-1] / 2


def test_more_patience_continues_a_run_that_stopped_early(tmp_path):
    settings = {"steps": 60, "lr": 0.5, "validation": DATA[:50], "validation_every": 1}
    settings |= {"optimizer": torch.optim.SGD, "batch_size": 10}
    path = tmp_path / "training.safetensors"
    _, short = train(Quadratic(), patience=2, checkpoint=path, **settings)
    assert short.outcome == "early"
    model, longer = train(Quadratic(), patience=60, checkpoint=path, **settings)
    other, expected = train(Quadratic(), patience=60, **settings)
    assert longer.losses == expected.losses
    assert len(longer.losses) > len(short.losses)
    assert same(model, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_clip": -1.0}, "positive gradient_clip"),
        ({"scheduler": ReduceLROnPlateau}, "validation data with ReduceLROnPlateau"),
        ({"optimizer": torch.optim.SGD(Quadratic().parameters())}, "got an instance of SGD"),
        ({"optimizer": torch.optim.LBFGS}, "got LBFGS"),
    ],
)
def test_arguments_that_would_do_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        train(**arguments)


def test_trains_where_gradients_are_switched_off():
    with torch.no_grad():
        _, history = train()
    assert history.losses[-1] < history.losses[0]


def test_validation_runs_in_evaluation_mode_and_leaves_training_alone():
    plain, _ = train(Quadratic(noise=0.1), data=DATA[:150])
    model = Quadratic(noise=0.1)
    train(model, data=DATA[:150], validation=DataLoader(Items(), batch_size=7), validation_every=3)
    assert model.modes.count(False) == 29 * 7
    assert all(torch.equal(a, b) for a, b in zip(plain.batches, model.batches, strict=True))
    assert not model.training


def test_validation_loss_weighs_items_equally():
    model = Quadratic()
    _, history = train(model, steps=1, lr=0.0, validation=DATA[:70], batch_size=50)
    assert math.isclose(history.validation_losses[0], model.loss(DATA[:70]).item(), rel_tol=1e-12)


# ---- optimisation -----------------------------------------------------------------------------


def test_matches_a_loop_written_by_hand():
    model, history = train(Quadratic(), steps=12, optimizer=torch.optim.SGD, lr=0.1)
    loc = torch.zeros(2)
    for step, batch in enumerate(model.batches):
        assert math.isclose(
            history.losses[step], (batch - loc).square().sum(-1).mean().item(), rel_tol=1e-12
        )
        loc = loc + 0.1 * 2 * (batch - loc).mean(0)
    torch.testing.assert_close(model.loc.detach(), loc)


def test_items_are_met_as_often_as_they_weigh():
    weight = torch.tensor([0.0, 1.0, 2.5, 4.5])
    stream = make_stream(torch.arange(4.0), 2, 0, 0, 1, weight=weight)
    counts = torch.zeros(4)
    epochs = 300
    for i, batch in enumerate(stream.batches(0)):
        if i == 2 * epochs:
            break
        counts += torch.bincount(batch.long(), minlength=4)
    torch.testing.assert_close(counts / epochs, weight / 2, atol=0.1, rtol=0)
    loader = DataLoader(torch.arange(4.0), batch_size=2)
    with pytest.raises(ValueError, match="WeightedRandomSampler"):
        make_stream(loader, 2, 0, 0, 1, weight=weight)


def test_weights_of_rows_decide_what_is_learnt():
    x = torch.cat([torch.full((50, 1), -1.0), torch.full((50, 1), 1.0)])
    x = x + 0.1 * torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    weight = [1.0] * 50 + [3.0] * 50
    options = {"steps": 200, "batch_size": 100, "lr": 0.05, "seed": 0, "progress_bar": False}
    model = GaussianMixture(1, 1)
    history = fit(model, x, sample_weight=weight, validation=0.2, **options)
    assert float(model.mean.detach()) == pytest.approx(0.5, abs=0.1)
    with torch.no_grad():
        loss = -(torch.tensor(weight) / 200 * model.log_prob(x)).sum()
    assert history.validation_losses[-1] == pytest.approx(float(loss), abs=0.1)


def test_schedules():
    _, history = train(scheduler=lambda o: CosineAnnealingLR(o, T_max=20))
    expected = [0.05 * (1 + math.cos(math.pi * i / 20)) / 2 for i in range(20)]
    assert history.learning_rates == pytest.approx(expected, abs=1e-12)
    _, history = train(
        Quadratic(),
        lr=1.0,
        steps=100,
        optimizer=torch.optim.SGD,
        scheduler=lambda o: ReduceLROnPlateau(o, factor=0.1, patience=2),
        validation=0.2,
        validation_every=5,
    )
    assert history.learning_rates[0] == 1.0
    assert history.learning_rates[-1] < 0.2


def test_gradient_clipping():
    model, _ = train(
        Quadratic(), data=DATA + 1e3, steps=3, optimizer=torch.optim.SGD, lr=1.0, gradient_clip=0.5
    )
    assert math.isclose(model.loc.norm().item(), 1.5, rel_tol=1e-3)


def test_frozen_parameters_stay():
    model = GaussianMixture(2, 3)
    model.initialize(DATA)
    model.loc.requires_grad_(False)
    before = model.loc.clone()
    train(model, initialize=False)
    assert torch.equal(model.loc, before)


def test_half_precision_arithmetic_through_fabric():
    model = GaussianMixture(2, 3).float()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    _, history = train(model, data=DATA.float(), fabric=fabric)
    assert all(map(math.isfinite, history.losses))
    assert model.loc.dtype == torch.float32
    # Densities are computed in full precision, on data that was not rounded.
    _, expected = train(GaussianMixture(2, 3).float(), data=DATA.float())
    assert history.losses == expected.losses


IN_FULL_PRECISION = {
    "low_rank": (lambda: GaussianMixture(2, 2, "low_rank_precision"), (20, 2)),
    "factors": (lambda: GaussianMixture(2, 2, "low_rank", missing="marginalize"), (20, 2)),
    "missing": (
        lambda: GaussianMixture(2, 2, "low_rank_precision", missing="marginalize"),
        (20, 2),
    ),
    "relaxed": (lambda: RelaxedGaussianMixture(2, 2), (20, 2)),
    "drmm": (lambda: DRMM(2, 2, 2), (20, 2)),
    "dcgmm": (
        lambda: DCGMM((1, 1, 2), [Folding((1, 1)), GMM(4), Folding((1, 2)), GMM(4)]),
        (20, 1, 1, 2),
    ),
}
WITH_NETWORKS = {
    "context": (lambda: GaussianMixture(2, 2, "full", context_dim=1), (20, 2)),
    "rad": (lambda: RAD(2, 2), (20, 2)),
    "frmdn": (lambda: FRMDN(2, 3, 2), (20, 3, 2)),
    "frmdn_rank": (lambda: FRMDN(2, 3, 2, rank=1, cell="gru"), (20, 3, 2)),
}


@pytest.mark.parametrize("name", [*IN_FULL_PRECISION, *WITH_NETWORKS])
def test_mixed_precision_rounds_networks_and_no_densities(name):
    make, shape = (IN_FULL_PRECISION | WITH_NETWORKS)[name]
    data = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    if name == "missing":
        data[:10, 0] = math.nan
    start = make().float()
    batch = (data, data[..., :1]) if name == "context" else data
    losses = []
    for precision in ("bf16-mixed", "32-true"):
        model = make().float()
        model.load_state_dict(start.state_dict())
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        losses.append(train(model, data=batch, fabric=fabric, steps=3)[1].losses)
        assert all(p.dtype == torch.float32 for p in model.parameters())
    rounded, exact = losses
    if name in IN_FULL_PRECISION:
        assert rounded == exact
    assert rounded[0] == pytest.approx(exact[0], abs=0.05)
    assert all(map(math.isfinite, rounded))


# ---- initialisation ---------------------------------------------------------------------------


def test_models_are_initialised_once():
    model = Quadratic()
    train(model)
    assert len(model.preview) == 200
    model.preview = None
    train(model)
    assert model.preview is None
    train(model, initialize=True)
    assert model.preview is not None
    untouched = Quadratic()
    train(untouched, initialize=False)
    assert untouched.preview is None
    many, _ = train(Quadratic(), data=torch.randn(20_000, 2), steps=1)
    assert len(many.preview) == 10_000


def test_parameters_that_are_set_or_frozen_are_not_overwritten():
    model = GaussianMixture(2, 3)
    model.initialize(DATA)
    start = model.loc.detach().clone()
    train(model, steps=1, lr=1e-9)
    torch.testing.assert_close(model.loc, start, atol=1e-6, rtol=0)

    frozen = GaussianMixture(2, 3)
    frozen.loc.requires_grad_(False)
    before, weights = frozen.loc.clone(), frozen.logits.detach().clone()
    frozen.initialize(DATA)
    assert torch.equal(frozen.loc, before)
    assert not torch.equal(frozen.logits, weights)


def test_continued_training_continues():
    model, first = train(steps=200)
    _, second = train(model, steps=5, seed=1)
    assert second.losses[0] < first.losses[0]


# ---- checkpoints ------------------------------------------------------------------------------

SETTINGS = {
    "validation": 0.2,
    "validation_every": 7,
    "scheduler": lambda o: CosineAnnealingLR(o, T_max=60),
    "gradient_clip": 1.0,
    "steps": 60,
}


class Interrupted(Quadratic):
    """Presses Ctrl-C, or fails, in the middle of one training step."""

    at, how = 23, "interrupt"

    def loss(self, batch, progress=1.0):
        if self.training and len(self.batches) + 1 == self.at:
            self.at = -1
            if self.how == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise RuntimeError("power cut")
        return super().loss(batch, progress)


@pytest.mark.parametrize("kind", ["tensor", "loader"])
@pytest.mark.parametrize("how", ["interrupt", "power cut"])
@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD, torch.optim.AdamW])
def test_resumed_training_is_the_same_to_the_last_bit(kind, how, optimizer, tmp_path):
    settings = dict(SETTINGS)
    data = DATA
    if optimizer is not None:
        settings["optimizer"] = optimizer
    if kind == "loader":
        data = DataLoader(Items(), batch_size=50, shuffle=True)
        settings["validation"] = DATA[:40]
    path = tmp_path / "training.safetensors"
    start = Interrupted(noise=0.3)
    start.at = -1
    whole, expected = train(copy.deepcopy(start), data, **settings)

    broken = copy.deepcopy(start)
    broken.at, broken.how = 23, how
    if how == "interrupt":
        _, history = train(broken, data, checkpoint=path, **settings)
        assert history.outcome == "interrupted"
        assert len(history.losses) == 23
    else:
        with pytest.raises(RuntimeError, match="power cut"):
            train(broken, data, checkpoint=path, checkpoint_every=10, **settings)

    resumed, history = train(copy.deepcopy(start), data, checkpoint=path, **settings)
    assert history.losses == expected.losses
    assert history.validation_losses == expected.validation_losses
    assert history.learning_rates == expected.learning_rates
    assert history.outcome == "finished"
    assert same(resumed, whole)
    assert history.seconds == sorted(history.seconds)
    # Once more: nothing is left to do, and the best weights come back.
    again, history = train(copy.deepcopy(start), data, checkpoint=path, **settings)
    assert same(again, whole)
    assert len(history.losses) == 60


class Augmented(Dataset):
    """Draws random numbers for its items."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return DATA[i] + 0.1 * torch.randn(2)


@pytest.mark.parametrize("sampled", [False, True])
def test_loaders_with_random_numbers_of_their_own_resume(sampled, tmp_path):
    def run(steps, **kwargs):
        sampler = RandomSampler(Augmented(), generator=torch.Generator().manual_seed(7))
        order = {"sampler": sampler} if sampled else {"shuffle": True}
        loader = DataLoader(Augmented(), batch_size=16, **order)
        torch.manual_seed(0)
        return train(Quadratic(noise=0.1), loader, steps=steps, **kwargs)[1].losses

    expected = run(11)
    for steps in (3, 4, 7, 11):
        losses = run(steps, checkpoint=tmp_path / "training.safetensors")
    assert losses == expected


def test_a_refused_run_leaves_the_model_as_it_was(tmp_path):
    path = tmp_path / "training.safetensors"
    train(checkpoint=path)
    model = GaussianMixture(2, 3)
    with pytest.raises(ValueError, match="another training run"):
        train(model, checkpoint=path, seed=1)
    assert not model.initialized


def test_a_checkpoint_can_be_trained_further(tmp_path):
    path = tmp_path / "training.safetensors"
    model = GaussianMixture(2, 3)
    longer, expected = train(copy.deepcopy(model), steps=30)
    train(copy.deepcopy(model), steps=10, checkpoint=path)
    other, history = train(copy.deepcopy(model), steps=30, checkpoint=path, seed=None)
    assert history.losses == expected.losses
    assert same(other, longer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed 0, now 1"),
        ({"batch_size": 20}, "batch_size 50, now 20"),
        ({"data": DATA[:100]}, "items 200, now 100"),
        ({"model": Quadratic()}, "model 'GaussianMixture .*, now 'Quadratic "),
        ({"optimizer": torch.optim.SGD}, "optimizer 'Adam', now 'SGD'"),
        ({"model": GaussianMixture(2, 4)}, '"num_components": 3.*"num_components": 4'),
        ({"data": DATA + 1}, "data checksum"),
        ({"lr": 0.5}, "lr 0.05, now 0.5"),
        ({"gradient_clip": 1.0}, "gradient_clip None, now 1.0"),
        ({"validation": DATA[:50]}, "validation None, now"),
        ({"scheduler": lambda o: CosineAnnealingLR(o, 9)}, "without a learning-rate scheduler"),
    ],
)
def test_checkpoints_of_other_runs_are_refused(changes, message, tmp_path):
    path = tmp_path / "training.safetensors"
    train(checkpoint=path)
    with pytest.raises(ValueError, match=message):
        train(**{"checkpoint": path, "steps": 40, **changes})


# ---- interruption -----------------------------------------------------------------------------


def test_interruption_keeps_the_best_model():
    model = Interrupted()
    before = signal.getsignal(signal.SIGINT)
    _, history = train(
        model,
        steps=60,
        validation=DATA[:50],
        validation_every=5,
        scheduler=lambda optimizer: LambdaLR(optimizer, lambda step: 1.0 if step < 10 else 1e3),
    )
    assert history.outcome == "interrupted"
    assert history.best_step == 10
    assert math.isclose(model.loss(DATA[:50]).item(), min(history.validation_losses))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_stops_at_once():
    class Impatient(Interrupted):
        def loss(self, batch, progress=1.0):
            if len(self.batches) + 1 == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(batch, progress)

    with pytest.raises(KeyboardInterrupt):
        train(Impatient(), steps=60)


def test_training_in_a_thread():
    """Where signals cannot be handled."""
    results = []
    thread = threading.Thread(target=lambda: results.append(train()[1].outcome))
    thread.start()
    thread.join()
    assert results == ["finished"]


# ---- losses that are not finite ---------------------------------------------------------------


class Explosive(Quadratic):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.other = nn.Parameter(torch.ones(3))

    def loss(self, batch, progress=1.0):
        value = super().loss(batch) + self.other.sum()
        if len(self.batches) == 7:
            if self.how == "loss":
                return value + torch.sqrt(self.other.sum() * 0) * math.inf
            if self.how == "gradient":  # of sqrt at 0: infinity times zero
                return value + (0 * self.other).square().sum().sqrt()
            if self.how == "parameter":
                with torch.no_grad():
                    self.other[1] = math.nan
                return value + self.other.sum()
        return value


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("loss", r"nan at step 7 of 20; all parameters are finite.*'other' \(3 of 3 entries\)"),
        ("gradient", r"not its gradient at step 7 of 20; all parameters.*'other' \(3 of 3 ent"),
        ("parameter", r"at step 7 of 20; parameters are not finite.*'other' \(1 of 3 entries\)"),
    ],
)
def test_losses_that_are_not_finite_stop_with_a_reason(how, message):
    model = Explosive(how)
    with pytest.raises(NonFiniteLossError, match=message):
        train(model)
    if how != "parameter":  # stopped before the step that would have spoilt them
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("loss", ["vector", "detached", "number"])
def test_losses_that_cannot_be_minimised_are_refused(loss):
    class Odd(Quadratic):
        def loss(self, batch, progress=1.0):
            value = super().loss(batch)
            return {"vector": value.expand(3), "detached": value.detach(), "number": 1.0}[loss]

    with pytest.raises(ValueError, match="scalar tensor with a graph"):
        train(Odd())


def test_empty_loaders_are_refused():
    empty = DataLoader(DATA[:3], batch_size=10, drop_last=True)
    with pytest.raises(ValueError, match="at least one batch"):
        train(data=empty)
    with pytest.raises(ValueError, match="at least one item to validate on"):
        train(validation=empty, validation_every=1)


def test_bad_data_is_named_as_the_reason():
    data = DATA.clone()
    data[3, 0] = math.inf
    with pytest.raises(NonFiniteLossError, match="clean the data"):
        train(Quadratic(), data=data)
    with pytest.raises(NonFiniteLossError, match="validation loss is inf after step 1"):
        train(Quadratic(), validation=data, validation_every=1)


# ---- the record -------------------------------------------------------------------------------


def test_history(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    _, history = train(validation=0.2, steps=60)
    assert len(history.losses) == len(history.seconds) == len(history.learning_rates) == 60
    assert "60 steps, finished" in repr(history)
    assert "best validation" in repr(history)
    restored = History.from_state(history.state())
    assert restored == history
    ax = history.plot()
    assert [line.get_label() for line in ax.lines] == [
        "training (running mean)",
        "validation",
        "best",
    ]
    assert repr(History()) == "History(0 steps, running)"
    History().plot(ax)
    matplotlib.pyplot.close("all")


def test_the_bar_shows_loss_and_rate(capsys):
    train(steps=30, validation=0.1, progress_bar=True)
    shown = capsys.readouterr().err
    assert "loss=" in shown
    assert "validation=" in shown
    assert "step/s" in shown
    train(steps=30)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("make", [lambda x: x, TensorDataset, lambda x: DataLoader([*x])])
def test_no_gradient_passes_through_data_that_have_a_graph(make):
    weight = torch.randn(2, 2, requires_grad=True)
    data = torch.randn(20, 2) @ weight
    with_graph, plain = RAD(2, 2), RAD(2, 2)
    plain.load_state_dict(with_graph.state_dict())
    options = {"steps": 3, "seed": 0, "progress_bar": False}
    losses = fit(with_graph, make(data), **options).losses
    assert losses == fit(plain, make(data.detach()), **options).losses
    assert weight.grad is None


WITH_BUFFERS = {
    "rad": (lambda: RAD(2, 2), (20, 2)),
    "frmdn": (lambda: FRMDN(2, 3, 2), (20, 3, 2)),
    "dcgmm": (lambda: DCGMM((1, 1, 2), [Folding((1, 2)), GMM(4)]), (20, 1, 1, 2)),
    "drmm": (lambda: DRMM(2, 2, 2), (20, 2)),
    "flow": (lambda: Flow(GaussianMixture(2, 2), [near_identity(Spline(2))]), (20, 2)),
}


@pytest.mark.parametrize(("make", "shape"), WITH_BUFFERS.values(), ids=WITH_BUFFERS)
def test_initialize_keeps_no_graph(make, shape):
    model = make()
    model.initialize(torch.rand(shape, requires_grad=True))
    copy.deepcopy(model)  # is impossible with a graph
    assert all(tensor.grad_fn is None for tensor in model.state_dict(keep_vars=True).values())


def test_trains_under_inference_mode_a_model_built_outside():
    model, same = GaussianMixture(2, 2), GaussianMixture(2, 2)
    same.load_state_dict(model.state_dict())
    options = {"steps": 3, "seed": 0, "progress_bar": False}
    with torch.inference_mode():
        data = torch.randn(20, 2)
        losses = fit(model, data, **options).losses
        with pytest.raises(ValueError, match="was built under"):
            fit(GaussianMixture(2, 2), data, **options)
    assert losses == fit(same, data.clone(), **options).losses
    model.loss(data.clone()).backward()


# ---- what training came to --------------------------------------------------------------------


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: GaussianMixture(2, 1, standardize=False), 1e-6 * randn(300, 2)),
        (lambda: RelaxedGaussianMixture(2, 2, standardize=False), 1e-6 * randn(300, 2)),
        (lambda: DRMM(2, 2, 4, standardize=False), 1e-6 * randn(300, 2)),
        (lambda: DRMM(2, 2, 4, standardize=False), 1e-3 * randn(300, 2)),
    ],
)
def test_says_where_the_floor_is_larger_than_the_data(make, data):
    with pytest.warns(UserWarning, match=r"Columns \[0, 1\] have about the smallest scale"):
        train(make(), data=data, lr=1e-4)


def test_says_where_training_made_the_model_worse():
    model = GaussianMixture(2, 3)
    model.initialize(DATA)
    with pytest.warns(UserWarning, match="Training made the model worse"):
        train(model, lr=5.0, steps=5)


def test_says_where_one_normal_would_do_better():
    model = GaussianMixture(2, 1)
    with torch.no_grad():
        model.loc.fill_(30.0)
    with pytest.warns(UserWarning, match="worse than one normal"):
        train(model, lr=1e-3, steps=100, initialize=False)


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: GaussianMixture(2, 1), DATA),
        (lambda: GaussianMixture(2, 1, scale_floor=0.1), DATA * torch.tensor([1.0, 0.1])),
        (lambda: GaussianMixture(2, 2, "full"), torch.stack([DATA[:, 0], 0 * DATA[:, 0]], -1)),
        (lambda: DRMM(2, 2, 4), DATA),
        (lambda: GaussianMixture(2, 2, missing="marginalize"), DATA.where(DATA > -1, math.nan)),
    ],
)
def test_says_nothing_where_training_helps(make, data, recwarn):
    train(make(), data=data, lr=0.01, steps=100)
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
