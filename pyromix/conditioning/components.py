"""The components of a mixture of normals, given values and observations."""

__all__ = ["Components", "NormalMixture", "Normals", "tril_of"]

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

import torch
from torch import Size, Tensor

from ..evidence.linear import LinearEvidence, tightest_bounds
from ..numerics.batches import flat_index, grouped_products
from .linear_normals import observe, solve
from .truncated.interval import log_interval_probability

# A row has no spread if it has less than this share of what its terms have without cancellation.
ZERO = 1e-12
# Columns have a density next to equations if these leave them this share of what they were.
NO_DENSITY = 1e-9


class Normals(NamedTuple):
    """Normals over the free columns, given values of the others."""

    log_joint: Tensor
    r"""Log-weights plus log-densities of the values, shape (\*, K)."""
    loc: Tensor
    r"""Means, shape (\*, K, free)."""
    scale: Tensor | None
    r"""Standard deviations of independent columns, shape (\*, K, free)."""
    covariance: Callable[[], Tensor]
    r"""Computes covariances, shape (\*, K, free, free), where there is no scale."""
    low_rank: tuple[Tensor, Tensor] | None = None
    r"""d (\*, K, free) and W (\*, K, free, r), where covariances are diag(d) + W W^T."""


class NormalMixture(Protocol):
    """What conditioning asks of a mixture of normals; see `pyromix.mixtures`."""

    _validate_args: bool

    @property
    def batch_shape(self) -> Size:
        """The batch shape of the mixture."""

    @property
    def event_shape(self) -> Size:
        """The event shape (D,)."""

    @property
    def logits(self) -> Tensor:
        r"""Normalised log-weights, shape (\*B, K)."""

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of points (\*S, \*B, D)."""

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The mixture with a function applied to its tensors."""

    def normals_given(
        self, given: list[int], free: list[int], value: Tensor, *, correlated: bool
    ) -> Normals:
        """The components given values of some columns; see `FiniteMixture.normals_given`."""

    def conditional(self, given: list[int], free: list[int], value: Tensor) -> "NormalMixture":
        """The mixture of the free columns, given values of the others."""

    def marginal(self, dims: list[int]) -> "NormalMixture":
        """The mixture of some of the columns."""

    def with_covariances(self, logits: Tensor, loc: Tensor, scale_tril: Tensor) -> "NormalMixture":
        r"""The mixture of other normals: (\*B, K), (\*B, K, D) and factors (\*B, K, D, D)."""


