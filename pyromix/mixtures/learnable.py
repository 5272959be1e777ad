"""A Gaussian mixture that learns its parameters."""

__all__ = ["GaussianMixture"]

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import pyro.nn
import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import Distribution, constraints
from torch.types import _size

from ..conditioning.law import ConditionedLaw, Statement
from ..conditioning.mixture import MixturePrior
from ..core.batch import Batch, split_batch
from ..core.checks import (
    Check,
    check_arguments,
    check_count,
    check_floor,
    check_squares,
    check_tensor,
    check_value,
    is_traced,
    one_of,
)
from ..core.constraints import real_or_missing_vector
from ..core.conversions import TensorLike, as_rows, as_tensor
from ..core.networks import check_widths
from ..core.random import takes_generator
from ..core.standardize import Mode, Standardize
from ..evidence.pieces import Evidence
from .clusters import find_clusters, weighted_clusters
from .covariance import FAMILIES, STRUCTURES, make_structure
from .finite import FiniteMixture
from .mixture_module import MixtureModule
from .robust_clusters import find_robust_clusters
from .tails import StudentTails, check_df

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# By volume, shape and orientation.
Axial = Literal["EII", "VII", "EEI", "VEI", "EVI", "VVI"]
Oblique = Literal["EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV"]
Family = Axial | Oblique
Named = Literal[
    "diagonal", "spherical", "shared", "tied", "full", "low_rank", "low_rank_precision"
]
Covariance = Named | Family
Missing = Literal["error", "marginalize"]
Tails = Literal["normal", "student"]


