"""A table with bumpers, seen through a camera: a system to learn a model of, in world_model.py.

A puck slides over a square table that is tilted in two directions, the actions. It loses speed by
friction, is pushed about by noise, bounces off the walls, and off five round bumpers. A bumper
that is touched fires or not, with even chances: the puck leaves with a kick, or with a third of
its speed. So where the puck will be is a law of several modes: fired or not, and, as the camera
is not exact, hit or missed, on one side or on the other.

A frame has no speeds: a model has to remember. The camera sees a scene of five numbers: where the
puck appears in the frame (2), how far the camera shook (2, fresh in every frame, heavy tails: t
with five degrees of freedom), and the light (1, which drifts from frame to frame). The code of a
frame is a smooth map of the scene, a network of one layer of random weights, plus independent
noise on each of its numbers. That is how codes of an encoder behave: one cause moves many of them,
so that they are correlated; how they are correlated depends on where the puck is; and what is
normal in the scene is not normal in the code.

The weights are drawn once, from a seed, at the scale that lets the network bend: its inputs have a
standard deviation of about one.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

BUMPERS = ((0.0, 0.0), (0.55, 0.55), (0.55, -0.55), (-0.55, 0.55), (-0.55, -0.55))
RADIUS = 0.2  # of a bumper, and of the puck, together
KICK = 2.0  # speed after a bumper has fired
FIRES = 0.5  # with this probability
DULL = 0.3  # of the speed is left where it has not
ELASTICITY = 0.8  # of walls
FRICTION = 0.6
PUSHES = 0.15  # standard deviation of the noise of a velocity after one unit of time
SUBSTEP, SUBSTEPS = 0.02, 8  # a frame every 0.16

DIM, ACTION_DIM, SCENE_DIM, HIDDEN = 8, 2, 5, 32
SHAKE = 0.03  # of the camera, in units of the table
CLUTTER = 0.3  # how much of a frame is shake and light, the puck being 1
BLUR = 0.05  # noise of a code


class State(NamedTuple):
    """Of a batch of tables."""

    position: Tensor  # (N, 2)
    velocity: Tensor  # (N, 2)
    light: Tensor  # (N,)

    def select(self, index: Tensor) -> "State":
        return State(*(part[index] for part in self))


class Pinball:
    """The table, the camera, and where all random numbers come from.

    Args:
        seed: Of puck, camera and actions; the weights of the map to codes have one of their own.
    """

    def __init__(self, seed: int = 0) -> None:
        self.generator = Generator().manual_seed(seed)
        weights = Generator().manual_seed(2)
        self.inward = 0.6 * torch.randn(SCENE_DIM, HIDDEN, generator=weights)
        self.shift = 0.6 * torch.randn(HIDDEN, generator=weights)
        self.outward = torch.randn(HIDDEN, DIM, generator=weights) / HIDDEN**0.5

    def start(self, num: int) -> State:
        """Pucks at rest where no bumper is, for a second of play."""
        bumpers = torch.tensor(BUMPERS)
        position = 1.9 * torch.rand(num, 2, generator=self.generator) - 0.95
        for _ in range(20):
            inside = torch.cdist(position, bumpers).amin(-1) < RADIUS
            again = 1.9 * torch.rand(num, 2, generator=self.generator) - 0.95
            position = torch.where(inside.unsqueeze(-1), again, position)
        state = State(position, torch.zeros(num, 2), self._normal(num))
        for action in self.actions(num, 6).unbind(1):
            state = self.advance(state, action)
        return state

    def actions(self, num: int, length: int) -> Tensor:
        """Tilts of shape (num, length, 2) that vary smoothly."""
        tilt, tilts = self._normal(num, 2), []
        for _ in range(length):
            tilts.append(1.5 * tilt)
            tilt = 0.8 * tilt + 0.6 * self._normal(num, 2)
        return torch.stack(tilts, 1)

    def advance(self, state: State, action: Tensor) -> State:
        """The state at the next frame, under an action of shape (N, 2)."""
        position, velocity = state.position, state.velocity
        for _ in range(SUBSTEPS):
            push = PUSHES * SUBSTEP**0.5 * self._normal(*velocity.shape)
            velocity = (1 - FRICTION * SUBSTEP) * velocity + SUBSTEP * action + push
            position = position + SUBSTEP * velocity
            outside = position.abs() > 1
            velocity = torch.where(
                outside & (position * velocity > 0), -ELASTICITY * velocity, velocity
            )
            position = position.clamp(-1, 1)
            velocity = self._bump(position, velocity)
        light = 0.9 * state.light + 0.19**0.5 * self._normal(len(position))
        return State(position, velocity, light)

    def observe(self, state: State) -> Tensor:
        """Codes of frames, of shape (N, DIM)."""
        num = len(state.position)
        chi2 = self._normal(num, 5, 1).square().mean(1)
        shake = self._normal(num, 2) / chi2.sqrt()
        seen = (state.position + SHAKE * shake) / 0.6
        scene = torch.cat([seen, CLUTTER * shake, CLUTTER * state.light.unsqueeze(-1)], -1)
        code = torch.tanh(scene @ self.inward + self.shift) @ self.outward
        return code + BLUR * self._normal(num, DIM)

    def play(self, state: State, actions: Tensor) -> tuple[Tensor, list[State]]:
        """Codes (N, T, DIM) and states of a rollout; the first action leads to the first frame."""
        codes, states = [], []
        for action in actions.unbind(1):
            state = self.advance(state, action)
            states.append(state)
            codes.append(self.observe(state))
        return torch.stack(codes, 1), states

    def _bump(self, position: Tensor, velocity: Tensor) -> Tensor:
        for bumper in torch.tensor(BUMPERS).unbind():
            offset = position - bumper
            distance = offset.norm(dim=-1, keepdim=True)
            normal = offset / distance
            inward = (velocity * normal).sum(-1, keepdim=True)
            hit = (distance < RADIUS) & (inward < 0)
            chance = torch.rand(len(position), 1, generator=self.generator)
            speed = torch.where(chance < FIRES, KICK, -DULL * inward)
            velocity = torch.where(hit, velocity + (speed - inward) * normal, velocity)
        return velocity

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)
