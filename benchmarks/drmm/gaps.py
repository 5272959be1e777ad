"""Rows of which little is known: densities, intervals and training of residual mixtures.

A model of the planar humanoid's poses (30 columns, 6 layers of 64 components, some 7e10 codes) is
asked about rows of which two columns are known, the place of a hand, or six, or fifteen.

Printed:

- the log-density of three places of the hand, beside the share of 2,000,000 draws in a box around
  each, per area;
- root mean square and largest error of log-densities, against a sample of codes 16 times as
  large, and milliseconds a row;
- the share of true entries in the central 90 per cent of `impute`, given the hand alone, for draws
  of the model and for poses that it was not trained on;
- training with 70 per cent of all entries hidden, on 12 of the columns with 3 layers of 16
  components: held-out nats of rows with gaps, with the default sample of codes and with the sum
  over all of them.

    python -m benchmarks.drmm.gaps [--quick]
"""

import math
import time

import torch
from torch import Tensor

import pyromix.drmm.law
from benchmarks.common import cli
from pyromix import DRMM, fit
from pyromix.datasets import PlanarHumanoid

PLACES = ((0.5, 0.2), (0.0, 0.0), (-0.8, 0.5))
HALF_WIDTH = 0.1


def hide(x: Tensor, columns: list[int]) -> Tensor:
    """Rows of which these columns alone are known."""
    gaps = torch.full_like(x, math.nan)
    gaps[:, columns] = x[:, columns]
    return gaps


def train_on_poses(body: PlanarHumanoid, steps: int) -> DRMM:
    """A model of complete poses."""
    x = body.features(body.sample_poses(50_000))
    model = DRMM(30, 6, 64, missing="marginalize")
    fit(model, x, steps=steps, batch_size=128, lr=0.015, seed=0, progress_bar=False)
    return model.requires_grad_(False)


def count_draws(model: DRMM, hand: list[int]) -> None:
    """Log-densities of places of the hand, by the model and by counting its draws."""
    draws = torch.cat([model.sample((50_000,))[:, hand] for _ in range(40)])
    place = torch.tensor(PLACES)
    rows = torch.full((len(place), 30), math.nan)
    rows[:, hand] = place
    print("log-density of a hand's place; counted in draws")
    for at, log_prob in zip(place, model.log_prob(rows), strict=True):
        inside = ((draws - at).abs() < HALF_WIDTH).all(1).sum()
        counted = math.log(inside / len(draws) / (2 * HALF_WIDTH) ** 2)
        print(f"  {at.tolist()!s:42} {log_prob:7.3f} {counted:7.3f} +- {inside**-0.5:.3f}")


def measure_errors(model: DRMM, hand: list[int], count: int) -> None:
    """Errors of log-densities against a much larger sample of codes."""
    x, law = model.sample((count,)), pyromix.drmm.law
    print("known columns; rms error, largest error (nats); ms a row")
    for columns in (hand, list(range(6)), list(range(15))):
        rows = hide(x, columns)
        start = time.perf_counter()
        got = model.log_prob(rows)
        duration = 1e3 * (time.perf_counter() - start) / count
        factor, law.WIDER = law.WIDER, 16 * law.WIDER
        error = got - model.log_prob(rows)
        law.WIDER = factor
        rms, largest = error.square().mean().sqrt(), error.abs().max()
        print(f"  {len(columns):2} {rms:7.3f} {largest:7.3f} {duration:7.1f}")


def measure_intervals(model: DRMM, x: Tensor, hand: list[int], name: str) -> None:
    """How often true entries are in the central 90 per cent, given the hand."""
    others = [column for column in range(30) if column not in hand]
    drawn = model.impute(hide(x, hand), num_samples=200)
    low, high = drawn.quantile(0.05, 0), drawn.quantile(0.95, 0)
    inside = ((x >= low) & (x <= high))[:, others].float().mean()
    print(f"  90% intervals cover {100 * inside:.1f}% of {name}")


def compare_training(body: PlanarHumanoid, steps: int) -> None:
    """Training on rows with gaps: the default sample of codes, and all of them."""
    torch.manual_seed(0)
    x = body.features(body.sample_poses(22_000))[:, :12]
    x = (x - x.mean(0)) / x.std(0)
    x[torch.rand_like(x) < 0.7] = math.nan
    x = x[~x.isnan().all(1)]
    print("training with 70% of the entries hidden: held-out nats, ms a step")
    for name, beam in (("a sample of codes", 4), ("all codes", 256)):
        torch.manual_seed(0)
        model = DRMM(12, 3, 16, missing="marginalize", training_beam=beam)
        start = time.perf_counter()
        fit(model, x[:20_000], steps=steps, batch_size=128, lr=0.015, seed=0, progress_bar=False)
        duration = 1e3 * (time.perf_counter() - start) / steps
        with torch.no_grad():
            print(f"  {name:18} {model.log_prob(x[20_000:]).mean():7.3f} {duration:7.1f}")


def main() -> None:
    parser = cli.make_parser(__doc__, quick="a tenth of the training, and few rows")
    arguments = cli.parse(parser)
    quick = arguments.size == "quick"
    torch.manual_seed(0)
    body = PlanarHumanoid()
    hand = list(body.INDEX["left_hand"])
    model = train_on_poses(body, 150 if quick else 1500)
    count_draws(model, hand)
    measure_errors(model, hand, 5 if quick else 40)
    count = 20 if quick else 150
    measure_intervals(model, model.sample((count,)), hand, "draws")
    measure_intervals(model, body.features(body.sample_poses(count)), hand, "poses")
    compare_training(body, 120 if quick else 1200)


if __name__ == "__main__":
    main()
