"""Modules that version 0.1 had under another name: they import, with a warning."""

__all__ = ["RENAMED", "install"]

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

_TRUNCATED = (
    *("feasibility", "hamiltonian", "interval", "newton", "normals", "problem"),
    *("proposals", "reduction", "rounding", "routes"),
)

# The modules in which what the old one had is found now. Two are missing: `pyromix.evidence` and
# such are packages of the same name, and `pyromix.near_identity` is a function.
RENAMED: dict[str, tuple[str, ...]] = {
    "arguments": ("core.arguments",),
    "branch_gradients": ("flows.branch_gradients",),
    "branching": ("flows.branching",),
    "classes": ("class_conditional",),
    "flow": ("flows.flow", "flows.law"),
    "history": ("training.history",),
    "minibatches": ("training.minibatches",),
    "networks": ("core.networks",),
    "plain": ("flows.wrapping",),
    "registry": ("core.registry",),
    "splines": ("flows.splines",),
    "standardize": ("core.standardize",),
    "support": ("core.constraints",),
    "unknown_gradient": ("numerics.no_gradient",),
    "validation": ("core.checks",),
    "dcgmm.class_law": ("dcgmm.given_class",),
    "dcgmm.mixture": ("dcgmm.mixture_layer",),
    "dcgmm.estimation": ("dcgmm.layer_reader",),
    "dcgmm.outliers": ("dcgmm.layer_reader",),
    "dcgmm.questions": ("dcgmm.queries",),
    "drmm.potential": ("drmm.evidence_score",),
    "mixtures.conditioned": ("conditioning.mixture",),
    "mixtures.dense": ("mixtures.full",),
    "mixtures.density": ("numerics.diagonal_density",),
    "mixtures.implicit": ("numerics.implicit_diagonal",),
    "mixtures.implicit_correlated": ("numerics.implicit_correlated",),
    "mixtures.initialization": ("mixtures.clusters",),
    "mixtures.layout": ("numerics.batches",),
    "mixtures.linear": ("conditioning.linear_normals", "numerics.triangular"),
    "mixtures.normal": ("mixtures.diagonal",),
    "mixtures.precision": ("mixtures.low_rank", "mixtures.low_rank_normal"),
    "mixtures.sufficient": ("mixtures.em.products", "mixtures.em.statistics"),
    "mixtures.union": ("conditioning.union",),
    **{f"mixtures.truncated.{name}": (f"conditioning.truncated.{name}",) for name in _TRUNCATED},
}


class _Renamed(MetaPathFinder, Loader):
    """Finds modules under their old names, where Python has looked everywhere else."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return (
            spec_from_loader(fullname, self) if package == "pyromix" and name in RENAMED else None
        )

    def exec_module(self, module: ModuleType) -> None:
        """Lets a module hand out what is elsewhere now."""
        new = [f"pyromix.{name}" for name in RENAMED[module.__name__.partition(".")[2]]]
        warnings.warn(
            f"{module.__name__} is now {' and '.join(new)}.", DeprecationWarning, stacklevel=2
        )
        parts = [import_module(name) for name in new]

        def find(name: str) -> Any:
            for part in parts:
                if hasattr(part, name):
                    return getattr(part, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = find
        module.__dict__["__all__"] = [name for part in parts for name in part.__all__]


def install() -> None:
    """Makes the old names importable; once is enough."""
    if not any(isinstance(finder, _Renamed) for finder in sys.meta_path):
        sys.meta_path.append(_Renamed())
