"""Spoken digits as sequences of raw frames: RMDN and FRMDN (application 2 of Razavi et al.).

Recordings of the Free Spoken Digit Dataset are cut into frames of 200 samples (25 ms) without any
feature extraction; what is left at the end of a recording is dropped, and so is what comes after
half a second. One speaker is held out for tests and the next one for validation: both are voices
that no model was trained on. Samples are integers of 16 bits, to which noise is added that is
uniform in [0, 1) and new in every step, since the density of recorded silence would have no bound
otherwise; then the mean and standard deviation of all training samples are taken out.

Prints, of the test recordings, nats a recording and nats a frame in this normalised unit, which
is the paper's (of negative log-likelihood: less is better), and bits a sample of the integers,
with its standard error over recordings and by how much it is below that of the RMDN of the same
rank. Models are recurrent, with 20 components; the floors are one component, and a linear model
of a frame given the last one, with a full covariance.

Figures out/frmdn/speech_<size>_*.png: waves (recordings and draws), continuations; the speaker is
part of their name, if it is not lucas. What was trained is kept in out/frmdn/speech_<size>/, a
file for each model: processes may share the work with `--models`, after which `--report` prints
and draws.

    python -m benchmarks.frmdn.speech [--quick | --paper] [--speaker NAME] [--models NAME ...]
        [--report]
"""

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor
from torch.distributions import MultivariateNormal, Transform, constraints

from benchmarks.common import cli
from benchmarks.common.couplings import deep_affine, deep_spline, interleaved
from benchmarks.common.figures import BLUE, INK, RED, save
from benchmarks.common.store import OUT, Numbers, Store, beside, best
from benchmarks.common.summary import mean_and_error
from benchmarks.common.training import num_parameters
from benchmarks.frmdn.training import train
from pyromix import FRMDN, dequantize
from pyromix.core.batch import Batch
from pyromix.datasets import spoken_digits
from pyromix.preprocessing import frames

FRAME = 200
LENGTH = 20  # frames
HALF = 2**15  # of the levels of 16 bits
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
COMPONENTS = 20


# ---- data ---------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Recordings as integers."""

    value: Tensor
    """Frames, of shape (N, T, 200)."""
    lengths: Tensor
    """How many frames each has, shape (N,)."""

    @property
    def batch(self) -> dict[str, Tensor]:
        return self._asdict()


class Data(NamedTuple):
    """Recordings to train on, to stop by and to score, and the unit of the first."""

    train: Part
    validation: Part
    test: Part
    mean: float
    deviation: float
    rate: int

    def normalize(self, batch: Batch) -> Batch:
        """Integers plus noise, in the normalised unit."""
        noisy = dequantize(batch["value"].int() + HALF, 2 * HALF) - HALF
        return {**batch, "value": (noisy - self.mean) / self.deviation}


def load_data(held_out: str) -> Data:
    """Everything, without a speaker to test on and the next one to validate on."""
    recordings = spoken_digits(SPEAKERS, raw=True)
    value, lengths = frames([wave[: LENGTH * FRAME] for wave in recordings.waves], FRAME)
    test = SPEAKERS.index(held_out)
    validation = (test + 1) % len(SPEAKERS)

    def part(chosen: Tensor) -> Part:
        return Part(value[chosen], lengths[chosen])

    others = part((recordings.speakers != test) & (recordings.speakers != validation))
    samples = others.value[present(others)].double()
    return Data(
        others,
        part(recordings.speakers == validation),
        part(recordings.speakers == test),
        float(samples.mean()) + 0.5,  # of the noise
        float(samples.std()),
        recordings.rate,
    )


def present(part: Part) -> Tensor:
    """Which frames come before the end of a recording, shape (N, T)."""
    return torch.arange(part.value.shape[1]) < part.lengths.unsqueeze(-1)


# ---- models -------------------------------------------------------------------------------------


