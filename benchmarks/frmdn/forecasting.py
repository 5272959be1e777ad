"""Probabilistic forecasts of time series, by FRMDN, by a linear model, and by the last season.

Four series that statsmodels brings along:

- CO2 at Mauna Loa, every week, 1958 to 2001, gaps filled linearly: 26 weeks ahead. Models see
  changes from week to week.
- Sea surface temperature off Peru (El Niño), every month, 1950 to 2010: 12 months ahead.
- Sunspots, every year, 1700 to 2008: 11 years ahead. Models see square roots.
- The US economy, every quarter, 1959 to 2009: 8 quarters ahead, six series at once: growth of
  product, consumption and investment, inflation, and changes of unemployment and of the interest
  rate of treasury bills.

Where there are seasons models know the time of the year, of the steps to come as well: sines and
cosines, as context of FRMDN and as regressors of the linear model. All numbers are rounded, so
uniform noise of that width is added once, as a mixture puts narrow components on repeated values.

The last quarter of a series is forecast from many origins, one after the other, by models that
were fitted once, to what came before, and know all values up to the origin. FRMDN is trained by
likelihood, on windows. The number of steps is the one that is best on the last fifth of the first
part, in a first training; the second one is on all of it, for so many steps. Draws of several
seeds are pooled. Its opponents:

- RMDN: the same without a flow.
- linear: autoregression with normal errors (AutoReg of statsmodels, or VAR of several series), its
  order, up to two seasons, by AIC; draws of several steps, one after the other.
- seasonal naive: the last known value of the same season, plus an error drawn from those that this
  made, as many steps ahead, in the first part.

Prints the continuous ranked probability score (CRPS, the fair one; the smaller the better) in the
unit of the series (of the economy: in standard deviations of each series), at the first and at the
last step, and over all; by how much FRMDN is better, with a standard error over blocks of as many
origins as there are steps ahead, as neighbouring ones share what they forecast; and the share of
observations in central intervals of 90%. Figures out/frmdn/forecasting_<size>_*.png: fan charts,
and histograms of the probability integral transform (flat if calibrated) of all methods.

The series are short, and a linear model with seasons is hard to beat: it is as good as recurrent
networks for CO2, El Niño and the economy, within errors, and better for sunspots, whose cycles in
the last quarter are higher than networks saw before. There, a repeated cycle is no worse, either.
A flow does not help, and costs 3% for sunspots: three components can be of about any shape.

    python -m benchmarks.frmdn.forecasting [--quick | --paper] [--series NAME ...]
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import statsmodels.api as sm
import torch
from pyro.distributions.transforms import spline
from statsmodels.tsa.api import VAR
from statsmodels.tsa.ar_model import AutoReg, ar_select_order
from torch import Generator, Tensor, nn

from benchmarks.common import cli
from benchmarks.common.figures import BLUE, GRAY, RED, draw_fan, save
from benchmarks.common.store import OUT, beside
from benchmarks.common.summary import standard_error
from pyromix import FRMDN, fit, near_identity
from pyromix.metrics import coverage, crps, pit

TEST = 0.25  # share of a series that is forecast
VALIDATION = 0.2  # of the rest
METHODS = {"FRMDN": BLUE, "RMDN": "#7fb2e0", "linear": RED, "seasonal naive": GRAY}


class Series(NamedTuple):
    """What is forecast."""

    name: str
    values: Tensor  # (T, D), in the unit of scores
    inputs: Tensor  # (T, D), what models see
    context: Tensor  # (T, C), what is known ahead
    restore: Callable[[Tensor, Tensor], Tensor]  # values from draws of inputs, and the last value
    period: int
    horizon: int
    history: int  # steps that a forecast of a recurrent network starts from
    times: np.ndarray  # (T,), in years
    columns: tuple[str, ...]
    components: int = 3

    @property
    def split(self) -> int:
        """Where the part to forecast begins."""
        return round((1 - TEST) * len(self.values))


class Setting(NamedTuple):
    """How much to compute."""

    steps: int
    seeds: int
    stride: int  # between origins
    draws: int


SETTINGS = {
    "quick": Setting(100, 1, 5, 200),
    "default": Setting(600, 3, 2, 600),
    "paper": Setting(3_000, 10, 1, 2_000),
}


# ---- series -------------------------------------------------------------------------------------


def as_they_are(draws: Tensor, last: Tensor) -> Tensor:  # noqa: ARG001
    return draws


def summed(draws: Tensor, last: Tensor) -> Tensor:
    """Levels from changes (..., h, D) and the last level (origins, D)."""
    return last.unsqueeze(-2) + draws.cumsum(-2)


def squared(draws: Tensor, last: Tensor) -> Tensor:  # noqa: ARG001
    return draws.clamp(min=0).square()


def time_of_year(times: np.ndarray, harmonics: int) -> Tensor:
    angles = 2 * np.pi * times[:, None] * np.arange(1, harmonics + 1)
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], 1)).float()


def blur(values: np.ndarray, width: float | np.ndarray, seed: int = 0) -> Tensor:
    """Rounded numbers, with the noise that rounding took away."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, values.shape)
    return torch.from_numpy(values + width * noise).float()


