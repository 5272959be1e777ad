"""Evidence lower bounds from weighted draws of every component of a mixture."""

__all__ = ["StratifiedELBO"]

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match, warn_if_nan
from torch import Tensor

from ..core.checks import check_positive_int
from ..maxent.draws import Sampler, branch_sampler, weighted_sampler
from .joint import check_sites, in_plate, log_density, paired_traces

Fn = Callable[..., Any]


class _Strata(Messenger):
    """Draws sites of a guide that are mixtures, or flows on mixtures, from all components.

    It has to be inside the plate of draws: sites are seen before they are expanded by it.

    Args:
        count: Number of draws n.
        depth: Number of dimensions of plates right of the draws; None if draws are run one by one.
        importance: Whether the bound is the logarithm of a sum over draws.
    """

    def __init__(self, count: int, depth: int | None, importance: bool) -> None:
        super().__init__()
        self.count, self.depth, self.importance = count, depth, importance
        self.index = 0
        self.values: dict[str, Tensor] = {}
        self.log_weight: Tensor | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        fn, name = msg["fn"], msg["name"]
        if name in self.values:
            msg["value"] = self._placed(self.values[name], fn)
            return
        sampler = None if fn.batch_shape else self._sampler(fn)
        if sampler is None:
            if not fn.has_rsample:
                raise ValueError(
                    f"Expected a guide whose sites have pathwise gradients, or weighted draws, "
                    f"got {type(fn).__name__} at site {name!r}. Enumerate it in the model, or use "
                    f"Pyro's Trace_ELBO."
                )
            return
        draws = sampler(self.count)[0]
        x, log_weight = draws.x, draws.weight.log()
        if self.log_weight is not None:
            # Independent of the draws so far: any of them goes with any of these.
            order = torch.randperm(self.count, device=x.device)
            x, log_weight = x[order], self.log_weight + log_weight[order] + math.log(self.count)
        self.log_weight = log_weight
        self.values[name] = x
        msg["value"] = self._placed(x, fn)

    def _sampler(self, fn: Any) -> Sampler | None:
        """The way to draw from a site; None for that of the site itself."""
        sampler = weighted_sampler(fn)
        if sampler is not None or fn.has_rsample:
            return sampler
        if self.importance and hasattr(fn, "rsample_with_score"):
            raise ValueError(
                f"Expected importance=False for a guide that draws branches, got "
                f"{type(fn).__name__}: the scores of its draws are right for sums over draws, not "
                f"for their logarithm."
            )
        return branch_sampler(fn)

    def _placed(self, x: Tensor, fn: Any) -> Tensor:
        """Draws left of all plates, or one of them."""
        if self.depth is None:
            return x[self.index]
        return x.reshape(self.count, *[1] * self.depth, *fn.event_shape)


