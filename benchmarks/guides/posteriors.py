"""Posteriors of everyday models: whether guides can be believed, beside Pyro's NUTS.

Twelve models as they are in posterior databases: regressions, hierarchies, series, a mixture and a
Gaussian process, on data that are made here or known by heart. For each: Pareto k of `AutoNormal`
and `AutoMultivariateNormal` (by `Trace_ELBO`) and of an `AutoMixture` (by `fit_guide`); how
many of 4,000 draws count; and how far means, by weights, and standard deviations, of resampled
draws, are from those of NUTS, the largest of all numbers, in standard deviations.

    python -m benchmarks.guides.posteriors [--quick] [--models NAME ...]
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.store import OUT, Numbers, Store
from pyromix.guides import AutoMixture, GuideResult, evaluate_guide, fit_guide
from pyromix.guides.fitting import falling_adam

STEPS = {"quick": 50, "default": 3000}
CHAIN = {"quick": 20, "default": 1000}
DRAWS = {"quick": 500, "default": 4000}

Model = Callable[[], None]


def _made(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _schools() -> tuple[Tensor, Tensor]:
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return effects, torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools_centred() -> Model:
    y, sigma = _schools()

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return model


def schools_standardised() -> Model:
    y, sigma = _schools()

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * theta, sigma), obs=y)

    return model


def autoregression() -> Model:
    y = torch.zeros(205)
    noise = torch.randn(205, generator=_made(1))
    lags = torch.tensor([0.5, -0.3, 0.2, 0.1, -0.1])
    for t in range(5, 205):
        y[t] = 0.3 + lags @ y[t - 5 : t].flip(0) + 0.5 * noise[t]
    past = torch.stack([y[5 - k : 205 - k] for k in range(1, 6)], -1)

    def model() -> None:
        level = pyro.sample("level", dist.Normal(0.0, 10.0))
        weights = pyro.sample("weights", dist.Normal(torch.zeros(5), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("times", 200):
            mean = level + (past * weights).sum(-1)
            pyro.sample("y", dist.Normal(mean, sigma), obs=y[5:])

    return model


def volatility() -> Model:
    noise = torch.randn(200, generator=_made(2))
    y = torch.zeros(200)
    variance = 1.0
    for t in range(200):
        if t:
            variance = 0.4 + 0.3 * float(y[t - 1] - 1) ** 2 + 0.5 * variance
        y[t] = 1 + math.sqrt(variance) * noise[t]

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        base = pyro.sample("base", dist.HalfNormal(5.0))
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        variance = torch.ones_like(mu)
        scales = [variance.sqrt()]
        for t in range(1, 200):
            shock = (y[t - 1] - mu).square()
            variance = base + shares[..., 0] * shock + shares[..., 1] * variance
            scales.append(variance.sqrt())
        scale = torch.stack(scales, -1)
        pyro.sample("y", dist.Normal(mu.unsqueeze(-1), scale).to_event(1), obs=y)

    return model


def mixture() -> Model:
    generator = _made(3)
    second = torch.rand(1000, generator=generator) < 0.4
    y = torch.randn(1000, generator=generator)
    y = torch.where(second, 2.75 + 0.8 * y, -2.75 + 1.2 * y)

    def model() -> None:
        share = pyro.sample("share", dist.Beta(5.0, 5.0))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(2.0 * torch.ones(2)).to_event(1))
        with pyro.plate("rows", 1000):
            weights = torch.stack([share, 1 - share], -1)
            each = dist.Normal(loc, scale)
            parts = each.log_prob(y.unsqueeze(-1)) + weights.log()
            pyro.factor("y", parts.logsumexp(-1))

    return model


def _regression(rows: int, seed: int, weights: list[float]) -> tuple[Tensor, Tensor]:
    generator = _made(seed)
    x = torch.randn(rows, len(weights), generator=generator)
    x = torch.cat([torch.ones(rows, 1), x], -1)
    return x, x @ torch.tensor([1.0, *weights])


def linear() -> Model:
    x, mean = _regression(434, 4, [0.6, -0.2, 0.3])
    y = mean + 0.8 * torch.randn(434, generator=_made(5))

    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(4), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("rows", 434):
            pyro.sample("y", dist.Normal((x * beta).sum(-1), sigma), obs=y)

    return model


def collinear() -> Model:
    x, mean = _regression(100, 6, [0.5, 0.5, -0.5, 0.2])
    x[:, 2] = x[:, 1] + 0.05 * x[:, 2]
    y = mean + torch.randn(100, generator=_made(7))

    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("rows", 100):
            pyro.sample("y", dist.Normal((x * beta).sum(-1), sigma), obs=y)

    return model


def logistic() -> Model:
    x, mean = _regression(60, 8, [2.0, -1.0, 0.5])
    y = torch.bernoulli(torch.sigmoid(mean), generator=_made(9))

    def model() -> None:
        beta = pyro.sample("beta", dist.StudentT(4.0, torch.zeros(4), 2.5).to_event(1))
        with pyro.plate("rows", 60):
            logits = (x * beta).sum(-1)
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return model


def counts() -> Model:
    year = torch.linspace(-1, 1, 40)
    rate = (4.3 + 1.2 * year + 0.1 * year**2 - 0.5 * year**3).exp()
    y = torch.poisson(rate, generator=_made(10))
    powers = torch.stack([year**k for k in range(4)], -1)

    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(4), 10.0).to_event(1))
        with pyro.plate("years", 40):
            log_rate = (powers * beta).sum(-1)
            pyro.sample("y", dist.Poisson(log_rate.exp()), obs=y)

    return model


def process() -> Model:
    x = torch.linspace(-10, 10, 11)
    y = 2 * torch.sin(x / 3) + 0.3 * torch.randn(11, generator=_made(11))
    distance = (x.unsqueeze(-1) - x).square()

    def model() -> None:
        length = pyro.sample("length", dist.Gamma(25.0, 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        square = length.square()[..., None, None]
        kernel = alpha.square()[..., None, None] * (-0.5 * distance / square).exp()
        noise = sigma.square()[..., None, None] * torch.eye(11)
        law = dist.MultivariateNormal(torch.zeros(11), kernel + noise + 1e-6 * torch.eye(11))
        pyro.sample("y", law, obs=y)

    return model


def counties() -> Model:
    generator = _made(12)
    county = torch.arange(12).repeat_interleave(torch.tensor([2, 4, 8, 3, 5, 10] * 2))
    floor = torch.bernoulli(0.4 * torch.ones(len(county)), generator=generator)
    level = 1.4 + 0.4 * torch.randn(12, generator=generator)
    y = level[county] - 0.7 * floor + 0.7 * torch.randn(len(county), generator=generator)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("counties", 12):
            alpha = pyro.sample("alpha", dist.Normal(mu, tau))
        with pyro.plate("homes", len(y)):
            pyro.sample("y", dist.Normal(alpha[..., county] + slope * floor, sigma), obs=y)

    return model


def rats() -> Model:
    generator = _made(13)
    day = torch.tensor([8.0, 15.0, 22.0, 29.0, 36.0]) - 22
    start = 242 + 15 * torch.randn(10, 1, generator=generator)
    growth = 6.2 + 0.5 * torch.randn(10, 1, generator=generator)
    y = start + growth * day + 6 * torch.randn(10, 5, generator=generator)

    def model() -> None:
        centre = pyro.sample("centre", dist.Normal(torch.tensor([240.0, 6.0]), 50.0).to_event(1))
        spread = pyro.sample("spread", dist.LogNormal(torch.tensor([2.5, -0.7]), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(2.0, 1.0))
        with pyro.plate("rats", 10):
            own = pyro.sample("own", dist.Normal(centre, spread).to_event(1))
            mean = own[..., :1] + own[..., 1:] * day
            pyro.sample("y", dist.Normal(mean, sigma.unsqueeze(-1)).to_event(1), obs=y)

    return model


MODELS: dict[str, Callable[[], Model]] = {
    "eight schools, centred": schools_centred,
    "eight schools": schools_standardised,
    "autoregression": autoregression,
    "volatility": volatility,
    "two normals": mixture,
    "linear": linear,
    "collinear": collinear,
    "logistic": logistic,
    "counts": counts,
    "process": process,
    "counties": counties,
    "rats": rats,
}


def reference(model: Model, size: str) -> tuple[Numbers, dict[str, Tensor]]:
    """Draws of NUTS, from one chain."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    start = time.perf_counter()
    kernel = NUTS(model, init_strategy=init_to_median, target_accept_prob=0.9)
    chain = MCMC(kernel, CHAIN[size], CHAIN[size] // 2, disable_progbar=True)
    chain.run()
    samples: dict[str, Tensor] = chain.get_samples()
    return {"seconds": time.perf_counter() - start}, samples


def normal(kind: Any, model: Model, size: str) -> tuple[Numbers, GuideResult]:
    """One of Pyro's guides, trained by its own bound."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    start = time.perf_counter()
    guide = kind(model)
    steps = STEPS[size]
    optimizer = falling_adam(0.02, steps)
    svi = SVI(model, guide, optimizer, Trace_ELBO(8, vectorize_particles=True))
    for _ in range(steps):
        svi.step()
        optimizer.step()
    result = evaluate_guide(model, guide, num_draws=DRAWS[size], seed=0)
    return {"seconds": time.perf_counter() - start}, result


def mixed(model: Model, size: str) -> tuple[Numbers, GuideResult]:
    """A mixture by natural gradients."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    start = time.perf_counter()
    guide = AutoMixture(model)
    steps = STEPS[size] if size == "quick" else None
    result = fit_guide(
        model, guide, steps=steps, num_draws=DRAWS[size], seed=0, progress_bar=False
    )
    return {
        "seconds": time.perf_counter() - start,
        "components": guide.num_components,
    }, result


def _of(result: GuideResult, samples: dict[str, Tensor]) -> Numbers:
    """What is told of a guide: Pareto k, effective draws, and how far moments are off."""
    means, scales = [], []
    drawn = result.resample(10_000, generator=_made(0))
    for name, chain in samples.items():
        sd = chain.std(0)
        means.append(float(((result.mean(name) - chain.mean(0)) / sd).abs().max()))
        scales.append(float((drawn[name].std(0) / sd - 1).abs().max()))
    return {
        "pareto_k": result.pareto_k,
        "effective": result.effective_sample_size,
        "bound": result.elbo,
        "evidence": result.log_evidence,
        "mean_off": max(means),
        "scale_off": max(scales),
    }


def measure(name: str, size: str) -> Numbers:
    """All numbers of a model."""
    model = MODELS[name]()
    numbers, samples = reference(model, size)
    found = {f"nuts_{key}": value for key, value in numbers.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what cannot be believed is in the table
        for key, run in (
            ("normal", lambda: normal(AutoNormal, model, size)),
            ("full", lambda: normal(AutoMultivariateNormal, model, size)),
            ("mixture", lambda: mixed(model, size)),
        ):
            own, result = run()
            own = {**own, **_of(result, samples)}
            found.update({f"{key}_{what}": value for what, value in own.items()})
    return found


def tell(results: dict[str, Numbers]) -> None:
    """A table in Markdown."""
    print(
        "\n| model | k: AutoNormal | AutoMultivariateNormal | AutoMixture | draws of 4,000 | "
        "means off | sd off | components | s | s of NUTS |"
    )
    print("| --- |" + " --: |" * 9)
    for name, r in results.items():
        print(
            f"| {name} | {r['normal_pareto_k']:.2f} | {r['full_pareto_k']:.2f} | "
            f"{r['mixture_pareto_k']:.2f} | {r['mixture_effective']:.0f} | "
            f"{r['mixture_mean_off']:.2f} | {r['mixture_scale_off']:.2f} | "
            f"{r['mixture_components']} | {r['mixture_seconds']:.0f} | {r['nuts_seconds']:.0f} |"
        )
    print("\nOff: the largest of all numbers, in standard deviations of NUTS, or as a share.")


def main() -> None:
    parser = cli.make_parser(__doc__, quick="few steps")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="by default all")
    arguments = cli.parse(parser)
    store = Store(OUT / "guides" / f"posteriors_{arguments.size}")
    results = {
        name: store.once(name, lambda n=name: measure(n, arguments.size))
        for name in arguments.models or MODELS
    }
    tell(results)


if __name__ == "__main__":
    main()
