"""How the normals that share a pattern of constraints are integrated and drawn from."""

__all__ = ["Group", "Settings"]

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from ...core.checks import check_positive_int
from .hamiltonian import Population, anneal, move
from .newton import central_point
from .proposals import Proposal, TiltedBox, TiltedSequence

# Proposals with more rows than this are not worth their tables of size rows x coordinates.
MAX_SEQUENCE_ROWS = 256
ORTHOGONAL = 1e-12
RANK_TOLERANCE = 1e-8
NUM_REPLICATES = 16
# Rounds of estimation, each with four times the points of all before.
MAX_ROUNDS = 4
# No round after the first draws more numbers than this, some ten seconds of work.
MAX_NUMBERS = 2**24
CHUNK_NUMBERS = 2**22
MAX_ATTEMPTS = 2**14


class Options(TypedDict, total=False):
    """Keyword arguments of `TruncatedNormals`, which describes them."""

    num_points: int
    min_acceptance: float
    num_moves: int
    max_error: float


@dataclass(frozen=True)
class Settings:
    """Options of `TruncatedNormals`, checked, with their defaults.

    Raises:
        ValueError: For an option that is out of range.
    """

    num_points: int = 2048
    min_acceptance: float = 0.01
    num_moves: int = 10
    max_error: float = 0.01

    def __post_init__(self) -> None:
        check_positive_int("num_points", self.num_points)
        check_positive_int("num_moves", self.num_moves)
        if not self.max_error > 0:
            raise ValueError(f"Expected a positive max_error, got {self.max_error!r}.")
        if not 0 <= self.min_acceptance <= 1:
            raise ValueError(f"Expected min_acceptance from 0 to 1, got {self.min_acceptance!r}.")


