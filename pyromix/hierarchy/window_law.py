"""The normals of windows onto an array, at the bottom of a hierarchy."""

__all__ = ["OneWindow", "Rounding", "WindowLaw"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning.truncated.interval import log_interval_probability
from ..drmm.affine import AffineMixture
from ..drmm.law import ResidualMixture
from ..drmm.maps import DiagonalMap, TriangularMap
from ..drmm.prefix import take_entries
from ..drmm.shifts import ShiftMixture
from ..drmm.thinning import thin
from ..numerics.diagonal_density import LOG_2PI
from .code_prior import CodePrior, Gates, draw_index
from .entries import EntryEvidence, EntryFits
from .fits import CellFits, MapFits, Masks, ShiftFits, log_diagonal
from .tiling import Tiling, columns_of


class Rounding(NamedTuple):
    """How values were rounded: to multiples of a step, and clipped to bounds."""

    step: float
    low: float
    high: float


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

    @torch.no_grad()
    def sample(self, shift: Tensor) -> Tensor:
        """Draws arrays (N, P, channels), given shifts (N, C, L, K)."""
        n, tiling = len(shift), self.tiling
        if not tiling.overlaps:
            codes = self.prior.sample(shift.flatten(0, 1))
            drawn = self.mixture.draw_given(codes)
            shape = (n, tiling.num_cells, tiling.num_positions, self.channels)
            return drawn.reshape(shape)[:, tiling.owner, tiling.offset]
        # One window after the other: each is given what those before it drew.
        value = shift.new_zeros(n, tiling.num_entries, self.channels)
        for cell in range(tiling.num_cells):
            window = self.window(cell)
            shown = window.show(value)
            codes = window.sample_codes(shown, shift[:, cell])
            window.write(value, window.continue_from(shown, codes))
        return value

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
        loc, tril = self.normals(shown, codes.unsqueeze(1))
        noise = torch.randn_like(loc.squeeze(1)).unsqueeze(-1)
        return loc.squeeze(1) + (tril.squeeze(1) @ noise).squeeze(-1)

    def normals(self, shown: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The normals of the entries that it draws, given codes and the others.

        Args:
            shown: What the window shows, (n, D).
            codes: Shape (n, B, L).

        Returns:
            Means (n, B, d), and factors of covariances, lower-triangular, (n, B, d, d).
        """
        law, new = self.law.mixture, self._columns
        if not self.law.correlates:
            mean, scale = self.law.moments(codes)
            return mean[..., new], torch.diag_embed(scale[..., new])
        assert isinstance(law, AffineMixture)
        # Of a product of triangular matrices, the block of what is drawn is the product of blocks.
        (n, count), flat = codes.shape[:2], codes.flatten(0, 1)
        left = torch.where(new, law.origin, shown).repeat_interleave(count, 0)
        left = (left - law.origin) / law.unit
        factor = torch.diag_embed(law.unit[new].reciprocal()).expand(len(flat), -1, -1)
        for layer, here in enumerate(law.maps):
            code = flat[:, layer]
            left = here.chosen(left, code)
            if isinstance(here, TriangularMap):
                factor = here.matrix[:, new][:, :, new][code] @ factor
            else:
                assert isinstance(here, DiagonalMap)
                factor = here.diag[:, new][code].unsqueeze(-1) * factor
        identity = torch.eye(factor.shape[-1]).to(factor)
        tril = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        loc = law.origin[new] - (tril @ left[:, new].unsqueeze(-1)).squeeze(-1)
        return loc.reshape(n, count, -1), tril.reshape(n, count, *tril.shape[1:])


def _parents(codes: Tensor, layer: int) -> Tensor:
    """Which hypothesis each code (n, B, L) goes on from: the one at first, then its own."""
    own = torch.arange(codes.shape[1], device=codes.device) if layer else codes.new_zeros(())
    return own.expand(codes.shape[:2])
