"""The normals of windows onto an array, at the bottom of a hierarchy."""

__all__ = ["OneWindow", "Rounding", "WindowLaw"]

import math
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..conditioning.truncated.interval import log_interval_probability
from ..drmm.affine import AffineMixture
from ..drmm.law import ResidualMixture
from ..drmm.links import sum_rows
from ..drmm.maps import DiagonalMap, TriangularMap
from ..drmm.prefix import take_entries
from ..drmm.shifts import ShiftMixture
from ..drmm.thinning import thin
from ..numerics.diagonal_density import LOG_2PI, component_log_prob
from .code_prior import CodePrior, Gates, draw_index
from .entries import EntryEvidence, EntryFits
from .fits import CellFits, MapFits, Masks, ShiftFits, log_diagonal
from .normals import Normals
from .tiling import Tiling, columns_of

# Of so many codes at most, things are made for all at once.
MAX_KEPT = 64


class Rounding(NamedTuple):
    """How values were rounded: to multiples of a step, and clipped to bounds."""

    step: float
    low: float
    high: float

    @property
    def range(self) -> float:
        """The difference of the bounds."""
        return self.high - self.low


class WindowLaw:
    """A residual mixture over windows of an array, of which each draws some entries.

    Args:
        mixture: The mixture, over (position, channel) flattened.
        tiling: The windows over positions.
        channels: Number of channels.
        rounding: How values were rounded; needed for `log_mass` alone.
    """

    def __init__(
        self,
        mixture: ResidualMixture,
        tiling: Tiling,
        channels: int,
        rounding: Rounding | None = None,
    ) -> None:
        self.mixture, self.tiling, self.channels = mixture, tiling, channels
        self.rounding = rounding
        self.prior = CodePrior(mixture.log_weight, mixture.links)
        self.correlates = mixture.correlates
        self._factors: dict[tuple[bool, ...] | None, Tensor] = {}  # of all codes, by columns

    def windows(self, value: Tensor) -> Tensor:
        """What windows show of arrays (N, P, channels): (N C, D), zero past the end."""
        shown = self.tiling.take(value)
        inside = (self.tiling.place >= 0).unsqueeze(-1)
        return torch.where(inside, shown, 0.0).flatten(2).flatten(0, 1)

    def masks(self, count: int) -> Masks:
        """What the windows of N arrays draw, and what they are given: ones, (N C, D)."""
        like = self.mixture.log_weight

        def columns(mask: Tensor) -> Tensor:
            return mask.repeat_interleave(self.channels, 1).to(like).repeat(count, 1)

        given = (self.tiling.place >= 0) & ~self.tiling.drawn
        return Masks(columns(self.tiling.drawn), columns(given) if self.tiling.overlaps else None)

    def fits(self, shown: Tensor, masks: Masks) -> CellFits:
        """Fits of windows (n, D) before the first layer, for a search."""
        inflations = getattr(self.mixture, "search_inflations", (1.0,))
        return self._fits(shown, masks, inflations)

    def _fits(self, shown: Tensor, masks: Masks, inflations: tuple[float, ...]) -> CellFits:
        law = self.mixture
        if isinstance(law, ShiftMixture):
            half = 0.0 if self.rounding is None else self.rounding.step / 2
            scales = [
                (law.scale_of(layer).square() + half**2 / 3).sqrt()
                for layer in range(law.num_layers)
            ]
            return ShiftFits(law.loc, scales, masks, shown.unsqueeze(1))
        assert isinstance(law, AffineMixture)
        residual = ((shown - law.origin) / law.unit).unsqueeze(1)
        log_det = -(masks.drawn @ law.unit.log()).unsqueeze(-1)
        return MapFits(law.maps, inflations, masks, residual, log_det)

    def entry_fits(self, entries: EntryEvidence) -> CellFits:
        """Fits of windows of which entries (n, D) are known, before the first layer.

        For independent columns, of windows that do not overlap.
        """
        law, n = self.mixture, len(entries.value)
        like = law.log_weight.new_zeros(n, 1, law.dim)
        if isinstance(law, ShiftMixture):
            spreads = [law.scale_of(layer) for layer in range(law.num_layers)]
            return EntryFits(list(law.loc), spreads, False, entries, like, like + 1)
        assert isinstance(law, AffineMixture)
        locs = [here.loc for here in law.maps]
        spreads = [(-log_diagonal(here)).exp() for here in law.maps]
        start = like + law.origin
        return EntryFits(locs, spreads, True, entries, start, like + law.unit)

    def gates(self, shown: Tensor, masks: Masks, codes: Tensor) -> Gates | None:
        """What given entries add to scores, along codes (n, B, L): (n, 1 or B, K) by layer."""
        if masks.given is None:
            return None
        # The entries that are drawn do not matter.
        fits = self._fits(shown, Masks(masks.given, masks.given), (1.0,))
        gates = []
        for layer in range(codes.shape[-1]):
            gate = fits.scores().gate
            assert gate is not None
            gates.append(gate)
            fits = fits.extend(_parents(codes, layer), codes[..., layer])
        return gates

    def moments(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        r"""Means and standard deviations of columns, (\*S, D), given codes (\*S, L)."""
        law, flat = self.mixture, codes.reshape(-1, codes.shape[-1])
        mean = law.mean_of(flat)
        if isinstance(law, ShiftMixture):
            scale = law.scale[flat[:, -1]]
        else:
            assert isinstance(law, AffineMixture)
            if law.correlates:
                scale = law.factor_of(flat).square().sum(-1).sqrt()
            else:
                ones = torch.ones(1, 1, law.dim).to(mean)
                scale = law.factor_of(flat, ones).squeeze(1)
        return mean.reshape(*codes.shape[:-1], -1), scale.reshape(*codes.shape[:-1], -1)

    def moments_of_arrays(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of entries, (N, G, P, channels), given codes (N, C, G, L).

        Of windows that do not overlap.
        """
        tiling = self.tiling
        mean, scale = (
            t.unflatten(-1, (tiling.num_positions, -1))[:, tiling.owner, :, tiling.offset]
            for t in self.moments(codes)
        )  # (P, N, G, channels)
        return mean.movedim(0, 2), scale.movedim(0, 2)

    def mean_of_arrays(self, codes: Tensor, share: Tensor) -> Tensor:
        """Means of entries, (N, P, channels), given how likely codes (J, L) are, (N, C, J).

        Of windows that do not overlap.
        """
        mean = share @ self.moments(codes)[0]
        return self.tiling.entries_of(mean.unflatten(-1, (-1, self.channels)))

    def log_prob(self, shown: Tensor, masks: Masks, codes: Tensor) -> Tensor:
        """Log-density of what windows draw, given codes and what they are given: (n, B).

        Args:
            shown: What they show, shape (n, D).
            masks: What of it they draw.
            codes: Shape (n, B, L).
        """
        if self.correlates:
            fits = self._fits(shown, masks, (1.0,))
            for layer in range(codes.shape[-1]):
                fits = fits.extend(_parents(codes, layer), codes[..., layer])
            assert isinstance(fits, MapFits)
            return fits.log_prob
        mean, scale = self.moments(codes)
        z = (shown.unsqueeze(1) - mean) / scale
        each = -0.5 * z.square() - scale.log() - 0.5 * LOG_2PI
        return (each * masks.drawn.unsqueeze(1)).sum(-1)

    def log_mass(self, shown: Tensor, masks: Masks, codes: Tensor) -> Tensor:
        """Log-probability that what windows draw is rounded to these values: (n, B).

        Arguments are those of `log_prob`.
        """
        assert self.rounding is not None
        step, low, high = self.rounding
        mean, scale = (t.double() for t in self.moments(codes))
        value = shown.double().unsqueeze(1)
        below = torch.where(value < low + step / 2, -math.inf, (value - step / 2 - mean) / scale)
        above = torch.where(value > high - step / 2, math.inf, (value + step / 2 - mean) / scale)
        each = log_interval_probability(below, above).to(shown)
        return (each * masks.drawn.unsqueeze(1)).sum(-1)

    def fits_of_all(
        self, shown: Tensor, codes: Tensor, *, mass: bool = False, known: Tensor | None = None
    ) -> Tensor:
        """Log-density, or log-mass, of windows under all codes, (n, J).

        Of windows that do not overlap, with independent columns given a code.

        Args:
            shown: What they show, shape (n, D).
            codes: The codes, shape (J, L).
            mass: Whether values are rounded.
            known: Which of it counts, (n, D); by default all.
        """
        if not mass:
            mean, scale = self.moments(codes)
            observed = None if known is None else known.to(mean)
            return component_log_prob(shown, mean, scale, mean.new_zeros(()), observed)
        table = self._mass_of_values(codes)  # (D, V + 1, J)
        assert self.rounding is not None
        step, low, _ = self.rounding
        value = ((shown.double() - low) / step).round().long().clamp(0, table.shape[1] - 2)
        if known is not None:
            value = torch.where(known, value, table.shape[1] - 1)
        rows = value + table.shape[1] * torch.arange(len(table), device=value.device)
        return sum_rows(table.flatten(0, 1), rows)

    def _mass_of_values(self, codes: Tensor) -> Tensor:
        """Log-probabilities of all values of every column, (D, V + 1, J): zero at the end."""
        assert self.rounding is not None
        step, low, high = self.rounding
        mean, scale = (t.double().mT.unsqueeze(1) for t in self.moments(codes))  # (D, 1, J)
        count = round((high - low) / step) + 1
        edge = low + step * (torch.arange(1, count, device=mean.device) - 0.5)
        edge = nnf.pad((edge.reshape(-1, 1) - mean) / scale, (0, 0, 1, 0), value=-math.inf)
        above = nnf.pad(edge[:, 1:], (0, 0, 0, 1), value=math.inf)
        each = log_interval_probability(edge, above)
        return nnf.pad(each, (0, 0, 0, 1)).to(codes.device, self.mixture.log_weight.dtype)

    @torch.no_grad()
    def sample(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Draws codes (N, C, L) and arrays (N, P, channels), given shifts (N, C, L, K)."""
        n, tiling = len(shift), self.tiling
        if not tiling.overlaps:
            codes = self.prior.sample(shift.flatten(0, 1))
            drawn = self.mixture.draw_given(codes)
            shape = (n, tiling.num_cells, tiling.num_positions, self.channels)
            value = tiling.entries_of(drawn.reshape(shape))
            return codes.reshape(n, tiling.num_cells, -1), value
        # One window after the other: each is given what those before it drew.
        value = shift.new_zeros(n, tiling.num_entries, self.channels)
        found = []
        for cell in range(tiling.num_cells):
            window = self.window(cell)
            shown = window.show(value)
            codes = window.sample_codes(shown, shift[:, cell])
            window.write(value, window.continue_from(shown, codes))
            found.append(codes)
        return torch.stack(found, 1), value

    def factors(self, columns: Tensor, codes: Tensor) -> Tensor:
        """Factors of covariances, (U, d, d), of the last columns given those before.

        Args:
            columns: Which columns, the last of those that a window shows, (D,).
            codes: Shape (U, L).
        """
        key = tuple(columns.tolist()) if len(codes) == self.prior.num_codes else None
        if key in self._factors:
            return self._factors[key]
        law = self.mixture
        assert isinstance(law, AffineMixture)
        # Of a product of triangular matrices, the block of the last rows is that of blocks.
        factor = torch.diag_embed(law.unit[columns].reciprocal().double())
        for layer, here in enumerate(law.maps):
            if isinstance(here, TriangularMap):
                block = here.matrix[:, columns][:, :, columns].double()
                factor = block[codes[:, layer]] @ factor
            else:
                assert isinstance(here, DiagonalMap)
                diagonal = here.diag[:, columns].double()[codes[:, layer]]
                factor = diagonal.unsqueeze(-1) * factor
        identity = torch.eye(factor.shape[-1]).to(factor).expand_as(factor)
        factors = torch.linalg.solve_triangular(factor, identity, upper=False)
        if key is not None:
            self._factors[key] = factors
        return factors

    def window(self, cell: int) -> "OneWindow":
        """One of the windows by itself."""
        return OneWindow(self, cell)


class OneWindow:
    """One window, which draws some entries, and is given others.

    Args:
        law: The law of all windows.
        cell: Which of them.

    Attributes:
        entries: Indices of the entries that it draws, in an array flattened to (P channels,).
    """

    def __init__(self, law: WindowLaw, cell: int) -> None:
        self.law, tiling = law, law.tiling
        self._place, self._new = tiling.place[cell], tiling.drawn[cell]
        self._columns = self._new.repeat_interleave(law.channels)
        given = ((self._place >= 0) & ~self._new).repeat_interleave(law.channels)
        like = law.mixture.log_weight
        self._masks = Masks(self._columns.to(like), given.to(like) if bool(given.any()) else None)
        self.entries = columns_of(self._place[self._new], law.channels)

    def show(self, value: Tensor) -> Tensor:
        """What it shows of arrays (n, P, channels): (n, D), anything past the end."""
        return value[:, self._place.clamp(min=0)].flatten(1)

    def write(self, value: Tensor, drawn: Tensor) -> None:
        """Writes what it drew, (n, d), into arrays (n, P, channels)."""
        value[:, self._place[self._new]] = drawn.reshape(len(value), -1, self.law.channels)

    def _start(self, shown: Tensor) -> tuple[CellFits, bool]:
        drawn, given = self._masks
        masks = Masks(
            drawn.expand(shown.shape), None if given is None else given.expand(shown.shape)
        )
        return self.law._fits(shown, masks, (1.0,)), masks.given is not None

    def sample_codes(self, shown: Tensor, shift: Tensor) -> Tensor:
        """Draws codes (n, L), given what it shows (n, D) and shifts (n, L, K)."""
        prior = self.law.prior
        fits, gated = self._start(shown)
        codes = torch.zeros(len(shown), 1, 0, dtype=torch.long, device=shown.device)
        for layer in range(prior.num_layers):
            gate = fits.scores().gate if gated else None
            log_prob = prior.log_conditional(layer, codes, shift, gate)
            chosen = draw_index(log_prob)
            fits = fits.extend(torch.zeros_like(chosen), chosen)
            codes = torch.cat([codes, chosen.unsqueeze(1)], -1)
        return codes.squeeze(1)

    def likely_codes(self, shown: Tensor, shift: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Codes (n, B, L) that stand for all, as often as they are likely.

        Args:
            shown: What the window shows, (n, D).
            shift: What the level above adds, (n, L, K).
            width: Number B of codes.

        Returns:
            The codes, and the log-probability of all that each stands for, (n, B).
        """
        prior, k = self.law.prior, self.law.prior.num_components
        fits, gated = self._start(shown)
        codes = torch.zeros(len(shown), 1, 0, dtype=torch.long, device=shown.device)
        weight = shown.new_zeros(len(shown), 1)
        for layer in range(prior.num_layers):
            gate = fits.scores().gate if gated else None
            joint = weight.unsqueeze(-1) + prior.log_conditional(layer, codes, shift, gate)
            index, log_inclusion = thin(joint.flatten(1), width)
            parent, chosen = index // k, index % k
            weight = joint.flatten(1).gather(1, index) - log_inclusion
            codes = torch.cat([take_entries(codes, parent), chosen.unsqueeze(-1)], -1)
            if layer < prior.num_layers - 1:
                fits = fits.extend(parent, chosen)
        return codes, weight

    def continue_from(self, shown: Tensor, codes: Tensor) -> Tensor:
        """Draws entries (n, d), given codes (n, L) and what is shown of the others (n, D)."""
        if not self.law.correlates:
            mean, scale = (t[:, self._columns] for t in self.law.moments(codes))
            return mean + scale * torch.randn_like(mean)
        return self.normals(shown, codes.unsqueeze(1)).sample().squeeze(1).to(shown)

    def normals(self, shown: Tensor, codes: Tensor) -> "Normals":
        """The normals of the entries that it draws, given codes (n, B, L) and the others.

        Args:
            shown: What the window shows, (n, D).
            codes: Shape (n, B, L).
        """
        law, new = self.law.mixture, self._columns
        which, kind = self._different(codes)
        if not self.law.correlates:
            mean, scale = (t[:, new].double() for t in self.law.moments(which))
            return Normals(mean[kind], torch.diag_embed(scale), kind)
        assert isinstance(law, AffineMixture)
        (n, count), flat = codes.shape[:2], codes.flatten(0, 1)
        left = torch.where(new, law.origin, shown).repeat_interleave(count, 0)
        left = (left - law.origin) / law.unit
        for layer, here in enumerate(law.maps):
            left = here.chosen(left, flat[:, layer])
        rest = left[:, new].double().reshape(n, count, -1)
        normals = Normals(rest, self.law.factors(new, which), kind)
        return normals._replace(loc=law.origin[new].double() - normals.times(rest))

    def _different(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The codes (U, L) that occur among codes (n, B, L), and which each is, (n, B).

        Of few codes, all: what is made of them is then made once.
        """
        prior, layers = self.law.prior, codes.shape[-1]
        digit = prior.num_components ** torch.arange(layers, device=codes.device)
        number = (codes * digit).sum(-1)
        if prior.num_codes <= MAX_KEPT:
            every = torch.arange(prior.num_codes, device=codes.device)
        else:
            every, number = number.unique(return_inverse=True)
        return every.unsqueeze(-1) // digit % prior.num_components, number


def _parents(codes: Tensor, layer: int) -> Tensor:
    """Which hypothesis each code (n, B, L) goes on from: the one at first, then its own."""
    own = torch.arange(codes.shape[1], device=codes.device) if layer else codes.new_zeros(())
    return own.expand(codes.shape[:2])
