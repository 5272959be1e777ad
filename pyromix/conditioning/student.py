r"""A mixture of Student-t laws, given linear evidence.

Given exact values or equations :math:`A x = y`, q of them, a multivariate Student-t law is one
again: its location moves as a normal's would, its scale matrix is the normal's times
:math:`(\nu + d^2) / (\nu + q)` with the squared distance :math:`d^2` of what was observed, and it
has :math:`\nu + q` degrees of freedom. Inequalities are met by rejection. With a noisy observation
nothing has a closed form.
"""

__all__ = ["ConditionedStudent", "StudentComponents", "StudentPrior", "Students"]

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import Distribution

from ..evidence.linear import LinearEvidence
from ..numerics.diagonal_density import LOG_2PI
from ..numerics.student_density import student_log_prob
from .components import Components, tril_of
from .law import ConditionedLaw
from .linear_normals import solve
from .mixture import ConditionedMixture, MixturePrior, mixture_prior
from .parts import register_part
from .polytope import Polytope
from .rejection import FIRST_DRAWS, LawWithinUnions
from .student_quantiles import student_quantile
from .truncated import ConflictError

# A search for the mode climbs so many steps from every component, or until steps are this small.
MODE_STEPS, MODE_TOLERANCE = 1000, 1e-10


class Students(NamedTuple):
    """Student-t laws over the free columns, given values of the others."""

    log_joint: Tensor
    r"""Log-weights plus log-densities of the values, shape (\*, K)."""
    df: Tensor
    r"""Degrees of freedom, shape (\*, K)."""
    loc: Tensor
    r"""Locations, shape (\*, K, free)."""
    factor: Tensor
    r"""Factors of the scale matrices, shape (\*, K or 1, free, free)."""


class StudentPrior(MixturePrior):
    """A mixture of Student-t laws that is conditioned; see `MixturePrior`."""

    @property
    def _components(self) -> type[Components]:  # type: ignore[override]
        return StudentComponents

    @property
    def correlates(self) -> bool:
        """True: coordinates of a component are dependent, whatever its scale matrix."""
        return True

    def given(
        self, evidence: LinearEvidence, *, allow_impossible_entries: bool = False
    ) -> ConditionedLaw:
        """The law given one set of linear statements.

        Raises:
            NotImplementedError: For noisy observations, and for inequalities that draws of the
                other evidence hardly ever meet.
        """
        if evidence.noisy:
            raise NotImplementedError(
                "Not available: a Student-t mixture given a noisy observation (LinearGaussian, "
                "GaussianPrior) has no closed form. Give exact values (Observed, LinearEquality), "
                "or use a mixture of normals."
            )
        # None of the inequalities, but of their batch shape.
        bare = replace(
            evidence,
            matrix=[rows[:0] for rows in evidence.matrix],
            low=[bound[..., :0] for bound in evidence.low],
            high=[bound[..., :0] for bound in evidence.high],
        )
        allowed = allow_impossible_entries
        law = ConditionedStudent(self, bare, allow_impossible_entries=allowed)
        if not evidence.num_rows:
            return law
        *_, broken = evidence.inequalities_on_free(law.batch_shape, self.dtype)
        if bool(broken.all() if allowed else broken.any()):
            raise ConflictError(
                "Expected evidence that can hold, but observed values or equations break an "
                "inequality. Relax it, or correct the other evidence."
            )
        within = LawWithinUnions(law, [[Polytope.about(evidence, law.batch_shape, self.dtype)]])
        met = within.acceptance > 0
        if not bool((met | broken).any() if allowed else met.all()):
            raise NotImplementedError(
                f"Not available: inequalities on a Student-t mixture are met by rejection, but of "
                f"{FIRST_DRAWS} draws given all other evidence none met these. Relax them, or use "
                f"a mixture of normals."
            )
        return within


