"""Motion capture as arrays: the path of the pelvis, and poses about it.

A window of F frames of 15 joints is described frame by frame by height, forward and sideways speed
of the pelvis, and the 14 other joints relative to it, in axes that turn evenly from where the
first pose faces to where the last does. So the axes follow from two poses, and the others do not
depend on where a walk leads. (The direction of the velocity is no substitute: who stands turns
about, and some walk backwards.) Poses are those of a skeleton whose bones have the mean lengths,
and are written in their principal components; what is left out is a few millimetres. On the way
back bones get the lengths that they have in a known pose.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyromix.datasets.sources import looked_for, own_folders

FRAMES, RATE = 64, 30  # frames of a window; per second
PELVIS = 3  # channels that the path of the pelvis tells
# Held out, with everything that is a mirror image of it.
HELD_OUT = (
    "long_walk2", "stealthy_walk1", "sie_run_forward06", "sie_run_forward07", "sie_run_forward08",
    "sie_run_forward09", "sie_run_left08", "sie_run_left13", "sie_run_right00", "sie_run_right05",
    "sie_run_left10", "sie_run_right02",
)  # fmt: skip
SPEED_UNIT = 10.0  # frames: speeds are in metres in so many
LEFT_HIP, RIGHT_HIP = 9, 3


class Skeleton(NamedTuple):
    """Names of joints, and which each hangs on."""

    names: list[str]
    parents: list[int]

    def bones(self, x: Tensor) -> Tensor:
        """Bones (*S, 14, 3) of poses (*S, 15, 3)."""
        return x[..., 1:, :] - x[..., self.parents[1:], :]

    def lengths(self, x: Tensor) -> Tensor:
        """Lengths of bones (*S, 14) of poses (*S, 15, 3)."""
        return self.bones(x).norm(dim=-1)

    def assemble(self, root: Tensor, bones: Tensor) -> Tensor:
        """Poses (*S, 15, 3) of a pelvis (*S, 3) and bones (*S, 14, 3)."""
        joints = [root]
        for joint, parent in enumerate(self.parents[1:]):
            joints.append(joints[parent] + bones[..., joint, :])
        return torch.stack(joints, -2)

    def with_lengths(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Poses (*S, 15, 3) whose bones keep their directions and have lengths (14,)."""
        directions = torch.nn.functional.normalize(self.bones(x), dim=-1)
        return self.assemble(x[..., 0, :], directions * lengths.unsqueeze(-1))


class Axes(NamedTuple):
    """Where the pelvis is, and what is forward there."""

    root: Tensor
    """Positions of the pelvis, (*S, F, 3), y up."""
    forward: Tensor
    """Directions in the plane (x, z), (*S, F, 2)."""

    @classmethod
    def along(cls, x: Tensor) -> "Axes":
        """Axes along windows (*S, F, 15, 3), of which all pelves and two poses are looked at."""
        root = x[..., 0, :]
        start, end = (_facing(x[..., frame, :, :]) for frame in (0, -1))
        turn = (end - start + math.pi) % (2 * math.pi) - math.pi
        share = torch.linspace(0, 1, root.shape[-2]).to(root)
        angle = start.unsqueeze(-1) + turn.unsqueeze(-1) * share
        return cls(root, torch.stack([angle.cos(), angle.sin()], -1))

    def path(self) -> Tensor:
        """Height and speeds of the pelvis, (*S, F, 3)."""
        speed = SPEED_UNIT * _turn(_velocity(self.root), self.forward)
        return torch.cat([self.root[..., 1:2], speed], -1)

    def poses(self, x: Tensor) -> Tensor:
        """Poses (*S, F, 15, 3) as the other joints seen from the pelvis, (*S, F, 42)."""
        left = x[..., 1:, :] - x[..., :1, :]
        plane = _turn(left[..., [0, 2]], self.forward.unsqueeze(-2))
        return torch.stack([plane[..., 0], left[..., 1], plane[..., 1]], -1).flatten(-2)

    def joints(self, poses: Tensor) -> Tensor:
        """Joints in the world (*S, F, 15, 3) from what `poses` returns."""
        left = poses.unflatten(-1, (-1, 3))
        plane = _turn(left[..., [0, 2]], self.forward.unsqueeze(-2), back=True)
        left = torch.stack([plane[..., 0], left[..., 1], plane[..., 1]], -1)
        return torch.cat([torch.zeros_like(left[..., :1, :]), left], -2) + self.root.unsqueeze(-2)


