"""Training, rounded values, and arguments that do not fit."""

import math
import warnings

import pytest
import torch

from pyromix import DRMM, HierarchicalDRMM, Level, Top, fit
from pyromix.datasets import jump_trajectories
from pyromix.hierarchy.start import fields
from pyromix.hierarchy.tiling import Tiling

from .test_law import scattered


@pytest.fixture(autouse=True)
def single_precision(_clean_state):
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def trajectories():
    return jump_trajectories(1200, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(trajectories):
    levels = [Level(5, 2, 2, 8, "triangular"), Level(2, None, 2, 8), Top(2, 8)]
    torch.manual_seed(0)
    model = HierarchicalDRMM((2, 16), levels, scale_floor=1e-3)
    history = fit(
        model,
        trajectories[:1000],
        steps=240,
        batch_size=64,
        gradient_clip=50.0,
        seed=0,
        progress_bar=False,
    )
    return model.requires_grad_(False), history


def test_training_takes_the_levels_in_turn(trained):
    _, history = trained
    assert list(dict.fromkeys(history.stages)) == ["level 0", "level 1", "level 2", "all"]
    losses = torch.tensor(history.losses)
    for first in (0, 60, 120):  # within every stage
        stage = losses[first : first + 60]
        assert stage[-10:].mean() < stage[:10].mean()


def test_a_hierarchy_of_sequences_beats_a_flat_model_of_its_size(trained, trajectories):
    model, _ = trained
    test = trajectories[1000:]
    flat = DRMM(32, 2, 3, maps="triangular", scale_floor=1e-3)
    assert flat.num_parameters > model.num_parameters
    rows = trajectories.mT.flatten(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of velocities, which lie at the floor
        fit(
            flat, rows[:1000], steps=400, batch_size=64, lr=0.002, gradient_clip=50.0, seed=0,
            progress_bar=False,
        )  # fmt: skip
    with torch.no_grad():
        ours, theirs = model.log_prob(test).mean(), flat.log_prob(rows[1000:]).mean()
    assert ours > theirs + 5
    x = model.sample((500,))
    error = (x[:, 0, 1:] - x[:, 0, :-1] - x[:, 1, 1:]).abs().mean()
    assert error < 0.01


def test_levels_below_are_left_alone(trajectories):
    levels = [Level(4, None, 2, 4), Level(2, None, 1, 4), Top(1, 4)]
    model = HierarchicalDRMM((2, 16), levels)
    model.initialize(trajectories)
    model.train()
    changed = {}
    for level, progress in enumerate((0.1, 0.3, 0.6)):
        model.zero_grad()
        model.loss(trajectories[:8], progress).backward()
        names = [
            name
            for name, p in model.named_parameters()
            if p.grad is not None and bool((p.grad != 0).any())
        ]
        changed[level] = {name.split(".")[0] + name.split(".")[1][:1] for name in names}
    assert all(name.startswith("windows") for name in changed[0])
    assert changed[1] == {"codes0"}
    assert changed[2] == {"codes1"}
    model.zero_grad()
    model.loss(trajectories[:8], 0.9).backward()
    assert all(p.grad is not None for p in model.codes.parameters() if p.numel())


def test_rounded_values_have_probabilities():
    """Over all values of two pixels of three levels they sum to one."""
    torch.manual_seed(0)
    step = 0.5
    model = HierarchicalDRMM(
        (1, 2), [Level(1, num_components=2), Top(1, 3)], rounding=(step, 0.0, 1.0), max_codes=99
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    grid = torch.tensor([0.0, step, 1.0], dtype=torch.float64)
    every = torch.cartesian_prod(grid, grid).unsqueeze(1)
    log_mass = model.log_mass(every)
    torch.testing.assert_close(log_mass.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    x = model.sample((20_000,))
    rounded = (x / step).round().clamp(0, 2) * step
    counts = (rounded.flatten(1)[:, None] == every.flatten(1)).all(-1).sum(0)
    expected = log_mass.exp() * len(x)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 45  # 8 degrees of freedom: once in a million
    with pytest.raises(ValueError, match=r"steps of 0\.5"):
        model.log_mass(every + 0.1)
    with pytest.raises(ValueError, match=r"steps of 0\.5"):
        model.log_mass(every + 1.0)
    for refused in (model.initialize, model.impute, lambda x: fit(model, x, steps=1)):
        with pytest.raises(ValueError, match=r"steps of 0\.5"):
            refused(2 * every)
    with pytest.raises(ValueError, match="rounding"):
        scattered("row").log_mass(torch.zeros(1, 6))


def test_units_of_rounded_values_do_not_matter():
    x = torch.randint(5, (200, 1, 8), generator=torch.Generator().manual_seed(0)) / 4.0
    bits = []
    for unit in (1.0, 1024.0):
        levels = [Level(2, num_layers=1, num_components=8), Top(1, 8)]
        model = HierarchicalDRMM((1, 8), levels, rounding=(unit / 4, 0.0, unit))
        fit(model, unit * x, steps=30, seed=0, progress_bar=False)
        bits.append(model.log_mass(unit * x[:20]))
    torch.testing.assert_close(*bits, rtol=1e-3, atol=1e-2)


def test_windows_that_are_alike_are_worked_on_once():
    """Plain windows of rounded images change neither the density nor its gradient."""
    torch.manual_seed(0)
    options = {"rounding": (1 / 255, 0.0, 1.0), "max_codes": 0, "beam": 3}
    model = HierarchicalDRMM((1, 4, 6), [Level(2, num_components=3), Top(2, 3)], **options)
    value = (torch.rand(5, 1, 4, 6) > 0.5).float()
    expected = model.log_mass(value)
    law = model.law
    law._alike = lambda shown: None
    with torch.no_grad():
        got = law.log_prob(model.flatten(value), model._search(), mass=True)
    torch.testing.assert_close(got, expected)


def test_tilings():
    tiling = Tiling((5, 4), (3, 2), (2, 2))
    assert tiling.cells == (2, 2)
    assert not Tiling((4,), (2,), (2,)).overlaps
    assert tiling.overlaps
    # Every entry is drawn once, by the first window that shows it.
    assert int(tiling.drawn.sum()) == tiling.num_entries
    for entry in range(tiling.num_entries):
        shows = (tiling.place == entry).any(-1).nonzero().flatten()
        assert int(tiling.owner[entry]) == int(shows[0])
    x = torch.arange(20.0).reshape(1, 20, 1)
    assert tiling.sum_drawn(x).sum() == x.sum()
    hanging = Tiling((5,), (3,), (3,))
    assert hanging.place.tolist() == [[0, 1, 2], [3, 4, -1]]
    shown = fields(torch.arange(1.0, 9.0).reshape(1, 8, 1), [Tiling((8,), (3,), (2,))])
    assert shown.tolist() == [[1, 2, 3], [3, 4, 5], [5, 6, 7], [7, 8, 0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Level(2, 3), "stride of at most"),
        (lambda: Level((2, 2, 2)), "one number, or one for each"),
        (lambda: Level(0), "at least 1"),
        (lambda: Level(2, maps="low_rank"), "maps"),
        (lambda: HierarchicalDRMM((1, 6), [Level(2)]), "Top"),
        (lambda: HierarchicalDRMM((1, 6), [Top()]), "one or more of Level"),
        (lambda: HierarchicalDRMM((6,), [Level(2), Top()]), "channels"),
        (lambda: HierarchicalDRMM((1, 6), [Level((2, 2)), Top()]), "grid of 1 dimension"),
        (lambda: HierarchicalDRMM((1, 6), [Level(7), Top()]), "no larger than the grid"),
        (lambda: HierarchicalDRMM((1, 6), [Level(2), Level(4), Top()]), r"grid .* \(3,\)"),
        (
            lambda: HierarchicalDRMM((1, 6), [Level(2), Level(2, maps="diagonal"), Top()]),
            "lowest level alone",
        ),
        (
            lambda: HierarchicalDRMM((1, 4, 4), [Level(3, 2, maps="triangular"), Top()]),
            "do not overlap",
        ),
        (
            lambda: HierarchicalDRMM(
                (1, 4), [Level(2, maps="triangular"), Top()], rounding=(1, 0, 9)
            ),
            "rounding",
        ),
        (lambda: HierarchicalDRMM((1, 4), [Level(2), Top()], rounding=(0, 0, 1)), "step"),
        (lambda: HierarchicalDRMM((1, 4), [Level(2), Top()], rounding=1 / 16), "step"),
        (lambda: scattered("row").log_prob(torch.zeros(2, 6).double()), "event shape"),
        (lambda: scattered("row").initialize(torch.zeros(1, 6).double()), "to initialise from"),
        (lambda: scattered("row").impute(torch.zeros(1, 1, 5).double()), "event shape"),
        (lambda: scattered("row").loss((torch.zeros(2, 1, 6), torch.zeros(2))), "context"),
        (lambda: scattered("row").log_prob(torch.full((1, 1, 6), math.nan).double()), "NaN"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
