"""The choice of a family of covariances and of a number of components."""

__all__ = ["select"]

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ...core.advice import warn_user
from ...core.checks import (
    as_int,
    check_choice,
    check_floor,
    check_positive_int,
    check_squares,
    number,
)
from ...core.conversions import TensorLike, as_tensor
from ...core.random import chosen_seed, draws_from, seeded
from ...core.standardize import Mode, check_mode
from ...training.integers import warn_about_integers
from ..covariance import FAMILIES, STRUCTURES
from ..em.fit_em import fit_em
from ..em.statistics import joint_log_prob
from ..learnable import GaussianMixture, Missing
from .result import Candidate, Criterion, Selection
from .starts import KINDS, Starts, merged, split

# Iterations from every start, after which the best run goes on.
SHORT_STEPS = 6

# Families that are tried from all starts, the others only from those that were best for these.
PILOTS = ("EEE", "tied", "VVI", "diagonal", "VVV", "full")

# Of the best candidates, so many are tried again, in so many rounds, from what so many other
# families found, and so many of the best runs go on.
REFINED = 6
ROUNDS = 3
DONORS = 3
LONG_RUNS = 2

# Components with variances of their own along every axis, of which each takes points.
OWN_SHAPES = ("diagonal", "full", "low_rank", "low_rank_precision")

# A variance is at the floor if it is less than this multiple of it.
NEAR_FLOOR = 1.1

Cell = tuple[str, int]


class _Limits(NamedTuple):
    """Of fits: iterations, tolerance, and points that components have at least, by family."""

    steps: int
    tolerance: float
    min_points: dict[str, int]


def select(
    data: TensorLike,
    num_components: Iterable[int] | int = range(1, 10),
    covariances: Iterable[str] | str = tuple(FAMILIES),
    criterion: Criterion = "bic",
    *,
    starts: Iterable[str] = KINDS,
    folds: int = 5,
    min_points: int | None = None,
    steps: int = 1000,
    tolerance: float = 1e-5,
    variance_floor: float = 1e-6,
    missing: Missing = "error",
    standardize: Mode = "auto",
    seed: int | None = None,
    progress_bar: bool = True,
) -> Selection:
    r"""Fits mixtures of many families and numbers of components, and selects the best.

    Each is fitted by expectation maximisation from starts of several kinds: a few iterations from
    every one, then more of the best (Biernacki, Celeux and Govaert 2003). Where tied, diagonal or
    full covariances are among the families, others have the starts that are best for these. The
    best mixtures are tried again: from new starts, from the components that other families found,
    and from those of one component more or less and their own, of which one is split and two are
    merged (Ueda et al. 2000).

    A mixture is degenerate, and not selected, if a component has collapsed onto the variance
    floor in a direction in which the data have not, or has fewer than `min_points` points: its
    likelihood says nothing, and has no bound but the floor's.

    Args:
        data: Points, shape (N, D): a tensor, an array or nested lists.
        num_components: Numbers of components to try.
        covariances: Families to try, as `GaussianMixture` takes them; by default all 14.
        criterion: What to select by. ``"bic"``: the Bayesian information criterion, for densities;
            ``"icl"``: with the points' uncertainty about their component added, for clusters that
            are well apart (Biernacki et al. 2000); ``"heldout"``: the log-density of points that
            were held out, of every fold in turn. It takes `folds` times as long.
        starts: Kinds of starts, of ``"k-means"``, ``"hierarchical"`` (Ward's criterion),
            ``"random"`` and ``"annealed"`` (Ueda and Nakano 1998).
        folds: Number of parts that are held out in turn.
        min_points: Points that a component explains at least; by default D + 1 if components have
            shapes of their own, and two otherwise.
        steps: Largest number of iterations of a run.
        tolerance: Rise of the mean log-likelihood, in nats, below which a run stops.
        variance_floor: Smallest variance; see `GaussianMixture`.
        missing: Whether NaN is an error, or marks entries that are integrated out.
        standardize: Whether parameters are in units of the data; see `GaussianMixture`.
        seed: Seed of starts and folds; by default drawn from PyTorch's global generator.
        progress_bar: Whether to show a bar.

    Returns:
        The best mixture, of the data's dtype if these are a tensor, and a table of all.

    Raises:
        ValueError: If an argument is out of range, data do not fit, or there are fewer points than
            every number of components needs.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> data = torch.cat([torch.randn(200, 2) - 3, torch.randn(200, 2) + 3])
        >>> found = select(data, range(1, 4), ("EII", "VVV"), seed=0, progress_bar=False)
        >>> found.candidate.covariance, found.candidate.num_components
        ('EII', 2)
        >>> found.best.log_prob(data).shape
        torch.Size([400])
    """
    data = data if isinstance(data, Tensor) else as_tensor("data", data, like=torch.empty(0))
    given: Any = num_components
    numbers = [given] if as_int(given) is not None else list(given)
    numbers = sorted({check_positive_int("num_components", number) for number in numbers})
    families = [covariances] if isinstance(covariances, str) else list(dict.fromkeys(covariances))
    kinds = (starts,) if isinstance(starts, str) else tuple(dict.fromkeys(starts))
    for name, values, known in (
        ("covariances", families, (*STRUCTURES, *FAMILIES)),
        ("starts", kinds, KINDS),
    ):
        if not values:
            raise ValueError(f"Expected {name} to name at least one, got none.")
        for value in values:
            check_choice(name, value, known)
    if not numbers:
        raise ValueError("Expected num_components to have at least one number, got none.")
    check_choice("criterion", criterion, ("bic", "icl", "heldout"))
    check_choice("missing", missing, ("error", "marginalize"))
    check_floor("variance_floor", variance_floor)
    check_mode("standardize", standardize)
    x = _check_data(data, missing)
    if min_points is not None:
        check_positive_int("min_points", min_points)
    least = {family: min_points or _least_points(family, x.shape[-1]) for family in families}
    cells = [(family, k) for family in families for k in numbers]
    possible = [cell for cell in cells if _is_possible(cell, len(x), least[cell[0]])]
    if not possible:
        raise ValueError(
            f"Expected at least {min(least.values())} points for every component, got {len(x)} "
            f"points and num_components={numbers}. Try fewer components, or another min_points."
        )
    if criterion == "heldout" and not 2 <= check_positive_int("folds", folds) <= len(x):
        raise ValueError(f"Expected folds to be from 2 to {len(x)}, got {folds}.")
    seed = chosen_seed(seed)
    options: dict[str, Any] = {
        "variance_floor": variance_floor,
        "missing": missing,
        "standardize": standardize,
    }
    limits = _Limits(
        check_positive_int("steps", steps), number(0.0)("tolerance", tolerance), least
    )
    held_out = folds if criterion == "heldout" else 0
    bar = tqdm(total=len(possible) * (1 + held_out), unit="fit", disable=not progress_bar)
    with bar, torch.no_grad(), draws_from(*seeded(seed, x.device)):
        warn_about_integers(GaussianMixture(x.shape[-1], 1, **options), x)
        search = _Search(x, kinds, options, limits, bar)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # candidates may collapse: rows say so
            search.fit(possible)
            scores = _held_out(x, possible, kinds, options, limits, held_out, bar)
            search.refine("bic" if criterion == "heldout" else criterion)
        return _selection(search, cells, scores, criterion, data.dtype)


