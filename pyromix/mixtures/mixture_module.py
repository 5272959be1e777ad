"""What mixtures with learnable parameters have in common, exact or relaxed."""

__all__ = ["MixtureModule"]

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Generator, Tensor

from ..core.checks import Check, check_floor, check_positive_int
from ..core.law_module import Law, LawModule
from ..core.random import takes_generator
from ..core.standardize import Mode, check_mode


class MixtureModule(LawModule[Law]):
    """A mixture of normals with learnable parameters."""

    argument_aliases = ("scale_floor",)
    argument_additions: ClassVar[Mapping[str, Any]] = {"standardize": "auto"}
    argument_checks: ClassVar[Mapping[str, Check]] = {
        "dim": check_positive_int,
        "num_components": check_positive_int,
        "variance_floor": check_floor,
        "standardize": check_mode,
    }
    has_rsample = True
    dim: int
    num_components: int
    variance_floor: float
    standardize: Mode

    @property
    def distribution(self) -> Law:
        """The mixture with the present parameters, and gradients to them: another name of `law`.

        Raises:
            ValueError: If the model needs a context: then `condition` returns the mixture.
        """
        return self.law

    @property
    def scale_floor(self) -> float:
        """Smallest standard deviation, the root of `variance_floor`."""
        return math.sqrt(self.variance_floor)

    @takes_generator
    def rsample_weighted(
        self, num_samples: int, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws with weights, whose gradients are exact however far components lie apart.

        Args:
            num_samples: Number of draws n.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Draws of shape (n, D) and their log-weights of shape (n,); see
            `MixtureOfNormals.rsample_weighted`.
        """
        return self.law.rsample_weighted(num_samples)
