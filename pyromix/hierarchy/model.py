"""A hierarchy of residual mixtures that learns its parameters."""

__all__ = ["HierarchicalDRMM"]

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import constraints
from torch.optim import Adam, Optimizer
from torch.types import _size

from ..core.batch import Batch, split_batch
from ..core.checks import (
    Check,
    check_arguments,
    check_count,
    check_floor,
    check_positive_int,
    check_value,
    is_expandable,
    is_traced,
    number,
)
from ..core.conversions import TensorLike, as_tensor
from ..core.draws import without_graph
from ..core.law_module import LawModule
from ..core.random import takes_generator
from ..drmm.model import DRMM
from .arguments import check_event_shape, check_levels, check_rounded, check_rounding, tile
from .backward import BackwardSettings, fit_bias_corrections, known_array, sample_backward
from .code_law import CodeParameters
from .completion import complete
from .conditioned import ConditionedHierarchy, Settings, condition_hierarchy
from .law import HierarchicalLaw, Search
from .levels import Level, Top
from .posterior import Keep
from .start import fields, start_codes
from .window_law import Rounding, WindowLaw

# Arrays that starting values are made from.
START_ARRAYS = 10_000
# Arrays that are worked on at once without a graph.
BLOCK = 64
# Codes of a cell, and of the top, that stand for all where something is known of an array.
SAMPLED, SAMPLED_AT_TOP = 16, 64
# Codes of windows that are kept in training: with few, components run away from windows that are
# found no better code.
WINDOW_BEAM = 8
# Learning rates as shares of that of tables: of the normals at the bottom; of rounded values, of
# the means alone, which must stay within a step where windows are plain.
WINDOW_RATE, ROUNDED_RATE = 0.2, 0.02
# Particles for each draw of a completion, where windows overlap.
SPARE_PARTICLES = 4
# Size of matrices at the bottom above which their rate is less.
MATRIX_SIZE = 16


