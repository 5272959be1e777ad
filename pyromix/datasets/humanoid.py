"""Poses of a humanoid in the plane, and where they put hands, feet and head."""

__all__ = ["PlanarHumanoid"]

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from ..core.checks import check_positive_int, check_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Segment(NamedTuple):
    """A bone, with the joint that it hangs on at its near end."""

    joint: str
    """The joint; the pelvis hangs on the root instead."""
    end: str
    """The point at its far end."""
    parent: str
    """The point at its near end."""
    limits: tuple[float, float]
    """Of the joint's angle, in degrees."""
    rest: float
    """Direction of the bone when all angles are zero, in degrees."""
    length: float
    """In metres, of a body 1.75 m tall."""
    mass: float
    """As a fraction of the body's."""
    center: float
    """Where its centre of mass is, as a fraction of the length from the near end."""


def _limbs(side: str) -> list[_Segment]:
    def segment(joint: str, end: str, parent: str, *numbers: Any) -> _Segment:
        return _Segment(f"{side}_{joint}", f"{side}_{end}", parent, *numbers)

    return [
        segment("shoulder", "elbow", "neck", (-50, 170), -90, 0.325, 0.028, 0.436),
        segment("elbow", "wrist", f"{side}_elbow", (0, 145), -90, 0.255, 0.016, 0.430),
        segment("wrist", "hand", f"{side}_wrist", (-50, 50), -90, 0.190, 0.006, 0.506),
        segment("hip", "knee", "root", (-20, 110), -90, 0.430, 0.100, 0.433),
        segment("knee", "ankle", f"{side}_knee", (-140, 0), -90, 0.430, 0.0465, 0.433),
        segment("ankle", "foot", f"{side}_ankle", (-40, 20), -20, 0.200, 0.0145, 0.5),
    ]


# Lengths after Drillis and Contini, masses after Dempster, as tabulated by Winter, "Biomechanics
# and motor control of human movement". The arms hang on the neck's lower end.
_SEGMENTS = (
    _Segment("root", "waist", "root", (0, 0), 90, 0.100, 0.142, 0.5),
    _Segment("lumbar", "chest", "waist", (-45, 15), 90, 0.180, 0.139, 0.5),
    _Segment("thoracic", "neck", "chest", (-30, 10), 90, 0.224, 0.216, 0.5),
    _Segment("neck", "head", "neck", (-45, 40), 90, 0.318, 0.081, 0.6),
    *_limbs("left"),
    *_limbs("right"),
)
_HEIGHT = 1.75  # that these lengths are of
_POINTS = ("root", *(segment.end for segment in _SEGMENTS))
_JOINTS = tuple(segment.joint for segment in _SEGMENTS[1:])
_TRACKED = ("left_hand", "right_hand", "left_foot", "right_foot", "head", "center_of_mass")


def _ancestors() -> list[list[bool]]:
    """Which segments (columns) lie between the root and each point (rows)."""
    rows = {"root": [False] * len(_SEGMENTS)}
    for index, segment in enumerate(_SEGMENTS):
        rows[segment.end] = list(rows[segment.parent])
        rows[segment.end][index] = True
    return [rows[point] for point in _POINTS]


_CHAINS = _ancestors()


