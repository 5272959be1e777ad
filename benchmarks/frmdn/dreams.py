"""Dreams of world_model.py: models go on by themselves, beside what really happens.

A dream starts from the first frames of a test sequence, and is under its actions. The true system,
where there is one to ask, goes on from its true state, which no model knows.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks.common.store import beside
from benchmarks.common.summary import plus_minus
from benchmarks.frmdn.pinball import Pinball
from benchmarks.frmdn.world_figures import Readout, draw_fans, draw_film, draw_paths
from benchmarks.frmdn.worlds import World
from pyromix import FRMDN
from pyromix.metrics import energy_score

DREAMS = 20  # of one sequence, for scores


@torch.no_grad()
def dream(model: FRMDN, prefix: Tensor, actions: Tensor) -> Tensor:
    """Goes on from the first frames (N, t, D), under all actions (N, T, A): (N, T - t, D)."""
    state, value, dreamt = None, None, []
    for t, action in enumerate(actions.unbind(1)):
        law, state = model.step(state, value, action)
        if t < prefix.shape[1]:
            value = prefix[:, t]
        else:
            value = law.sample()
            dreamt.append(value)
    return torch.stack(dreamt, 1)


def dream_often(model: FRMDN, world: World, index: Tensor, num: int, horizon: int) -> Tensor:
    """Several dreams of each of some test sequences: (num, sequences, horizon, D)."""
    codes, actions = (world.test[key][index] for key in ("value", "context"))
    prefix = codes[:, : world.prefix].repeat(num, 1, 1)
    actions = actions[:, : world.prefix + horizon].repeat(num, 1, 1)
    return dream(model, prefix, actions).unflatten(0, (num, len(index)))


def play_often(world: World, index: Tensor, num: int, horizon: int) -> Tensor:
    """The same of the true system, from the true states."""
    assert world.states is not None
    start = world.states[world.prefix - 1].select(index.repeat(num))
    actions = world.test["context"][index, world.prefix : world.prefix + horizon]
    codes, _ = Pinball(seed=3).play(start, actions.repeat(num, 1, 1))
    return codes.unflatten(0, (num, len(index)))


class Moments(NamedTuple):
    """How far codes are from real ones, as root mean squares over coordinates."""

    mean: float  # in standard deviations
    deviation: float  # logarithm of the ratio
    late_deviation: float  # the same, of the last quarter of the frames
    step: float  # the same, of differences between neighbouring frames
    step_kurtosis: float  # difference of kurtosis of steps, whose normal value is 3
    correlation: float  # difference of correlations between coordinates, over pairs
    lag: float  # difference of correlations between neighbouring frames


MOMENTS = (
    "mean", "log sd", "log sd, late", "step: log sd", "step: kurtosis", "correlations", "lag 1",
)  # fmt: skip


def compare_moments(dreamt: Tensor, real: Tensor) -> Moments:
    """Of codes of shape (N, T, D)."""

    def rms(x: Tensor) -> float:
        return float(x.square().mean().sqrt())

    def deviation(x: Tensor) -> Tensor:
        return x.flatten(0, 1).std(0)

    def log_ratio(x: Tensor, y: Tensor) -> float:
        return rms((deviation(x) / deviation(y)).log())

    def kurtosis(x: Tensor) -> Tensor:
        centered = x.flatten(0, 1) - x.mean((0, 1))
        return centered.pow(4).mean(0) / centered.square().mean(0).square()

    def correlation(x: Tensor) -> Tensor:
        return torch.corrcoef(x.flatten(0, 1).T).tril(-1)

    def lag(x: Tensor) -> Tensor:
        x = (x - x.mean((0, 1))) / deviation(x)
        return (x[:, 1:] * x[:, :-1]).mean((0, 1))

    pairs = real.shape[-1] * (real.shape[-1] - 1) / 2
    late = real.shape[1] * 3 // 4
    steps = [x[:, 1:] - x[:, :-1] for x in (dreamt, real)]
    return Moments(
        rms((dreamt.mean((0, 1)) - real.mean((0, 1))) / deviation(real)),
        log_ratio(dreamt, real),
        log_ratio(dreamt[:, late:], real[:, late:]),
        log_ratio(*steps),
        rms(kurtosis(steps[0]) - kurtosis(steps[1])),
        float(((correlation(dreamt) - correlation(real)).square().sum() / pairs).sqrt()),
        rms(lag(dreamt) - lag(real)),
    )


def report_dreams(models: dict[str, FRMDN], world: World) -> None:
    torch.manual_seed(0)
    horizon = world.length - world.prefix
    num = len(world.test["value"])
    everything = torch.arange(num)
    real = world.test["value"][:, world.prefix :]
    # A code may have its own unit: coordinates are compared in standard deviations.
    scale = world.train["value"].flatten(0, 1).std(0)
    print(
        f"\ndreams of {horizon} frames after {world.prefix}, against what really followed, over "
        f"{num} sequences\n{'':>24}" + "".join(f"{name:>16}" for name in MOMENTS)
    )

    def row(name: str, x: Tensor) -> None:
        values = compare_moments(x, real)
        print(f"{name:>24}" + "".join(f"{v:>16.3f}" for v in values), flush=True)

    order = torch.randperm(len(world.train["value"]), generator=Generator().manual_seed(0))
    row("other real sequences", world.train["value"][order[:num], world.prefix :])
    for name, model in models.items():
        row(name, dream_often(model, world, everything, 1, horizon).squeeze(0))

    places = [h for h in (1, 2, 3, 5, 10, 20, 30) if h <= horizon]
    chosen = everything[:200]
    print(
        f"\nenergy score of {DREAMS} dreams, by frames after the last that was seen; "
        f"{len(chosen)} sequences\n{'':>24}" + "".join(f"{h:>16}" for h in places)
    )
    observed = real[chosen] / scale
    ensembles = {
        "frames at random": world.train["value"].flatten(0, 1)[
            torch.randint(world.train["value"].shape[:2].numel(), (DREAMS, len(chosen), horizon))
        ]
    }
    for name, model in models.items():
        ensembles[name] = dream_often(model, world, chosen, DREAMS, horizon)
    if world.states is not None:
        ensembles["the system itself"] = play_often(world, chosen, DREAMS, horizon)
    for name, ensemble in ensembles.items():
        scores = energy_score(ensemble / scale, observed, fair=True)
        cells = [plus_minus(scores[:, h - 1]) for h in places]
        print(f"{name:>24}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


# ---- figures ------------------------------------------------------------------------------------


def draw_dreams(models: dict[str, FRMDN], world: World, prefix: Path) -> None:
    torch.manual_seed(0)
    (draw_pinball if world.video is None else draw_video)(models, world, prefix)


def draw_pinball(models: dict[str, FRMDN], world: World, prefix: Path) -> None:
    table = Pinball(seed=4)
    codes, states = table.play(table.start(2000), table.actions(2000, 5))
    readout = Readout(codes[:, -1], states[-1].position)
    horizon, num = 10, 30
    chosen = crossroads(world, readout, horizon)
    futures = {"the system": play_often(world, chosen, num, horizon)}
    for name, model in models.items():
        futures[name] = dream_often(model, world, chosen, num, horizon)
    past = world.test["value"][chosen, : world.prefix]
    draw_paths(futures, past, readout, beside(prefix, "paths.png"))
    draw_one_fan(models, world, chosen[:1], prefix)


def crossroads(world: World, readout: Readout, horizon: int) -> Tensor:
    """Sequences in which the next frames depend most on whether a bumper fires.

    Those where it was hit in the last frames are left out: the system knows how that ended, and
    models have not seen it yet.
    """
    assert world.states is not None
    velocity = torch.stack([s.velocity for s in world.states[: world.prefix]])
    calm = (velocity[-4:].diff(dim=0).norm(dim=-1) < 0.5).all(0).nonzero().squeeze(-1)
    ends = readout(play_often(world, calm, 20, horizon)[:, :, -1])
    return calm[ends.var(0).sum(-1).argsort(descending=True)[:40:10]]


def draw_one_fan(models: dict[str, FRMDN], world: World, index: Tensor, prefix: Path) -> None:
    """Of one sequence, in the four coordinates that vary least from frame to frame."""
    horizon = world.length - world.prefix
    futures = (
        {} if world.states is None else {"the system": play_often(world, index, 300, horizon)}
    )
    for name, model in models.items():
        futures[name] = dream_often(model, world, index, 300, horizon)
    values = world.test["value"]
    variation = (values[:, 1:] - values[:, :-1]).var((0, 1)) / values.var((0, 1))
    draw_fans(
        {name: codes[:, 0] for name, codes in futures.items()},
        values[index[0], : world.prefix],
        values[index[0], world.prefix :],
        variation.argsort()[:4].tolist(),
        beside(prefix, "fans.png"),
    )


def draw_video(models: dict[str, FRMDN], world: World, prefix: Path) -> None:
    from benchmarks.frmdn import frames  # needs gymnasium

    horizon = world.length - world.prefix
    index = torch.tensor([0])
    episode = -max(1, len(world.video.frames) // 10)  # the first one to test on
    real = world.video.frames[episode, world.prefix : world.length]
    decode = world.video.vae.decoder
    strips = {
        "real": frames.as_pixels(real),
        "encoded": decode(world.test["value"][0, world.prefix :]),
    }
    for name, model in list(models.items())[::-1]:
        dreams = dream_often(model, world, index, 2, horizon)[:, 0]
        strips |= {f"{name}, dream {i + 1}": decode(dreamt) for i, dreamt in enumerate(dreams)}
    every = -(-horizon // 12)
    draw_film(strips, every, world.prefix + 1, beside(prefix, "film.png"))
    draw_one_fan(models, world, index, prefix)
