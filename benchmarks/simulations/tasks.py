"""Simulators whose posteriors are known, with the reference draws of the package sbibm."""

__all__ = ["TASKS", "Task"]

import bz2
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import (
    Binomial,
    Distribution,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)

NOT_FOUND = "needs the reference posteriors of sbibm: pip install --no-deps sbibm"


@dataclass(frozen=True)
class Task:
    """A simulator, its prior, and observations whose posteriors are known.

    Args:
        name: Name of the folder of the package sbibm.
        prior: Law of the parameters.
        simulator: Simulations of parameters (N, D).
        npe: The C2ST of neural posterior estimation with 10,000 simulations that the authors of
            the benchmark report, as far as it is known here.
    """

    name: str
    prior: Callable[[], Distribution]
    simulator: Callable[[Tensor], Tensor]
    npe: float | None

    def observation(self, number: int) -> Tensor:
        """The observation of a number, from 1 to 10."""
        return self._read(number, "observation.csv")[0]

    def reference(self, number: int) -> Tensor:
        """Draws (10000, D) from the posterior given an observation."""
        return self._read(number, "reference_posterior_samples.csv.bz2")

    def _read(self, number: int, name: str) -> Tensor:
        path = files(self.name) / f"num_observation_{number}" / name
        data = path.read_bytes()
        text = bz2.decompress(data) if path.suffix == ".bz2" else data
        rows = text.decode().strip().splitlines()[1:]
        return torch.tensor(np.loadtxt(rows, delimiter=",", ndmin=2), dtype=torch.float32)


def files(name: str) -> Path:
    """The folder of a task's files in the package sbibm, which is not imported.

    Raises:
        SystemExit: If it is not installed.
    """
    spec = importlib.util.find_spec("sbibm")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(NOT_FOUND)
    return Path(spec.submodule_search_locations[0]) / "tasks" / name / "files"


def _box(bound: float, dim: int) -> Distribution:
    return Independent(Uniform(-bound * torch.ones(dim), bound * torch.ones(dim)), 1)


def _log_normal(loc: list[float], scale: list[float]) -> Distribution:
    return Independent(LogNormal(torch.tensor(loc), torch.tensor(scale)), 1)


def _gaussian_linear(theta: Tensor) -> Tensor:
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


def _gaussian_mixture(theta: Tensor) -> Tensor:
    narrow = torch.rand(len(theta), 1) < 0.5
    return theta + torch.where(narrow, 0.1, 1.0) * torch.randn_like(theta)


def _two_moons(theta: Tensor) -> Tensor:
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    ahead = -(theta[:, 0] + theta[:, 1]).abs() / math.sqrt(2)
    aside = (theta[:, 1] - theta[:, 0]) / math.sqrt(2)
    return torch.stack([angle.cos() * radius + 0.25 + ahead, angle.sin() * radius + aside], -1)


def _slcp(theta: Tensor) -> Tensor:
    first, second = theta[:, 2].square(), theta[:, 3].square()
    correlation = theta[:, 4].tanh()
    noise = torch.randn(len(theta), 4, 2)
    along = first[:, None] * noise[..., 0]
    rest = (1 - correlation.square()).clamp(min=0).sqrt()[:, None]
    across = second[:, None] * (correlation[:, None] * noise[..., 0] + rest * noise[..., 1])
    return (torch.stack([along, across], -1) + theta[:, None, :2]).flatten(1)


def _runge_kutta(
    slope: Callable[[Tensor], Tensor], state: Tensor, step: float, count: int, every: int
) -> Tensor:
    """States (S, N, n) at every so many of `count` steps, from the start on."""
    states = [state]
    for number in range(1, count + 1):
        first = slope(state)
        second = slope(state + step / 2 * first)
        third = slope(state + step / 2 * second)
        fourth = slope(state + step * third)
        state = state + step / 6 * (first + 2 * second + 2 * third + fourth)
        if number % every == 0:
            states.append(state)
    return torch.stack(states, 1)


def _sir(theta: Tensor) -> Tensor:
    contact, recovery = theta.double().unbind(-1)

    def slope(state: Tensor) -> Tensor:
        infections = contact * state[0] * state[1]
        return torch.stack([-infections, infections - recovery * state[1]])

    start = torch.tensor([1 - 1e-6, 1e-6], dtype=torch.float64)[:, None].expand(2, len(theta))
    infected = _runge_kutta(slope, start, 0.25, 160 * 4, 17 * 4)[1]
    return Binomial(1000, infected.clamp(0, 1).T.float()).sample()


def _lotka_volterra(theta: Tensor) -> Tensor:
    a, b, c, d = theta.double().unbind(-1)

    def slope(state: Tensor) -> Tensor:
        meetings = state[0] * state[1]
        return torch.stack([a * state[0] - b * meetings, d * meetings - c * state[1]])

    start = torch.tensor([30.0, 1.0], dtype=torch.float64)[:, None].expand(2, len(theta))
    states = _runge_kutta(slope, start, 0.01, 2000, 210).movedim(-1, 0).flatten(1).float()
    return states.clamp(1e-10, 1e4) * (0.1 * torch.randn_like(states)).exp()


def _bernoulli_files() -> tuple[Tensor, Tensor]:
    folder = files("bernoulli_glm")
    design = torch.load(folder / "design_matrix.pt", weights_only=True)
    return design.float(), torch.load(folder / "stimulus_I.pt", weights_only=True).float()


def _bernoulli_glm(theta: Tensor) -> Tensor:
    design, stimulus = _bernoulli_files()
    spikes = torch.bernoulli((theta @ design.T).sigmoid())
    count = spikes.sum(-1, keepdim=True)
    windows = torch.nn.functional.conv1d(spikes[:, None], stimulus.reshape(1, 1, -1), padding=8)
    return torch.cat([count, windows[:, 0, -9:]], -1)


def _bernoulli_prior() -> Distribution:
    order = 9
    steps = torch.eye(order) - torch.diag(torch.ones(order - 1), -1)
    smooth = steps @ steps + torch.diag(torch.arange(order) / order).sqrt()
    precision = torch.zeros(order + 1, order + 1)
    precision[0, 0] = 0.5
    precision[1:, 1:] = smooth.T @ smooth
    return MultivariateNormal(torch.zeros(order + 1), precision_matrix=precision)


def _gaussian_prior() -> Distribution:
    return Independent(Normal(torch.zeros(10), math.sqrt(0.1) * torch.ones(10)), 1)


def _make(name: str, prior: Any, simulator: Any, npe: float | None = None) -> tuple[str, Task]:
    return name, Task(name, prior, simulator, npe)


TASKS: dict[str, Task] = dict(
    [
        _make("gaussian_linear", _gaussian_prior, _gaussian_linear),
        _make("gaussian_linear_uniform", lambda: _box(1.0, 10), _gaussian_linear, 0.553),
        _make("gaussian_mixture", lambda: _box(10.0, 2), _gaussian_mixture, 0.661),
        _make("two_moons", lambda: _box(1.0, 2), _two_moons, 0.606),
        _make("slcp", lambda: _box(3.0, 5), _slcp, 0.901),
        _make("bernoulli_glm", _bernoulli_prior, _bernoulli_glm, 0.678),
        _make(
            "sir",
            lambda: _log_normal([math.log(0.4), math.log(0.125)], [0.5, 0.2]),
            _sir,
            0.680,
        ),
        _make(
            "lotka_volterra",
            lambda: _log_normal([-0.125, -3.0, -0.125, -3.0], [0.5] * 4),
            _lotka_volterra,
        ),
    ]
)
