"""A deep residual mixture that learns its parameters."""

__all__ = ["DRMM"]

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import constraints
from torch.types import _size

from ..conditioning.law import ConditionedLaw, Statement
from ..core.batch import Batch, split_batch
from ..core.checks import (
    Check,
    as_items,
    check_arguments,
    check_count,
    check_floor,
    check_index,
    check_positive_int,
    check_reachable,
    number,
    one_of,
)
from ..core.constraints import Floored, mixed_columns, real_or_missing_vector
from ..core.conversions import TensorLike, as_integers, as_tensor
from ..core.draws import without_graph
from ..core.law_module import LawModule
from ..core.random import takes_generator
from ..core.registry import encode
from ..core.standardize import Mode, Standardize, check_mode
from .affine import AffineMixture
from .columns import Columns
from .conditioned import ResidualPrior, Settings
from .initialization import Shape, initial_parameters
from .law import ResidualMixture
from .links import log_normalize
from .map_parameters import KINDS, MapParameters, layer_floors, make_maps
from .query import Query
from .rows import Rows
from .shifts import ShiftMixture
from .stages import (
    STAGES,
    em_loss,
    learning_rate_factor,
    likelihood_loss,
    mixture_loss,
    proposal_loss,
    rho,
)
from .values import Value, leading_shape, rows_of

Scale = Literal["diagonal", "spherical", "scalar"]
Missing = Literal["error", "marginalize"]

# Stages of training and their shares of the steps. From starting values that are clusters, the
# density itself is the better loss from the first step on: held-out nats, mean of two seeds where
# there are several, after em, real-latents-joint, half em and half likelihood, likelihood alone:
# a spiral -2.36, -2.64, -1.91, -1.77; inverse kinematics -24.3, -23.8, -23.0, -22.4; MNIST with
# noise of 0.05, 675, 681, 695, 702. F1 scores were as good or better, too. Neither decay of the
# tables, nor other moments of Adam, nor rates of their own for tables or means helped clearly.
CURRICULUM = (("likelihood", 1.0),)

NO_CONTEXT = (
    "Expected values alone, got a batch that is a pair, which is read as values and context. This "
    "model takes no context: leave labels out, or give them as a categorical column."
)


def _check_categories(name: str, categories: Any) -> tuple[int, ...]:
    counts = as_items(categories)
    if counts is None:
        raise ValueError(f"Expected {name} such as (3, 10), got {categories!r}.")
    return tuple(check_positive_int(f"every entry of {name}", count) for count in counts)


def _check_maps(name: str, maps: Any) -> str | tuple[str, ...]:
    """The kind of all layers, or one for each."""
    kinds = [maps] if isinstance(maps, str) else as_items(maps)
    if not kinds or not all(isinstance(kind, str) and kind in KINDS for kind in kinds):
        raise ValueError(
            f"Expected {name} to be one of {', '.join(KINDS)}, or one of them for every layer, "
            f"got {maps!r}."
        )
    return maps if isinstance(maps, str) else tuple(kinds)


def _check_columns(dim: int, categories: tuple[int, ...], maps: str | tuple[str, ...]) -> None:
    """Checks that there are columns, and real ones for maps."""
    if dim == 0 and not categories:
        raise ValueError(
            "Expected dim to be positive, or categories of categorical columns, got neither."
        )
    if dim == 0 and any(kind != "shift" for kind in ((maps,) if isinstance(maps, str) else maps)):
        raise ValueError(
            f"Expected maps='shift' without real columns, which other maps turn and stretch, got "
            f"{maps!r}."
        )


def _check_curriculum(name: str, curriculum: Any) -> tuple[tuple[str, float], ...]:
    try:
        stages = tuple((str(name), float(share)) for name, share in curriculum)
    except (TypeError, ValueError):
        stages = ()
    good = all(name in STAGES and 0 < share < math.inf for name, share in stages)
    if not stages or not good:
        raise ValueError(
            f"Expected {name} to be pairs of a stage, of {STAGES}, and a positive share of "
            f"the steps, such as (('em', 0.5), ('likelihood', 0.5)), got {curriculum!r}."
        )
    total = sum(share for _, share in stages)
    return tuple((name, share / total) for name, share in stages)


