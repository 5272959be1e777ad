"""Transforms whose inverse is many-to-one: going back, they draw which branch to take."""

__all__ = ["BranchingTransform", "Frame", "inverted_message"]

from typing import Any, NamedTuple

from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions.transforms import _InverseTransform

from ..numerics.no_gradient import raise_on_gradient


class Frame(NamedTuple):
    """Places relative to the boundaries at which the set of branches changes."""

    position: Tensor
    """u, with boundaries at -1 and 1, for every coordinate of an event that has them: their number
    is the last dimension. It has the gradient of z, and that of the boundaries."""
    moved: Tensor
    """z again, with the gradient that it has if u rests, and all other coordinates."""
    log_size: Tensor
    """The sum of the logarithms of dz/du over an event, with the same gradient."""


class BranchingTransform(TransformModule):
    r"""A transform z -> x that draws a branch k, and whose inverse x -> z is deterministic.

    The inverse f is continuous and piecewise invertible. Several x may share one z; k says in
    which piece x lies. Given z, the transform draws k from a gating law, and returns the x of
    that piece, so that

    .. math:: \log p(x) = \log p_Z(f(x)) + \log p(k(x) \mid f(x)) + \log |\det J_f(x)|.

    `log_abs_det_jacobian` returns the negative of the last two terms: a `TransformedDistribution`
    then has the exact density without knowing about branches. Draws have no pathwise gradient, as
    k jumps. `pyromix.Flow` knows what to do about that in a guide; elsewhere the gradient of a
    draw is an error.

    Subclasses define `encode`, `decode`, `frame`, `_forward`, `_backward` and
    `_log_branch`.
    """

    bijective = False
    branching = True

    _cached_log_density: Tensor | None = None
    _cached_log_branch: Tensor | None = None

    def __init__(self) -> None:
        super().__init__(cache_size=1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The latent z of values, and their branch as a tensor of integers."""
        raise NotImplementedError

    def decode(self, z: Tensor, branch: Tensor) -> Tensor:
        """The value in a given branch; differentiable in z and in the parameters."""
        raise NotImplementedError

    def draw(self, z: Tensor) -> Tensor:
        """Draws a branch, and returns its value with the gradient that it has given the branch.

        Expectations need more than that gradient: see ``pyromix.branch_gradients``.
        """
        x, self._cached_log_density, self._cached_log_branch = self._forward(z)
        self._cached_x_y: Any = (z, x)
        return x

    def frame(self, z: Tensor) -> Frame:
        """Where z is between the boundaries at which the set of branches changes."""
        raise NotImplementedError

    def log_branch_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """Log-probability of the branch of x given z, summed over an event."""
        cached = self._cached_log_branch
        return cached if cached is not None and self._is_cached(z, x) else self._log_branch(x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Minus the log-probability of the branch of y, minus ``log |det dx/dy|``."""
        cached = self._cached_log_density
        if cached is None or not self._is_cached(x, y):
            cached = self._backward(y)[1]
        return -cached

    @property
    def inv(self) -> Any:
        """The deterministic map x -> z, for `TransformedDistribution` to score with."""
        return _BranchingInverse(self)

    def _forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draws x; with log p(k|z) + log |det dz/dx|, and log p(k|z)."""
        raise NotImplementedError

    def _backward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z, with log p(k|z) + log |det dz/dx|."""
        raise NotImplementedError

    def _log_branch(self, x: Tensor) -> Tensor:
        """Log p(k|z)."""
        raise NotImplementedError

    def _call(self, z: Tensor) -> Tensor:
        x = self.draw(z)
        if not x.requires_grad:
            return x
        message = (
            f"A draw of {type(self).__name__} has no pathwise gradient: it picks a branch. In a "
            f"guide use pyromix.Flow or pyromix.RAD, whose gradients account for that. To "
            f"differentiate within given branches use decode(z, branch)."
        )
        return raise_on_gradient(x, x, message=message)

    def _inverse(self, x: Tensor) -> Tensor:
        z, self._cached_log_density = self._backward(x)
        self._cached_log_branch = None
        return z

    def _is_cached(self, z: Tensor, x: Tensor) -> bool:
        old_z, old_x = self._cached_x_y
        return z is old_z and x is old_x


class _BranchingInverse(_InverseTransform):
    """The map x -> z as a transform: it has values, but as the last step of a law no density."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError(inverted_message(self._inv))


def inverted_message(transform: Any) -> str:
    """Why the inverse of a branching transform is no part of a law."""
    return (
        f"The inverse of {type(transform).__name__} maps several values to one, and scoring with "
        f"it would have to draw a branch. Use the transform itself: its forward direction leads "
        f"from the base to the data."
    )