def co2() -> Series:
    data = sm.datasets.co2.load_pandas().data["co2"].interpolate()
    dates = data.index
    times = np.asarray(dates.year + (dates.day_of_year - 1) / 365.25)
    values = blur(data.to_numpy()[:, None], 0.1)
    return Series(
        "CO2", values[1:], values[1:] - values[:-1], time_of_year(times[1:], 3), summed, 52, 26,
        52, times[1:], ("ppm",),
    )  # fmt: skip


def temperature() -> Series:
    table = sm.datasets.elnino.load_pandas().data
    values = blur(table.iloc[:, 1:].to_numpy().reshape(-1, 1), 0.01)
    times = float(table["YEAR"].iloc[0]) + np.arange(len(values)) / 12
    return Series(
        "El Niño", values, values, time_of_year(times, 3), as_they_are, 12, 12, 36, times,
        ("degrees Celsius",),
    )  # fmt: skip


def sunspots() -> Series:
    table = sm.datasets.sunspots.load_pandas().data
    values = blur(table["SUNACTIVITY"].to_numpy()[:, None], 0.1).abs()
    times = table["YEAR"].to_numpy()
    return Series(
        "sunspots", values, values.sqrt(), torch.zeros(len(values), 0), squared, 11, 11, 33,
        times, ("number",),
    )  # fmt: skip


def economy() -> Series:
    table = sm.datasets.macrodata.load_pandas().data
    growth = [100 * np.diff(np.log(table[name])) for name in ("realgdp", "realcons", "realinv")]
    changes = [np.diff(table[name]) for name in ("unemp", "tbilrate")]
    inflation = table["infl"].to_numpy()[1:]
    raw = np.stack([*growth, inflation, *changes], 1)
    values = blur(raw, np.array([0.0, 0.0, 0.0, 0.01, 0.1, 0.01]))
    count = round((1 - TEST) * len(values))
    values = values / values[:count].std(0)
    times = (table["year"] + (table["quarter"] - 1) / 4).to_numpy()[1:]
    names = "product", "consumption", "investment", "inflation", "unemployment", "interest"
    return Series(
        "economy", values, values, torch.zeros(len(values), 0), as_they_are, 4, 8, 16, times,
        names, components=1,
    )  # fmt: skip


SERIES = {"co2": co2, "elnino": temperature, "sunspots": sunspots, "economy": economy}


# ---- recurrent networks -------------------------------------------------------------------------