class PlanarHumanoid:
    """A humanoid seen from its right side, facing right: a problem in inverse kinematics [1].

    A pose is a vector of 18 numbers: position and rotation of the root, which is the point between
    the hips, and 15 angles: of lumbar and thoracic spine and neck, and of shoulder, elbow, wrist,
    hip, knee and ankle on either side. Angles are in radians, counterclockwise, each relative to
    the segment before; at zero the humanoid stands upright, arms hanging down. Hence arms and
    thighs are lifted forwards by positive angles, and knees, back and head bent by negative ones.

    The 30 features append world coordinates in metres, of both hands (finger tips), both feet
    (toes), top of the head, and centre of mass. They follow from the pose, so that a model of all
    30 can be asked for poses that reach given points.

    Each segment has a fixed length and share of the mass, from tables of human proportions.
    All functions are differentiable, and take float32 or float64 on any device.

    Attributes:
        COLUMNS: The names of the 30 features.
        INDEX: The columns of each quantity: ``"root_position"``, ``"root_rotation"``,
            ``"joint_angles"``, ``"pose"`` (the three together), ``"left_hand"``, ``"right_hand"``,
            ``"left_foot"``, ``"right_foot"``, ``"head"`` and ``"center_of_mass"``.
        JOINTS: The names of the 15 angles.
        POINTS: The names of the 17 points that `forward` returns.
        TRACKED: The names of the 6 points whose coordinates are features.

    Args:
        height: From sole to top of the head when standing upright, in metres.

    Raises:
        ValueError: If the height is not a positive number.

    Example:
        >>> humanoid = PlanarHumanoid()
        >>> poses = humanoid.sample_poses(64)
        >>> features = humanoid.features(poses)
        >>> features.shape
        torch.Size([64, 30])
        >>> features[:, humanoid.INDEX["left_hand"]].shape
        torch.Size([64, 2])

    References:
        [1] Hämäläinen and Saloheimo, "Deep residual mixture models", 2020, section 4.1.
    """

    JOINTS: ClassVar[tuple[str, ...]] = _JOINTS
    POINTS: ClassVar[tuple[str, ...]] = _POINTS
    TRACKED: ClassVar[tuple[str, ...]] = _TRACKED
    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("root_x", "root_y", "root_rotation"),
        *_JOINTS,
        *(f"{point}_{axis}" for point in _TRACKED for axis in "xy"),
    )
    INDEX: ClassVar[Mapping[str, tuple[int, ...]]] = MappingProxyType(
        {
            "root_position": (0, 1),
            "root_rotation": (2,),
            "joint_angles": tuple(range(3, 18)),
            "pose": tuple(range(18)),
            **{point: (18 + 2 * i, 19 + 2 * i) for i, point in enumerate(_TRACKED)},
        }
    )

    def __init__(self, height: float = _HEIGHT) -> None:
        if not 0 < height < math.inf:
            raise ValueError(f"Expected height to be a positive number of metres, got {height!r}.")
        self.height = float(height)
        self._size = self.height / _HEIGHT

    def __repr__(self) -> str:
        return f"{type(self).__name__}(height={self.height:g})"

    @property
    def limits(self) -> Tensor:
        """Smallest and largest value of each of the 15 angles, in radians: shape (15, 2)."""
        degrees = torch.tensor([segment.limits for segment in _SEGMENTS[1:]])
        return degrees.to(torch.get_default_dtype()).deg2rad()

    @property
    def lengths(self) -> Tensor:
        """Lengths of the 16 segments, which end in ``POINTS[1:]``, in metres: shape (16,)."""
        return torch.tensor([segment.length for segment in _SEGMENTS]) * self._size

    def sample_poses(
        self,
        num: int,
        *,
        window: tuple[float, float, float, float] = (-1.0, 1.0, -1.0, 1.0),
        max_rotation: float = 0.5,
        generator: Generator | None = None,
    ) -> Tensor:
        """Draws random poses: everything independent and uniform, angles within their limits.

        Limbs may pass through each other and through the body, as in a side view they can.

        Args:
            num: How many poses to draw.
            window: Left, right, bottom and top of where the root may be, in metres.
            max_rotation: Largest rotation of the root to either side, in radians.
            generator: Source of the random numbers; poses are on its device.

        Returns:
            Shape (num, 18), of torch's default dtype.

        Raises:
            ValueError: If num is not a positive number, or the window or rotation is negative.
        """
        left, right, bottom, top = window
        if not (left <= right and bottom <= top and max_rotation >= 0):
            raise ValueError(
                f"Expected a window (left, right, bottom, top) with left <= right and "
                f"bottom <= top, and a max_rotation of at least 0, got window {window} and "
                f"max_rotation {max_rotation}."
            )
        device = None if generator is None else generator.device
        uniform = torch.rand(
            check_positive_int("num", num), 18, generator=generator, device=device
        )
        root = uniform.new_tensor([(left, right), (bottom, top), (-max_rotation, max_rotation)])
        low, high = torch.cat([root, self.limits.to(uniform)]).unbind(-1)
        return low + (high - low) * uniform

    def forward(self, pose: Tensor) -> Tensor:
        """Forward kinematics: where a pose puts the end points of all segments.

        Args:
            pose: Shape (..., 18).

        Returns:
            World coordinates of the `POINTS`, in metres: shape (..., 17, 2).

        Raises:
            ValueError: If the shape or dtype is another one.

        Example:
            >>> humanoid = PlanarHumanoid()
            >>> standing = humanoid.forward(torch.zeros(18))
            >>> head = standing[humanoid.POINTS.index("head")]
            >>> foot = standing[humanoid.POINTS.index("left_foot")]
            >>> round((head - foot)[1].item(), 2)
            1.75
        """
        return _root(pose) + _constant(_CHAINS, pose) @ self._bones(pose)

    def center_of_mass(self, pose: Tensor) -> Tensor:
        """Where a pose puts the centre of mass.

        Args:
            pose: Shape (..., 18).

        Returns:
            World coordinates in metres: shape (..., 2).

        Raises:
            ValueError: If the shape or dtype is another one.
        """
        # A bone moves what is beyond it in full, and its own mass by a fraction.
        chains = _constant(_CHAINS[1:], pose)
        masses = _constant([segment.mass for segment in _SEGMENTS], pose)
        centers = _constant([segment.center for segment in _SEGMENTS], pose)
        weights = (masses @ chains + masses * (centers - 1)) / masses.sum()
        return (_root(pose) + weights @ self._bones(pose)[..., None, :, :]).squeeze(-2)

    def features(self, pose: Tensor) -> Tensor:
        """A pose together with the world coordinates of the `TRACKED` points.

        Args:
            pose: Shape (..., 18).

        Returns:
            Shape (..., 30), in the order of `COLUMNS`.

        Raises:
            ValueError: If the shape or dtype is another one.
        """
        return torch.cat([pose, self._tracked(pose).flatten(-2)], -1)

    def consistency(self, features: Tensor) -> Tensor:
        """How far a vector's coordinates are from where the pose in the same vector puts them.

        Args:
            features: Shape (..., 30), in the order of `COLUMNS`.

        Returns:
            Distances of the `TRACKED` points in metres: shape (..., 6).

        Raises:
            ValueError: If the shape or dtype is another one.

        Example:
            >>> humanoid = PlanarHumanoid()
            >>> features = humanoid.features(torch.zeros(18))
            >>> features[list(humanoid.INDEX["left_hand"])] += torch.tensor([0.3, 0.4])
            >>> humanoid.consistency(features)
            tensor([0.5000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000])
        """
        _check_columns("features", features, 30)
        told = features[..., 18:].unflatten(-1, (6, 2))
        return (told - self._tracked(features[..., :18])).norm(dim=-1)

    def draw_skeleton(
        self, pose: Tensor, ax: "Axes", *, color: str = "black", **kwargs: Any
    ) -> "Axes":
        """Draws poses as figures of lines, the left limbs, which are farther away, paler.

        Args:
            pose: Shape (18,), or (N, 18) for several in one picture.
            ax: Where to draw; units along both axes become equal.
            color: Of the lines, any that matplotlib knows.
            kwargs: Passed to `matplotlib.axes.Axes.plot`, such as ``linewidth`` and ``alpha``.

        Returns:
            The axes.

        Raises:
            ValueError: If the shape or dtype is another one.
        """
        for points in self.forward(pose).detach().cpu().reshape(-1, len(_POINTS), 2):
            self._draw(dict(zip(_POINTS, points, strict=True)), ax, color, kwargs)
        ax.set_aspect("equal")
        return ax

    def _draw(
        self, points: dict[str, Tensor], ax: "Axes", color: str, kwargs: dict[str, Any]
    ) -> None:
        options: dict[str, Any] = {
            "linewidth": 2.0,
            "alpha": 1.0,
            "solid_capstyle": "round",
            "solid_joinstyle": "round",
        } | kwargs
        pale = options | {"alpha": 0.4 * options["alpha"]}

        def line(path: Tensor, style: dict[str, Any]) -> None:
            ax.plot(path[:, 0].numpy(), path[:, 1].numpy(), color=color, **style)

        def chain(*names: str) -> Tensor:
            return torch.stack([points[name] for name in names])

        def limbs(side: str, style: dict[str, Any]) -> None:
            line(chain("neck", *(f"{side}_{name}" for name in ("elbow", "wrist", "hand"))), style)
            line(chain("root", *(f"{side}_{name}" for name in ("knee", "ankle"))), style)
            line(_foot(points[f"{side}_ankle"], points[f"{side}_foot"]), style)

        limbs("left", pale)
        line(chain("root", "waist", "chest", "neck"), options)
        line(_head(points["neck"], points["head"]), options)
        limbs("right", options)

    def _bones(self, pose: Tensor) -> Tensor:
        """Vectors along the segments, in metres: shape (..., 16, 2)."""
        _check_columns("pose", pose, 18)
        # A segment is turned by the root and by all joints between the root and itself. Limbs that
        # hang on the root do not have the pelvis in their chain, but turn with it.
        turned_by = _constant(_CHAINS[1:], pose)
        turned_by[:, 0] = 1.0
        angles = pose[..., 2:] @ turned_by.mT
        angles = angles + _constant([segment.rest for segment in _SEGMENTS], pose).deg2rad()
        lengths = _constant([segment.length for segment in _SEGMENTS], pose) * self._size
        return lengths[:, None] * torch.stack([angles.cos(), angles.sin()], -1)

    def _tracked(self, pose: Tensor) -> Tensor:
        """World coordinates of the `TRACKED` points: shape (..., 6, 2)."""
        ends = [_POINTS.index(point) for point in _TRACKED[:-1]]
        return torch.cat(
            [self.forward(pose)[..., ends, :], self.center_of_mass(pose)[..., None, :]], -2
        )