class StratifiedELBO(ELBO):
    r"""The evidence lower bound, from weighted draws of every component of a guide's mixtures.

    .. math:: \sum_{i=1}^n w_i \big(\log p(x, z_i) - \log q(z_i)\big), \qquad
              E_q[f(z)] = E \sum_i w_i f(z_i)

    Sites of the guide that are a mixture (`MixtureOfNormals`, `GaussianMixture`), or a `Flow` on
    one, are drawn by `rsample_weighted`: every component gives as many draws, and its probability
    is their weight. So gradients are exact however far components lie apart, where the pathwise
    gradient of `Trace_ELBO` says nothing about weights of modes without overlap. Sites that draw
    branches, such as `RAD`, have draws with the score of these, and the other draws as its
    baseline. Other sites are drawn as they are by `Trace_ELBO`; so are mixtures within plates.
    Discrete variables of the model that ask for it, by ``infer={"enumerate": "parallel"}`` or
    `config_enumerate`, are summed over.

    Args:
        num_particles: Number of draws n. With less than there are components, some of these are
            drawn, at random.
        importance: Whether to bound by :math:`\log \sum_i w_i p(x, z_i) / q(z_i)`, which is
            tighter, and takes no sites that draw branches.
        vectorize_particles: Whether model and guide are run once with all draws, in a plate of
            their own. It takes a model that broadcasts.
        max_plate_nesting: Largest number of nested plates; by default it is found by running model
            and guide once.
        retain_graph: As in `pyro.infer.ELBO`.

    Raises:
        ValueError: For no draws.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyromix.guides import AutoMixture
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 3.0))
        ...     pyro.sample("x", dist.Normal(z.square(), 0.5), obs=torch.tensor(4.0))
        >>> pyro.clear_param_store()
        >>> pyro.set_rng_seed(0)
        >>> guide = AutoMixture(model, num_components=4)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), StratifiedELBO(32))
        >>> losses = [svi.step() for _ in range(200)]
        >>> law = guide.get_posterior()
        >>> modes = law.sample((1000,)).sign().mean()
        >>> abs(float(modes)) < 0.2  # both roots of four
        True
    """

    def __init__(
        self,
        num_particles: int = 32,
        *,
        importance: bool = False,
        vectorize_particles: bool = True,
        max_plate_nesting: int | float = math.inf,
        retain_graph: bool | None = None,
    ) -> None:
        check_positive_int("num_particles", num_particles)
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        self.importance = importance

    def _bound(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """The bound, with a graph."""
        if math.isinf(self.max_plate_nesting):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        log_weight, log_ratio = (
            self._all_at_once(model, guide, args, kwargs)
            if self.vectorize_particles and self.num_particles > 1
            else self._one_by_one(model, guide, args, kwargs)
        )
        if log_weight is None:
            log_weight = torch.full_like(log_ratio, -math.log(self.num_particles))
        if self.importance:
            return torch.logsumexp(log_weight + log_ratio, 0)
        return (log_weight.exp() * log_ratio).sum()

    def _guess_max_plate_nesting(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """As Pyro finds it, with its checks of shapes, without a message for each bound."""
        logger = logging.getLogger(ELBO.__module__)
        level = logger.level
        logger.setLevel(logging.WARNING)
        try:
            super()._guess_max_plate_nesting(model, guide, args, kwargs)
        finally:
            logger.setLevel(level)

    def _all_at_once(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor]:
        depth = int(self.max_plate_nesting) - 1
        count = self.num_particles
        strata = _Strata(count, depth, self.importance)
        both = in_plate(model, count, depth), in_plate(strata(guide), count, depth)
        traces = self._get_trace(*both, args, kwargs)
        return strata.log_weight, _log_ratio(*traces, count, depth)

    def _one_by_one(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor]:
        strata = _Strata(self.num_particles, None, self.importance)
        ratios = []
        for index in range(self.num_particles):
            strata.index = index
            traces = self._get_trace(model, strata(guide), args, kwargs)
            ratios.append(_log_ratio(*traces, None, 0))
        return strata.log_weight, torch.stack(ratios)

    def _get_trace(
        self, model: Fn, guide: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        """A trace of the model, and one of the guide whose values it has."""
        nesting = int(self.max_plate_nesting)
        traced, guided = paired_traces(model, guide, args, kwargs, nesting=nesting)
        check_sites(traced, guided)
        if is_validation_enabled():
            check_model_guide_match(traced, guided, self.max_plate_nesting)
        return traced, guided

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, a number.

        Args:
            model: The model.
            guide: The guide.
            args: Their arguments.
            kwargs: Their keyword arguments.
        """
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound, with gradients to the parameters of model and guide.

        Args:
            model: The model.
            guide: The guide.
            args: Their arguments.
            kwargs: Their keyword arguments.
        """
        loss = -self._bound(model, guide, args, kwargs)
        warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, a number, whose gradients are added to those of parameters.

        Args:
            model: The model.
            guide: The guide.
            args: Their arguments.
            kwargs: Their keyword arguments.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.detach())


def _log_ratio(model: Trace, guide: Trace, count: int | None, depth: int) -> Tensor:
    """Log-densities of the model less those of the guide, (n,) or a number."""
    return log_density(model, count, depth) - log_density(guide, count, depth)