class LinearModel:
    """Frames given the last one: a linear map plus a normal, both by least squares.

    Args:
        frames: Shape (N, T, D), normalised.
        mask: Which of them are present, shape (N, T).
        ridge: Added to the second moments of predictors, as a fraction of their mean.
        shrinkage: Weight of the identity, times the mean variance, in the covariance.
    """

    def __init__(self, frames: Tensor, mask: Tensor, ridge: float, shrinkage: float) -> None:
        given, following = self.predictors(frames)[mask], frames.double()[mask]
        moments = given.T @ given
        moments.diagonal().add_(ridge * moments.diagonal().mean())
        self.map = torch.linalg.solve(moments, given.T @ following)
        residual = following - given @ self.map
        covariance = residual.T @ residual / len(residual)
        identity = covariance.diagonal().mean() * torch.eye(len(covariance)).double()
        self.covariance = (1 - shrinkage) * covariance + shrinkage * identity

    @staticmethod
    def predictors(frames: Tensor) -> Tensor:
        """The last frame, or zeros, and ones."""
        last = torch.nn.functional.pad(frames.double(), (0, 0, 1, 0))[:, :-1]
        return torch.cat([last, last.new_ones(*last.shape[:-1], 1)], -1)

    @property
    def num_parameters(self) -> int:
        dim = len(self.covariance)
        return self.map.numel() + dim * (dim + 1) // 2

    def log_prob(self, frames: Tensor, mask: Tensor) -> Tensor:
        residual = frames.double() - self.predictors(frames) @ self.map
        noise = MultivariateNormal(residual.new_zeros(residual.shape[-1]), self.covariance)
        return torch.where(mask, noise.log_prob(residual), 0.0).sum(-1)


def recurrent(
    hidden: int, rank: int = 0, components: int = COMPONENTS, flow: Callable[[], list[Any]] = list
) -> FRMDN:
    # The noise has a deviation of some 1e-4 in the normalised unit.
    return FRMDN(
        FRAME, LENGTH, components, rank=rank, hidden_dim=hidden, scale_floor=1e-4,
        transforms=flow(),
    )  # fmt: skip


class Cosines(Transform):
    """Frames from their cosine coefficients: a rotation, in which frequencies are coordinates.

    A diagonal precision says nothing of how neighbouring samples move together; of coefficients,
    it is a spectrum.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return x @ cosines(x.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        return y @ cosines(y.dtype).mT

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return x.new_zeros(x.shape[:-1])


@cache
def cosines(dtype: torch.dtype) -> Tensor:
    """The orthonormal cosine transform of a frame, a coefficient in every row."""
    return torch.from_numpy(dct(np.eye(FRAME), norm="ortho", axis=0)).to(dtype)


def affine() -> list[Any]:
    return interleaved(FRAME, 2, partial(deep_affine, hidden=256))


def spline() -> list[Any]:
    return interleaved(FRAME, 2, partial(deep_spline, hidden=256))


class Entry(NamedTuple):
    """A recurrent model to train."""

    label: str
    make: Callable[[int], FRMDN]  # from a number of hidden units
    lr: float


LINEAR = "linear"
RANKS = (0, 1, 2)
ENTRIES = {
    "rmdn-k1": Entry("RMDN, one component", partial(recurrent, components=1), 1e-3),
    **{f"rmdn-{r}": Entry(f"RMDN, rank {r}", partial(recurrent, rank=r), 1e-3) for r in RANKS},
    **{
        f"frmdn-{r}": Entry(f"FRMDN, rank {r}", partial(recurrent, rank=r, flow=affine), 1e-3)
        for r in RANKS
    },
    "frmdn-spline": Entry("FRMDN, splines", partial(recurrent, flow=spline), 1e-3),
    # A flow without parameters. Couplings after it are better in the median of recordings of a new
    # voice, but take some of its frames a hundred deviations away from all components; bounds that
    # prevent it cost more than the couplings gain.
    "frmdn-cosines": Entry("FRMDN, cosines", partial(recurrent, flow=lambda: [Cosines()]), 1e-3),
}
BASELINES = {f"frmdn-{r}": f"rmdn-{r}" for r in RANKS} | {
    "frmdn-spline": "rmdn-0",
    "frmdn-cosines": "rmdn-0",
}
LABELS = {LINEAR: "linear model of frames"} | {name: e.label for name, e in ENTRIES.items()}


class Setting(NamedTuple):
    """How long to train models of which width, and which of them."""

    steps: int
    batch_size: int
    hidden: int
    models: tuple[str, ...]


SETTINGS = {
    "quick": Setting(60, 32, 64, (LINEAR, "rmdn-0", "frmdn-0")),
    "default": Setting(
        1000, 32, 128, (LINEAR, "rmdn-k1", "rmdn-0", "frmdn-0", "frmdn-cosines")
    ),
    "paper": Setting(50_000, 64, 2000, tuple(LABELS)),
}  # fmt: skip


def make_model(name: str, setting: Setting) -> FRMDN:
    torch.manual_seed(0)
    return ENTRIES[name].make(setting.hidden)


# ---- training and scores ------------------------------------------------------------------------


def normalized(data: Data, part: Part) -> Tensor:
    """Frames plus noise, the same for all models."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return data.normalize(part.batch)["value"]