def _root(pose: Tensor) -> Tensor:
    """Position of the root, to be added to those of points: shape (..., 1, 2)."""
    _check_columns("pose", pose, 18)
    return pose[..., None, :2]


def _check_columns(name: str, value: object, columns: int) -> None:
    value = check_tensor(name, value)
    if not value.dim() or value.shape[-1] != columns:
        raise ValueError(
            f"Expected {name} of shape (..., {columns}), got {tuple(value.shape)}. The columns "
            f"are PlanarHumanoid.COLUMNS[:{columns}]."
        )


def _constant(values: Any, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _foot(ankle: Tensor, toes: Tensor) -> Tensor:
    """The outline of a foot: its sole is flat on the ground when standing."""
    along = toes - ankle
    across = torch.stack([along[1], -along[0]])  # towards the ground
    return torch.stack([ankle, ankle - 0.12 * along + 0.405 * across, toes, ankle])


def _head(neck: Tensor, top: Tensor) -> Tensor:
    """A neck, and an outline whose highest point is the top of the head."""
    along = top - neck
    across = torch.stack([along[1], -along[0]])
    angle = torch.linspace(0, 2 * math.pi, 49, dtype=neck.dtype)[:, None]
    outline = neck + (0.64 - 0.36 * angle.cos()) * along + 0.29 * angle.sin() * across
    return torch.cat([neck[None], outline])
