"""What a problem of maximum entropy is whose answer is known.

The law with the most entropy among those with E[T(x)] = t is

    q*(x) = exp(-lambda . T(x) - log Z),    H* = lambda . t + log Z,

so that lambda and log Z are all there is to know. They are in closed form, or come from
quadrature: for given lambda the targets are integrals, and for given targets lambda minimises the
convex function log Z(lambda) + lambda . t, by Newton's method. Of any other law q

    KL(q || q*) = H* - H(q) + lambda . (E_q[T] - t) = E_q[log q(x) + lambda . T(x) + log Z],

which its draws estimate without knowing which constraints it breaks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.distributions import constraints

BASES = {
    "normal": "a normal, as most flows have",
    "relaxed": "the relaxed mixture, its temperature annealed",
    "stratified": "the exact mixture, gradients from stratified draws",
    "implicit": "the exact mixture, implicit gradients of plain draws",
    "folds": "a normal, folded by RAD",
    "codes": "a deep residual mixture (DRMM), gradients from stratified draws of all codes",
    "separate": "a normal, each coordinate through a spline of its own",
}

# Bases that a problem has only if it says what they are made with.
OWN = ("folds", "codes", "separate")

# For small problems, whose rounds take seconds.
PRECISE: dict[str, Any] = {"tolerance": 0.003}
# About two minutes for a flow in four dimensions, most of them on the way to the targets.
SHORT: dict[str, Any] = {
    "rounds": 34, "steps": 90, "batch_size": 256, "lr": 8e-3, "start_steps": 50,
}  # fmt: skip
# About half a minute. Divergences fall to a hundredth or so, and to one where targets are far.
# With fewer steps a round, multipliers may run ahead of the law.
QUICK: dict[str, Any] = {"rounds": 11, "steps": 70, "start_steps": 100, "lr": 1e-2}


@dataclass(frozen=True)
class Truth:
    """The answer, in double precision."""

    entropy: float
    log_normalizer: float
    multipliers: Tensor  # (m,)
    deviations: Tensor  # (m,), of statistics under the answer
    draw: Callable[[int, int], Tensor]  # points, given how many and a seed


@dataclass(frozen=True)
class Problem:
    """Targets for statistics, the answer, and how to look for it."""

    name: str
    event_shape: tuple[int, ...]
    support: constraints.Constraint | None
    statistics: Callable[[Tensor], Tensor]  # (n, *event) -> (n, m)
    targets: Tensor  # (m,)
    names: tuple[str, ...]  # of the constraints
    truth: Truth
    flow: dict[str, Any]  # of spline_flow, for all bases
    mixture: dict[str, Any]  # in addition, for mixtures
    temperatures: Any  # of the relaxed mixture
    solve: dict[str, Any]
    quick: dict[str, Any]
    normal: dict[str, Any] = field(default_factory=dict)  # in addition, for a normal
    # What the bases of `OWN` are made with, and settings of their searches.
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    own_solve: dict[str, dict[str, Any]] = field(default_factory=dict)
    modes: Callable[[Tensor], Tensor] | None = None  # (n, *event) -> (n,), from 0
    num_modes: int = 1  # of equal mass

    @property
    def dim(self) -> int:
        """Coordinates that are free."""
        return self.event_shape[0] - (self.support is constraints.simplex)

    def takes(self, base: str) -> bool:
        """Whether the problem is solved on a base."""
        return base in self.own or base not in OWN

    def flow_options(self, base: str) -> dict[str, Any]:
        options = {"dim": self.dim, "support": self.support} | self.flow
        if base == "normal":
            return options | {"num_components": 1} | self.normal
        options |= self.mixture
        return options | ({"temperatures": self.temperatures} if base == "relaxed" else {})

    def solve_options(self, base: str, quick: bool) -> dict[str, Any]:
        if not quick:
            return self.solve | self.own_solve.get(base, {})
        # The end of a round costs this one more than all steps of a short one.
        return self.quick | ({"rounds": 9} if base == "relaxed" else {})
