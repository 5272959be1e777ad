"""A Gaussian mixture that learns its parameters."""

__all__ = ["GaussianMixture"]

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pyro.nn
import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.types import _size

from ..core.batch import Batch, check_paired, split_batch
from ..core.checks import (
    check_count,
    check_floor,
    check_positive_int,
    check_tensor,
    check_value,
    is_traced,
)
from ..core.constraints import real_or_missing_vector
from ..core.module import DistributionModule
from ..evidence.pieces import Evidence
from .clusters import find_clusters
from .covariance import Moments, make_structure
from .finite import FiniteMixture

Covariance = Literal["diagonal", "spherical", "shared", "tied", "full", "low_rank_precision"]
Missing = Literal["error", "marginalize"]


class GaussianMixture(DistributionModule):
    r"""Finite mixture of normals with learnable parameters.

    .. math:: p(x) = \sum_{k=1}^K w_k \, N(x; m_k, \Sigma_k), \qquad
              w = \operatorname{softmax}(\text{logits})

    Train it by gradients with `pyromix.fit`, or by expectation maximisation with
    `pyromix.fit_em`. With a context it is a mixture density network (Bishop 1994): a network adds
    to every parameter, and `condition` returns the mixture.

    Args:
        dim: Dimension D of a sample.
        num_components: Number of components K.
        covariance: ``"diagonal"``: variances of every component and coordinate; ``"spherical"``:
            one per component; ``"shared"``: one per coordinate, the same for all components;
            ``"full"``: a covariance matrix of every component; ``"tied"``: one for all;
            ``"low_rank_precision"``: precision matrices that are a diagonal plus `rank` columns.
        rank: Columns of low-rank precisions.
        variance_floor: Smallest variance, in squared units of the data: standardise data, or set
            it far below the variances that are expected. It bounds the likelihood where a
            component could collapse onto a single point or a constant coordinate. For full and
            tied covariances it bounds the variance of every coordinate given those before it, and
            `pyromix.fit_em` that in any direction.
        missing: Whether NaN is an error, or marks entries that are integrated out in `log_prob`,
            `loss`, `condition`, `impute` and training.
        context_dim: Dimension of the context, zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.
        validate_args: Whether to check the values that are scored.

    Raises:
        ValueError: For an argument that is out of range.

    Example:
        >>> from pyromix import fit
        >>> _ = torch.manual_seed(0)
        >>> data = torch.cat([torch.randn(500, 2) - 3, torch.randn(500, 2) + 3])
        >>> model = GaussianMixture(dim=2, num_components=2)
        >>> history = fit(model, data, steps=100, lr=0.02, progress_bar=False)
        >>> model.condition({0: 3.0}).mean.round().tolist()
        [3.0]
    """

    def __init__(
        self,
        dim: int,
        num_components: int,
        covariance: Covariance = "diagonal",
        *,
        rank: int = 1,
        variance_floor: float = 1e-6,
        missing: Missing = "error",
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        validate_args: bool | None = None,
    ) -> None:
        dim = check_positive_int("dim", dim)
        num_components = check_positive_int("num_components", num_components)
        check_floor("variance_floor", variance_floor)
        if missing not in ("error", "marginalize"):
            raise ValueError(f"Expected missing to be 'error' or 'marginalize', got {missing!r}.")
        for name, value in (("rank", rank), ("context_dim", context_dim)):
            check_count(name, value)
        super().__init__(event_shape=(dim,), validate_args=validate_args)
        self.dim = dim
        self.num_components = num_components
        self.covariance = covariance
        self.rank = rank
        self.variance_floor = variance_floor
        self.missing = missing
        self.context_dim = context_dim
        self.hidden_dims = tuple(hidden_dims)
        self.structure = make_structure(covariance, dim, num_components, variance_floor, rank)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, dim))
        for name, shape in self.structure.shapes.items():
            noise = 0.1 * torch.randn(shape) if name == "raw_factor" else torch.zeros(shape)
            self.register_parameter(name, nn.Parameter(noise))
        self.has_rsample = True
        self.network: Any = None
        if context_dim:
            sizes = [p.numel() for p in self._parameters_of_law().values()]
            self.network = pyro.nn.DenseNN(context_dim, list(hidden_dims), sizes)
            with torch.no_grad():  # start near the mixture without context
                for parameter in self.network.layers[-1].parameters():
                    parameter.mul_(0.1)

    @property
    def support(self) -> constraints.Constraint:
        """Real vectors, with NaN for missing entries if those are integrated out."""
        if self.missing == "marginalize":
            return real_or_missing_vector
        return constraints.real_vector

    @property
    def conditional(self) -> bool:
        """Whether the mixture needs a context."""
        return self.network is not None

    @property
    def scale(self) -> Tensor:
        """Standard deviations of every coordinate in every component, shape (K, D)."""
        return self.distribution.component_variance.sqrt()

    @property
    def distribution(self) -> FiniteMixture:
        """The mixture with the present parameters, and gradients to them."""
        if self.network is not None:
            raise ValueError(
                "This mixture needs a context. Call condition(context), and use the distribution "
                "that it returns; train on pairs (values, context)."
            )
        return self._law(self._parameters_of_law())

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, shape (D,)."""
        return self.distribution.mean

    @property
    def variance(self) -> Tensor:
        """Variance of every coordinate, shape (D,)."""
        return self.distribution.variance

    @property
    def num_free_parameters(self) -> int:
        """Number of free parameters of the mixture, as `bic` and `aic` count them."""
        return self.num_components - 1 + self.loc.numel() + self.structure.num_free

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density at points of shape (\*S, D); shape (\*S).

        With ``missing="marginalize"``, that of the entries that are not NaN.
        """
        return self._log_prob(self.distribution, value)

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:  # noqa: ARG002
        """Mean negative log-density of a batch: values, or a pair of values and context."""
        value, context = split_batch(batch)
        law = self.distribution if context is None else self._given_context(context)
        check_paired(law, value)
        return -self._log_prob(law, value).mean()

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws without a graph, shape (\*S, D)."""
        return self.distribution.sample(sample_shape)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws with exact pathwise gradients, shape (\*S, D); see `MixtureOfNormals`."""
        return self.distribution.rsample(sample_shape)

    def rsample_weighted(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draws (n, D) and log-weights (n,); see `MixtureOfNormals.rsample_weighted`."""
        return self.distribution.rsample_weighted(num_samples)

    def responsibilities(self, value: Tensor) -> Tensor:
        r"""Probability of every component given points (\*S, D); shape (\*S, K)."""
        if self.missing == "marginalize":
            return self.distribution._observed_scores(value, ~value.isnan()).softmax(-1)
        return self.distribution.responsibilities(value)

    def marginal(self, dims: int | Iterable[object]) -> FiniteMixture:
        """Law of some of the coordinates; see `MixtureOfNormals.marginal`."""
        return self.distribution.marginal(dims)

    def condition(self, *given: Any) -> Any:
        r"""The law given what is known.

        Args:
            given: Coordinate -> its value, a number or a tensor; or pieces of evidence: see
                `MixtureOfNormals.condition`. Or, if the model has a context, its value of shape
                (\*B, context_dim): the mixture of batch shape B that it gives can be conditioned
                on coordinates in turn.

        Raises:
            ValueError: If it does not fit.
        """
        if self.network is not None:
            if len(given) != 1 or isinstance(given[0], (Mapping, Evidence)):
                raise ValueError(
                    "This mixture needs a context: condition(context), or, with values or "
                    "evidence, condition(context).condition(...)."
                )
            return self._given_context(given[0])
        if len(given) == 1 and isinstance(given[0], Mapping):
            missing = self.missing == "marginalize"
            return self.distribution._conditioned(given[0], missing=missing)
        return self.distribution.condition(*given)

    def impute(self, value: Tensor, num_samples: int | None = None) -> Tensor:
        """Fills in NaN from the other entries of points (N, D); see `MixtureOfNormals.impute`."""
        return self.distribution.impute(value, num_samples)

    def bic(self, data: Tensor) -> float:
        """Bayesian information criterion on data (N, D): lower is better."""
        return self._criterion(data, math.log(len(data)))

    def aic(self, data: Tensor) -> float:
        """Akaike information criterion on data (N, D): lower is better."""
        return self._criterion(data, 2.0)

    def initialize(self, data: Batch) -> None:
        """Starts from clusters of the data: k-means from k-means++ seeds.

        Parameters that do not require gradients are left alone. Missing entries are filled with
        their column's mean.

        Args:
            data: Points of shape (N, D), of the model's dtype and device; for a model with
                context, a pair of points and contexts.

        Raises:
            ValueError: If the data does not fit or is not finite.
        """
        x, _ = split_batch(data)
        if self.missing == "marginalize":
            fill = x.nanmean(0).nan_to_num(0.0)
            x = torch.where(x.isnan(), fill, x)
        x = check_value(self, x, like=self.loc).reshape(-1, self.dim)
        if len(x) == 0 or not x.isfinite().all():
            raise ValueError(
                "Expected at least one point and finite values to initialise from, got "
                f"{len(x)} points of which {int((~x.isfinite()).any(-1).sum())} are not finite."
            )
        clusters = find_clusters(x, self.num_components, covariances=self.structure.full_moments)
        weight, second = clusters.weights.double(), clusters.second.double()
        moments = Moments(weight, weight.reshape(-1, *[1] * (second.dim() - 1)) * second)
        raw = {name: p.detach().double() for name, p in self._raw().items()}
        self._assign(clusters.weights.log(), clusters.loc, self.structure.estimate(moments, raw))
        super().initialize(data)

    def _raw(self) -> dict[str, Tensor]:
        """The parameters of the covariances."""
        return {name: getattr(self, name) for name in self.structure.shapes}

    def _parameters_of_law(self) -> dict[str, Tensor]:
        return {"logits": self.logits, "loc": self.loc, **self._raw()}

    def _law(self, parameters: Mapping[str, Tensor]) -> FiniteMixture:
        raw = {name: parameters[name] for name in self.structure.shapes}
        mixture = self.structure.mixture(parameters["logits"], parameters["loc"], raw)
        mixture._validate_args = self._validate_args
        return mixture

    def _given_context(self, context: Any) -> FiniteMixture:
        if self.network is None:
            raise ValueError(
                "Expected values alone, got a batch that is a pair, which is read as values and "
                "context. This mixture takes no context: leave labels out, or give context_dim."
            )
        context = check_tensor("context", context, like=self.loc)
        if context.dim() < 1 or context.shape[-1] != self.context_dim:
            raise ValueError(
                f"Expected a context of shape (*B, {self.context_dim}), got "
                f"{tuple(context.shape)}."
            )
        if self._validate_args and not is_traced() and not bool(context.isfinite().all()):
            raise ValueError("Expected a finite context, got NaN or infinity.")
        own = self._parameters_of_law()
        added = self.network(context)
        added = added if isinstance(added, tuple) else (added,)
        batch = context.shape[:-1]
        parameters = {
            name: parameter + change.reshape(*batch, *parameter.shape)
            for (name, parameter), change in zip(own.items(), added, strict=True)
        }
        return self._law(parameters)

    def _log_prob(self, law: FiniteMixture, value: Tensor) -> Tensor:
        if self.missing == "marginalize":
            return law.observed_log_prob(value, ~value.isnan())
        return law.log_prob(value)

    def _criterion(self, data: Tensor, penalty: float) -> float:
        with torch.no_grad():
            return float(penalty * self.num_free_parameters - 2 * self.log_prob(data).sum())

    @torch.no_grad()
    def _assign(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> None:
        """Sets the parameters, but for frozen ones."""
        for name, value in {"logits": logits, "loc": loc, **raw}.items():
            parameter = getattr(self, name)
            if parameter.requires_grad:
                parameter.copy_(value)