class _Fit(NamedTuple):
    """A fitted mixture."""

    model: GaussianMixture
    log_likelihood: float
    responsibilities: Tensor
    converged: bool
    degenerate: str

    @property
    def rank(self) -> tuple[bool, float]:
        """What is better: not degenerate, then more likely."""
        return not self.degenerate, self.log_likelihood


class _Search:
    """Fits of several candidates to the same points.

    Args:
        x: Points in float64, shape (N, D).
        kinds: Of starts.
        options: Arguments of the mixtures.
        limits: Of the fits.
        bar: What to move on with every candidate.
    """

    def __init__(
        self,
        x: Tensor,
        kinds: tuple[str, ...],
        options: dict[str, Any],
        limits: _Limits,
        bar: tqdm,
    ) -> None:
        self.x, self.options, self.bar = x, options, bar
        self.limits = limits
        fill = x.nanmean(0).nan_to_num(0.0)
        self.filled = torch.where(x.isnan(), fill, x)
        self.starts = Starts(self.filled, kinds)
        self.found: dict[Cell, _Fit] = {}

    def fit(self, cells: list[Cell]) -> None:
        """Fits all candidates."""
        for k in sorted({k for _, k in cells}):
            starts, good = list(self.starts(k)), set[int]()
            of_size = [cell for cell in cells if cell[1] == k]
            pilots = [cell for cell in of_size if cell[0] in PILOTS] or of_size
            for cell in pilots:
                fits = [self._run(cell, start, SHORT_STEPS) for start in starts]
                ranks = [fit.rank for fit in fits]
                best = ranks.index(max(ranks))
                good.add(best)
                self.found[cell] = self._go_on(fits[best])
                self.bar.update()
            for cell in of_size:
                if cell not in pilots:
                    self.found[cell] = self._best_of(cell, [starts[i] for i in sorted(good)])
                    self.bar.update()

    def refine(self, criterion: str) -> None:
        """Tries the best candidates again, until nothing rises.

        From new starts, from what others found, and from what they found themselves with one
        component split and two others merged.
        """
        tried: set[tuple[Cell, Cell, float]] = set()
        for _ in range(ROUNDS):
            changed = False
            for cell in self._best(list(self.found), criterion)[:REFINED]:
                self.bar.set_postfix_str(f"refining {cell[0]} {cell[1]}", refresh=False)
                given = [] if any(cell == one for one, *_ in tried) else list(self.starts(cell[1]))
                for source in self._neighbours(cell, criterion):
                    trial = (cell, source, self.found[source].log_likelihood)
                    if trial not in tried:
                        tried.add(trial)
                        given += self._moved(source, cell)
                if cell[1] == 1 or not given:
                    continue
                fit = self._best_of(cell, given, LONG_RUNS)
                if fit.rank > self.found[cell].rank:
                    gain = fit.log_likelihood - self.found[cell].log_likelihood
                    changed |= gain > len(self.x) * self.limits.tolerance
                    self.found[cell] = fit
            if not changed:
                break

    def _best(self, cells: list[Cell], criterion: str) -> list[Cell]:
        """Candidates, the best first, without degenerate ones."""
        sound = [cell for cell in cells if not self.found[cell].degenerate]
        return sorted(sound, key=lambda cell: self.candidate(cell).score(criterion))

    def _neighbours(self, cell: Cell, criterion: str) -> list[Cell]:
        """Candidates whose components one may start from: also its own."""
        family, k = cell
        others = [each for each in self.found if each[1] == k and each != cell]
        near = [cell, (family, k - 1), (family, k + 1)]
        return [*self._best(others, criterion)[:DONORS], *(n for n in near if n in self.found)]

    def _moved(self, source: Cell, cell: Cell) -> list[Tensor]:
        """Responsibilities of one candidate made into starts of another one."""
        given = self.found[source].responsibilities
        if source == cell:
            return [start for part in split(given, self.filled) for start in merged(part)]
        if source[1] < cell[1]:
            return list(split(given, self.filled))
        return list(merged(given)) if source[1] > cell[1] else [given]

    def _best_of(self, cell: Cell, starts: list[Tensor], long_runs: int = 1) -> _Fit:
        """Short runs from all starts, and the best of these to the end."""
        fits = [self._run(cell, start, SHORT_STEPS) for start in starts]
        fits.sort(key=lambda fit: fit.rank, reverse=True)
        return max((self._go_on(fit) for fit in fits[:long_runs]), key=lambda fit: fit.rank)

    def _run(self, cell: Cell, start: Tensor, steps: int) -> _Fit:
        """A run from responsibilities (N, K)."""
        family: Any = cell[0]
        model = GaussianMixture(self.x.shape[-1], cell[1], family, **self.options).to(self.x)
        model.initialize(self.filled, responsibilities=start)
        return self._trained(model, steps)

    def _go_on(self, fit: _Fit) -> _Fit:
        """A run that goes on to the end."""
        return fit if fit.converged else self._trained(fit.model, self.limits.steps)

    def _trained(self, model: GaussianMixture, steps: int) -> _Fit:
        history = fit_em(
            model,
            self.x,
            steps=steps,
            tolerance=self.limits.tolerance,
            initialize=False,
            seed=0,
            progress_bar=False,
        )
        scores = joint_log_prob(model.law, self.x)
        log_prob = scores.logsumexp(-1, keepdim=True)
        given = (scores - log_prob).exp()
        return _Fit(
            model,
            float(log_prob.sum()),
            given,
            len(history.losses) < steps,
            self._degenerate(model, given),
        )

    def _degenerate(self, model: GaussianMixture, responsibilities: Tensor) -> str:
        """Why the likelihood of a mixture says nothing; empty if it does not."""
        fewest = float(responsibilities.sum(0).min())
        least = self.limits.min_points[model.covariance]
        if model.num_components == 1 and model.structure.full_moments:
            least = max(least, model.dim + 1)  # fewer span no volume
        if fewest < least - 1e-6:
            return f"a component has {fewest:.1f} points, fewer than {least}"
        flat = self._flat_directions(model, model.law.component_covariance)
        centred = model.units(self.filled)
        centred = centred - centred.mean(0)
        of_data = (centred.mT @ centred / len(centred)) * torch.outer(
            model.units.scale, model.units.scale
        )
        if bool((flat > self._flat_directions(model, of_data.unsqueeze(0))).any()):
            return "a component has collapsed onto the variance floor"
        return ""

    def _flat_directions(self, model: GaussianMixture, covariance: Tensor) -> Tensor:
        """In how many directions covariances (K, D, D) are at the floor, shape (K,)."""
        scale = model.units.scale
        matrix = covariance / torch.outer(scale, scale)
        if model.structure.full_moments:
            variance = torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT))
        else:
            variance = matrix.diagonal(dim1=-2, dim2=-1)
        return (variance < NEAR_FLOOR * model.variance_floor).sum(-1)

    def candidate(self, cell: Cell) -> Candidate:
        """The row of a candidate."""
        fit, count = self.found[cell], len(self.x)
        parameters = fit.model.num_free_parameters
        bic = parameters * math.log(count) - 2 * fit.log_likelihood
        certain = fit.responsibilities.amax(-1).log().sum()
        return Candidate(
            *cell,
            num_parameters=parameters,
            log_likelihood=fit.log_likelihood,
            bic=bic,
            icl=bic - 2 * float(certain),
            aic=2 * parameters - 2 * fit.log_likelihood,
            heldout=math.nan,
            converged=fit.converged,
            degenerate=fit.degenerate,
        )