class Group:
    """Components of standard normals whose finite bounds are the same, on T coordinates.

    Args:
        box_low: Shape (k, T).
        box_high: Shape (k, T).
        rows: Of unit length, shape (k, q, T).
        low: Shape (k, q).
        high: Shape (k, q).
        interior: Finds points strictly inside, shape (k, T), and says which components have
            one; called only if rows are dependent.
        settings: What the user chose.

    Attributes:
        routes: One name for every component.
        log_normalizer: Shape (k,).
        error: Standard error of `log_normalizer`.
        acceptance: How many proposals become draws, shape (k,); one without rejection.
    """

    def __init__(
        self,
        box_low: Tensor,
        box_high: Tensor,
        rows: Tensor,
        low: Tensor,
        high: Tensor,
        interior: Callable[[], tuple[Tensor, Tensor]],
        settings: Settings,
    ) -> None:
        self._settings = settings
        num, dim = box_low.shape
        self._dim = dim
        active = ((box_low > -math.inf) | (box_high < math.inf))[0]
        axes = torch.eye(dim, dtype=rows.dtype, device=rows.device)[active]
        all_low = torch.cat([box_low[:, active], low], 1)
        all_high = torch.cat([box_high[:, active], high], 1)
        count = all_low.shape[1]
        self._proposals: list[Proposal] = []
        self._choice = torch.zeros(num, dtype=torch.long, device=rows.device)
        self._populations: dict[int, Population] = {}
        self._sided: tuple[Tensor, Tensor] | None = None
        self.routes = ["independent"] * num
        self.empty = torch.zeros(num, dtype=torch.bool, device=rows.device)
        self.error = box_low.new_zeros(num)
        self.acceptance = box_low.new_ones(num)

        # No row couples coordinates: a box is its own, exact proposal.
        if rows.shape[1] == 0:
            self._proposals.append(TiltedBox(box_low, box_high, rows, low))
            self.log_normalizer = self._proposals[0].log_bound
            return
        all_rows = torch.cat([axes.expand(num, -1, -1), rows], 1)
        rank = 0
        if count <= MAX_SEQUENCE_ROWS:
            # The caller keeps components of different ranks apart.
            rank = int(torch.linalg.matrix_rank(all_rows[0], atol=RANK_TOLERANCE, rtol=0.0))
        dependent = rank < count  # or too many to tell
        inside: Tensor | None = None
        if dependent:
            inside, found = interior()
            self.empty = ~found
            if not bool(found.any()):
                self.log_normalizer = torch.full_like(self.error, -math.inf)
                return
            # Those without room stand in as copies of one that has, for the solvers' sake.
            stand_in = torch.where(
                found, torch.arange(num, device=found.device), int(found.int().argmax())
            )
            inside, all_rows, all_low, all_high, box_low, box_high, rows, low, high = (
                t[stand_in]
                for t in (
                    inside, all_rows, all_low, all_high, box_low, box_high, rows, low, high
                )
            )  # fmt: skip
        self._sided = _one_sided(all_rows, all_low, all_high)
        if count <= MAX_SEQUENCE_ROWS:
            if inside is not None:
                inside = central_point(*self._sided, inside)
            self._proposals.append(TiltedSequence(all_rows, all_low, all_high, rank, inside))
        if dependent and bool(active.any()):
            self._proposals.append(TiltedBox(box_low, box_high, *_one_sided(rows, low, high)))
        self._inside = inside
        # The acceptance is the normaliser over the bound: the least bound accepts most.
        best = torch.full_like(self.error, math.inf)
        for number, proposal in enumerate(self._proposals):
            better = (proposal.log_bound < best) & ~self.empty
            best = torch.where(better, proposal.log_bound, best)
            self._choice[better] = number
            for k in better.nonzero().squeeze(-1).tolist():
                self.routes[k] = proposal.name
        first = self._proposals[0] if self._proposals else None
        if isinstance(first, TiltedSequence) and first.is_product:
            self.routes = ["independent"] * num
            self.log_normalizer = first.log_bound
            return
        if isinstance(first, TiltedSequence) and count == rank == 2:
            self.routes = ["quadrature"] * num
            self.log_normalizer = first.two_row_log_probability()
            self.acceptance = (self.log_normalizer - best).exp()
        else:
            self._estimate(best)
        for k in range(num):
            enough = self.acceptance[k] > 0 and self.acceptance[k] >= settings.min_acceptance
            if not self.empty[k] and not enough:
                self._anneal(k)
        self.log_normalizer = torch.where(self.empty, -math.inf, self.log_normalizer)

    def draw(self, index: Tensor) -> Tensor:
        """Draws for components (n,): standard normals within the constraints, (n, T)."""
        result = torch.empty(
            len(index), self._dim, dtype=self.error.dtype, device=self.error.device
        )
        choice = self._choice.clone()
        for k in self._populations:
            choice[k] = -1
            chosen = (index == k).nonzero().squeeze(-1)
            if len(chosen):
                result[chosen] = self._follow_chain(k, len(chosen))
        for number, proposal in enumerate(self._proposals):
            chosen = (choice[index] == number).nonzero().squeeze(-1)
            if len(chosen):
                result[chosen] = self._accept(proposal, index[chosen])
        return result

    def _accept(self, proposal: Proposal, index: Tensor) -> Tensor:
        """Draws by acceptance and rejection."""
        result = torch.empty(
            len(index), self._dim, dtype=self.error.dtype, device=self.error.device
        )
        # Bounds are exact where nothing is rejected, up to rounding.
        sure = all(self.routes[int(k)] == "independent" for k in index.unique())
        rows = max(1, CHUNK_NUMBERS // (4 * self._dim))
        pending = torch.arange(len(index), device=index.device)
        attempts = 0
        while len(pending):
            now, rest = pending[:rows], pending[rows:]
            mean = float(self.acceptance[index[now]].mean())
            repeats = 1 if sure else max(1, min(int(1.2 / mean), rows // len(now)))
            tried = index[now].repeat_interleave(repeats)
            uniform = torch.rand(
                len(tried), proposal.num_uniforms, dtype=result.dtype, device=result.device
            )
            z, log_weight = proposal.propose(tried, uniform)
            level = torch.rand_like(log_weight).log()
            good = sure | (level <= log_weight - proposal.log_bound[tried])
            good = good.view(-1, repeats)
            done, first = good.any(-1), good.int().argmax(-1)
            result[now[done]] = z.view(len(now), repeats, -1)[done, first[done]]
            pending = torch.cat([now[~done], rest])
            attempts += 1
            if attempts > MAX_ATTEMPTS * (1 + len(index) // rows):
                raise ValueError(
                    f"Expected an acceptance near {mean:.2g}, as estimated, but {len(pending)} "
                    f"of {len(index)} draws were not accepted in {attempts} rounds. Raise "
                    f"num_points, or min_acceptance to use a Markov chain instead."
                )
        return result

    def _estimate(self, log_bound: Tensor) -> None:
        """Normalisers and acceptance, by randomised quasi-Monte Carlo.

        Every replicate is a scrambling of its own of the same points, and unbiased; their spread
        is the error.
        """
        num = len(log_bound)
        device = log_bound.device
        per_replicate = max(1, self._settings.num_points // NUM_REPLICATES)
        self.log_normalizer = torch.full_like(log_bound, -math.inf)
        self.error = torch.full_like(log_bound, math.inf)
        for number, proposal in enumerate(self._proposals):
            todo = ((self._choice == number) & log_bound.isfinite()).nonzero().squeeze(-1)
            points = per_replicate
            for _ in range(MAX_ROUNDS):
                if not len(todo):
                    break
                values = torch.stack(
                    [
                        self._replicate(proposal, todo, points, device)
                        for _ in range(NUM_REPLICATES)
                    ]
                )  # (replicates, todo), relative to the bound
                mean = values.mean(0)
                self.log_normalizer[todo] = mean.log() + log_bound[todo]
                error = values.std(0) / math.sqrt(NUM_REPLICATES) / mean
                self.error[todo] = torch.where(mean > 0, error, math.inf)
                # More points help those that are nearly good; the hopeless take another route.
                hopeful = mean > 0.1 * self._settings.min_acceptance
                todo = todo[(error > self._settings.max_error) & hopeful]
                points *= 4
                if len(todo) * points * NUM_REPLICATES * self._dim > MAX_NUMBERS:
                    break
        self.acceptance = (self.log_normalizer - log_bound).exp().nan_to_num(0.0)
        assert len(self.acceptance) == num

    def _replicate(
        self, proposal: Proposal, components: Tensor, points: int, device: torch.device
    ) -> Tensor:
        """Mean weight of components, as a fraction of their bounds, over one set of points."""
        engine = SobolEngine(proposal.num_uniforms, scramble=True)
        uniform = engine.draw(points, dtype=torch.float64).to(device)
        uniform = uniform.clamp(1e-16, 1 - 1e-16)
        block = max(1, CHUNK_NUMBERS // (points * self._dim * 4))
        means = []
        for part in components.split(block):
            index = part.repeat_interleave(points)
            _, log_weight = proposal.propose(index, uniform.repeat(len(part), 1))
            weight = (log_weight - proposal.log_bound[index]).exp()
            means.append(weight.view(len(part), points).mean(-1))
        return torch.cat(means)

    def _anneal(self, k: int) -> None:
        """Takes the last resort for a component."""
        assert self._sided is not None
        rows, bounds = (t[k] for t in self._sided)
        centre = self._centre(k)
        population = anneal(rows, bounds, centre, self._settings.num_points)
        self._populations[k] = population
        self.routes[k] = "hamiltonian"
        self.log_normalizer[k], self.error[k] = population.log_normalizer, population.error
        self.acceptance[k] = 1.0

    def _centre(self, k: int) -> Tensor:
        """A point well inside, and likely."""
        assert self._sided is not None
        if self._inside is not None:
            start = self._inside
        else:
            first = self._proposals[0]
            assert isinstance(first, TiltedSequence)
            start = first.inner_points()
        rows, bounds = self._sided
        return central_point(rows[k : k + 1], bounds[k : k + 1], start[k : k + 1])[0]

    def _follow_chain(self, k: int, count: int) -> Tensor:
        assert self._sided is not None
        rows, bounds = (t[k] for t in self._sided)
        population = self._populations[k]
        weight = (population.log_weight - population.log_weight.max()).exp()
        start = torch.multinomial(weight, count, replacement=True)
        z = population.points[start]
        still = torch.zeros_like(population.points[0])
        step = max(1, CHUNK_NUMBERS // (8 * max(rows.shape)))
        parts = []
        for part in z.split(step):
            moved = part
            for _ in range(self._settings.num_moves):
                moved, _ = move(moved, rows, bounds, still, population.time)
            parts.append(moved)
        return torch.cat(parts)


def _one_sided(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """H and h of H z <= h for rows with bounds on both sides, without the infinite ones."""
    system, bounds = torch.cat([rows, -rows], 1), torch.cat([high, -low], 1)
    finite = (bounds < math.inf).any(0)
    return system[:, finite], bounds[:, finite]