class DRMM(LawModule[ResidualMixture]):
    r"""Deep residual mixture model: layers of mixtures, each of what the one before leaves.

    .. math:: p(h_l = k \mid h_{<l}) = \operatorname{softmax}_k \Big(\log w_l[k]
              + \sum_{c<l} \log p_{lc}[k, h_c]\Big), \qquad
              x \mid h \sim N\Big(\sum_l \mu_l[h_l], s_L^2[h_L]\Big)

    A mixture of :math:`K^L` normals whose means are sums of one mean from each of L layers, and
    whose weights are learnt from which codes h occur together (Hämäläinen et al., Deep Residual
    Mixture Models, sections 3.1 to 3.8). Once trained, it can be conditioned on any columns,
    priors, observations and constraints.

    `log_prob` is exact where there are no more than `max_exact` codes. Elsewhere it is a lower
    bound, deterministic and differentiable: it sums over the codes that a beam search through
    the layers finds, and `beam` closes the gap. Of rows with missing entries far more codes may be
    likely than a beam holds: there a sample of up to 64 times as many stands for all of them. The
    sample is a function of the row alone, so that densities do not change from call to call. They
    are estimates, neither above nor below, in error by about 0.03 nats at the default `beam`
    (``python -m benchmarks.drmm.gaps``). Draws have no pathwise gradient: in a guide, the
    score function is used.

    With `maps` the layers do more than to subtract means: component k turns and stretches what it
    is given,

    .. math:: r_1 = x, \qquad r_{l+1} = A_l[k] (r_l - \mu_l[k]), \qquad
              r_{L+1} \mid h \sim N(0, I),

    so that a code stands for a normal with a covariance matrix of its own. One layer of triangular
    maps is a mixture with full covariances; more layers follow columns that depend on each other
    smoothly, with far fewer numbers (``python -m benchmarks.drmm.maps``).

    Categorical columns may be distributions instead of codes, such as the codes that another model
    is uncertain about. Values are a mapping then, in `log_prob`, `loss`, `fit` and wherever points
    are encoded: ``"probs"``, of shape (\*S, columns, n), n the largest number of categories, with
    zeros beyond those of a column, and ``"real"``, shape (\*S, D), where there are real columns.
    Shares y of a column count for :math:`\sum_c y_c \log p(c \mid h)`, those of one category for
    its log-probability. With ``missing="marginalize"`` a column that is NaN is missing. What is
    known of a column in a question is a `CategoricalPrior`.

    Train it with `pyromix.fit` at a learning rate of about 0.02 in standard deviations of the
    columns (0.005 for grey values from 0 to 1, and 0.01 with 10 layers): the means move by so much
    in a step, and far lower or higher rates cost more than any other choice. With triangular or
    low-rank maps take about 0.002, and a `gradient_clip` of 50. With little data,
    pass `validation`: the best weights are restored.

    Args:
        dim: Number of real columns D. Zero with categorical columns alone.
        num_layers: Number of layers L.
        num_components: Components of a layer K.
        maps: What layers do next to subtracting means, one for all or one for each: ``"shift"``:
            nothing, the paper's model; ``"diagonal"``: every component stretches columns;
            ``"triangular"``: it multiplies them by a triangular matrix, D (D + 1) / 2 numbers a
            component; ``"low_rank"``: by a diagonal that is changed in `rank` directions,
            D (1 + rank) numbers. A layer of shifts among others has a stretch that all its
            components share.
        rank: Number of directions of low-rank maps.
        shrinkage: Pulls maps towards the identity, in the units that parameters are in: training
            goes on as if every component of every layer had seen points of a standard normal
            besides, this share of all points. For tables of some hundred rows, where 0.01 to 0.3
            are worth a comparison on held-out rows; zero, the default, elsewhere.
        categories: Numbers of categories of categorical columns. They follow the real ones, as
            codes from zero, with :math:`p(c_j \mid h) = \operatorname{softmax}(\sum_l
            t_{lj}[h_l])`.
        scale: Standard deviations of the last layer: ``"diagonal"``, one for every component and
            column; ``"spherical"``, one for every component; ``"scalar"``, one, as in the paper.
        inner_scale: Those of the other layers, which guide encodings and proposals:
            ``"diagonal"``, one for every column, or ``"scalar"``, one, as in the paper.
        scale_floor: Smallest standard deviation, in units of the data, or of its columns'
            standard deviations where those are standardised.
        standardize: Whether parameters are in units of the columns' own location and spread, as
            `initialize` finds them. Values, evidence and densities are in the user's units all
            the same. By default if units are far from those that learning rates are meant for:
            if the largest standard deviation is above 10 or below 0.1.
        smoothing: Smallest probability of a code given another one is this over K.
        truncation: Codes less likely than this share of the likeliest one, given those before, do
            not occur (the paper's appendix C.3). It changes the law.
        missing: Whether NaN is an error, or marks entries that are integrated out.
        max_exact: Largest number of codes :math:`K^L` that densities sum over.
        beam: Codes that `log_prob` keeps from layer to layer, where there are more; by default
            16, or 32 with maps.
        training_beam: The same for the loss.
        curriculum: Names of the stages of training and their shares of the steps, in their order;
            see `pyromix.drmm.stages`. By default it is ``"likelihood"`` alone, whose loss is the
            law's own density; the paper's is ``(("em", 1.0),)``. In evaluation mode, as in
            validation, the loss is the mean of ``-log_prob``.
        max_codes: Another name of `max_exact`, common to all models.
        orphans: Weight of what draws components to data in the stage ``"em"``.
        validate_args: Whether to check the values that are scored.

    Raises:
        ValueError: For an argument that is out of range.

    Example:
        >>> from pyromix import fit
        >>> _ = torch.manual_seed(0)
        >>> angle = 6.3 * torch.rand(1000)
        >>> data = torch.stack([angle.cos(), angle.sin()], -1)
        >>> model = DRMM(dim=2, num_layers=2, num_components=8)
        >>> history = fit(model, data, steps=200, lr=0.005, progress_bar=False)
        >>> model.encode(data[:3]).shape
        torch.Size([3, 2])
        >>> streams = {"probs": torch.rand(100, 5, 4).softmax(-1)}
        >>> model = DRMM(dim=0, num_layers=2, num_components=8, categories=(4,) * 5)
        >>> history = fit(model, streams, steps=10, progress_bar=False)
        >>> model.log_prob(streams).shape
        torch.Size([100])
    """

    argument_aliases = ("max_codes",)
    argument_additions: ClassVar[Mapping[str, Any]] = {
        "standardize": "auto",
        "maps": "shift",
        "rank": 4,
        "shrinkage": 0.0,
    }
    argument_checks: ClassVar[Mapping[str, Check]] = {
        "dim": check_count,
        "num_layers": check_positive_int,
        "num_components": check_positive_int,
        "maps": _check_maps,
        "rank": check_positive_int,
        "shrinkage": number(0),
        "categories": _check_categories,
        "scale": one_of("diagonal", "spherical", "scalar"),
        "inner_scale": one_of("diagonal", "scalar"),
        "scale_floor": check_floor,
        "smoothing": number(0, 1),
        "truncation": number(0, 1),
        "missing": one_of("error", "marginalize"),
        "max_exact": check_count,
        "beam": check_positive_int,
        "training_beam": check_positive_int,
        "standardize": check_mode,
        "curriculum": _check_curriculum,
        "orphans": number(0),
    }
    dim: int
    num_layers: int
    num_components: int
    maps: str | tuple[str, ...]
    rank: int
    shrinkage: float
    categories: tuple[int, ...]
    scale: str
    inner_scale: str
    scale_floor: float
    trains_density = True
    smoothing: float
    truncation: float
    missing: str
    max_exact: int
    beam: int
    training_beam: int
    standardize: Mode
    curriculum: tuple[tuple[str, float], ...]
    orphans: float

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_components: int,
        *,
        maps: str | Sequence[str] = "shift",
        rank: int = 4,
        shrinkage: float = 0.0,
        categories: Sequence[int] = (),
        scale: Scale = "diagonal",
        inner_scale: Literal["diagonal", "scalar"] = "diagonal",
        scale_floor: float = 1e-3,
        smoothing: float = 1e-8,
        truncation: float = 0.0,
        missing: Missing = "error",
        max_exact: int = 4096,
        beam: int | None = None,
        training_beam: int = 4,
        standardize: Mode = "auto",
        curriculum: Sequence[tuple[str, float]] = CURRICULUM,
        orphans: float = 0.01,
        max_codes: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        max_exact = max_exact if max_codes is None else max_codes
        beam = beam if beam is not None else 16 if maps == "shift" else 32
        arguments = check_arguments(DRMM.argument_checks, locals())
        dim, categories = arguments["dim"], arguments["categories"]
        _check_columns(dim, arguments["categories"], arguments["maps"])
        super().__init__(event_shape=(dim + len(categories),), validate_args=validate_args)
        self.keep_arguments(arguments)
        num_layers, num_components = self.num_layers, self.num_components
        # Unconstrained numbers are logarithms of variances above the floor's.
        self._variance = Floored(self.scale_floor**2, excess=1.0)
        k, pairs = num_components, num_layers * (num_layers - 1) // 2
        self.units = Standardize(dim, optional=True)
        self.log_weight = nn.Parameter(torch.zeros(num_layers, k))
        # For every pair of layers c < l, in the order (1, 0), (2, 0), (2, 1), ...: rows are codes
        # of c, columns those of l, so that a code of c selects a row.
        self.link_logits = nn.Parameter(torch.zeros(pairs, k, k))
        spread = 0.5 ** torch.arange(num_layers).reshape(-1, 1, 1)
        self.loc = nn.Parameter(spread * torch.randn(num_layers, k, dim))
        self.layers = nn.ModuleList()
        if self.affine:
            kinds = (maps,) * num_layers if isinstance(maps, str) else tuple(maps)
            if len(kinds) != num_layers:
                raise ValueError(
                    f"Expected maps of {num_layers} layers, or one kind for all, got {maps!r}."
                )
            if any(stage != "likelihood" for stage, _ in self.curriculum):
                raise ValueError(
                    f"Expected the curriculum (('likelihood', 1.0),): other stages are for "
                    f"maps='shift', got {self.curriculum!r}."
                )
            self.layers.extend(MapParameters(kind, k, dim, self.rank) for kind in kinds)
        else:
            if self.shrinkage:
                raise ValueError(
                    f"Expected no shrinkage with maps='shift', which have nothing to shrink, got "
                    f"{shrinkage!r}."
                )
            inner = (num_layers - 1, 1 if inner_scale == "scalar" else dim)
            self.raw_inner_scale = nn.Parameter(
                (2 * spread[1:, 0].log()).expand(inner).clone()  # logarithms of variances
            )
            shape = {"diagonal": (k, dim), "spherical": (k, 1), "scalar": (1, 1)}[scale]
            start = torch.full(shape, -2.0 * math.log(2) * (num_layers - 1))
            self.raw_scale = nn.Parameter(start)
        self.column_logits = nn.ParameterList(
            [nn.Parameter(torch.zeros(num_layers, k, n)) for n in categories]
        )

    # ---- the law --------------------------------------------------------------------------

    @property
    def affine(self) -> bool:
        """Whether a layer does more than to subtract means."""
        kinds = (self.maps,) if isinstance(self.maps, str) else self.maps
        return any(kind != "shift" for kind in kinds)

    @property
    def max_codes(self) -> int:
        """Largest number of codes that densities sum over: `max_exact`, by its common name."""
        return self.max_exact

    @property
    def support(self) -> constraints.Constraint:
        """Real vectors; codes in categorical columns; NaN where entries may be missing."""
        if self.categories:
            return mixed_columns(self.dim, self.categories, self.missing == "marginalize")
        if self.missing == "marginalize":
            return real_or_missing_vector
        return constraints.real_vector

    def columns_at_floor(self) -> Tensor:
        """Which real columns have the smallest scale under every code of the last layer, (D,)."""
        with torch.no_grad():
            if self.affine:
                return self._last_variance_is_reached()
            reached = self._variance.is_reached(self._variance(self.raw_scale))
            return reached.expand(self.num_components, self.dim).all(0)

    def _last_variance_is_reached(self) -> Tensor:
        """Which real columns have the last layer's smallest variance in all components, (D,)."""
        whole = torch.full_like(self.loc[0, 0], self._variance.floor)
        *_, (last, floor) = layer_floors(self.layers, whole)
        return (last.variance(floor) <= 1.01 * floor).all(0)

    def column_floors(self) -> Tensor:
        """Smallest standard deviation of each real column, in the user's units, (D,)."""
        return self.scale_floor * self.units.scale

    def _law_given(self) -> ResidualMixture:
        k, unit = self.num_components, self.units.scale
        common: dict[str, Any] = {
            "log_weight": self.log_weight,
            "links": log_normalize(self.link_logits, self.smoothing).reshape(-1, k),
            "source": (self.link_logits, self.smoothing),
            "columns": Columns.of(tuple(self.column_logits), self.loc),
            "log_truncation": math.log(self.truncation) if self.truncation else -math.inf,
        }
        if self.affine:
            maps = make_maps(self.layers, self.loc, self._variance.floor)
            return AffineMixture(maps=maps, origin=self.units.loc, unit=unit, **common)
        # The first layer's means carry the location.
        location = torch.zeros_like(self.loc[:, :1])
        location[0] = self.units.loc
        return ShiftMixture(
            loc=self.loc * unit + location,
            inner_scale=self._variance(self.raw_inner_scale).sqrt() * unit,
            scale=self._variance(self.raw_scale).sqrt().expand(k, self.dim) * unit,
            **common,
        )

    @property
    def mean(self) -> Tensor:
        """Means of real columns and likeliest categories of others: (D + categorical columns,).

        Raises:
            NotImplementedError: If there are more codes than `max_exact`.
        """
        codes, log_prior = self._every_code()
        return self.law.expected(log_prior.exp().unsqueeze(0), codes.unsqueeze(0)).squeeze(0)

    @property
    def variance(self) -> Tensor:
        """Variances of real columns, shape (D,).

        Raises:
            NotImplementedError: If there are more codes than `max_exact`.
        """
        codes, log_prior = self._every_code()
        return self.law.mixture_of(codes, log_prior).variance

    def _every_code(self) -> tuple[Tensor, Tensor]:
        """All codes (C, L) and their log-probabilities (C,)."""
        law = self.law
        if law.num_codes > self.max_exact:
            raise NotImplementedError(
                f"Not available: a sum over all codes, of which there are "
                f"{law.num_codes:,}, more than max_exact={self.max_exact:,}. Raise that, or "
                f"average draws of sample((n,))."
            )
        return law.all_codes()

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws without a graph, shape (\*S, D + number of categorical columns).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        drawn = self.law.sample(Size(sample_shape).numel())
        return drawn.reshape(*sample_shape, *self.event_shape)

    @takes_generator
    def rsample_weighted(
        self, num_samples: int, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws with weights, from the normals of all codes; gradients are exact at any distance.

        Args:
            num_samples: Number of draws n.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Draws of shape (n, D) and their log-weights of shape (n,); see
            `MixtureOfNormals.rsample_weighted`.

        Raises:
            NotImplementedError: If there are more codes than `max_exact`, or categorical columns.
        """
        self._check_all_real()
        codes, log_prior = self._every_code()
        possible = log_prior > -math.inf  # codes that are truncated do not occur
        mixture = self.law.mixture_of(codes[possible], log_prior[possible])
        return mixture.rsample_weighted(num_samples)

    @takes_generator
    def rsample_with_score(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws with the gradient that they have given their codes, and scores of these.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Draws of shape (\*S, D), and log-probabilities of their codes, shape (\*S); see
            `MixtureOfNormals.rsample_with_score`.

        Raises:
            NotImplementedError: If there are categorical columns.
        """
        self._check_all_real()
        x, score = self.law.draw_with_score(Size(sample_shape).numel())
        return x.reshape(*sample_shape, *self.event_shape), score.reshape(sample_shape)

    def _check_all_real(self) -> None:
        """Raises an error if there are categorical columns, whose draws have no gradient."""
        if self.categories:
            raise NotImplementedError(
                f"Not available: draws of categorical columns have no gradient, got categories="
                f"{self.categories}. Take the gradient of the score function: that of log_prob."
            )

    def log_prob(self, value: Value) -> Tensor:
        r"""Log-density at points of shape (\*S, D + number of categorical columns); shape (\*S).

        With respect to Lebesgue measure on the real columns and counting measure on codes. Exact,
        or a lower bound; see the class. With ``missing="marginalize"`` that of the entries that
        are not NaN: zero where all are.
        """
        rows = self._rows(value)
        log_prob = self.law.log_prob(rows, max_exact=self.max_exact, beam=self.beam)
        return log_prob.reshape(leading_shape(value))

    @takes_generator
    def log_prob_importance(
        self,
        value: Value | TensorLike,
        num_samples: int = 100,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Logarithm of an unbiased estimate of the density, shape (\*S), without a graph.

        Codes are drawn from the encoder, which draws those of the point's neighbourhood; the
        logarithm itself is biased downwards, the less the more samples.

        Args:
            value: Points, shape (\*S, D + number of categorical columns).
            num_samples: Number of codes drawn for every point.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        num_samples = check_positive_int("num_samples", num_samples)
        value = self._as_value(value)
        rows = self._rows(value)
        with torch.no_grad():
            law = self.law
            size = max(1, 2**22 // (num_samples * self.num_components))
            parts = [law.importance_log_prob(block, num_samples) for block in rows.split(size)]
            return torch.cat(parts).reshape(leading_shape(value))

    def layer_log_prob(self, value: Value | TensorLike) -> Tensor:
        r"""Log-densities under the first layer, the first two, and so on: shape (\*S, L).

        The last entry is `log_prob`. See `shallow`.
        """
        value = self._as_value(value)
        rows, law = self._rows(value), self.law
        parts = [
            law.shallow(depth).log_prob(rows, max_exact=self.max_exact, beam=self.beam)
            for depth in range(1, self.num_layers + 1)
        ]
        return torch.stack(parts, -1).reshape(*leading_shape(value), self.num_layers)

    def shallow(self, num_layers: int) -> "DRMM":
        """A copy of the first layers: what they leave, under their scale, becomes the noise.

        Args:
            num_layers: How many layers to keep.
        """
        num_layers = check_positive_int("num_layers", num_layers)
        if num_layers > self.num_layers:
            raise ValueError(f"Expected at most {self.num_layers} layers, got {num_layers}.")
        config = self.config() | {"num_layers": num_layers}
        whole = num_layers == self.num_layers
        if not whole:
            config["scale"] = "diagonal"
            if isinstance(self.maps, tuple):
                maps = list(self.maps[:num_layers])
                if self.affine and set(maps) == {"shift"}:  # each with a stretch of its own
                    maps[-1] = "diagonal"
                config["maps"] = encode(tuple(maps))
        new = type(self).from_config(config).to(self.loc)
        pairs = num_layers * (num_layers - 1) // 2
        with torch.no_grad():
            new.units.load_state_dict(self.units.state_dict())
            new.log_weight.copy_(self.log_weight[:num_layers])
            new.link_logits.copy_(self.link_logits[:pairs])
            new.loc.copy_(self.loc[:num_layers])
            if self.affine:
                for mine, theirs in zip(new.layers, self.layers, strict=False):
                    for name, parameter in mine.named_parameters():
                        parameter.copy_(theirs.get_parameter(name))
            else:
                last = self.raw_scale if whole else self.raw_inner_scale[num_layers - 1]
                new.raw_inner_scale.copy_(self.raw_inner_scale[: num_layers - 1])
                new.raw_scale.copy_(last)
            for mine, theirs in zip(new.column_logits, self.column_logits, strict=True):
                mine.copy_(theirs[:num_layers])
        new.initialized.copy_(self.initialized)
        return new.train(self.training)

    def encode(self, value: Value | TensorLike) -> Tensor:
        r"""Likeliest codes that a beam search finds, shape (\*S, L), integers."""
        value = self._as_value(value)
        rows = self._rows(value)
        with torch.no_grad():
            return self.law.encode(rows, self.beam).reshape(*leading_shape(value), self.num_layers)

    def decode(self, codes: TensorLike) -> Tensor:
        r"""Means of real columns and likeliest codes of categorical ones, given latent codes.

        Args:
            codes: Integers from 0 to K - 1, shape (\*S, L).

        Returns:
            Tensor of shape (\*S, D + number of categorical columns).

        Raises:
            ValueError: For codes of another shape or out of range.
        """
        codes = as_integers("codes", codes, 0, self.num_components - 1, like=self.loc)
        if codes.dim() < 1 or codes.shape[-1] != self.num_layers:
            raise ValueError(
                f"Expected codes to be integers of shape (*S, {self.num_layers}), got "
                f"{tuple(codes.shape)}."
            )
        flat = codes.reshape(-1, self.num_layers).long()
        return self.law.decode(flat).reshape(*codes.shape[:-1], *self.event_shape)

    @torch.no_grad()
    @takes_generator
    def impute(
        self,
        value: TensorLike,
        num_samples: int | None = None,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Fills missing entries in from those that were observed, each row with its own gaps.

        Over all codes, or such as stand for all; see the class.

        Args:
            value: Points, shape (N, D + number of categorical columns), NaN where missing.
            num_samples: How many draws of the missing entries to return; by default one value is
                filled in: the mean given the others, or the likeliest category.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of the points' shape, or (num_samples, N, ...). Observed entries are as they
            were.
        """
        value = as_tensor("value", value, like=self.loc)
        if value.dim() != 2:
            raise ValueError(
                f"Expected points of shape (N, {self.event_shape[0]}), got {tuple(value.shape)}."
            )
        law, draws = self.law, 1
        if num_samples is not None:
            draws = check_count("num_samples", num_samples)
        rows = self._rows(value, missing=True)
        if draws * len(value) == 0:
            return value.expand(draws, *value.shape) if num_samples is not None else value
        order, drawn = [], []
        blocks = law.posterior_blocks(rows, max_exact=self.max_exact, beam=self.beam)
        for own, weight, codes in blocks:
            check_reachable(self, weight.log())
            order.append(own)
            if num_samples is None:
                drawn.append(law.expected(weight, codes, rows.take(own)).unsqueeze(0))
                continue
            index = torch.multinomial(weight, draws, replacement=True)  # (n, draws)
            every = codes.expand(len(weight), -1, -1)
            chosen = every.gather(1, index.unsqueeze(-1).expand(-1, -1, every.shape[-1]))
            flat = law.draw_given(
                chosen.transpose(0, 1).flatten(0, 1), rows.take(own.repeat(draws))
            )
            drawn.append(flat.reshape(draws, len(weight), -1))
        values = torch.cat(drawn, 1)[:, torch.cat(order).argsort()]
        filled = torch.where(value.isnan(), values, value)
        return filled.squeeze(0) if num_samples is None else filled

    @torch.no_grad()
    def predict_proba(self, value: TensorLike, column: int) -> Tensor:
        r"""Probabilities of a column's categories from all that is known of each row.

        Over all codes, or such as stand for all: as `impute`.

        Args:
            value: Points, shape (N, D + number of categorical columns), NaN where missing: each
                row may have gaps of its own. The column's own entries are not looked at.
            column: Index of the categorical column.

        Returns:
            Tensor of shape (N, categories).

        Raises:
            ValueError: If a value does not fit, or the column is not categorical.

        Example:
            >>> model = DRMM(dim=2, num_layers=2, num_components=4, categories=(3,))
            >>> model.predict_proba([[0.5, float("nan"), float("nan")]], column=2).shape
            torch.Size([1, 3])
        """
        value = as_tensor("value", value, like=self.loc)
        index = check_index("column", column, *self.event_shape) - self.dim
        if index < 0:
            raise ValueError(
                f"Expected a categorical column, from {self.dim} on, got {column!r}, which is a "
                f"real one."
            )
        if value.dim() != 2 or value.shape[-1] != self.event_shape[0]:
            raise ValueError(
                f"Expected points of shape (N, {self.event_shape[0]}), got {tuple(value.shape)}."
            )
        known = value.clone()
        known[:, self.dim + index] = math.nan
        rows, law = self._rows(known, missing=True), self.law
        probs = value.new_empty(len(value), self.categories[index])
        for own, weight, codes in law.posterior_blocks(
            rows, max_exact=self.max_exact, beam=self.beam
        ):
            probs[own] = law.category_probs(weight, codes, index)
        return probs

    @takes_generator
    def condition(
        self,
        *evidence: Statement,
        num_particles: int | None = None,
        max_exact: int | None = None,
        max_codes: int | None = None,
        differentiable: bool = False,
        generator: Generator | None = None,
    ) -> ConditionedLaw:
        r"""The law given what is known.

        Args:
            evidence: Pieces such as `Observed`, `GaussianPrior`, `CategoricalPrior`, `Box`,
                `LinearInequality`, `LinearEquality`, `LinearGaussian` and `AnyOf`, any number in
                any combination, all of batch shapes that broadcast to B. Or a mapping from
                columns to values, short for `Observed`.
            num_particles: Number of codes that stand for all at an entry of B, where there are
                more than `max_exact`. By default 1,024, and fewer, down to 128, in batches of
                more than 128 entries.
            max_exact: Largest number of codes to sum over; the model's by default.
            max_codes: Another name of `max_exact`.
            differentiable: Whether `log_prob` and `log_evidence` have gradients in the model's
                parameters. The graph of log Z is made once, and serves one backward pass.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            A `ConditionedDRMM` of batch shape B; with alternatives, a
            `LawWithinUnions` or a `UnionOfConditioned`.

        Raises:
            ValueError: If the evidence does not fit the model, or cannot hold.

        Example:
            >>> from pyromix import Box, LinearInequality
            >>> model = DRMM(dim=3, num_layers=2, num_components=4)
            >>> low = torch.tensor([-1.0, -1.0, -torch.inf])
            >>> law = model.condition({0: 0.5}, LinearInequality(torch.ones(3)), Box(low, 2.0))
            >>> x = law.sample((100,))
            >>> bool((x[:, 0] == 0.5).all()), bool((x.sum(-1) > 0).all())
            (True, True)
        """
        prior = self.evidence_prior(num_particles, max_exact, max_codes, differentiable)
        return prior.condition_on(evidence)

    def evidence_prior(
        self,
        num_particles: int | None = None,
        max_exact: int | None = None,
        max_codes: int | None = None,
        differentiable: bool = False,
    ) -> ResidualPrior:
        """The model as what evidence is added to; arguments are those of `condition`."""
        if num_particles is not None:
            num_particles = check_positive_int("num_particles", num_particles)
        given = max_codes if max_exact is None else max_exact
        most = self.max_exact if given is None else check_count("max_codes", given)
        settings = Settings(num_particles, most, self.beam)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            return ResidualPrior(self.law, settings, self._validate_args)

    def query(
        self,
        *evidence: Statement,
        num_particles: int = 256,
        memory: int = 256,
        max_exact: int | None = None,
        generator: Generator | None = None,
    ) -> Query:
        """Prepares the model for questions that follow each other, as in a control loop.

        What is returned is called with evidence, and answers as `condition` does. The model is
        read once: its parameters may change later without a change of the answers.

        Args:
            evidence: What holds in all questions.
            num_particles: Number of codes that are searched for in each of them.
            memory: Number of codes that are remembered from one answer to the next, where they
                are examined for certain; zero for none.
            max_exact: Largest number of codes to sum over; the model's by default.
            generator: Where random numbers of searches come from; by default PyTorch's global
                generator.
        """
        num_particles = check_positive_int("num_particles", num_particles)
        prior = self.evidence_prior(num_particles, max_exact)
        return Query(prior, evidence, check_count("memory", memory), generator)

    # ---- training -------------------------------------------------------------------------

    def stage(self, progress: float) -> str:
        """Name of the stage of training."""
        return self._place(progress)[0]

    def learning_rate_factor(self, progress: float) -> float:
        """Factor of the learning rate: in every stage, it falls in the second half (eq. 6)."""
        return learning_rate_factor(self._place(progress)[1])

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:
        """What the stage of training minimises; in evaluation mode the mean of ``-log_prob``."""
        value = _values_of(batch)
        if not self.training:
            return -self.log_prob(value).mean()
        rows, law = self._training_rows(value), self.law
        stage, within = self._place(progress)
        if stage == "likelihood":
            loss, proposal = likelihood_loss(law, rows, self.training_beam)
            if isinstance(law, AffineMixture) and self.shrinkage:
                pull = torch.stack([layer.divergence.sum() for layer in law.maps]).sum()
                loss = loss + self.shrinkage * pull
            return loss + proposal - proposal.detach()  # a gradient alone, for other parameters
        assert isinstance(law, ShiftMixture)  # the constructor checks that
        if stage == "em":
            return em_loss(law, rows, rho(within), self.orphans)
        if stage in ("real", "latents", "joint"):
            return mixture_loss(law, rows, stage)
        with torch.no_grad():
            codes = law.encode(rows, self.training_beam)
        return proposal_loss(law, rows, codes)

    @torch.no_grad()
    def initialize(self, data: Batch) -> None:
        """Starts from clusters of the data, of what they leave, and so on through the layers.

        Codes that occur together in the data start with a higher probability. Parameters that do
        not require gradients are left alone. Missing entries are filled with their column's mean;
        where layers have maps, with draws of one normal given the others.

        Args:
            data: Points, shape (N, D + number of categorical columns).

        Raises:
            ValueError: If the data does not fit.
        """
        rows = self._training_rows(_values_of(data))
        infinite = int((~rows.real.isfinite()).any(-1).sum())
        if len(rows.real) == 0 or infinite:
            raise ValueError(
                f"Expected at least one point and finite values to initialise from, got "
                f"{len(rows.real)} points of which {infinite} are not finite."
            )
        shape = Shape(
            self.num_layers,
            self.num_components,
            self.categories,
            self.scale,
            self.inner_scale,
            self._variance,
            self.shrinkage,
        )
        with torch.no_grad():
            if self.loc.requires_grad:
                self.units.adapt(rows.real, rows.observed, mode=self.standardize)
            rows = rows._replace(real=self.units(rows.real))
            maps = [layer for layer in self.layers if isinstance(layer, MapParameters)]
            for name, start in initial_parameters(shape, rows, maps).items():
                parameter = self.get_parameter(name)
                if parameter.requires_grad:
                    parameter.copy_(start)
        super().initialize(data)

    # ---- internals ------------------------------------------------------------------------

    def _training_rows(self, value: Value) -> Rows:
        """Checks and sorts values as `_rows` does; no row may be missing as a whole."""
        rows = self._rows(value)
        empty = int(rows.empty.sum()) if self.missing == "marginalize" else 0
        if empty:
            raise ValueError(
                f"Expected training data whose rows have an entry that is not missing, got "
                f"{empty} of {len(rows.real)} rows without. Leave them out."
            )
        return rows

    def _place(self, progress: float) -> tuple[str, float]:
        """The stage of training, and the progress within it."""
        start = 0.0
        for name, share in self.curriculum:
            if progress < start + share:
                return name, min(1.0, max(0.0, (progress - start) / share))
            start += share
        return self.curriculum[-1][0], 1.0

    def _as_value(self, value: Value | TensorLike) -> Value:
        """Values, or parts of them, as tensors."""
        if isinstance(value, Mapping):
            return {key: as_tensor(key, part, like=self.loc) for key, part in value.items()}
        return as_tensor("value", value, like=self.loc)

    def _rows(self, value: Value, *, missing: bool | None = None) -> Rows:
        """Checks values and sorts them into columns; flattens their leading shape.

        Args:
            value: See `rows_of`.
            missing: Whether NaN marks missing entries; by default as the model has it.
        """
        missing = self.missing == "marginalize" if missing is None else missing
        return rows_of(self, value, self.dim, self.categories, like=self.loc, missing=missing)


def _values_of(batch: Any) -> Value:
    """The values of a batch, without a context.

    Raises:
        ValueError: If it has one.
    """
    if isinstance(batch, Mapping) and "probs" in batch:
        return batch
    value, context = split_batch(batch)
    if context is not None:
        raise ValueError(NO_CONTEXT)
    return value