def fit_linear_model(data: Data) -> Numbers:
    """Takes the ridge and the shrinkage with which validation is best."""
    value, mask = {}, {}
    for name in ("train", "validation", "test"):
        part = getattr(data, name)
        value[name], mask[name] = normalized(data, part), present(part)
    candidates = [
        LinearModel(value["train"], mask["train"], ridge, shrinkage)
        for ridge in (1e-4, 1e-2, 1.0)
        for shrinkage in (0.0, 1e-4, 1e-3, 1e-2)
    ]
    scores = [float(m.log_prob(value["validation"], mask["validation"]).sum()) for m in candidates]
    best = candidates[max(range(len(scores)), key=scores.__getitem__)]
    return {
        "parameters": best.num_parameters,
        "validation nats": -max(scores) / len(value["validation"]),
        "nats": (-best.log_prob(value["test"], mask["test"])).tolist(),
    }


def train_and_score(name: str, data: Data, setting: Setting) -> tuple[FRMDN, Numbers]:
    model = make_model(name, setting)
    history = train(
        model, data.normalize, data.train.batch, data.validation.batch, steps=setting.steps,
        batch_size=setting.batch_size, lr=ENTRIES[name].lr,
    )  # fmt: skip
    return model, {
        "parameters": num_parameters(model),
        "steps": len(history.losses),
        "best step": history.best_step,
        "seconds": history.seconds[-1],
        "validation nats": min(history.validation_losses),
        "nats": score(model, normalized(data, data.test), data.test.lengths),
    }


@torch.no_grad()
def score(model: FRMDN, value: Tensor, lengths: Tensor) -> list[float]:
    """Negative log-densities of recordings, in the normalised unit."""
    parts = zip(value.split(50), lengths.split(50), strict=True)
    nats = [-model.condition(lengths=n).log_prob(y) for y, n in parts]
    return torch.cat(nats).tolist()


# ---- what comes out -----------------------------------------------------------------------------


def bits(nats: Tensor, data: Data) -> tuple[float, float]:
    """Bits a sample of integers, over all samples, or their change: mean and standard error."""
    count = FRAME * data.test.lengths.double().mean()
    mean, error = mean_and_error(nats / count / math.log(2))
    return float(mean), float(error)


def report(results: dict[str, Numbers], data: Data) -> None:
    print(
        f"\n{'':>24} {'parameters':>10} {'ms/step':>8} {'best':>6} {'nats/recording':>15} "
        f"{'nats/frame':>10} {'bits/sample':>15} {'below RMDN':>15}"
    )
    for name, numbers in results.items():
        nats = torch.tensor(numbers["nats"]).double()
        mean, error = bits(nats, data)
        pace = f"{1e3 * numbers['seconds'] / numbers['steps']:.0f}" if "steps" in numbers else ""
        gain, baseline = "", results.get(BASELINES.get(name, ""))
        if baseline:
            gain = "{:.3f} ± {:.3f}".format(*bits(torch.tensor(baseline["nats"]) - nats, data))
        print(
            f"{LABELS[name]:>24} {numbers['parameters']:>10,} {pace:>8} "
            f"{numbers.get('best step', ''):>6} {float(nats.mean()):>15.1f} "
            f"{float(nats.sum() / data.test.lengths.sum()):>10.1f} "
            f"{f'{mean + math.log2(data.deviation):.3f} ± {error:.3f}':>15} {gain:>15}"
        )


def plot_wave(axes: Any, wave: Tensor, data: Data, color: str, title: str) -> None:
    """A wave, in the normalised unit, and its spectrogram below."""
    seconds = torch.arange(len(wave)) / data.rate
    axes[0].plot(seconds, wave, color=color, linewidth=0.5)
    axes[0].set_title(title, fontsize=9)
    axes[1].specgram(
        wave.numpy(), NFFT=128, Fs=data.rate, noverlap=96, cmap="magma", vmin=-110, vmax=-25
    )
    for ax in axes:
        ax.set(xlim=(0, LENGTH * FRAME / data.rate), yticks=[])
    axes[0].set_xticks([])