class GaussianMixture(MixtureModule[FiniteMixture]):
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
            ``"low_rank"``: covariance matrices that are a diagonal plus `rank` columns times
            their transpose, of factor analysers; ``"low_rank_precision"``: precision matrices
            that are.
            Or a code of three letters such as ``"VVE"``, which says of volumes, shapes and
            orientations whether they are equal (E) or vary (V); I stands for the identity's
            (Celeux and Govaert 1995). ``"VII"``, ``"EEI"``, ``"VVI"``, ``"EEE"`` and ``"VVV"``
            are spherical, shared, diagonal, tied and full covariances.
        rank: Columns of low-rank covariances and precisions.
        variance_floor: Smallest variance, in squared units of the data, or of its columns'
            standard deviations where those are standardised. It bounds the likelihood where a
            component could collapse onto a single point or a constant coordinate. For full and
            tied covariances it bounds the variance of every coordinate given those before it, and
            `pyromix.fit_em` that in any direction; so do the families of other codes.
        missing: Whether NaN is an error, or marks entries that are integrated out in `log_prob`,
            `loss`, `condition`, `impute` and training.
        context_dim: Dimension of the context, zero for none.
        hidden_dims: Widths of the hidden layers of the context's network.
        scale_floor: Smallest standard deviation, the root of `variance_floor`, in its place: the
            name that all models have in common.
        tails: ``"normal"``, or ``"student"``: components are multivariate Student-t laws, whose
            tails are heavy, and which outliers hardly move. Squared scales then stand for
            variances everywhere above; not with low-rank covariances and precisions.
        df: Degrees of freedom of Student-t components: by default learned for every component, or,
            ``"shared"``, one for all; a number is kept.
        standardize: Whether parameters are in units of the columns' own location and spread, as
            `initialize` finds them (``"spherical"``, EII, EVE, VVE, EEV and VEV: of their common
            spread, as scaling single columns would change the family). Values, evidence and laws
            are in the user's units all the same. By default if units are far from those that
            learning rates are meant for: if the largest standard deviation is above 10 or below
            0.1.
        validate_args: Whether to check the values that are scored.

    Attributes:
        loc: Means of the components, shape (K, D), a parameter: in the units that `units` tells.
            In the user's units they are ``law.loc``.
        units: Location and scale of every column, that the parameters are in units of.

    Raises:
        ValueError: For an argument that is out of range.

    Example:
        >>> from pyromix import Observed, fit
        >>> _ = torch.manual_seed(0)
        >>> data = torch.cat([torch.randn(500, 2) - 3, torch.randn(500, 2) + 3])
        >>> model = GaussianMixture(dim=2, num_components=2)
        >>> history = fit(model, data, steps=100, lr=0.02, progress_bar=False)
        >>> model.condition(Observed({0: 3.0})).mean.round().tolist()
        [3.0, 3.0]
    """

    argument_additions: ClassVar[Mapping[str, Any]] = {
        **MixtureModule.argument_additions,
        "tails": "normal",
        "df": None,
    }
    argument_checks: ClassVar[Mapping[str, Check]] = {
        **MixtureModule.argument_checks,
        "tails": one_of("normal", "student"),
        "df": check_df,
        "covariance": one_of(*STRUCTURES, *FAMILIES),
        "rank": check_count,
        "missing": one_of("error", "marginalize"),
        "context_dim": check_count,
        "hidden_dims": check_widths,
    }
    covariance: Covariance
    rank: int
    missing: Missing
    context_dim: int
    hidden_dims: tuple[int, ...]
    tails: Tails
    df: float | str | None

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
        scale_floor: float | None = None,
        tails: Tails = "normal",
        df: float | Literal["shared"] | None = None,
        standardize: Mode = "auto",
        validate_args: bool | None = None,
    ) -> None:
        if scale_floor is not None:
            variance_floor = check_floor("scale_floor", scale_floor) ** 2
        arguments = check_arguments(GaussianMixture.argument_checks, locals())
        dim, num_components = arguments["dim"], arguments["num_components"]
        if arguments["tails"] == "normal" and arguments["df"] is not None:
            raise ValueError(
                f"Expected df for tails='student' alone, got df={df!r} for normal components."
            )
        if arguments["tails"] == "student" and covariance in ("low_rank", "low_rank_precision"):
            raise ValueError(
                f"Expected scale factors for tails='student', got covariance={covariance!r}. "
                f"Use 'full', or normal tails."
            )
        super().__init__(event_shape=(dim,), validate_args=validate_args)
        self.keep_arguments(arguments)
        self.structure = make_structure(
            covariance, dim, num_components, self.variance_floor, self.rank
        )
        self.units = Standardize(dim, optional=True)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, dim))
        for name, shape in self.structure.shapes.items():
            noise = 0.1 * torch.randn(shape) if name == "raw_factor" else torch.zeros(shape)
            self.register_parameter(name, nn.Parameter(noise))
        self.student_tails: StudentTails | None = None
        if self.tails == "student":
            self.student_tails = StudentTails(num_components, self.df)
            for name, start in self.student_tails.start().items():
                self.register_parameter(name, nn.Parameter(start.to(self.loc)))
        self.network: Any = None
        if self.context_dim:
            sizes = [p.numel() for p in self._parameters_of_law().values()]
            self.network = pyro.nn.DenseNN(self.context_dim, list(self.hidden_dims), sizes)
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
        """Standard deviations of every coordinate in every component, shape (K, D).

        Of Student-t components it is the scales.
        """
        return self.law._squared_scale.sqrt()

    @property
    def num_free_parameters(self) -> int:
        """Number of free parameters of the mixture, as `bic` and `aic` count them.

        Less than `num_parameters`, the number of trainable numbers, where those are redundant:
        weights sum to one, and the columns of a low-rank factor may be rotated. The network of a
        context is not counted, and frozen parameters are.
        """
        of_tails = sum(parameter.numel() for parameter in self._raw_tails().values())
        return self.num_components - 1 + self.loc.numel() + self.structure.num_free + of_tails

    def columns_at_floor(self) -> Tensor | None:
        """Which columns have the smallest variance in every component, shape (D,)."""
        if self.conditional:
            return None
        with torch.no_grad():
            variance = self.law._squared_scale / self.units.scale.square()
            return self.structure.variance.is_reached(variance).all(-2)

    def column_floors(self) -> Tensor:
        """Smallest standard deviation of each column, in the user's units, (D,)."""
        return self.scale_floor * self.units.scale

    @takes_generator
    def rsample_with_score(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws with the gradient that they have given their components, and scores of these.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Draws of shape (\*S, D) and scores of shape (\*S); see
            `MixtureOfNormals.rsample_with_score`.
        """
        return self.law.rsample_with_score(sample_shape)

    def responsibilities(self, value: TensorLike) -> Tensor:
        r"""Probability of every component given points (\*S, D); shape (\*S, K).

        Args:
            value: A tensor, an array or nested lists. With ``missing="marginalize"``, NaN marks
                missing entries.
        """
        value = as_tensor("value", value, like=self.loc)
        return self.law.responsibilities(value, self._observed(value))

    def marginal(self, dims: int | Iterable[object]) -> FiniteMixture:
        """Law of some of the coordinates; see `MixtureOfNormals.marginal`."""
        return self.law.marginal(dims)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability that every coordinate is at most the value's; see `MixtureOfNormals.cdf`."""
        return self.law.cdf(value)

    def icdf(self, value: Tensor) -> Tensor:
        """The point below which lies so much of it; see `MixtureOfNormals.icdf`."""
        return self.law.icdf(value)

    @takes_generator
    def kl(
        self, other: Distribution, num_samples: int = 10_000, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Divergence to another law, and its standard error; see `MixtureOfNormals.kl`.

        Args:
            other: Any law over the same values.
            num_samples: Number of draws that it is a mean over.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self.law.kl(other, num_samples)

    def kl_bounds(self, other: Any) -> tuple[Tensor, Tensor]:
        """Numbers that the divergence lies between; see `MixtureOfNormals.kl_bounds`."""
        return self.law.kl_bounds(other)

    def reduce(self, num_components: int) -> FiniteMixture:
        """A mixture of fewer components near to this one; see `MixtureOfNormals.reduce`."""
        return self.law.reduce(num_components)

    def plot(self, ax: "Axes | None" = None, **kwargs: Any) -> "Axes":
        """Draws a mixture over two coordinates; see `MixtureOfNormals.plot`."""
        return self.law.plot(ax, **kwargs)

    @overload
    def condition(self, values: Mapping[int, float | Tensor], /) -> FiniteMixture: ...
    @overload
    def condition(self, first: Evidence, /, *others: Statement) -> ConditionedLaw: ...
    @overload
    def condition(self, context: TensorLike, /) -> FiniteMixture: ...
    def condition(self, *given: Any) -> Any:
        r"""The law given evidence or, of a model with a context, the mixture given that.

        Args:
            given: Pieces of evidence: see `MixtureOfNormals.condition`, also for what a mapping
                gives. Or, if the model has a context, its value of shape (\*B, context_dim): the
                mixture of batch shape B that it gives can be conditioned on evidence in turn.

        Returns:
            A `ConditionedMixture` over all coordinates, or the mixture given a context.

        Raises:
            ValueError: If it does not fit.
        """
        if self.conditional:
            if len(given) != 1 or isinstance(given[0], (Mapping, Evidence)):
                raise ValueError(
                    "This mixture needs a context: condition(context), or, with values or "
                    "evidence, condition(context).condition(...)."
                )
            return self._law_given(given[0])
        if len(given) == 1 and not isinstance(given[0], Evidence):
            return self.law._given_mapping(given[0], missing=self.missing == "marginalize")
        return self.law.condition(*given)

    def evidence_prior(self) -> MixturePrior:
        """The mixture, without a context, as what evidence is added to."""
        return self.law.evidence_prior()

    @takes_generator
    def impute(
        self,
        value: TensorLike,
        num_samples: int | None = None,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Fills in NaN from the other entries of points (N, D); see `MixtureOfNormals.impute`.

        Args:
            value: Points, NaN where an entry is missing: a tensor, an array or nested lists.
            num_samples: How many draws of the missing entries to return; by default one value is
                filled in, their mean given the others.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of shape (N, D), or (num_samples, N, D).
        """
        return self.law.impute(value, num_samples)

    def bic(self, data: TensorLike) -> float:
        """Bayesian information criterion on data (N, D): lower is better."""
        data = as_tensor("data", data, like=self.loc)
        return self._criterion(data, math.log(len(data)))

    def aic(self, data: TensorLike) -> float:
        """Akaike information criterion on data (N, D): lower is better."""
        return self._criterion(as_tensor("data", data, like=self.loc), 2.0)

    @torch.no_grad()
    def initialize(
        self, data: Batch | TensorLike, responsibilities: TensorLike | None = None
    ) -> None:
        """Starts from clusters of the data: k-means from k-means++ seeds.

        Parameters that do not require gradients are left alone. Missing entries are filled with
        their column's mean. With Student-t components it is medians and quartiles in place of
        means and standard deviations, and outliers have no clusters.

        Args:
            data: Points of shape (N, D): a tensor of the model's dtype and device, an array or
                nested lists; for a model with context, a pair of points and contexts.
            responsibilities: Probabilities of the components given the points, shape (N, K), to
                start from in place of k-means.

        Raises:
            ValueError: If the data does not fit or is not finite.
        """
        x, _ = split_batch(data, like=self.loc)
        observed, heavy = self._observed(x), self.student_tails is not None
        if self.missing == "marginalize":
            fill = x.nanmedian(0).values if heavy else x.nanmean(0)
            x = torch.where(x.isnan(), fill.nan_to_num(0.0), x)
        x = check_value(self, x, like=self.loc).reshape(-1, self.dim)
        if len(x) == 0 or not x.isfinite().all():
            raise ValueError(
                "Expected at least one point and finite values to initialise from, got "
                f"{len(x)} points of which {int((~x.isfinite()).any(-1).sum())} are not finite."
            )
        check_squares("data", x)
        if self.loc.requires_grad:
            seen = None if observed is None else observed.reshape(x.shape).to(x.dtype)
            common = self.structure.isotropic
            self.units.adapt(x, seen, mode=self.standardize, common=common, robust=heavy)
        x = self.units(x)
        matrices = self.structure.full_moments
        if responsibilities is None:
            find = find_robust_clusters if heavy else find_clusters
            clusters = find(x, self.num_components, covariances=matrices)
        else:
            given = as_rows(
                "responsibilities", responsibilities, self.num_components, like=self.loc
            )
            clusters = weighted_clusters(x, self._checked(given, x), covariances=matrices)
        raw = {name: p.detach().double() for name, p in self._raw().items()}
        estimated = self.structure.start(clusters, x, raw)
        if self.student_tails is not None:
            estimated |= self.student_tails.start()
        self._assign(clusters.weights.log(), clusters.loc, estimated)
        super().initialize(x)

    def _checked(self, responsibilities: Tensor, x: Tensor) -> Tensor:
        """Responsibilities that are probabilities (N, K) of components given points (N, D)."""
        total = responsibilities.sum(-1)
        if len(responsibilities) != len(x) or not bool(
            ((responsibilities >= 0).all(-1) & (total.sub(1).abs() < 1e-4)).all()
        ):
            raise ValueError(
                f"Expected responsibilities to be probabilities of shape "
                f"({len(x)}, {self.num_components}) that sum to one for every point, got shape "
                f"{tuple(responsibilities.shape)} and sums from {float(total.min()):.4g} to "
                f"{float(total.max()):.4g}."
            )
        return responsibilities

    def _raw(self) -> dict[str, Tensor]:
        """The parameters of the covariances."""
        return {name: getattr(self, name) for name in self.structure.shapes}

    def _raw_tails(self) -> dict[str, Tensor]:
        """The parameters of the tails, of Student-t components."""
        if self.student_tails is None:
            return {}
        return {name: getattr(self, name) for name in self.student_tails.shapes}

    def _parameters_of_law(self) -> dict[str, Tensor]:
        """All parameters but the network's, in the order in which that returns changes."""
        return {"logits": self.logits, "loc": self.loc, **self._raw(), **self._raw_tails()}

    def _law_given(self, context: Any = None) -> FiniteMixture:
        """The mixture, given contexts of shape (*B, context_dim) if it is conditional."""
        parameters = self._parameters_of_law()
        if context is not None:
            parameters = self._shifted(parameters, context)
        raw = {name: parameters[name] for name in self.structure.shapes}
        mixture = self.structure.mixture(parameters["logits"], parameters["loc"], raw)
        if self.student_tails is not None:
            mixture = self.student_tails.mixture(mixture, parameters)
        mixture = mixture._in_units(self.units.loc, self.units.scale)
        mixture._validate_args = self._validate_args
        return mixture

    def _shifted(self, parameters: Mapping[str, Tensor], context: Any) -> dict[str, Tensor]:
        """The parameters given contexts (*B, context_dim): what the network returns is added."""
        context = as_rows("context", context, self.context_dim, like=self.loc)
        if self._validate_args and not is_traced() and not bool(context.isfinite().all()):
            raise ValueError("Expected a finite context, got NaN or infinity.")
        changes = self.network(context)
        changes = changes if isinstance(changes, tuple) else (changes,)
        return {
            name: parameter + change.reshape(*context.shape[:-1], *parameter.shape)
            for (name, parameter), change in zip(parameters.items(), changes, strict=True)
        }

    def _score(self, law: FiniteMixture, value: Tensor) -> Tensor:
        observed = self._observed(check_tensor("value", value, like=self.loc))
        return law.log_prob(value) if observed is None else law.observed_log_prob(value, observed)

    def _observed(self, value: Tensor) -> Tensor | None:
        """Which entries were observed, or None where missing ones are an error."""
        return ~value.isnan() if self.missing == "marginalize" else None

    def _criterion(self, data: Tensor, penalty: float) -> float:
        """Minus twice the log-likelihood of data (N, D), plus a penalty for every parameter."""
        with torch.no_grad():
            return float(penalty * self.num_free_parameters - 2 * self.log_prob(data).sum())

    @torch.no_grad()
    def _assign(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> None:
        """Sets the parameters, but for frozen ones."""
        for name, value in {"logits": logits, "loc": loc, **raw}.items():
            parameter = getattr(self, name)
            if parameter.requires_grad:
                parameter.copy_(value)