class AfterHistory(nn.Module):
    """A model that is trained on what follows a history, as it is asked for that."""

    def __init__(self, model: FRMDN, skipped: int) -> None:
        super().__init__()
        self.model, self.skipped = model, skipped

    def loss(self, batch: dict[str, Tensor], progress: float = 1.0) -> Tensor:  # noqa: ARG002
        law = self.model.condition(batch.get("context"))
        steps = law.log_prob_per_step(batch["value"])[:, self.skipped :]
        return -steps.mean()


def windows(series: Series, length: int, first: int, last: int, stride: int) -> dict[str, Tensor]:
    """All of a length from one step to before another, as a batch to train on."""

    def cut(x: Tensor) -> Tensor:
        return x[first:last].unfold(0, length, stride).mT.contiguous()

    batch = {"value": cut(series.inputs)}
    if series.context.shape[1]:
        batch["context"] = cut(series.context)
    return batch


# Chosen in pilots, on the validation part, in nats a step. CO2, El Niño, sunspots: as below 0.41,
# 0.33, 1.23; 32 units 0.41, 0.36, 1.27; rate 1e-2 0.41, 0.30, 1.26; without the flow 0.40, 0.36,
# 1.26. The linear model: 0.45, 0.43, 1.42. Of 120 quarters of six series, fewer parameters are
# better: one component 4.88, three 5.54; affine couplings beside it 5.36; without a flow 4.79.


def make_network(series: Series, with_flow: bool) -> FRMDN:
    dim = series.inputs.shape[1]
    return FRMDN(
        dim,
        series.history + series.horizon,
        series.components,
        rank=min(1, dim - 1),
        hidden_dim=16,
        cell="gru",
        transforms=near_identity(spline(dim, count_bins=8, bound=4.0)) if with_flow else (),
        context_dim=series.context.shape[1],
        scale_floor=1e-2,
        validate_args=False,
    )


