"""A mixture of normals as the guide of all latent variables."""

__all__ = ["AutoMixture"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import init_to_sample
from pyro.infer.autoguide.guides import AutoContinuous, prototype_hide_fn
from torch import Tensor
from torch.distributions import biject_to

from ..core.advice import warn_user
from ..core.checks import check_count, check_positive_int
from ..flows import Flow
from ..mixtures import GaussianMixture, MixtureOfMultivariateNormals
from ..mixtures.covariance import Moments
from ..mixtures.finite import FiniteMixture
from ..mixtures.learnable import Covariance
from .annealing import anneal
from .joint import UnconstrainedJoint, is_enumerated, subsampled

# Draws of the prior that the guide starts from, and draws for quantiles through transforms.
PRIOR_DRAWS, QUANTILE_DRAWS = 500, 20_000
IMPROPER = (
    "Expected priors that can be drawn from, got one that cannot: {}. Start from a point by "
    "num_prior_draws=0 and init_loc_fn=init_to_value(values={{...}})."
)
# Variances are not bounded: a posterior may be as narrow as it likes.
VARIANCE_FLOOR = 1e-12
# Points of a component that starts around the prototype, and of models that do not broadcast.
POINTS = 20


class AutoMixture(AutoContinuous):
    r"""A guide that can have many modes: a mixture of normals over all latent variables.

    .. math:: q(z) = \sum_{k=1}^K w_k \, N(z; m_k, \Sigma_k)

    in the space of unconstrained latent variables, or this through learnable transforms. It is one
    of Pyro's `AutoContinuous`: constraints, plates, subsampling, `median`, `quantiles` and
    `Predictive` work as there. Train it with `StratifiedELBO`: the pathwise gradient of
    `Trace_ELBO` does not see how much mass modes that lie apart should have.

    It starts from clusters of draws that are moved from the prior to the posterior step by step;
    see `pyromix.guides.annealing.anneal`. They are all run at once, in a plate of their own; fewer
    one by one where the model does not broadcast.

    Args:
        model: A Pyro model. Discrete variables are summed over if they are to be enumerated, by
            ``infer={"enumerate": "parallel"}`` or `pyro.infer.config_enumerate`.
        num_components: Number of components K.
        covariance: Of the components, as `GaussianMixture` takes it.
        transforms: Takes the number of unconstrained dimensions, and returns a learnable
            transform, or a sequence of them, from the mixture to them; see `Flow`. Let it start
            near the identity, as `near_identity` makes it: components start at modes.
        init_loc_fn: How the prototype of a site is drawn, as in Pyro; by default from the prior.
        num_prior_draws: Draws of the prior to start from, by default 500, or four of each
            component; zero for components around the prototype. Take zero where discrete variables
            are hidden by `poutine.block`: the start would draw them at random.
        init_scale: Standard deviation of components in that case, and how far they are apart.

    Raises:
        ValueError: For an argument that is out of range.

    Example:
        See `StratifiedELBO`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_components: int = 8,
        covariance: Covariance = "full",
        *,
        transforms: Callable[[int], Any] | None = None,
        init_loc_fn: Callable[..., Any] = init_to_sample,
        num_prior_draws: int | None = None,
        init_scale: float = 0.1,
    ) -> None:
        self.num_components = check_positive_int("num_components", num_components)
        if num_prior_draws is None:
            num_prior_draws = max(PRIOR_DRAWS, 4 * self.num_components)
        self._prior_draws = check_count("num_prior_draws", num_prior_draws)
        if 0 < self._prior_draws < 2 * self.num_components:
            raise ValueError(
                f"Expected num_prior_draws to be 0, or at least two of each of "
                f"{self.num_components} components, got {num_prior_draws!r}."
            )
        if not init_scale > 0:
            raise ValueError(f"Expected a positive init_scale, got {init_scale!r}.")
        self.covariance = covariance
        self._transforms = transforms
        self._init_scale = init_scale
        self._prior = (model,)  # in a tuple, as modules would be taken for parts of the guide
        super().__init__(model, init_loc_fn=init_loc_fn)

    @staticmethod
    def _prototype_hide_fn(msg: Any) -> bool:
        """Which sites the guide does not have: those of no guide, and what is enumerated."""
        hidden: bool = prototype_hide_fn(msg) or is_enumerated(msg)
        return hidden

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._setup_prototype(*args, **kwargs)
        except NotImplementedError as error:
            raise ValueError(IMPROPER.format(error)) from error
        centre = self._init_loc().detach()
        mixture = self._new_mixture(self.num_components)
        self.posterior = mixture
        mixture.initialize(self._starts(centre, args, kwargs))
        if self._transforms is not None:
            self.posterior = Flow(mixture, self._transforms(self.latent_dim)).to(centre)
        self._take_stored()

    @property
    def starts_from_prior(self) -> bool:
        """Whether components start from draws of the prior."""
        return self._prior_draws > 0

    def _new_mixture(self, num_components: int) -> GaussianMixture:
        """A mixture over all latent variables. No data could make its likelihood unbounded."""
        return GaussianMixture(
            self.latent_dim,
            num_components,
            self.covariance,
            variance_floor=VARIANCE_FLOOR,
            standardize=False,
        ).to(self._init_loc().detach())

    @property
    def has_transforms(self) -> bool:
        """Whether the posterior is a flow on the mixture."""
        return self._transforms is not None

    @property
    def mixture(self) -> GaussianMixture:
        """The mixture: the posterior, or what transforms are on."""
        posterior: Any = self.posterior
        mixture: GaussianMixture = posterior if self._transforms is None else posterior.base
        return mixture

    @property
    def correlated_law(self) -> MixtureOfMultivariateNormals:
        """The law of the mixture, in float64, without a graph."""
        with torch.no_grad():
            law = self.mixture.law
            tril = torch.linalg.cholesky(law.component_covariance.double())
            return law.with_covariances(law.logits.double(), law.loc.double(), tril)

    @torch.no_grad()
    def adopt(self, law: MixtureOfMultivariateNormals) -> None:
        """Takes a mixture of any number of components.

        Args:
            law: The mixture, of unconstrained latent variables, before transforms. Of its
                covariances the part that the guide's have is taken.

        Raises:
            ValueError: If the guide has covariances that components share.
        """
        if self.covariance not in ("full", "diagonal"):
            raise ValueError(
                f"Expected a guide with covariances of each component, full or diagonal, got "
                f"{self.covariance!r}."
            )
        mixture = self._new_mixture(law.num_components)
        covariance = law.component_covariance
        if not mixture.structure.full_moments:
            covariance = covariance.diagonal(dim1=-2, dim2=-1)
        moments = Moments(torch.ones_like(law.logits), covariance)
        mixture._assign(law.logits, law.loc, mixture.structure.estimate(moments, {}))
        mixture.initialized.fill_(True)
        self._replace(mixture)

    def _replace(self, mixture: GaussianMixture) -> None:
        """Takes another mixture, of any number of components, and forgets the old one."""
        store = pyro.get_param_store()
        for name, _ in self.posterior.named_parameters():
            if self._stored_name(name) in store:
                del store[self._stored_name(name)]
        if self._transforms is None:
            self.posterior = mixture
        else:
            flow: Any = self.posterior
            self.posterior = Flow(mixture, list(flow.transforms))
        self.num_components = mixture.num_components

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loads parameters, as PyTorch does, of a guide with any number of components.

        Args:
            state_dict: Of a guide of the same model.
            args: As in `torch.nn.Module.load_state_dict`.
            kwargs: As in `torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: If the guide has not been run yet.
        """
        if self.prototype_trace is None:
            raise RuntimeError(
                "Expected a guide that has been run before parameters are loaded: call it once "
                "with the arguments of its model."
            )
        logits = state_dict.get(self._logits_name)
        if logits is not None and len(logits) != self.num_components:
            self._replace(self._new_mixture(len(logits)))
        return super().load_state_dict(state_dict, *args, **kwargs)

    @property
    def _logits_name(self) -> str:
        """The name of the logits of the mixture among the parameters of the guide."""
        return "posterior.base.logits" if self.has_transforms else "posterior.logits"

    def _stored_name(self, name: str) -> str:
        """The name of a parameter of the posterior in Pyro's store."""
        return f"{self._pyro_name}.posterior$$${name}"

    @torch.no_grad()
    def _take_stored(self) -> None:
        """Takes parameters from Pyro's store, as all guides do, where they fit.

        What is left there under their names would be trained in place of the guide's own.
        """
        store = pyro.get_param_store()
        logits = self._stored_name(self._logits_name.removeprefix("posterior."))
        if logits in store and len(store[logits]) != self.num_components:
            warn_user(
                f"Pyro's store of parameters has those of a guide of the same name with "
                f"{len(store[logits])} components: they are replaced. To take them, ask for "
                f"num_components={len(store[logits])}; to begin anew, call "
                f"pyro.clear_param_store() before."
            )
        for name, parameter in self.posterior.named_parameters():
            key = self._stored_name(name)
            if key in store:
                stored = store[key]
                if stored.shape == parameter.shape:
                    parameter.copy_(stored)
                del store[key]

    @torch.no_grad()
    def _starts(self, centre: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Points (n, D) that components start from."""
        count = self._prior_draws
        if not count:
            noise = torch.randn(POINTS * self.num_components, len(centre)).to(centre)
            return centre + self._init_scale * noise
        law = self.prior_mixture(args, kwargs)
        joint = UnconstrainedJoint(self._prior[0], self, args, kwargs)
        starts = law.sample((count,))
        with poutine.block(), pyro.validation_enabled(False):  # NaN is not worth an error here
            if not _broadcasts(joint, starts[:2]):
                joint.vectorize = False
                starts = starts[: POINTS * self.num_components]
            return anneal(joint, law.log_prob, starts)

    @torch.no_grad()
    def prior_mixture(
        self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> FiniteMixture:
        """Clusters of prior draws: a law with a density that moves to the posterior start from.

        Args:
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If too few draws are finite.
        """
        count = self._prior_draws
        draws = torch.stack([self._prior_draw(args, kwargs or {}) for _ in range(count)])
        draws = draws[draws.isfinite().all(1)]
        if len(draws) < self.num_components:
            raise ValueError(
                f"Expected at least {self.num_components} finite draws of the prior, got "
                f"{len(draws)} of {count}. Start from a point by num_prior_draws=0 and an "
                f"init_loc_fn."
            )
        clusters = GaussianMixture(self.latent_dim, self.num_components, standardize=False)
        clusters.to(draws).initialize(draws)
        return clusters.law

    def _prior_draw(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Latent variables (D,) drawn from the prior."""
        traced = poutine.block(poutine.trace(self._prior[0]).get_trace)
        try:
            sites = traced(*args, **kwargs).nodes
        except NotImplementedError as error:
            raise ValueError(IMPROPER.format(error)) from error
        parts = []
        for name in self._unconstrained_shapes:
            site: Any = sites[name]
            parts.append(biject_to(site["fn"].support).inv(site["value"]).reshape(-1))
        return torch.cat(parts)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """The law of unconstrained latent variables: the mixture, or the flow on it.

        Args:
            args: Of the model; not needed.
            kwargs: Of the model; not needed.
        """
        if self.prototype_trace is None:
            raise RuntimeError("Expected a guide that has been run: call it with its arguments.")
        return self.posterior

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Medians of the latent variables, of each number by itself.

        Args:
            args: Of the model; not needed.
            kwargs: Of the model; not needed.
        """
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self,
        quantiles: Sequence[float] | Tensor,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Quantiles of the latent variables, of each unconstrained number by itself.

        Those of the mixture's marginals; with transforms, of draws. Where a constraint ties
        numbers together, as on a simplex, take quantiles of draws.

        Args:
            quantiles: Probabilities from 0 to 1.
            args: Of the model; not needed.
            kwargs: Of the model; not needed.

        Returns:
            By the name of a site, a tensor with a dimension of quantiles on the left.
        """
        law = self.get_posterior()
        probs = torch.atleast_1d(torch.as_tensor(quantiles)).to(self._init_loc())
        if isinstance(law, GaussianMixture):
            each = [law.law.quantile(column, probs) for column in range(self.latent_dim)]
            latents = torch.stack(each, -1)
        else:
            latents = law.sample((QUANTILE_DRAWS,)).quantile(probs, 0)
        found: dict[str, list[Tensor]] = {}
        for latent in latents:
            for site, value in self._unpack_latent(latent):
                found.setdefault(site["name"], []).append(biject_to(site["fn"].support)(value))
        return {name: torch.stack(values) for name, values in found.items()}


def _broadcasts(joint: UnconstrainedJoint, z: Tensor) -> bool:
    """Whether densities of draws (n, D) that are run together are those of each by itself."""
    try:
        together = joint(z)
        joint.vectorize = False
        each = joint(z)
    except (RuntimeError, ValueError, IndexError):
        return False
    finally:
        joint.vectorize = True
    if subsampled(joint.guide.prototype_trace):
        return True  # each run has rows of its own
    finite = together.isfinite() & each.isfinite()
    return bool(
        torch.allclose(together[finite].double(), each[finite].double(), rtol=1e-3, atol=1e-2)
    )
