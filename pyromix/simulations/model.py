r"""Inference by conditioning a joint law of parameters and simulations."""

__all__ = ["SimulationModel", "learn_joint"]

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import TransformedDistribution
from torch import Size, Tensor
from torch.distributions import Distribution

from ..core.advice import warn_user
from ..core.checks import (
    Check,
    as_int,
    check_arguments,
    check_choice,
    check_positive_int,
)
from ..core.conversions import TensorLike
from ..core.networks import check_widths
from ..core.random import draws_from, seeded
from ..evidence.pieces import Observed
from .checks import check_pairs, check_parameters, check_prior, check_simulations
from .coordinates import CoordinateLaw, SimulationMap, parameter_map
from .likelihood import Features, LogLikelihood
from .posterior import NetworkPosterior, Posterior, Proposal, WeightedPosterior
from .training import Plan, coarse_joint, learn_conditional

Route = Literal["likelihood", "network"]
ROUTES = ("likelihood", "network")

HELD_OUT = 0.1
# Proposals to compare routes with, for each of so many held-out simulations.
COMPARED, COMPARED_DRAWS = 100, 1000
# Shares of the network, the coarse law and the prior among first proposals.
SHARES = (0.5, 0.3, 0.2)
# The first route is warned of if its score is lower by more, in nats.
MUCH_WORSE = 0.1