class StudentComponents(Components):
    r"""K Student-t laws over the free columns, given values and equations, in float64.

    Args:
        mixture: The mixture.
        evidence: The evidence on its D columns: values and equations.
        batch_shape: The shape B that those of the mixture and of the evidence expand to.

    Attributes:
        df: Degrees of freedom, shape (\*B, K).
    """

    def __init__(self, mixture: Any, evidence: LinearEvidence, batch_shape: Size) -> None:
        self.batch_shape, self._dtype = batch_shape, mixture.logits.dtype
        self.given, self.free = evidence.split_columns()
        self.value = evidence.observed_values(self._dtype)
        double = mixture.map_tensors(Tensor.double)
        laws: Students = double.students_given(self.given, self.free, self.value.double())
        k = laws.loc.shape[-2]
        self.loc = laws.loc.expand(*batch_shape, k, len(self.free))
        self.log_joint = laws.log_joint.expand(*batch_shape, k)
        self.df = laws.df.expand(*batch_shape, k)
        self.log_plane = torch.zeros((), dtype=torch.float64, device=self.loc.device)
        self.scale, self.reach = None, None
        factor = laws.factor
        self._factor = factor.expand(*factor.shape[:-3], k, *factor.shape[-2:])
        if evidence.gaussian:
            self._absorb(evidence)

    def _absorb(self, evidence: LinearEvidence) -> None:
        """Takes in equations."""
        matrix, y = self._without_given(*evidence.equations(self.batch_shape))
        self.reach, count = self._reach(), len(matrix)
        seen = matrix @ self.factor  # (*own, K, m, sources)
        self.loc, factor, gain = solve(self.loc, self.factor, matrix, y, evidence.coarsest)
        # The normal's log-density at y is that at its peak less half the squared distance.
        tril = torch.linalg.qr(seen.mT, mode="r").R
        peak = -tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1) - 0.5 * LOG_2PI * count
        square = (2 * (peak - gain)).clamp(min=0)
        self.log_joint = self.log_joint + student_log_prob(peak, square, self.df, count)
        self.log_joint = self.log_joint - evidence.log_units
        infinite = self.df.isinf()
        finite = torch.where(infinite, 1.0, self.df)
        stretch = torch.where(infinite, 1.0, (finite + square) / (finite + count)).sqrt()
        self._factor = factor * stretch[..., None, None]
        self.df = self.df + count
        self.log_plane = (
            0.5 * torch.linalg.slogdet(matrix @ matrix.mT).logabsdet + evidence.log_units
        )
        self._check_range()

    def draw(self, index: Tensor, entry: Tensor) -> Tensor:
        """Draws of the free columns, shape (n, free); see `Components.draw`."""
        loc = self.loc.flatten(0, -2)[index]
        drawn = super().draw(index, entry)
        df = self.df.flatten()[index]
        half = torch.where(df.isinf(), 1.0, 0.5 * df)
        ratio = (torch._standard_gamma(half) / half).clamp(min=torch.finfo(half.dtype).tiny)
        stretch = torch.where(df.isinf(), 1.0, ratio.rsqrt())
        return loc + (drawn - loc) * stretch.unsqueeze(-1)