def train_network(series: Series, setting: Setting, with_flow: bool, seed: int) -> FRMDN:
    """Twice: for the number of steps, and for good."""
    skipped = series.history // 2
    length = series.history + series.horizon
    held_out = round((1 - VALIDATION) * series.split)
    options = {
        "batch_size": 32, "lr": 3e-3, "gradient_clip": 1.0, "seed": seed, "progress_bar": False,
        "optimizer": partial(torch.optim.AdamW, weight_decay=0.1),
    }  # fmt: skip

    def make(data: dict[str, Tensor]) -> AfterHistory:
        torch.manual_seed(seed)
        network = make_network(series, with_flow)
        network.initialize(data)
        return AfterHistory(network, skipped)

    data = windows(series, length, 0, held_out, 1)
    validation = windows(series, length, held_out - skipped, series.split, length - skipped)
    history = fit(
        make(data), data, steps=setting.steps, validation=validation,
        validation_every=max(1, setting.steps // 40), patience=12, **options,
    )  # fmt: skip
    assert history.best_step is not None
    data = windows(series, length, 0, series.split, 1)
    module = make(data)
    fit(module, data, steps=history.best_step, **options)
    print(
        f"    seed {seed}: {history.best_step} steps, validation "
        f"{min(history.validation_losses):.3f} nats a step, "
        f"{1e3 * history.seconds[-1] / len(history.losses):.1f} ms each",
        flush=True,
    )
    return module.model.eval()


def forecast_network(series: Series, origins: Tensor, setting: Setting, with_flow: bool) -> Tensor:
    draws = []
    for seed in range(setting.seeds):
        network = train_network(series, setting, with_flow, seed)
        torch.manual_seed(seed)
        past = origins.unsqueeze(-1) + torch.arange(-series.history, 0)
        both = origins.unsqueeze(-1) + torch.arange(-series.history, series.horizon)
        context = series.context[both] if series.context.shape[1] else None
        count = setting.draws // setting.seeds
        draws.append(network.predict(series.inputs[past], series.horizon, count, context=context))
    return torch.cat(draws)


# ---- opponents ----------------------------------------------------------------------------------


class Linear(NamedTuple):
    """An autoregression."""

    constant: Tensor  # (D,)
    lags: Tensor  # (p, D, D), the last value's first
    regression: Tensor  # (C, D)
    factor: Tensor  # (D, D), of the covariance of errors


def fit_linear(series: Series, most: int) -> Linear:
    x = series.inputs[: series.split].double().numpy()
    c = series.context[: series.split].double().numpy()
    exog = c if c.shape[1] else None
    dim, num = x.shape[1], c.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dim == 1:
            chosen = ar_select_order(x[:, 0], most, ic="aic", exog=exog).ar_lags
            order = max(chosen or [1])
            result = AutoReg(x[:, 0], order, exog=exog).fit()
            numbers = result.params
            return Linear(
                torch.tensor(numbers[:1]).float(),
                torch.tensor(numbers[1 : 1 + order]).float().view(-1, 1, 1),
                torch.tensor(numbers[1 + order :]).float().view(num, 1),
                torch.tensor([[result.sigma2**0.5]]).float(),
            )
        model = VAR(x, exog=exog)
        order = max(1, model.select_order(most).aic)
        result = model.fit(order)
    # Rows of the parameters: the constant, regressors, lags.
    return Linear(
        torch.tensor(result.params[0]).float(),
        torch.tensor(result.coefs).float(),
        torch.tensor(result.params[1 : 1 + num]).float(),
        torch.linalg.cholesky(torch.tensor(result.sigma_u)).float(),
    )


def forecast_linear(series: Series, origins: Tensor, setting: Setting) -> Tensor:
    model = fit_linear(series, most=min(2 * series.period, 30))
    order = len(model.lags)
    print(f"  linear: order {order}", flush=True)
    generator = Generator().manual_seed(0)
    past = origins.unsqueeze(-1) + torch.arange(-order, 0)
    values = series.inputs[past].expand(setting.draws, -1, -1, -1)
    for step in range(series.horizon):
        known = model.constant + series.context[origins + step] @ model.regression
        recent = values[..., -order:, :].flip(-2)  # (draws, origins, p, D)
        mean = known + torch.einsum("nopd,ped->noe", recent, model.lags)
        noise = torch.randn(mean.shape, generator=generator) @ model.factor.T
        values = torch.cat([values, (mean + noise).unsqueeze(-2)], -2)
    return values[..., order:, :]


def forecast_naive(series: Series, origins: Tensor, setting: Setting) -> Tensor:
    """In the unit of scores."""
    generator = Generator().manual_seed(0)
    known = series.values[: series.split]
    parts = []
    for step in range(1, series.horizon + 1):
        lag = series.period * -(-step // series.period)
        errors = known[lag:] - known[:-lag]
        index = torch.randint(len(errors), (setting.draws, len(origins)), generator=generator)
        parts.append(series.values[origins + step - 1 - lag] + errors[index])
    draws = torch.stack(parts, -2)
    return draws.clamp(min=0) if known.min() >= 0 else draws  # what never was negative


# ---- scores -------------------------------------------------------------------------------------


class Forecasts(NamedTuple):
    """Of one series, by all methods."""

    series: Series
    origins: Tensor
    observed: Tensor  # (origins, h, D)
    draws: dict[str, Tensor]  # (draws, origins, h, D)


def forecast(series: Series, setting: Setting) -> Forecasts:
    origins = torch.arange(series.split, len(series.values) - series.horizon + 1, setting.stride)
    last = series.values[origins - 1]
    print(
        f"\n{series.name}: {series.split} steps, then {len(origins)} origins, {series.horizon} "
        f"steps ahead",
        flush=True,
    )
    draws = {}
    for name in ("FRMDN", "RMDN"):
        print(f"  {name}", flush=True)
        drawn = forecast_network(series, origins, setting, name == "FRMDN")
        draws[name] = series.restore(drawn, last)
    draws["linear"] = series.restore(forecast_linear(series, origins, setting), last)
    draws["seasonal naive"] = forecast_naive(series, origins, setting)
    ahead = origins.unsqueeze(-1) + torch.arange(series.horizon)
    return Forecasts(series, origins, series.values[ahead], draws)


def report(forecasts: Forecasts, setting: Setting) -> None:
    series, _, observed, draws = forecasts
    scores = {name: crps(x, observed, fair=True) for name, x in draws.items()}
    unit = series.columns[0] if len(series.columns) == 1 else "standard deviations"
    print(
        f"\n{series.name}, CRPS in {unit}\n{'':>16}{'step 1':>10}"
        f"{f'step {series.horizon}':>10}{'all':>10}{'FRMDN is better by':>24}{'in 90%':>10}"
    )
    # Origins are a stride apart, and so many of them share some of the steps ahead.
    size = -(-series.horizon // setting.stride)
    for name, score in scores.items():
        better = (score - scores["FRMDN"]).mean((1, 2))
        blocks = torch.stack([part.mean() for part in better.split(size) if len(part) == size])
        error = standard_error(blocks)
        cell = "" if name == "FRMDN" else f"{float(better.mean()):+.4f} ± {error:.4f}"
        inside = coverage(draws[name], observed, 0.9)
        print(
            f"{name:>16}{float(score[:, 0].mean()):>10.4f}{float(score[:, -1].mean()):>10.4f}"
            f"{float(score.mean()):>10.4f}{cell:>24}{inside:>10.1%}",
            flush=True,
        )


# ---- figures ------------------------------------------------------------------------------------


def draw(forecasts: Forecasts, path: Path) -> None:
    """Fan charts of every method from three origins, and its transforms below."""
    series, origins, observed, draws = forecasts
    figure, axes = plt.subplots(
        2, len(draws), figsize=(3.6 * len(draws), 4.8), sharey="row", layout="constrained",
        height_ratios=(3, 2),
    )  # fmt: skip
    # One after the other, as far as origins allow, up to the end of the series.
    apart = int(origins[1] - origins[0])
    chosen = range(len(origins) - 1, -1, -max(1, -(-series.horizon // apart)))[:4]
    first = int(origins[chosen[-1]]) - series.horizon
    last = int(origins[chosen[0]]) + series.horizon
    generator = Generator().manual_seed(0)
    for (top, bottom), (name, drawn) in zip(axes.T, draws.items(), strict=True):
        color = METHODS[name]
        top.plot(series.times[first:last], series.values[first:last, 0], color="black", lw=0.9)
        for i in chosen:
            start = int(origins[i])
            times = series.times[start : start + series.horizon]
            draw_fan(top, times, drawn[:, i, :, 0], color)
            top.plot(times, drawn[:, i, :, 0].median(0).values, color=color, lw=1.2)
            top.axvline(series.times[start - 1], color="0.8", lw=0.8, ls=":", zorder=0)
        top.set_title(name, fontsize=10)
        top.locator_params(axis="x", nbins=5)
        uniform = pit(drawn, observed, generator=generator).flatten().numpy()
        bottom.hist(uniform, bins=20, range=(0, 1), density=True, color=color)
        bottom.axhline(1.0, color="black", lw=0.8)
        bottom.set_xlabel("probability integral transform")
    axes[0, 0].set_ylabel(f"{series.name}, {series.columns[0]}")
    axes[1, 0].set_ylabel("density")
    save(figure, path)


def main() -> None:
    parser = cli.make_parser(__doc__, quick="one seed, few steps", paper="ten seeds, all origins")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    arguments = cli.parse(parser)
    setting = SETTINGS[arguments.size]
    prefix = OUT / "frmdn" / f"forecasting_{arguments.size}"
    start = time.perf_counter()
    for name in arguments.series:
        forecasts = forecast(SERIES[name](), setting)
        report(forecasts, setting)
        draw(forecasts, beside(prefix, f"{name}.png"))
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
