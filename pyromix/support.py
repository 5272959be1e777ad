"""A constraint for values that may be missing."""

__all__ = ["real_or_missing", "real_or_missing_vector"]

from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to
from torch.distributions.transforms import identity_transform


class _RealOrMissing(constraints.Constraint):
    """Real numbers, and NaN in place of those that are missing."""

    def check(self, value: Tensor) -> Tensor:
        """Whether each entry is finite or NaN."""
        return ~value.isinf()


real_or_missing = _RealOrMissing()
real_or_missing_vector = constraints.independent(real_or_missing, 1)


def _unconstrained(constraint: constraints.Constraint) -> Transform:  # noqa: ARG001
    return identity_transform


for _registry in (biject_to, transform_to):
    _registry.register(_RealOrMissing, _unconstrained)
