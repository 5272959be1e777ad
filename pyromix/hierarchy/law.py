r"""The law of a hierarchy of residual mixtures, for given tensors.

The codes of the top are drawn first, then those of every cell of the level below, and so on. What
a cell of the lowest level draws is a normal, given its code and the entries that windows before
it drew. So an array and its codes form a tree,

.. math:: p(x, h) = p(h^{top}) \prod_{levels} \prod_{cells\ c} p(h_c \mid h_{owner(c)})
          \prod_{windows\ c} p(x_c \mid x_{before\ c}, h_c) .

Messages go up: of each cell a beam of codes is kept, with

.. math:: S_c(g) = \sum_{h} p(h \mid g) \prod_{c'\ of\ c} S_{c'}(h), \qquad
          p(x) = \sum_h p(h^{top} = h) \prod_c S_c(h) .

The sums over beams are exact where these hold all codes, and a lower bound elsewhere. Beams are
searched from below first; then, as many times as is wished, from the top down, where each cell
knows what the one above expects of it.
"""

__all__ = ["HierarchicalLaw", "Search"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.checks import is_traced
from .beams import Beams, search, streams
from .code_law import CodeLaw
from .code_prior import CodePrior
from .dense import DenseTree
from .fits import CellFits, Masks, StreamFits
from .window_law import MAX_KEPT, WindowLaw

Score = Callable[[Tensor, Masks, Tensor], Tensor]
"""Of what windows show, what of it they draw, and codes."""


@dataclass(frozen=True)
class Search:
    """How the codes that count are searched for."""

    width: int = 16
    """Codes that are kept for each cell."""
    sweeps: int = 1
    """How many times the search is done anew from the top."""
    max_codes: int = 0
    """Sums are over all codes, where no cell has more than this."""
    least_of_windows: int = 1
    """Codes of windows that are kept at least."""
    max_kept: int = MAX_KEPT
    """Where not all cells have few codes, all are kept of those that have no more than this."""

    def width_at(self, place: int) -> int:
        """Codes that are kept for each cell of a level, the lowest of which is zero."""
        return max(self.width, self.least_of_windows) if place == 0 else self.width


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


class HierarchicalLaw:
    """A hierarchy of levels.

    Args:
        windows: The normals at the bottom.
        levels: The levels above, the top last.
        frozen: How many levels have no gradients, from the bottom on.
    """

    def __init__(self, windows: WindowLaw, levels: Sequence[CodeLaw], *, frozen: int = 0) -> None:
        self.windows, self.levels, self.frozen = windows, tuple(levels), frozen
        self.priors: list[CodePrior] = [windows.prior, *(level.prior for level in levels)]
        self._trees: dict[tuple[int, int], DenseTree | None] = {}  # without a graph

    def copied(self) -> "HierarchicalLaw":
        """The law with copies of its tensors, without a graph."""
        own = self.windows
        mixture = own.mixture.map_tensors(_copy)
        windows = WindowLaw(mixture, own.tiling, own.channels, own.rounding)
        return HierarchicalLaw(windows, [level.map_tensors(_copy) for level in self.levels])

    # ---- draws ------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Draws arrays (N, P, channels)."""
        return self.windows.sample(self.shifts_of_windows(count))[1]

    @torch.no_grad()
    def sample_codes(self, count: int) -> list[Tensor]:
        """Draws the codes of arrays, (N, C, L) of each level, the lowest first."""
        above = self._codes_above(count)
        if not above:
            return [self.priors[0].sample(None, count).unsqueeze(1)]
        return [self.windows.sample(self.shifts_from(0, above[0]))[0], *above]

    @torch.no_grad()
    def shifts_of_windows(self, count: int) -> Tensor:
        """Draws the codes of all levels above the bottom: what they add there, (N, C, L, K)."""
        return self.shifts_from(0, self._codes_above(count)[0])

    def _codes_above(self, count: int) -> list[Tensor]:
        """Draws the codes of all levels above the bottom, (N, C, L) each, the lowest first."""
        found: list[Tensor] = []
        for place in reversed(range(1, len(self.priors))):
            prior = self.priors[place]
            if found:
                shift = self.shifts_from(place, found[0])
                codes = prior.sample(shift.flatten(0, 1)).reshape(count, -1, prior.num_layers)
            else:
                codes = prior.sample(None, count).unsqueeze(1)
            found.insert(0, codes)
        return found

    def shifts_from(self, place: int, above: Tensor) -> Tensor:
        """What codes (N, C', L') of the level above a level add to its scores: (N, C, L, K)."""
        return self.levels[place].shifts(above.unsqueeze(2)).squeeze(2)

    # ---- densities --------------------------------------------------------------------------

    def log_prob(
        self, value: Tensor, how: Search, *, mass: bool = False, depth: int | None = None
    ) -> Tensor:
        """Log-density of arrays (N, P, channels), shape (N,), exact or a lower bound.

        Args:
            value: The arrays.
            how: How codes are searched for.
            mass: Whether to return the log-probability that values are rounded to these.
            depth: How many levels above the bottom count; cells of the last are independent
                then. By default all.
        """
        depth = len(self.levels) if depth is None else depth
        shown = self.windows.windows(value)
        tree = self.tree(how.max_codes, depth)
        if tree is not None:
            return tree.log_prob(self.fits_of_all(tree, shown, mass=mass))
        masks = self.windows.masks(len(value))
        score = self.windows.log_mass if mass else self.windows.log_prob
        with torch.no_grad():
            found = self._search(shown, masks, how, score, depth)
        # The messages once more, with their graph.
        start = self.frozen if torch.is_grad_enabled() else depth + 1
        beams = found[start - 1]
        for place in range(start, depth + 1):
            codes = found[place].codes
            if place == 0:
                beams = self._bottom(shown, masks, codes, score)
            else:
                beams = Beams(codes, self.messages(place, codes, beams))
        joint = beams.log_prior(self.priors[depth]) + beams.fit
        return joint.logsumexp(-1).sum(-1)

    def tree(self, max_codes: int, depth: int | None = None) -> DenseTree | None:
        """Sums over all codes of the lowest levels, by default of all, if these are few.

        They are few if no cell has more than `max_codes`. What windows are given must not matter.
        """
        depth = len(self.levels) if depth is None else depth
        if self.windows.tiling.overlaps or self.windows.correlates:
            return None
        if torch.is_grad_enabled():
            return DenseTree.of(self.priors[: depth + 1], self.levels[:depth], max_codes)
        key = max_codes, depth
        if key not in self._trees:
            self._trees[key] = DenseTree.of(
                self.priors[: depth + 1], self.levels[:depth], max_codes
            )
        return self._trees[key]

    def fits_of_all(
        self, tree: DenseTree, shown: Tensor, *, mass: bool, known: Tensor | None = None
    ) -> Tensor:
        """How well what windows show fits all codes of them, (N, C, J).

        Args:
            tree: All codes.
            shown: What windows show, (n, D).
            mass: Whether values are rounded.
            known: Which of it counts, (n, D); by default all.
        """
        windows = self.windows
        count = len(shown) // self.num_cells(0)
        if known is None and windows.tiling.hangs_over:
            known = windows.masks(count).drawn > 0
        alike = self._alike(shown) if known is None else None
        first, index = (slice(None), slice(None)) if alike is None else alike
        fits = windows.fits_of_all(shown[first], tree.everything[0], mass=mass, known=known)
        return fits[index].reshape(count, -1, fits.shape[-1])

    def _bottom(
        self,
        shown: Tensor,
        masks: Masks,
        codes: Tensor,
        score: Score,
        alike: tuple[Tensor, Tensor] | None = None,
    ) -> Beams:
        """Codes (N, C, B, L) of windows, with how well these fit them.

        Args:
            shown: What windows show.
            masks: What of it they draw.
            codes: The codes.
            score: Log-density, or log-mass.
            alike: As `_alike` returns it, if windows that are alike have the same codes.
        """
        flat = codes.flatten(0, 1)
        if alike is None:
            fit = score(shown, masks, flat)
        else:
            first, index = alike
            fit = score(shown[first], masks.take(first), flat[first])[index]
        return Beams(codes, fit.reshape(codes.shape[:-1]), self.windows.gates(shown, masks, flat))

    def _alike(self, shown: Tensor) -> tuple[Tensor, Tensor] | None:
        """Windows that stand for all that are alike, and which of them each is like.

        Images have many plain windows. Others of real numbers have none that are alike.
        """
        if self.windows.rounding is None or self.windows.tiling.overlaps or is_traced():
            return None
        # Sorting numbers takes a fraction of the time that sorting rows would.
        weight = torch.arange(2, shown.shape[-1] + 2, dtype=torch.float64, device=shown.device)
        _, index = (shown.double() @ weight.sqrt()).unique(return_inverse=True)
        first = index.new_zeros(int(index.amax()) + 1)
        first[index] = torch.arange(len(index), device=index.device)
        return (first, index) if torch.equal(shown[first][index], shown) else None

    def messages(
        self, place: int, codes: Tensor, below: Beams, active: Tensor | None = None
    ) -> Tensor:
        """Log-probability of all below codes of a level: (N, C, G).

        Args:
            place: The level, at least one.
            codes: Its codes, shape (N, C, G, L).
            below: What was found for the cells of the level below.
            active: Whether something is known below each of those cells, (N, P); by default of
                all. The others have a probability of one.
        """
        level, prior = self.levels[place - 1], self.priors[place - 1]
        shift = level.shifts(codes)  # (N, P, G, L', K')
        flat = below.codes.flatten(0, 1)
        given = prior.log_prob_given(flat, shift.flatten(0, 1), below.gates)
        joint = given.reshape(*shift.shape[:3], -1) + below.fit.unsqueeze(2)  # (N, P, G, B)
        total = joint.logsumexp(-1)
        if active is not None:
            total = torch.where(active.unsqueeze(-1), total, 0.0)
        return level.tiling.sum_drawn(total)

    @torch.no_grad()
    def encode(self, value: Tensor, how: Search, depth: int) -> Tensor:
        """The likeliest codes (N, C, L) that are found for the cells of a level.

        Args:
            value: Arrays (N, P, channels).
            how: How codes are searched for.
            depth: The level, zero for the bottom; levels above it do not count.
        """
        shown, masks = self.windows.windows(value), self.windows.masks(len(value))
        beams = self._search(shown, masks, how, self.windows.log_prob, depth)[depth]
        return beams.best(self.priors[depth])

    # ---- the search for codes ----------------------------------------------------------------

    def _search(
        self,
        shown: Tensor,
        masks: Masks,
        how: Search,
        score: Score,
        depth: int,
    ) -> list[Beams]:
        """Codes of all cells of the lowest levels."""
        priors, count = self.priors[: depth + 1], len(shown) // self.num_cells(0)
        everything = [self._all_codes(prior, min(how.max_codes, how.max_kept)) for prior in priors]
        beams: list[Beams] = []
        shifts: list[Tensor | None] = [None] * (depth + 1)
        sweeps = 0 if all(every is not None for every in everything) else how.sweeps
        for sweep in range(sweeps + 1):
            found: list[Beams] = []
            for place, prior in enumerate(priors):
                cells = count * self.num_cells(place)
                every, width, shift = everything[place], how.width_at(place), shifts[place]
                alike = self._alike(shown) if place == 0 and shift is None else None
                if every is not None:
                    codes = every.expand(cells, -1, -1)
                elif place:
                    fits = self.stream_fits(place, found[-1], shifts[place - 1])
                    codes = search(prior, fits, cells, width, shift)
                elif alike is not None:
                    first, index = alike
                    fits = self.windows.fits(shown[first], masks.take(first))
                    codes = search(prior, fits, len(first), width)[index]
                else:
                    codes = search(prior, self.windows.fits(shown, masks), cells, width, shift)
                codes = codes.reshape(count, -1, *codes.shape[1:])
                if place == 0:
                    found.append(self._bottom(shown, masks, codes, score, alike))
                else:
                    found.append(Beams(codes, self.messages(place, codes, found[-1])))
            beams = found
            if sweep < sweeps:
                shifts = self.expectations(beams)
        return beams

    def stream_fits(
        self, place: int, below: Beams, shift: Tensor | None, active: Tensor | None = None
    ) -> CellFits:
        """How well cells of a level fit, before their first layer; see `StreamFits`.

        Args:
            place: The level, at least one.
            below: What was found for the cells of the level below.
            shift: What was expected of those cells, (N P, L', K').
            active: As for `messages`.
        """
        likely, expected = streams(self.priors[place - 1], below, shift)
        if active is not None:
            likely = torch.where(active[..., None, None], likely, 0.0)
        added = self.levels[place - 1].rough_fits(likely, expected)
        return StreamFits(added, added[0].new_zeros(len(added[0]), 1))

    def expectations(self, beams: list[Beams]) -> list[Tensor | None]:
        """What the likeliest codes above add to the scores of each level: (N C, L, K)."""
        shifts: list[Tensor | None] = [None]
        for place in reversed(range(len(beams))):
            code = beams[place].best(self.priors[place], shifts[0])
            if place:
                below = self.levels[place - 1].shifts(code.unsqueeze(2)).squeeze(2)
                shifts.insert(0, below.flatten(0, 1))
        return shifts

    def num_cells(self, place: int) -> int:
        """Number of cells of a level."""
        return (self.levels[place - 1] if place else self.windows).tiling.num_cells

    def _all_codes(self, prior: CodePrior, most: int) -> Tensor | None:
        """All codes of a cell, (1, C, L), if they are few."""
        k, layers = prior.num_components, prior.num_layers
        if k**layers > most:
            return None
        each = [torch.arange(k, device=prior.log_weight.device)] * layers
        return torch.cartesian_prod(*each).reshape(1, -1, layers)