def _turn(x: Tensor, forward: Tensor, *, back: bool = False) -> Tensor:
    """Vectors of the plane (*S, 2) in axes of which one is forward, or back in the world's."""
    (a, b), sign = forward.unbind(-1), -1 if back else 1
    return torch.stack(
        [a * x[..., 0] + sign * b * x[..., 1], a * x[..., 1] - sign * b * x[..., 0]], -1
    )


def _facing(pose: Tensor) -> Tensor:
    """The angle in the plane (x, z) where poses (*S, 15, 3) face, (*S,)."""
    hips = pose[..., RIGHT_HIP, :] - pose[..., LEFT_HIP, :]
    return torch.atan2(-hips[..., 0], hips[..., 2])


def _velocity(root: Tensor) -> Tensor:
    """In the plane, in metres a frame, (*S, F, 2); of the first frame, that of the second."""
    step = root[..., 1:, [0, 2]] - root[..., :-1, [0, 2]]
    return torch.cat([step[..., :1, :], step], -2)


class Coordinates(NamedTuple):
    """Principal components of poses of a skeleton with mean lengths."""

    skeleton: Skeleton
    lengths: Tensor
    """Shape (14,)."""
    mean: Tensor
    """Shape (42,)."""
    basis: Tensor
    """Shape (42, d), orthonormal."""

    @classmethod
    def of(cls, skeleton: Skeleton, x: Tensor, dim: int) -> "Coordinates":
        """Components of windows (N, F, 15, 3)."""
        lengths = skeleton.lengths(x).flatten(0, 1).mean(0)
        poses = Axes.along(x).poses(skeleton.with_lengths(x, lengths)).flatten(0, 1)
        _, vectors = torch.linalg.eigh(torch.cov(poses.mT))
        return cls(skeleton, lengths, poses.mean(0), vectors[:, -dim:].flip(-1))

    def array(self, x: Tensor) -> Tensor:
        """Windows (*S, F, 15, 3) as arrays (*S, 3 + d, F)."""
        axes = Axes.along(x)
        poses = axes.poses(self.skeleton.with_lengths(x, self.lengths))
        return torch.cat([axes.path(), (poses - self.mean) @ self.basis], -1).mT

    def joints(self, axes: Axes, array: Tensor, lengths: Tensor) -> Tensor:
        """Joints (*S, F, 15, 3) of arrays (*S, 3 + d, F) along a path, with bones so long."""
        poses = array.mT[..., PELVIS:] @ self.basis.mT + self.mean
        return self.skeleton.with_lengths(axes.joints(poses), lengths)


class Clips(NamedTuple):
    """Windows of clips, in metres."""

    train: Tensor
    """Shape (N, F, 15, 3)."""
    test: Tensor
    """The same, of clips that are held out whole."""
    skeleton: Skeleton


def load_clips(train_every: int = 2, test_every: int = 32) -> Clips:
    """Windows of clips, so many frames apart.

    Raises:
        FileNotFoundError: If the file positions.npz is not found.
    """
    paths = [folder / "positions.npz" for folder in own_folders("motion")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise FileNotFoundError(f"No motion capture: {looked_for('motion/positions.npz')}.")
    return _windows(path, train_every, test_every)


def _windows(path: Path, train_every: int, test_every: int) -> Clips:
    with np.load(path, allow_pickle=True) as file:
        names = [str(name) for name in file["joint_names"]]
        parents = [int(parent) for parent in file["parents"]]
        clips = {
            name: torch.from_numpy(file[name]).float()
            for name in file.files
            if name not in ("joint_names", "parents")
        }

    def cut(chosen: Iterable[str], every: int) -> Tensor:
        return torch.cat(
            [
                clips[name].unfold(0, FRAMES, every).movedim(-1, 1)
                for name in chosen
                if len(clips[name]) >= FRAMES
            ]
        )

    out = [name for name in clips if name.removesuffix("_mirror") in HELD_OUT]
    kept = [name for name in clips if name not in out]
    return Clips(cut(kept, train_every), cut(out, test_every), Skeleton(names, parents))
