"""Other ways from simulations to a posterior: a mixture of all columns, and a spline flow."""

__all__ = ["mixture_posterior", "spline_posterior"]

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyromix import MixtureOfMultivariateNormals, Observed, fit

from ..common.zuko_flow import ZukoFlow

Sampler = Callable[[Tensor, int], Tensor]
"""Draws (n, D) of the parameters given a simulation (C,), and their number n."""

COMPONENTS = (8, 32)


def mixture_posterior(prior: Distribution, theta: Tensor, x: Tensor, seed: int) -> Sampler:
    """A full mixture of scikit-learn of parameters and simulations, conditioned exactly.

    Of two numbers of components, that of the better held-out likelihood; draws outside the
    support of the prior are drawn again.
    """
    from sklearn.mixture import GaussianMixture

    both = torch.cat([theta, x], -1).double()
    loc, scale = both.mean(0), both.std(0)
    rows = ((both - loc) / scale).numpy()
    cut = len(rows) // 10
    fitted = [
        GaussianMixture(count, reg_covar=1e-5, random_state=seed).fit(rows[cut:])
        for count in COMPONENTS
    ]
    best = max(fitted, key=lambda model: model.score(rows[:cut]))
    law = MixtureOfMultivariateNormals(
        torch.from_numpy(best.weights_).log(),
        torch.from_numpy(best.means_),
        torch.linalg.cholesky(torch.from_numpy(best.covariances_)),
    )
    dim = theta.shape[1]

    def sample(observation: Tensor, count: int) -> Tensor:
        y = (observation.double() - loc[dim:]) / scale[dim:]
        known = Observed({dim + i: float(value) for i, value in enumerate(y)})
        free = law.condition(known).free()
        return _within(
            prior, lambda n: (free.sample((n,)) * scale[:dim] + loc[:dim]).float(), count
        )

    return sample


def spline_posterior(
    prior: Distribution, theta: Tensor, x: Tensor, seed: int, steps: int
) -> Sampler:
    """A conditional spline flow of zuko, trained with early stopping, as the usual estimator."""
    import zuko

    loc, scale = x.mean(0), x.std(0)
    context = (x - loc) / scale
    cut = len(x) // 10
    torch.manual_seed(seed)
    flow = zuko.flows.NSF(theta.shape[1], x.shape[1], transforms=5, hidden_features=(50, 50))
    model = ZukoFlow(flow, theta.shape[1], x.shape[1])
    fit(
        model,
        (theta[cut:], context[cut:]),
        steps=steps,
        batch_size=100,
        lr=5e-4,
        validation=(theta[:cut], context[:cut]),
        patience=20,
        gradient_clip=5.0,
        seed=seed,
        progress_bar=False,
    )

    @torch.no_grad()
    def sample(observation: Tensor, count: int) -> Tensor:
        law = model.condition((observation - loc) / scale)
        return _within(prior, lambda n: law.sample((n,)), count)

    return sample


def _within(prior: Distribution, draw: Callable[[int], Tensor], count: int) -> Tensor:
    """Draws within the support of a prior, by rejection of others."""
    kept: list[Tensor] = []
    for _ in range(100):
        draws = draw(count)
        kept.append(draws[prior.support.check(draws)])
        if sum(map(len, kept)) >= count:
            return torch.cat(kept)[:count]
    # Hardly any mass within: the nearest points of the support would be no better.
    found = torch.cat(kept)
    return found[torch.randint(len(found), (count,))] if len(found) else prior.sample((count,))