@torch.no_grad()
def draw_waves(models: dict[str, FRMDN], data: Data, path: Path, count: int = 4) -> None:
    """Recordings of the test speaker, and draws of every model."""
    chosen = torch.linspace(0, len(data.test.lengths) - 1, count).long()
    lengths = data.test.lengths[chosen]
    rows = {"recordings": (normalized(data, data.test)[chosen], INK)}
    for name, model in models.items():
        torch.manual_seed(0)
        color = RED if name.startswith("frmdn") else BLUE
        rows[LABELS[name]] = model.condition(lengths=lengths).sample(), color
    figure, axes = plt.subplots(
        2 * len(rows), count, figsize=(2.6 * count, 2.6 * len(rows)), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for row, (title, (values, color)) in enumerate(rows.items()):
        for column, (value, length) in enumerate(zip(values, lengths.tolist(), strict=True)):
            pair = axes[2 * row : 2 * row + 2, column]
            plot_wave(pair, value[:length].flatten(), data, color, title if column == 0 else "")
    save(figure, path)


@torch.no_grad()
def draw_continuations(model: FRMDN, data: Data, path: Path, draws: int = 3) -> None:
    """Recordings of the test speaker, and how the model goes on after half of each."""
    torch.manual_seed(0)
    values = normalized(data, data.test)
    chosen = torch.linspace(0, len(values) - 1, 4).long()
    figure, axes = plt.subplots(
        1 + draws, len(chosen), figsize=(2.6 * len(chosen), 1.3 * (1 + draws)),
        layout="constrained", sharex=True, sharey="col",
    )  # fmt: skip
    for column, i in enumerate(chosen.tolist()):
        length = int(data.test.lengths[i])
        given = length // 2
        whole = values[i, :length]
        following = model.predict(whole[:given], length - given, draws)
        for ax, end in zip(axes[:, column], [whole[given:], *following], strict=True):
            seconds = torch.arange(length * FRAME) / data.rate
            cut = given * FRAME
            ax.plot(seconds[:cut], whole[:given].flatten(), color=INK, linewidth=0.5)
            color = INK if ax is axes[0, column] else RED
            ax.plot(seconds[cut:], end.flatten(), color=color, linewidth=0.5)
            ax.axvline(float(seconds[cut]), color="0.6", linewidth=0.8)
            ax.set_yticks([])
    axes[0, 0].set_title("recordings", fontsize=9)
    axes[1, 0].set_title("continuations", fontsize=9)
    axes[-1, 0].set_xlabel("seconds")
    save(figure, path)


def main() -> None:
    parser = cli.make_parser(
        __doc__, quick="few steps: two minutes", paper="2,000 hidden units: days"
    )
    parser.add_argument("--speaker", choices=SPEAKERS, default="lucas", help="to test on")
    cli.add_models(parser, LABELS, "five")
    arguments = cli.parse(parser)
    setting = SETTINGS[arguments.size]
    suffix = f"_{arguments.speaker}" if arguments.speaker != "lucas" else ""
    prefix = OUT / "frmdn" / f"speech_{arguments.size}{suffix}"
    store = Store(prefix)
    data = load_data(arguments.speaker)
    print(
        f"{len(data.train.lengths)} recordings to train on, {setting.steps} steps; standard "
        f"deviation {data.deviation:.0f}",
        flush=True,
    )
    if not arguments.report:
        for name in arguments.models or setting.models:
            if name == LINEAR:
                numbers = fit_linear_model(data)
                store.save(name, numbers)
            else:
                model, numbers = train_and_score(name, data, setting)
                store.save(name, numbers, model.state_dict())
            print(
                f"{LABELS[name]}: {sum(numbers['nats']) / len(numbers['nats']):.1f} nats a "
                f"recording, {numbers.get('seconds', 0):.0f} s",
                flush=True,
            )
        if arguments.models:
            return  # others may be under way: all are reported with --report

    results = store.numbers(LABELS)
    report(results, data)
    drawn = [best(results, kind, "validation nats") for kind in ("frmdn", "rmdn")]
    models = {name: store.load(name, make_model(name, setting)) for name in drawn if name}
    draw_waves(models, data, beside(prefix, "waves.png"))
    if drawn[0]:
        draw_continuations(models[drawn[0]], data, beside(prefix, "continuations.png"))


if __name__ == "__main__":
    main()
