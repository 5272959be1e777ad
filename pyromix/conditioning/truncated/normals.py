"""Many normals at once, restricted to a polytope."""

__all__ = ["TruncatedNormals"]

import math
from typing import Unpack

import torch
from torch import Tensor

from ...core.checks import check_tensor
from .feasibility import ConflictError, feasible_point
from .interval import draw_from_interval, log_interval_probability
from .problem import InteriorSearch, Problem, check_constraints
from .reduction import Reduced, reduce_constraints
from .rounding import Rounding
from .routes import MAX_SEQUENCE_ROWS, RANK_TOLERANCE, Group, Options, Settings

MAX_REDRAWS = 50
CHUNK_NUMBERS = 2**24


class TruncatedNormals:
    r"""Normals :math:`N(m_k, F_k F_k^T)`, each restricted to :math:`l \le A x \le u`.

    Every component has a normaliser, the probability of the polytope, and draws. How they are
    computed depends on the constraints as the component sees them, in coordinates in which it is
    a standard normal and after parallel rows are merged; `route` tells:

    ============== ============================================== ============== ============
    route          constraints                                    normaliser     draws
    ============== ============================================== ============== ============
    "independent"  none, or orthogonal rows (a box on a diagonal  closed form    exact
                   normal, one inequality or interval)
    "quadrature"   two rows                                       1-D quadrature exact
    "sequential"   rows in sequence, minimax tilted (Botev 2017); unbiased,      exact
                   dependent rows by chance                       with an error
    "box"          box and oblique rows, exponentially tilted     unbiased,      exact
                                                                  with an error
    "hamiltonian"  those above would reject too much              unbiased,      Markov chain
                                                                  with an error
    ============== ============================================== ============== ============

    The exact draws are made by acceptance and rejection, and are independent. Those of the route
    "hamiltonian" start from a population that was annealed towards the law, and follow
    `num_moves` exact Hamiltonian moves each (Pakman and Paninski 2014): they have the law up to
    what the moves leave of the start, and a weak dependence through common ancestors in a
    population of `num_points`.

    Coordinates that only a box restricts never enter any of this: they are drawn on their own.

    A proposal costs about a microsecond per coordinate. Solving for tilts takes matrices of
    rows x coordinates for every component; those of the route "hamiltonian" are annealed one
    after the other, in about a second each, and up to ten times that in thirty dimensions.

    Args:
        loc: Means m, shape (\*K, D).
        factor: F, shape (\*K, D, Q). With fewer columns than rows the normal is singular, as it
            is given exact linear observations. For diagonal covariances, use `diagonal`.
        matrix: A, shape (p, D), shared by all components. A box is rows of the identity.
        low: Lower bounds l, shape (p,) or (\*K, p), may be minus infinity.
        high: Upper bounds u, shape (p,) or (\*K, p), may be plus infinity.
        num_points: Points of a first estimate of a normaliser; up to 64 times as many are used
            until its standard error is below `max_error`. Also the size of the population of the
            route "hamiltonian".
        min_acceptance: The route "hamiltonian" is taken where fewer proposals are accepted.
        num_moves: Moves that make a draw of the route "hamiltonian".
        max_error: Standard error of the logarithm of an estimated normaliser to aim at.

    Normalisers are estimated once, at construction, with PyTorch's global random state.
    Everything is computed in float64 without gradients, and returned in `loc`'s dtype.

    A component that cannot meet the constraints has a normaliser of minus infinity (so can one,
    if singular, though others meet them).

    Attributes:
        batch_shape: The shape K.
        log_normalizer: Logarithms of :math:`P(l \le A x \le u)`, shape (\*K,).
        log_normalizer_error: Their standard errors, shape (\*K,); zero for closed forms and
            quadrature.
        acceptance: Share of proposals that become draws, shape (\*K,); one without rejection.
        route: Names of routes, one for each component, flattened over K; "empty" if no point
            fits.

    Raises:
        ValueError: For shapes, dtypes, devices or values that do not match; if no component can
            meet the constraints, naming rows that contradict each other.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> A = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> low, high = torch.tensor([0.0, 1.0]), torch.tensor([math.inf, math.inf])
        >>> normals = TruncatedNormals.diagonal(torch.zeros(3, 2), torch.ones(3, 2), A, low, high)
        >>> normals.route
        ('quadrature', 'quadrature', 'quadrature')
        >>> x = normals.sample(torch.tensor([0, 0, 2, 1]))
        >>> bool((x @ A.T >= low).all())
        True
    """

    def __init__(
        self,
        loc: Tensor,
        factor: Tensor,
        matrix: Tensor,
        low: Tensor,
        high: Tensor,
        **options: Unpack[Options],
    ) -> None:
        check_tensor("loc", loc)
        check_tensor("factor", factor, like=loc)
        if loc.dim() < 1 or factor.dim() != loc.dim() + 1 or factor.shape[:-1] != loc.shape:
            raise ValueError(
                f"Expected loc of shape (*K, D) and factor of shape (*K, D, Q), got "
                f"{tuple(loc.shape)} and {tuple(factor.shape)}. For standard deviations, use "
                f"TruncatedNormals.diagonal."
            )
        self._setup(loc, factor, matrix, low, high, Settings(**options))

    @classmethod
    def diagonal(
        cls,
        loc: Tensor,
        scale: Tensor,
        matrix: Tensor,
        low: Tensor,
        high: Tensor,
        **options: Unpack[Options],
    ) -> "TruncatedNormals":
        r"""Normals with diagonal covariances.

        Args:
            loc: Means, shape (\*K, D).
            scale: Standard deviations, positive, shape (\*K, D).
            matrix: As for the class.
            low: As for the class.
            high: As for the class.
            options: As for the class.
        """
        check_tensor("loc", loc)
        check_tensor("scale", scale, like=loc)
        if loc.dim() < 1 or scale.shape != loc.shape:
            raise ValueError(
                f"Expected loc and scale of the same shape (*K, D), got {tuple(loc.shape)} and "
                f"{tuple(scale.shape)}. Expand scales that components share."
            )
        if not bool((scale > 0).all()):
            raise ValueError(
                f"Expected positive scales (standard deviations), got values down to "
                f"{scale.min().item()}. For coordinates without spread, use a singular factor."
            )
        new = cls.__new__(cls)
        new._setup(loc, scale, matrix, low, high, Settings(**options))
        return new

    @torch.no_grad()
    def _setup(
        self,
        loc: Tensor,
        factor: Tensor,
        matrix: Tensor,
        low: Tensor,
        high: Tensor,
        settings: Settings,
    ) -> None:
        check_constraints(loc, factor, matrix, low, high)
        self.batch_shape = loc.shape[:-1]
        self._dtype = loc.dtype
        num, dim = self.batch_shape.numel(), loc.shape[-1]
        bounds = [t.expand(*self.batch_shape, -1).reshape(num, -1).detach() for t in (low, high)]
        self._low, self._high = bounds  # in the dtype of draws
        self._matrix = matrix.detach()
        self._loc = loc.detach().reshape(num, dim).double()
        self._factor = factor.detach().reshape(num, *factor.shape[loc.dim() - 1 :]).double()
        problem = Problem(
            self._loc, self._factor, matrix.detach().double(), *(t.double() for t in bounds)
        )
        self._rounding = Rounding(self._matrix, self._low, self._high)
        self._build_groups(problem, settings)

    def sample(self, index: Tensor) -> Tensor:
        """Draws, each from a component of its own.

        Args:
            index: Components, shape (n,), integers that count through K flattened.

        Returns:
            Tensor of shape (n, D). Every draw meets every constraint in its own dtype.

        Raises:
            ValueError: For an index out of range or of a component that no point belongs to.
            RuntimeError: If the polytope is too thin for the dtype.
        """
        num = len(self._loc)
        if not isinstance(index, Tensor) or index.dim() != 1 or index.is_floating_point():
            raise ValueError(
                "Expected index to be a tensor of integers of shape (n,), got "
                + (
                    f"{index.dtype} {tuple(index.shape)}."
                    if isinstance(index, Tensor)
                    else "none."
                )
            )
        index = index.to(self._loc.device).long()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < num:
            raise ValueError(
                f"Expected indices from 0 to {num - 1}, got {int(index.min())} to "
                f"{int(index.max())}."
            )
        if bool(self._empty[index].any()):
            lost = index[self._empty[index]].unique().tolist()
            raise ValueError(
                f"Expected components that can meet the constraints, got index {lost[:10]}, "
                f"whose log_normalizer is minus infinity. Draw indices by their normalisers."
            )
        with torch.no_grad():
            return self._sample(index)

    def _sample(self, index: Tensor) -> Tensor:
        dim, device = self._loc.shape[-1], self._loc.device
        result = torch.empty(len(index), dim, dtype=self._dtype, device=device)
        pending = torch.arange(len(index), device=device)
        chunk = max(1, CHUNK_NUMBERS // (dim + len(self._matrix)))
        for _ in range(MAX_REDRAWS):
            left = []
            for part in pending.split(chunk):
                now = index[part]
                rounded, good = self._rounding(self._draw(now), now, self._direction)
                result[part] = rounded
                left.append(part[~good])
            pending = torch.cat(left) if left else pending
            if not len(pending):
                return result
        raise RuntimeError(
            f"Expected a polytope with room for numbers of {self._dtype}, but {len(pending)} of "
            f"{len(index)} draws have no such neighbour inside. "
            + ("Use float64." if self._dtype == torch.float32 else "Relax a constraint.")
        )

    def _direction(self, index: Tensor, row: Tensor) -> Tensor:
        """F F^T a: where to move so that a row changes; the row itself if that is nothing."""
        normal = self._matrix[row].double()
        if self._factor.dim() == 2:
            return normal * self._factor[index].square()
        factor = self._factor[index]
        along = (factor @ (factor.mT @ normal.unsqueeze(-1))).squeeze(-1)
        small = along.norm(dim=-1) <= 1e-12 * factor.square().sum((-1, -2)) * normal.norm(dim=-1)
        return torch.where(small.unsqueeze(-1), normal, along)

    def _draw(self, index: Tensor) -> Tensor:
        """Draws (n, D) in float64, before rounding."""
        z = torch.empty(
            len(index), self._factor.shape[-1], dtype=torch.float64, device=index.device
        )
        if len(self._alone):
            low, high = (t[:, self._alone][index] for t in self._box)
            z[:, self._alone] = draw_from_interval(low, high, torch.rand_like(low))
        if len(self._coupled):
            member = self._member[index]
            for number, group in enumerate(self._groups):
                chosen = (member == number).nonzero().squeeze(-1)
                if len(chosen):
                    drawn = group.draw(self._position[index[chosen]])
                    z[chosen.unsqueeze(-1), self._coupled] = drawn
        if self._factor.dim() == 2:
            return self._loc[index] + self._factor[index] * z
        x = self._loc[index]
        for k in index.unique().tolist():  # no copy of a factor for each draw
            chosen = (index == k).nonzero().squeeze(-1)
            x[chosen] += z[chosen] @ self._factor[k].mT
        return x

    def _build_groups(self, problem: Problem, settings: Settings) -> None:
        """Sorts components by which bounds are finite, and prepares each group."""
        num, device = len(self._loc), self._loc.device
        reduced = reduce_constraints(*problem)
        # Coordinates that rows couple, and others.
        coupled = (reduced.rows != 0).any(1).any(0)
        self._coupled = coupled.nonzero().squeeze(-1)
        self._alone = (~coupled).nonzero().squeeze(-1)
        self._box = reduced.box_low, reduced.box_high
        self._empty = reduced.empty.clone()
        self._member = torch.full((num,), -1, device=device)
        self._position = torch.zeros(num, dtype=torch.long, device=device)
        self._groups: list[Group] = []
        alone_low, alone_high = (t[:, self._alone] for t in self._box)
        log_normalizer = log_interval_probability(alone_low, alone_high).sum(-1)
        error, acceptance = torch.zeros_like(log_normalizer), torch.ones_like(log_normalizer)
        routes = ["independent"] * num
        box_low, box_high = (t[:, self._coupled] for t in self._box)
        rows = reduced.rows[..., self._coupled]
        live = (~self._empty).nonzero().squeeze(-1)
        conflict: ConflictError | None = None
        if len(self._coupled) and len(live):
            finite = torch.cat(
                [
                    (t[live].abs() < math.inf).int()
                    for t in (box_low, box_high, reduced.low, reduced.high)
                ],
                -1,
            )
            key = torch.cat([finite, self._ranks(box_low, box_high, reduced, live)], -1)
            _, label = key.unique(dim=0, return_inverse=True)
            for number in range(int(label.max()) + 1):
                members = live[label == number]
                used = ((reduced.low > -math.inf) | (reduced.high < math.inf))[members[0]]
                search = InteriorSearch(problem, members, self._coupled)
                group = Group(
                    box_low[members],
                    box_high[members],
                    rows[members][:, used],
                    reduced.low[members][:, used],
                    reduced.high[members][:, used],
                    search,
                    settings,
                )
                conflict = conflict or search.conflict
                self._groups.append(group)
                self._member[members] = number
                self._position[members] = torch.arange(len(members), device=device)
                self._empty[members] |= group.empty
                log_normalizer[members] += group.log_normalizer
                error[members], acceptance[members] = group.error, group.acceptance
                for k, route in zip(members.tolist(), group.routes, strict=True):
                    routes[k] = route
        if bool(self._empty.all()):
            raise self._explained(problem, conflict)
        for k in self._empty.nonzero().squeeze(-1).tolist():
            routes[k] = "empty"
        log_normalizer = torch.where(self._empty, -math.inf, log_normalizer)
        error = torch.where(self._empty, 0.0, error)
        self.route = tuple(routes)
        self.log_normalizer, self.log_normalizer_error, self.acceptance = (
            t.to(self._dtype).view(self.batch_shape) for t in (log_normalizer, error, acceptance)
        )

    def _ranks(self, low: Tensor, high: Tensor, reduced: Reduced, live: Tensor) -> Tensor:
        """Ranks of components' rows, shape (k, 1): those that differ are kept apart."""
        used = (reduced.low[live] > -math.inf) | (reduced.high[live] < math.inf)
        rows = reduced.rows[live][..., self._coupled] * used.unsqueeze(-1)
        active = (low[live] > -math.inf) | (high[live] < math.inf)
        if int(active.sum(-1).max() + used.sum(-1).max()) > MAX_SEQUENCE_ROWS:
            return torch.zeros(len(live), 1, dtype=torch.int, device=live.device)
        # Axes add their number, and hide their coordinates from the rows.
        hidden = rows * ~active.unsqueeze(-2)
        rank = torch.linalg.matrix_rank(hidden, atol=RANK_TOLERANCE, rtol=0.0)
        return (rank + active.sum(-1)).int().unsqueeze(-1)

    def _explained(self, problem: Problem, conflict: ConflictError | None) -> ConflictError:
        """Why there is no room, in the user's own rows."""
        if conflict is None:
            try:
                feasible_point(*problem.whitened(0))
            except ConflictError as error:
                conflict = error
        if conflict is None:
            return ConflictError(
                "Expected constraints that leave room, but every component's polytope is too "
                "thin to tell from an empty one. Relax a constraint."
            )
        rows = conflict.rows
        verb = "contradict each other" if conflict.depth < 0 else "leave no interior"
        singular = self._factor.dim() == 3 and self._factor.shape[-1] < self._factor.shape[-2]
        where = " on the plane of the (singular) normals" if singular else ""
        low, high = self._low[:, rows][0].tolist(), self._high[:, rows][0].tolist()
        return ConflictError(
            f"Expected constraints that a component can meet, but rows {rows} of matrix {verb}"
            f"{where} (low {low}, high {high}). Relax one of them; for an exact equality, "
            f"condition the normals on it and pass a singular factor, instead of two equal "
            f"bounds.",
            rows,
            depth=conflict.depth,
        )