class Components:
    r"""K normals N(loc, S) over the free columns, given values and observations, in float64.

    Inequalities have no part in it: laws that differ in those alone share one.

    Args:
        mixture: The mixture.
        evidence: The evidence on its D columns.
        batch_shape: The shape B that those of the mixture and of the evidence expand to.

    Attributes:
        given: Columns that were observed.
        free: The others.
        value: Values of the observed columns, shape (\*N, given), as the mixture's dtype has them.
        loc: Means, shape (\*B, K, free).
        scale: Standard deviations, shape (\*own, K, free), whose batch expands to B; None where
            columns are correlated.
        log_joint: Log-weights plus log-densities of what was observed, shape (\*B, K).
        reach: How far from zero columns lie before equations, shape (D,), zero for observed ones;
            None without equations. Draws meet equations up to the rounding of such numbers.
        log_plane: Logarithm of the factor by which equations scale Lebesgue measure, scalar.
    """

    # Where covariances are diag(d) + W W^T, and kept as such: d and W, in float64.
    _low_rank: tuple[Tensor, Tensor] | None = None

    def __init__(
        self, mixture: NormalMixture, evidence: LinearEvidence, batch_shape: Size
    ) -> None:
        self.batch_shape, self._dtype = batch_shape, mixture.logits.dtype
        self.given, self.free = evidence.split_columns()
        self.value = evidence.observed_values(self._dtype)
        # A covariance of single precision may have no factor any more.
        normals = mixture.map_tensors(Tensor.double).normals_given(
            self.given, self.free, self.value, correlated=bool(evidence.gaussian)
        )
        k = normals.loc.shape[-2]
        self.loc = normals.loc.double().expand(*batch_shape, k, len(self.free))
        self.log_joint = normals.log_joint.double().expand(*batch_shape, k)
        self.log_plane = torch.zeros((), dtype=torch.float64, device=self.loc.device)
        self.scale = None if normals.scale is None else normals.scale.double()
        self._covariance, self._with_graph = normals.covariance, torch.is_grad_enabled()
        self._factor: Tensor | None = None
        if normals.low_rank is not None and not evidence.gaussian:
            self._low_rank = normals.low_rank[0].double(), normals.low_rank[1].double()
        self.reach: Tensor | None = None
        if evidence.gaussian:
            self._absorb(evidence)

    def _absorb(self, evidence: LinearEvidence) -> None:
        """Takes in observations: what is left is N(loc, F F^T) for every component."""
        # Equations first, all at once: they leave fewer directions to the rest.
        matrix, y = evidence.equations(self.batch_shape)
        if len(matrix):
            matrix, y = self._without_given(matrix, y)
            self.reach = self._reach()
            self.loc, self._factor, gain = solve(
                self.loc, self.factor, matrix, y, evidence.coarsest
            )
            self.log_joint = self.log_joint + gain - evidence.log_units
            self.log_plane = (
                0.5 * torch.linalg.slogdet(matrix @ matrix.mT).logabsdet + evidence.log_units
            )
        for matrix, y, noise in evidence.noisy:
            matrix, y = self._without_given(matrix, y)
            self.loc, self._factor, gain = observe(self.loc, self.factor, matrix, y, noise)
            self.log_joint = self.log_joint + gain

        self._check_range()

    @torch.no_grad()
    def _reach(self) -> Tensor:
        spread = self.factor.square().sum(-1).sqrt()
        reach = self.loc.new_zeros(len(self.free) + len(self.given))
        reach[self.free] = (self.loc.abs() + spread).flatten(0, -2).amax(0)
        return reach

    def _check_range(self) -> None:
        """Checks that numbers of the mixture's dtype reach what was observed."""
        limit = torch.finfo(self._dtype).max
        beyond = (~(self.loc.abs() < limit)).flatten(0, -2).any(0)
        if bool(beyond.any()):
            columns = [self.free[place] for place in beyond.nonzero().flatten().tolist()]
            raise ValueError(
                f"Expected evidence that numbers of {self._dtype} can meet, but it puts columns "
                f"{columns} beyond {limit:.3g}. Check its coefficients and units"
                + (", or use float64." if self._dtype != torch.float64 else ".")
            )

    def _without_given(self, matrix: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What A x = y says about the free columns: A (m, free) and y (*N, m)."""
        rest = y - self.value @ matrix[:, self.given].mT if self.given else y
        return matrix[:, self.free], rest

    @property
    def factor(self) -> Tensor:
        r"""F with S = F F^T, shape (\*own, K, free, sources), where there is no scale.

        Computed when it is first needed, with the graph that it would have had at construction.
        """
        if self._factor is None:
            with torch.set_grad_enabled(self._with_graph):
                self._factor = torch.linalg.cholesky(self._covariance().double())
        return self._factor

    @property
    def spread(self) -> Tensor:
        """The scale, or the factor in its place."""
        return self.factor if self.scale is None else self.scale

    @property
    def variance(self) -> Tensor:
        r"""Variances of the free columns in every component, shape (\*own, K, free)."""
        if self._low_rank is not None:
            diag, factor = self._low_rank
            return diag + factor.square().sum(-1)
        return self.factor.square().sum(-1) if self.scale is None else self.scale.square()

    def marginal_tril(self, kept: list[int]) -> Tensor | None:
        r"""Cholesky factors of covariances of some of the free columns, (\*own, K, kept, kept).

        None if equations leave these columns no density.
        """
        rows = self.factor[..., kept, :]
        if len(kept) > rows.shape[-1]:
            return None
        tril = tril_of(rows)
        if self.reach is not None:
            least = NO_DENSITY * self.reach[[self.free[place] for place in kept]]
            if bool((tril.diagonal(dim1=-2, dim2=-1) <= least).any()):
                return None
        return tril

    def of_entries(self, spread: Tensor, tail: int, entry: Tensor) -> Tensor:
        """Scales or factors (*own, K, *T) of entries (n,) of the batch: (n or 1, K, *T)."""
        own = spread.shape[: spread.dim() - tail - 1]
        flat = spread.reshape(own.numel(), *spread.shape[len(own) :])
        return (
            flat
            if len(flat) == 1
            else flat[flat_index(own, self.batch_shape, entry.device)[entry]]
        )

    def draw(self, index: Tensor, entry: Tensor) -> Tensor:
        """Draws of the free columns, without inequalities, shape (n, free).

        Args:
            index: Components, counted through the flattened batch and K, shape (n,).
            entry: Entries of the flattened batch that they belong to, shape (n,).
        """
        loc = self.loc.flatten(0, -2)[index]
        component = index % self.log_joint.shape[-1]
        if self.scale is not None:
            return loc + self._of_component(self.scale, 1, entry, component) * torch.randn_like(
                loc
            )
        if self._low_rank is not None:
            diag, factor = self._low_rank
            noise = loc.new_empty(len(loc), factor.shape[-1]).normal_()
            if factor.dim() == 3:
                common = grouped_products(component, noise, factor)
            else:
                own = self._of_component(factor, 2, entry, component)
                common = (own @ noise.unsqueeze(-1)).squeeze(-1)
            variance = self._of_component(diag, 1, entry, component)
            return loc + variance.sqrt() * torch.randn_like(loc) + common
        noise = loc.new_empty(len(loc), self.factor.shape[-1], 1).normal_()
        factor = self._of_component(self.factor, 2, entry, component)
        return loc + (factor @ noise).squeeze(-1)

    def fill(self, free: Tensor, entry: Tensor | None = None) -> Tensor:
        r"""Puts observed values back among free columns, in the mixture's dtype.

        Args:
            free: Shape (n, free) with an entry for each; or (\*B, free) without.
            entry: Entries of the flattened batch, shape (n,).

        Returns:
            Tensor of shape (n, D) or (\*B, D).
        """
        full = free.new_empty(*free.shape[:-1], len(self.free) + len(self.given))
        full[..., self.free] = free
        if self.given:
            value = self.value.expand(*self.batch_shape, -1)
            full[..., self.given] = (
                value if entry is None else value.reshape(-1, value.shape[-1])[entry]
            )
        return full.to(self._dtype)

    def log_probability(self, rows: Tensor, low: Tensor, high: Tensor) -> Tensor | None:
        r"""Log-probabilities of inequalities in every component, with a graph.

        Args:
            rows: Shape (p, free).
            low: Lower bounds, shape (\*B, K, p), in the dtype of draws.
            high: Upper bounds, shape (\*B, K, p).

        Returns:
            Tensor of shape (\*B, K); None if there is no closed form: it has one for boxes on
            independent columns, and for one inequality.
        """
        low, high = low.double(), high.double()
        if self.scale is not None and bool(((rows != 0).sum(-1) == 1).all()):
            column = (rows != 0).int().argmax(-1)
            entry = rows.gather(-1, column.unsqueeze(-1)).squeeze(-1)
            low, high = low / entry, high / entry
            low, high = torch.where(entry < 0, high, low), torch.where(entry < 0, low, high)
            low, high = tightest_bounds(low, high, column, rows.shape[-1])
            loc, scale = self.loc, self.scale
        elif len(rows) == 1:
            loc = self.loc @ rows.mT  # (*B, K, 1)
            if self.scale is not None:
                scale = (rows * self.scale).norm(dim=-1, keepdim=True)
            else:
                scale = (rows @ self.factor)[..., 0, :].norm(dim=-1, keepdim=True)
                reach = (rows.abs() @ self.factor.abs())[..., 0, :].norm(dim=-1, keepdim=True)
                if not bool((scale > ZERO * reach).all()):
                    return None  # a row that equations fix
        else:
            return None
        low, high = (
            torch.where(t.isinf(), t, (torch.where(t.isinf(), 0.0, t) - loc) / scale)
            for t in (low, high)
        )
        return log_interval_probability(low, high).sum(-1)

    def _of_component(self, spread: Tensor, tail: int, entry: Tensor, k: Tensor) -> Tensor:
        """Selects scales or factors (*own, K, *T), whose batch expands to B: (n, *T)."""
        own = spread.shape[: spread.dim() - tail - 1]
        row = flat_index(own, self.batch_shape, entry.device)[entry]
        return spread.flatten(0, len(own))[row * self.log_joint.shape[-1] + k]


def tril_of(factor: Tensor) -> Tensor:
    """Cholesky factors (*S, q, q) of covariances F F^T, of F of shape (*S, q, sources)."""
    tril = torch.linalg.qr(factor.mT, mode="r").R.mT
    return tril * torch.where(tril.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)