def _held_out(
    x: Tensor,
    cells: list[Cell],
    kinds: tuple[str, ...],
    options: dict[str, Any],
    limits: _Limits,
    folds: int,
    bar: tqdm,
) -> dict[Cell, float]:
    """Mean log-density of all points, each by mixtures that were fitted without its fold."""
    total = dict.fromkeys(cells, 0.0)
    if not folds:
        return {}
    order = torch.randperm(len(x), device=x.device)
    for rows in order.tensor_split(folds):
        kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
        kept[rows] = False
        search = _Search(x[kept], kinds, options, limits, bar)
        search.fit(cells)
        for cell, fit in search.found.items():
            total[cell] += float(joint_log_prob(fit.model.law, x[rows]).logsumexp(-1).sum())
    return {cell: value / len(x) for cell, value in total.items()}


def _selection(
    search: _Search,
    cells: list[Cell],
    scores: dict[Cell, float],
    criterion: Criterion,
    dtype: torch.dtype,
) -> Selection:
    """The best of the candidates that were found."""
    nan, count, dim = math.nan, *search.x.shape
    table = []
    for cell in cells:
        if cell in search.found:
            row = search.candidate(cell)
            table.append(replace(row, heldout=scores.get(cell, nan)))
            continue
        family: Any = cell[0]
        parameters = GaussianMixture(dim, cell[1], family).num_free_parameters
        reason = f"{count} points are too few"
        table.append(Candidate(*cell, parameters, nan, nan, nan, nan, nan, False, reason))
    table.sort(
        key=lambda row: (
            bool(row.degenerate),
            math.isnan(row.log_likelihood),
            row.num_parameters if row.degenerate else row.score(criterion),
        )
    )
    best = table[0]
    if best.degenerate:
        warn_user(
            f"Every mixture is degenerate; of the simplest one {best.degenerate}. The data may "
            f"hold few different points: try fewer components, or a smaller variance_floor."
        )
    found = search.found
    models = {cell: found[cell].model.to(dtype).eval() for cell in cells if cell in found}
    model = models[best.covariance, best.num_components]
    return Selection(model, table, criterion, models, count)


def _least_points(family: str, dim: int) -> int:
    """How many points a component has at least, of a family in so many dimensions."""
    return dim + 1 if family in OWN_SHAPES or (family in FAMILIES and family[1] == "V") else 2


def _is_possible(cell: Cell, count: int, least: int) -> bool:
    """Whether there are points enough for a candidate."""
    return cell[1] == 1 or cell[1] * least <= count


def _check_data(data: Tensor, missing: Missing) -> Tensor:
    """Checks data, and returns them in float64."""
    if data.dim() != 2 or not len(data) or not data.shape[-1]:
        raise ValueError(
            f"Expected data of shape (N, D) with at least one point, got {tuple(data.shape)}."
        )
    if not data.is_floating_point():
        raise ValueError(f"Expected floating-point data, got {data.dtype}.")
    allowed = ~data.isinf() if missing == "marginalize" else data.isfinite()
    if not bool(allowed.all()):
        raise ValueError(
            f"Expected finite data, got {int((~allowed).sum())} entries that are not. Leave rows "
            f"with infinities out; if NaN marks missing entries, pass missing='marginalize'."
        )
    return check_squares("data", data).double()