class SimulationModel:
    r"""A joint law of parameters and simulations, learnt from draws of it.

    .. math:: p(\theta, x) = p(\theta) \, q(x \mid \theta), \qquad
              p(\theta \mid x) \propto p(\theta) \, q(x \mid \theta)

    The prior is known, and the likelihood q is learnt: a mixture of normals in coordinates of
    the simulations, whose parameters come from networks of the parameters. Any part of x can be
    missing, because marginals of a mixture have a closed form. A second mixture, with networks
    of the simulations, learns the posterior in one step. It proposes the draws of the first
    route, and is the better posterior of some simulators; held-out simulations decide.

    Fitted models and posteriors are saved by `torch.save` or `pickle`, if their prior can be, and
    loaded by `torch.load` with ``weights_only=False``, or by `pickle`.

    Args:
        prior: Law of the parameters, of event shape (D,): any distribution of PyTorch or Pyro
            with draws, a density and a support that `biject_to` knows.
        num_components: Numbers of components of mixtures, that held-out simulations choose from.
        num_members: Networks whose mixtures are averaged.
        hidden_dims: Widths of their hidden layers.

    Attributes:
        route: ``"likelihood"`` or ``"network"``: what `posterior` does by default, once fitted.
        scores: Mean log-densities of held-out parameters given their simulations, by route.
        joint: A coarse joint law of parameters and simulations in their coordinates, a
            `GaussianMixture` that can be conditioned on anything in closed form.

    Raises:
        ValueError: For an argument that is out of range, or a prior that is no such law.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> import pyro
        >>> prior = pyro.distributions.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> theta = prior.sample((2000,))
        >>> x = theta + torch.randn(2000, 1)
        >>> model = SimulationModel(prior, num_components=(1,), num_members=1)
        >>> model = model.fit(theta, x, steps=50, seed=0, progress_bar=False)
        >>> posterior = model.posterior([2.0])
        >>> abs(float(posterior.mean) - 1.0) < 0.2
        True
    """

    argument_checks: ClassVar[Mapping[str, Check]] = {
        "num_components": check_widths,
        "num_members": check_positive_int,
        "hidden_dims": check_widths,
    }

    def __init__(
        self,
        prior: Distribution,
        *,
        num_components: Sequence[int] = (1, 8),
        num_members: int = 3,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        arguments = check_arguments(SimulationModel.argument_checks, locals())
        self.prior = check_prior(prior)
        self.num_components: tuple[int, ...] = arguments["num_components"]
        if not self.num_components:
            raise ValueError("Expected at least one number in num_components, got none.")
        self.num_members: int = arguments["num_members"]
        self.hidden_dims: tuple[int, ...] = arguments["hidden_dims"]
        self.route: Route | None = None
        self.scores: dict[str, float] = {}
        self._num_simulations = 0

    def fit(
        self,
        theta: TensorLike,
        x: TensorLike,
        *,
        steps: int = 2000,
        batch_size: int = 256,
        lr: float = 2e-3,
        seed: int | None = None,
        progress_bar: bool = True,
    ) -> "SimulationModel":
        """Learns the law from parameters and their simulations; returns the model itself.

        Args:
            theta: Draws from the prior, (N, D), or (N,) of one parameter.
            x: A simulation of each, (N, C), or (N,) of one column. Numbers of any type are
                converted to the dtype of theta.
            steps: Steps of training, for each network.
            batch_size: Simulations of a step.
            lr: Learning rate.
            seed: Seed of everything random; by default drawn from PyTorch's global generator.
            progress_bar: Whether to show a bar with the loss.

        Raises:
            ValueError: If they do not fit, are not finite, or a column is constant.
        """
        theta, x = check_pairs(self.prior, theta, x)
        seed = int(torch.randint(2**31, ())) if seed is None else as_int(seed)
        if seed is None:
            raise ValueError("Expected seed to be an integer.")
        with draws_from(*seeded(seed, theta.device)):
            order = torch.randperm(len(theta))
            cut = max(1, int(HELD_OUT * len(theta)))
            held_out, train = order[:cut], order[cut:]
            plan = Plan(
                self.num_components,
                self.num_members,
                self.hidden_dims,
                train,
                held_out,
                steps=check_positive_int("steps", steps),
                batch_size=check_positive_int("batch_size", batch_size),
                lr=lr,
                seed=seed,
                progress_bar=progress_bar,
            )
            self._learn(theta, x, plan)
            self._compare(theta[held_out], x[held_out])
        self._num_simulations = len(theta)
        return self

    def posterior(
        self,
        x: TensorLike,
        *,
        route: Route | None = None,
        num_draws: int = 20_000,
        seed: int = 0,
    ) -> Posterior:
        r"""The law of the parameters given a simulation.

        Args:
            x: What was observed, (C,), with NaN for what is missing; a number if C is one. By
                the network, and without missing parts, any number of them, (\*B, C). Tensors of
                any dtype are converted to that of the model.
            route: ``"likelihood"``: the prior times the learnt likelihood; ``"network"``: what
                the network of the simulations says. By default the better one on held-out
                simulations, and the first one where parts are missing, with a warning if it is
                clearly worse.
            num_draws: Proposals of the first route.
            seed: Seed of its proposals, which its density depends on.

        Raises:
            ValueError: If it does not fit, or nothing was learnt yet.
        """
        self._check_fitted()
        x = check_simulations(x, self._simulation_map.centre)
        missing = bool(x.isnan().any())
        if route is None:
            route = "likelihood" if missing else self.route
            if missing:
                self._warn_of_likelihood()
        check_choice("route", route, ROUTES)
        if route == "network":
            if missing:
                raise ValueError(
                    "Expected all of x with route='network', got NaN: a network needs whole "
                    "simulations. Leave route out."
                )
            mixture = self._network.condition(self._simulation_map(x))
            return NetworkPosterior(self.prior, mixture, self._parameter_map)
        if x.dim() > 1:
            raise ValueError(
                f"Expected one simulation ({x.shape[-1]},) with route='likelihood', got shape "
                f"{tuple(x.shape)}. Ask for one after the other, or pass route='network'."
            )
        with draws_from(torch.Generator(x.device).manual_seed(seed)):
            return WeightedPosterior(
                self.prior,
                self._log_likelihood(x),
                self._prior_of_coordinates.log_prob,
                self._proposal(x),
                self._parameter_map,
                check_positive_int("num_draws", num_draws),
            )

    def likelihood(self, theta: TensorLike) -> TransformedDistribution:
        r"""The law of simulations given parameters (\*B, D), of shape (\*B, C).

        Its density has gradients to the parameters: as a likelihood in a Pyro model it works with
        NUTS and SVI, and with plates for several independent observations.

        Args:
            theta: Parameters within the support of the prior; a number if D is one.

        Raises:
            ValueError: If they are not, or nothing was learnt yet.
        """
        self._check_fitted()
        theta = check_parameters(self.prior, theta, self._simulation_map.centre)
        mixture = self._likelihood.condition(self._features(self._parameter_map.inv(theta)))
        return TransformedDistribution(
            mixture, [self._likelihood_map.transform()], validate_args=False
        )

    def __repr__(self) -> str:
        """What was learnt from how many simulations, and how good it is."""
        size = f"num_parameters={self.prior.event_shape[0]}"
        if self.route is None:
            return f"SimulationModel({size}, not fitted)"
        scores = ", ".join(f"{name!r}: {score:.3f}" for name, score in self.scores.items())
        return (
            f"SimulationModel({size}, num_columns={len(self._simulation_map.centre)}, "
            f"num_simulations={self._num_simulations}, scores={{{scores}}}, "
            f"route={self.route!r})"
        )

    # ---- training ----------------------------------------------------------------------------

    def _learn(self, theta: Tensor, x: Tensor, plan: Plan) -> None:
        self._parameter_map = parameter_map(self.prior, theta)
        self._prior_of_coordinates = CoordinateLaw(self.prior, self._parameter_map)
        self._simulation_map = SimulationMap(x)
        z, y = self._parameter_map.inv(theta), self._simulation_map(x)
        self._features = Features(self._parameter_map, theta)
        self.joint = coarse_joint(torch.cat([z, y], -1), plan)
        self._network, _ = learn_conditional([z], [0.0], y, plan)

        # Normal noise stays normal in plain columns; heavy tails are tamer in bent ones.
        maps = [SimulationMap(x, bend=False)]
        if bool(self._simulation_map.bent.any()):
            maps.append(self._simulation_map)
        slopes = [float(own.log_slope(x[plan.held_out]).sum(-1).mean()) for own in maps]
        self._likelihood, best = learn_conditional(
            [own(x) for own in maps], slopes, self._features(z), plan
        )
        self._likelihood_map = maps[best]

    @torch.no_grad()
    def _compare(self, theta: Tensor, x: Tensor) -> None:
        """Compares the two routes by log-densities of held-out parameters.

        The evidence of the first route is estimated from draws of the network, and from the
        parameters that made the simulation, which are a draw from the posterior: that makes it
        rather too large than too small, so that the route is not chosen by mistake.
        """
        theta, x = theta[:COMPARED], x[:COMPARED]
        z = self._parameter_map.inv(theta)
        slope = self._parameter_map.log_abs_det_jacobian(z, theta)
        by_network = self._network.condition(self._simulation_map(x)).log_prob(z)
        by_likelihood = torch.empty_like(by_network)
        wide = self._prior_of_coordinates
        for i, (own, observed) in enumerate(zip(z, x, strict=True)):
            proposal, log_likelihood = self._proposal(observed), self._log_likelihood(observed)
            draws = torch.cat([proposal.sample(COMPARED_DRAWS), own.unsqueeze(0)])
            scores = wide.log_prob(draws) + log_likelihood(draws)
            evidence = (scores - proposal.log_prob(draws)).logsumexp(0) - math.log(len(draws))
            by_likelihood[i] = scores[-1] - evidence
        self.scores = {
            "likelihood": float((by_likelihood - slope).mean()),
            "network": float((by_network - slope).mean()),
        }
        self.route = "likelihood" if by_likelihood.mean() > by_network.mean() else "network"

    # ---- pieces of posteriors ------------------------------------------------------------------

    def _log_likelihood(self, x: Tensor) -> LogLikelihood:
        """Log-density of what is known of a simulation, as a function of coordinates (N, D)."""
        return LogLikelihood(self._likelihood, self._features, self._likelihood_map, x)

    def _proposal(self, x: Tensor) -> Proposal:
        """What proposes coordinates of parameters given what is known of a simulation."""
        dim = self.prior.event_shape[0]
        y = self._simulation_map(x)
        known = {dim + i: float(v) for i, v in enumerate(y) if not bool(v.isnan())}
        wide = self._prior_of_coordinates
        law: Any = self.joint.law
        if not known:
            return Proposal([(1.0, wide)])
        coarse = law.condition(Observed(known)).free().marginal(range(dim))
        parts = [(SHARES[1], coarse), (SHARES[2], wide)]
        if len(known) == len(y):
            parts.insert(0, (SHARES[0], self._network.condition(y)))
        return Proposal(parts)

    def _warn_of_likelihood(self) -> None:
        """Warns where missing entries need the route that held-out simulations advise against."""
        own, other = self.scores["likelihood"], self.scores["network"]
        if other - own > MUCH_WORSE:
            warn_user(
                f"Missing entries need route 'likelihood', whose score on held-out simulations, "
                f"{own:.3f}, is far below that of route 'network', {other:.3f}: the posterior may "
                f"be poor. Where the same columns are always missing, fit a model without them."
            )

    def _check_fitted(self) -> None:
        if self.route is None:
            raise ValueError(
                "Expected a SimulationModel that has learnt from simulations: call fit(theta, x), "
                "or make it with learn_joint."
            )


def learn_joint(
    prior: Distribution,
    simulator: Callable[[Tensor], TensorLike],
    num_simulations: int = 10_000,
    *,
    seed: int | None = None,
    progress_bar: bool = True,
    **options: Any,
) -> SimulationModel:
    """A `SimulationModel` of a simulator, from simulations of draws from a prior.

    Args:
        prior: Law of the parameters, of event shape (D,).
        simulator: Called once, with parameters (N, D); returns simulations (N, C),
            or (N,) if they are numbers.
        num_simulations: Number of simulations N.
        seed: Seed of everything random that PyTorch draws; by default drawn from its generator.
        progress_bar: Whether to show a bar with the loss.
        options: Others of `SimulationModel` and of its `fit`.

    Example:
        >>> import pyro
        >>> prior = pyro.distributions.Uniform(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> noisy = lambda theta: theta + 0.1 * torch.randn_like(theta)
        >>> model = learn_joint(prior, noisy, 1000, steps=20, seed=0, progress_bar=False)
        >>> draws = model.posterior([0.95, 0.5]).sample((100,))
        >>> bool((draws <= 1).all())
        True
    """
    prior = check_prior(prior)
    num_simulations = check_positive_int("num_simulations", num_simulations)
    if not callable(simulator):
        raise ValueError(
            f"Expected simulator to be a function of parameters, got {type(simulator).__name__}."
        )
    names = ("steps", "batch_size", "lr")
    training = {name: options.pop(name) for name in names if name in options}
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    with draws_from(*seeded(seed, torch.device("cpu"))):
        theta = prior.sample(Size((num_simulations,)))
        x = simulator(theta)
    model = SimulationModel(prior, **options)
    return model.fit(theta, x, seed=seed, progress_bar=progress_bar, **training)