class ConditionedStudent(ConditionedMixture):
    """The law of all coordinates of a Student-t mixture, given values and equations.

    See `ConditionedMixture`: it is exact, in draws and density. Made by
    `MixtureOfStudentT.condition`; with inequalities, that is a `LawWithinUnions` of it.
    """

    _components: StudentComponents

    @property
    def _fewest_df(self) -> Tensor:
        """Degrees of freedom of the heaviest tail that has a weight, shape (*B, 1)."""
        df = torch.where(self._joint > -math.inf, self._components.df, math.inf)
        return df.amin(-1, keepdim=True)

    @property
    def mean(self) -> Tensor:
        r"""Mean, shape (\*B, D); NaN where a component has no more than one degree of freedom."""
        undefined = (self._fewest_df <= 1) & self._is_free
        return torch.where(undefined, math.nan, super().mean)

    @property
    def variance(self) -> Tensor:
        r"""Variance of every coordinate, shape (\*B, D); zero for observed ones.

        Infinite up to two degrees of freedom, and NaN up to one.
        """
        components = self._components
        weights = self.logits.double().exp().unsqueeze(-1)
        mean = (weights * components.loc).sum(-2, keepdim=True)
        df = components.df.unsqueeze(-1)
        plain = torch.where((df > 2) & df.isfinite(), df, 4.0)
        inflation = torch.where(df.isinf(), 1.0, plain / (plain - 2))
        spread = components.variance * inflation + (components.loc - mean).square()
        full = spread.new_zeros(*self.batch_shape, self.event_shape[0])
        full[..., components.free] = (weights * spread).sum(-2)
        fewest, free = self._fewest_df, self._is_free
        full = torch.where(free & (fewest <= 2), math.inf, full)
        return torch.where(free & (fewest <= 1), math.nan, full).to(self._dtype)

    @property
    def _is_free(self) -> Tensor:
        """Which columns were not observed, shape (D,)."""
        free = torch.zeros(self.event_shape[0], dtype=torch.bool, device=self._joint.device)
        free[self._components.free] = True
        return free

    def _quantiles_of(
        self,
        column: int,  # noqa: ARG002
        place: int,
        scale: Tensor,
        levels: Tensor,
    ) -> Tensor:
        laws = (self._joint, self._components.df, self._components.loc[..., place], scale)
        k = self._joint.shape[-1]
        return student_quantile(levels, *(t.detach().reshape(-1, k) for t in laws))

    @torch.no_grad()
    def mode_at(self, entry: Tensor) -> Tensor:
        """Modes (n, D) of the laws at entries (n,): the best of climbs from every component."""
        components, k = self._components, self._joint.shape[-1]
        basis = self._directions()  # (free, q)
        loc = components.loc.reshape(-1, k, len(components.free))[entry]
        df, weight = (t.reshape(-1, k)[entry] for t in (components.df, components.log_joint))
        origin, dim = loc[:, :1], basis.shape[-1]
        if not dim:
            return components.fill(origin[:, 0], entry)
        tril = tril_of(basis.mT @ components.of_entries(components.factor, 2, entry))
        tril = tril.expand(len(entry), k, dim, dim)
        precision = torch.cholesky_inverse(tril)
        peak = weight - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        mean = (loc - origin) @ basis  # (n, K, q)
        x, density = mean.clone(), weight
        for _ in range(MODE_STEPS):
            difference = x.unsqueeze(-2) - mean.unsqueeze(-3)  # (n, starts, K, q)
            pull = torch.einsum("nkij,nskj->nski", precision, difference)
            square = (pull * difference).sum(-1)
            scores = student_log_prob(peak.unsqueeze(-2), square, df.unsqueeze(-2), dim)
            density = scores.logsumexp(-1)
            shrink = (df + dim).unsqueeze(-2) / (df.unsqueeze(-2) + square)
            shrink = torch.where(df.isinf().unsqueeze(-2), 1.0, shrink)
            # Each step solves the equations of a normal with these weights: it is a step up.
            share = scores.softmax(-1) * shrink
            matrix = torch.einsum("nsk,nkij->nsij", share, precision)
            gradient = torch.einsum("nsk,nski->nsi", share, pull)
            step = torch.linalg.solve(matrix, gradient)
            x = x - step
            if bool((step.abs() <= MODE_TOLERANCE * (1 + x.abs())).all()):
                break
        best = density.argmax(-1)
        found = x[torch.arange(len(x), device=x.device), best]
        return components.fill(origin[:, 0] + found @ basis.mT, entry)

    def normals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Not available: the components are no normals."""
        raise NotImplementedError(
            "Not available: non-linear evidence is about mixtures of normals, and this one has "
            "Student-t components. Use a mixture of normals."
        )

    def _law_of(self, loc: Tensor, tril: Tensor) -> Distribution:
        law: Any = self._mixture
        parts = (self.logits, self._components.df, loc, tril)
        mixture: Distribution = law.with_scales(*(t.to(self._dtype) for t in parts))
        return mixture


register_part(
    StudentPrior,
    lambda prior: {
        "mixture": prior.mixture,
        "batch_shape": tuple(prior.batch_shape),
        "validate_args": prior.validate_args,
        "allow_all_observed": prior.allow_all_observed,
        "max_error": prior.max_error,
    },
    partial(mixture_prior, kind=StudentPrior),
)