class HierarchicalDRMM(LawModule[HierarchicalLaw]):
    r"""Hierarchy of residual mixtures for arrays: images, or sequences of vectors.

    The lowest level is a `DRMM` over windows of the array, which all share it; the next level has
    one over windows of the codes of the first, and so on up to the top, which sees the whole
    (Hämäläinen et al., Deep Residual Mixture Models, sections 3.9 and C.7). One law, from the top
    down: a cell draws the codes of its layers one after the other,

    .. math:: p(h_l = k \mid h_{<l}, g) = \operatorname{softmax}_k \Big(w_l[k]
              + \sum_{c<l} T_{lc}[h_c, k] + \sum_{l'} t_{l'}[g_{l'}, o, l, k]\Big)

    given the codes g of the cell above, in whose window it is at position o; and a window at the
    bottom draws its entries from the normal that its codes stand for. Where windows overlap, an
    entry is drawn by the first that shows it, and given to the others: with triangular maps, a
    window continues what those before it drew.

    So an array and its codes form a tree, and `log_prob` sums over codes by messages from the
    bottom up. It is exact where windows do not overlap, have no triangular maps, and no cell has
    more than `max_codes` codes; and where no cell has more than 64. Elsewhere it is a lower bound,
    deterministic and differentiable, over the `beam` codes of each cell that a search finds. The
    gap is measured by ``python -m benchmarks.hierarchy.gaps``; `beam` may be changed later, as in
    ``model.beam = 256``. Draws have no pathwise gradient: in a guide, the score function is used.

    Where windows overlap, what one is given by others tells its code, too: see the page on
    hierarchies for the term that this adds to the scores.

    Train it with `pyromix.fit` at a learning rate of about 0.01. Levels are trained in turn, the
    lowest first, and all together at the end.

    Args:
        event_shape: (channels, length), or (channels, height, width).
        levels: One or more of `Level`, the lowest first, and a `Top`.
        rounding: Where values were rounded to multiples of a step and clipped to bounds, as 8-bit
            pixels are, (step, low, high): training maximises the probability of what they were
            rounded from, `log_mass`. The density of rounded values has no bound.
        scale_floor: Smallest standard deviation, in units of standardised columns as for `DRMM`,
            by default 0.001. With `rounding` in units of the range, by default a quarter of a
            step.
        joint_share: Share of the steps in which all levels are trained together. The others are
            divided equally among the levels.
        max_codes: Largest number of codes of a cell that densities sum over, where windows do not
            overlap and have no triangular maps.
        beam: Codes of a cell that are kept where there are more.
        sweeps: How many times the search for codes is repeated from the top down.
        training_beam: The same as `beam` for the loss.
        training_sweeps: The same as `sweeps` for the loss, where all levels are trained together:
            what is likely by itself is no longer what is likely under the levels above.
        validate_args: Whether to check the values that are scored.

    Raises:
        ValueError: For an argument that is out of range, or windows that do not fit the array.

    Example:
        >>> from pyromix import HierarchicalDRMM, Level, Top
        >>> levels = [Level(window=2, num_components=8), Top(num_layers=2, num_components=8)]
        >>> model = HierarchicalDRMM((1, 6), levels)
        >>> model.sample((3,)).shape, model.log_prob(torch.zeros(3, 1, 6)).shape
        (torch.Size([3, 1, 6]), torch.Size([3]))
    """

    argument_checks: ClassVar[Mapping[str, Check]] = {
        "event_shape": check_event_shape,
        "levels": check_levels,
        "rounding": check_rounding,
        "scale_floor": check_floor,
        "joint_share": number(0, 1),
        "max_codes": check_count,
        "beam": check_positive_int,
        "sweeps": check_count,
        "training_beam": check_positive_int,
        "training_sweeps": check_count,
    }
    default_lr = 0.01
    trains_density = True
    levels: tuple[Level | Top, ...]
    rounding: Rounding | None
    scale_floor: float
    joint_share: float
    max_codes: int
    beam: int
    sweeps: int
    training_beam: int
    training_sweeps: int

    def __init__(
        self,
        event_shape: Sequence[int],
        levels: Sequence[Level | Top],
        *,
        rounding: tuple[float, float, float] | None = None,
        scale_floor: float | None = None,
        joint_share: float = 0.25,
        max_codes: int = 1024,
        beam: int = 64,
        sweeps: int = 1,
        training_beam: int = 4,
        training_sweeps: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        rounding = check_rounding("rounding", rounding)
        if scale_floor is None:
            scale_floor = 1e-3 if rounding is None else rounding.step / rounding.range / 4
        arguments = check_arguments(HierarchicalDRMM.argument_checks, locals())
        shape = arguments.pop("event_shape")
        super().__init__(event_shape=shape, validate_args=validate_args)
        self.keep_arguments(arguments)
        channels, *grid = shape
        bottom, *others = self.levels
        assert isinstance(bottom, Level)
        self.tiling = tile(grid, bottom)
        if bottom.maps == "triangular" and self.tiling.overlaps and len(grid) > 1:
            raise ValueError(
                f"Expected windows that do not overlap, or maps other than triangular ones, for "
                f"arrays with height and width, got {bottom}."
            )
        if bottom.maps == "triangular" and rounding is not None:
            raise ValueError(
                "Expected no rounding with triangular maps, whose normals have no closed form for "
                "it. Add uniform noise of the step's width to the data instead."
            )
        self.windows = DRMM(
            self.tiling.num_positions * channels,
            bottom.num_layers,
            bottom.num_components,
            maps=bottom.maps,
            scale_floor=self.scale_floor,
            standardize="auto" if rounding is None else False,
        )
        if rounding is not None:  # parameters are in units of the range
            self.windows.units.loc.fill_(rounding.low)
            self.windows.units.scale.fill_(rounding.range)
        self.codes = nn.ModuleList()
        below = self.tiling
        for lower, level in zip(self.levels, others, strict=False):
            tiling = tile(below.cells, level)
            sizes = lower.num_layers, lower.num_components
            self.codes.append(
                CodeParameters(level.num_layers, level.num_components, tiling, sizes)
            )
            below = tiling

    @property
    def support(self) -> constraints.Constraint:
        """Arrays of real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    # ---- the law --------------------------------------------------------------------------

    def _law_given(self) -> HierarchicalLaw:
        return self._law(0)

    def _law(self, trained: int) -> HierarchicalLaw:
        """The law, with gradients to levels from one on alone."""
        mixture = self.windows.law
        if trained:
            mixture = mixture.map_tensors(Tensor.detach)
        windows = WindowLaw(mixture, self.tiling, self.event_shape[0], self.rounding)
        levels = []
        for place, level in enumerate(self.codes, 1):
            assert isinstance(level, CodeParameters)
            law = level.law
            levels.append(law.map_tensors(Tensor.detach) if place < trained else law)
        return HierarchicalLaw(windows, levels, frozen=trained)

    def _search(self) -> Search:
        return Search(self.beam, self.sweeps, self.max_codes)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of arrays of shape (\*S, \*event_shape); shape (\*S).

        Exact, or a lower bound; see the class.
        """
        return self._scored(check_value(self, value, like=self.windows.loc), mass=False)

    def log_prob_under(self, law: HierarchicalLaw, value: Tensor) -> Tensor:
        """What `log_prob` would be under another law of these arrays."""
        return self._scored(value, mass=False, law=law)

    def log_mass(self, value: TensorLike) -> Tensor:
        r"""Log-probability that values are rounded to these; shape (\*S).

        Divided by the number of entries and by -log 2, it is in bits per entry.

        Args:
            value: Arrays of shape (\*S, \*event_shape), rounded as `rounding` says. Draws of
                `sample` are not: round and clip them first.

        Raises:
            ValueError: If the model has no `rounding`, or values do not fit.
        """
        if self.rounding is None:
            raise ValueError(
                "Expected a model that knows how values were rounded, got rounding=None. Build it "
                "with rounding=(step, low, high)."
            )
        value = check_value(self, as_tensor("value", value, like=self.windows.loc))
        if self._validate_args and not is_traced():
            check_rounded(value.detach(), self.rounding)
        return self._scored(value, mass=True)

    def _scored(self, value: Tensor, *, mass: bool, law: HierarchicalLaw | None = None) -> Tensor:
        flat, law = self.flatten(value), self.law if law is None else law
        if not len(flat):
            return value.sum(tuple(range(-len(self.event_shape), 0)))
        size = len(flat) if torch.is_grad_enabled() else BLOCK
        parts = [
            law.log_prob(part, self._search(), mass=mass) for part in flat.split(max(1, size))
        ]
        return torch.cat(parts).reshape(value.shape[: value.dim() - len(self.event_shape)])

    def flatten(self, value: Tensor) -> Tensor:
        r"""Arrays (\*S, \*event_shape) as (N, P, channels)."""
        return value.reshape(-1, self.event_shape[0], self.tiling.num_entries).mT

    def unflatten(self, flat: Tensor, shape: Sequence[int]) -> Tensor:
        r"""Arrays (N, P, channels) as (\*S, \*event_shape)."""
        return flat.mT.reshape(*shape, *self.event_shape)

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws without a graph, shape (\*S, \*event_shape).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        count = Size(sample_shape).numel()
        if not count:
            return self.windows.loc.new_zeros(*sample_shape, *self.event_shape)
        return self.unflatten(self.law.sample(count), sample_shape)

    @takes_generator
    def condition(
        self,
        *evidence: Any,
        num_particles: int = 512,
        generator: Generator | None = None,
    ) -> ConditionedHierarchy:
        """The law given what is known.

        Args:
            evidence: Pieces as for `DRMM.condition`, with arrays of the event shape in place of
                vectors: `Observed` or a mapping, with tuples of indices for keys; an array with
                NaN where nothing is known; `GaussianPrior`, `Box`, `LinearInequality`, `AnyOf`,
                and, where windows do not overlap, `LinearGaussian` and `LinearEquality`.
            num_particles: Number of codes of the whole array that stand for all.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Raises:
            ValueError: If the evidence does not fit the array, or cannot hold.

        Example:
            >>> from pyromix import Box, HierarchicalDRMM, Level, Top
            >>> levels = [Level(window=2, num_components=8), Top(num_layers=2, num_components=8)]
            >>> model = HierarchicalDRMM((1, 6), levels)
            >>> law = model.condition({(0, 2): 0.5}, Box(low=-1.0), num_particles=64)
            >>> x = law.sample((100,))
            >>> bool((x[:, 0, 2] == 0.5).all()), bool((x >= -1).all())
            (True, True)
        """
        count = check_positive_int("num_particles", num_particles)
        keep = Keep(SAMPLED, SAMPLED_AT_TOP, self.max_codes)
        return condition_hierarchy(self, evidence, Settings(count, keep))

    @torch.no_grad()
    @takes_generator
    def impute(
        self,
        value: TensorLike,
        num_samples: int | None = None,
        *,
        num_draws: int = 64,
        num_codes: int = SAMPLED_AT_TOP,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Fills missing entries in from those that are known, each array with its own gaps.

        Args:
            value: Arrays, shape (\*S, \*event_shape), NaN where missing.
            num_samples: How many draws of the missing entries to return; by default one value is
                filled in, the mean over `num_draws` draws of codes.
            num_draws: The number of draws that a mean is taken over, where it is not exact; where
                windows overlap, the number of particles.
            num_codes: Number of codes of the top that are kept in the search, where not all count.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of the arrays' shape, or (num_samples, \*S, \*event_shape). Known entries are as
            they were. With `rounding`, the others are not rounded.
        """
        value = as_tensor("value", value, like=self.windows.loc)
        check_value(self, torch.where(value.isnan(), 0.0, value))
        if self.rounding is not None:
            check_rounded(value[~value.isnan()], self.rounding)
        draws = check_positive_int("num_draws", num_draws)
        num_codes = check_positive_int("num_codes", num_codes)
        if num_samples is not None:
            draws = check_positive_int("num_samples", num_samples)
        flat, leading = self.flatten(value), value.shape[: value.dim() - len(self.event_shape)]
        mean = num_samples is None
        if not len(flat):
            return value if mean else value.expand(draws, *value.shape)
        if self.tiling.overlaps or self.law.windows.correlates:
            arrays = self.unflatten(flat, (len(flat),))
            parts = [self._complete_one(x, draws, mean=mean) for x in arrays]
            filled = torch.stack(parts, 0 if mean else 1)
            return filled.reshape(*filled.shape[: 0 if mean else 1], *value.shape)
        keep = Keep(SAMPLED, num_codes, self.max_codes)
        blocks = complete(self.law, flat, keep, draws=draws, mean=mean)
        if mean:
            return self.unflatten(torch.cat(list(blocks)), leading)
        return self.unflatten(torch.cat(list(blocks), 1), (draws, *leading))

    def _complete_one(self, x: Tensor, draws: int, *, mean: bool) -> Tensor:
        """The mean of completions of an array, or draws of them, by `condition`."""
        missing = x.isnan()
        if not bool(missing.any()):
            return x if mean else x.expand(draws, *x.shape)
        whole = bool(missing.all())
        # Draws are some of the particles: of more, fewer are alike.
        particles = draws if mean else SPARE_PARTICLES * draws
        law: Any = self if whole else self.condition(x, num_particles=particles)
        if not mean:
            return cast(Tensor, law.sample((draws,)))
        own = law.sample((draws,)).mean(0) if whole else law.mean
        return torch.where(missing, own, x)

    def inpaint(
        self,
        value: TensorLike,
        mask: TensorLike,
        num_samples: int | None = None,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Arrays in which what is not known is replaced; see `impute`.

        Args:
            value: Arrays, shape (\*S, \*event_shape). Entries that are not known are not used.
            mask: True where entries are known, of a shape that broadcasts to the arrays'.
            num_samples: Number of draws; by default the mean is filled in.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        value = as_tensor("value", value, like=self.windows.loc)
        known = torch.as_tensor(mask, device=value.device)
        if known.dtype != torch.bool or not is_expandable(known.shape, value.shape):
            raise ValueError(
                f"Expected mask to be boolean and to broadcast with the arrays, "
                f"{tuple(value.shape)}, got {known.dtype} of shape {tuple(known.shape)}."
            )
        return self.impute(torch.where(known, value, math.nan), num_samples, generator=generator)

    @takes_generator
    def sample_backward(
        self,
        *evidence: Any,
        sample_shape: _size = Size(),
        corrections: Sequence[Tensor] | None = None,
        passes: int = 256,
        alpha_f: float = 1 / 3,
        truncation: float = 0.02,
        forward_truncation: float = 0.05,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Draws by the paper's backward sampling, shape (\*S, \*event_shape); for comparison.

        Approximate, where `sample` and `condition` are of the law. See
        `pyromix.hierarchy.backward`.

        Args:
            evidence: Known entries, as for `condition`: `Observed`, a mapping, or an array with
                NaN. They keep their values.
            sample_shape: Shape S of the draws.
            corrections: Of `bias_corrections`; none by default.
            passes: Number of forward passes that are averaged.
            alpha_f: Share of the forward passes in the scores of cells below which something is
                known.
            truncation: Components are left out that are less likely than this share of the
                likeliest.
            forward_truncation: The same on the way up.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Raises:
            ValueError: For other evidence, and arguments out of range.

        Example:
            >>> from pyromix import HierarchicalDRMM, Level, Top
            >>> levels = [Level(window=2, num_components=8), Top(num_layers=2, num_components=8)]
            >>> model = HierarchicalDRMM((1, 6), levels)
            >>> b = model.bias_corrections()
            >>> model.sample_backward({(0, 2): 0.5}, sample_shape=(9,), corrections=b).shape
            torch.Size([9, 1, 6])
        """
        how = BackwardSettings(passes, alpha_f, truncation, forward_truncation)
        known = known_array(evidence, self.event_shape, self.windows.loc.detach())
        count = Size(sample_shape).numel()
        return self.unflatten(
            sample_backward(self.law, known, count, how, corrections), sample_shape
        )

    @takes_generator
    def bias_corrections(
        self, num_draws: int = 1024, *, generator: Generator | None = None
    ) -> list[Tensor]:
        """The vectors b of `sample_backward`, (L, K) of each level, the lowest first.

        They make codes on the way down as frequent as those of draws of the model.

        Args:
            num_draws: Number of draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return fit_bias_corrections(self.law, check_positive_int("num_draws", num_draws))

    # ---- training -------------------------------------------------------------------------

    def make_optimizer(self, lr: float) -> Optimizer:
        """Adam, with a smaller step for the normals at the bottom.

        Args:
            lr: Learning rate of what codes add to scores.
        """
        rate = WINDOW_RATE if self.rounding is None else ROUNDED_RATE
        if self.windows.law.correlates:
            # Steps of all entries of a row of a matrix add up.
            rate = rate * min(1.0, MATRIX_SIZE / self.windows.loc.shape[-1])
        slow: list[nn.Parameter] = [self.windows.loc]
        if self.rounding is None:
            slow += [p for p in self.windows.parameters() if p is not self.windows.loc]
        same = {id(p) for p in slow}
        fast = [p for p in self.parameters() if id(p) not in same]
        groups: list[dict[str, Any]] = [{"params": fast}, {"params": slow, "lr": rate * lr}]
        return Adam(groups, lr=lr, fused=True)

    def stage(self, progress: float) -> str:
        """Name of the stage of training: a level's, or that of all levels."""
        level = self._place(progress)[0]
        return "all" if level is None else f"level {level}"

    def learning_rate_factor(self, progress: float) -> float:
        """Factor of the learning rate: in every stage, it falls in the second half."""
        return min(1.0, (2.0 - 2.0 * self._place(progress)[1]) ** 2)

    def _place(self, progress: float) -> tuple[int | None, float]:
        """The level that is trained, or None for all; and the progress within the stage."""
        count, alone = len(self.levels), 1.0 - self.joint_share
        if progress < alone:
            within = progress / alone * count
            level = min(int(within), count - 1)
            return level, within - level
        return None, (progress - alone) / self.joint_share if self.joint_share else 1.0

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:
        """Mean negative log-density, or log-mass, of the levels that are trained so far.

        In evaluation mode it is that of all levels.
        """
        value, context = split_batch(batch)
        if context is not None:
            raise ValueError(
                "Expected values alone, got a batch that is a pair, which is read as values and "
                "context. This model takes no context: leave labels out."
            )
        check_value(self, value, like=self.windows.loc)
        mass = self.rounding is not None
        if not self.training:
            return -self._scored(value, mass=mass).mean()
        level = self._place(progress)[0]
        law = self._law(level or 0)
        sweeps = self.training_sweeps if level is None else 0
        how = Search(self.training_beam, sweeps, self.max_codes, WINDOW_BEAM, max_kept=0)
        return -law.log_prob(self.flatten(value), how, mass=mass, depth=level).mean()

    @torch.no_grad()
    def initialize(self, data: Batch) -> None:
        r"""Starts every level from clusters of what its windows show.

        Args:
            data: Arrays, shape (N, \*event_shape).

        Raises:
            ValueError: If the data does not fit.
        """
        value = split_batch(data)[0]
        check_value(self, value, like=self.windows.loc)
        if self.rounding is not None:
            check_rounded(value, self.rounding)
        if value.dim() != len(self.event_shape) + 1 or len(value) == 0:
            raise ValueError(
                f"Expected arrays of shape (N, {', '.join(map(str, self.event_shape))}) to "
                f"initialise from, got {tuple(value.shape)}."
            )
        if len(value) > START_ARRAYS:
            value = value[torch.randperm(len(value), device=value.device)[:START_ARRAYS]]
        flat = self.flatten(value)
        shown = WindowLaw(self.windows.law, self.tiling, self.event_shape[0]).windows(flat)
        whole = (self.tiling.place >= 0).all(-1).repeat(len(flat))
        self.windows.initialize(shown[whole] if bool(whole.any()) else shown)
        tilings = [self.tiling]
        for place, level in enumerate(self.codes):
            assert isinstance(level, CodeParameters)
            tilings.append(level.tiling)
            law = self._law(0)
            codes = torch.cat(
                [law.encode(part, Search(4, sweeps=0), place) for part in flat.split(BLOCK)]
            )
            start_codes(level, fields(flat, tilings), codes, law.levels[place].below)
        super().initialize(data)
