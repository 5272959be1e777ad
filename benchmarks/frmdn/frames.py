"""Frames of an environment and their codes, for world_model.py.

Frames are recorded under smooth random actions, in CarRacing under those of a careless driver: he
steers towards a point of the road ahead, and is off by a random, smooth error; resized to 64 x 64;
and encoded by a variational autoencoder, written in Pyro: four convolutions of stride 2, codes of
32 numbers, a normal of fixed scale for pixels. A code is a draw from the posterior, as in the
world model of Ha and Schmidhuber. Everything is kept in out/frmdn/, and made once.
"""

import itertools
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn.functional import interpolate

SIDE = 64
CODE_DIM = 32
PIXEL_SCALE = 0.1  # standard deviation of a pixel, of a range of one
WARM_UP = 50  # steps before the first frame: CarRacing zooms in
SKIP = 4  # steps that an action is repeated for, between frames
BATCH = 64


class Recording(NamedTuple):
    """Episodes of equal length."""

    frames: Tensor  # (N, T, 3, 64, 64), bytes
    actions: Tensor  # (N, T, A): the one that led to the frame, and zero for the first


# ---- recording ----------------------------------------------------------------------------------


class Policy:
    """Smooth random actions: every number of an action, or the choice of one, wanders."""

    def __init__(self, env: gymnasium.Env, seed: int) -> None:
        self.env, self.random = env, np.random.default_rng(seed)
        self.discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
        self.racing = hasattr(env.unwrapped, "car")
        space: Any = env.action_space
        self.dim = int(space.n) if self.discrete else int(np.prod(space.shape))
        self.noise = self.random.standard_normal(self.dim)

    def act(self) -> np.ndarray:
        """The next action as numbers: one-hot where it is a choice."""
        self.noise = 0.8 * self.noise + 0.6 * self.random.standard_normal(self.dim)
        if self.discrete:
            return np.eye(self.dim, dtype=np.float32)[self.noise.argmax()]
        if self.racing:
            return self._drive()
        space: Any = self.env.action_space
        low, high = space.low.ravel(), space.high.ravel()
        middle, half = (low + high) / 2, (high - low) / 2
        return np.clip(middle + 0.5 * half * self.noise, low, high).astype(np.float32)

    def perform(self, action: np.ndarray) -> Any:
        """An action as the environment wants it."""
        if self.discrete:
            return int(action.argmax())
        return action.reshape(self.env.action_space.shape)

    def _drive(self) -> np.ndarray:
        """Steers towards the road ahead, at no more than a moderate speed."""
        environment: Any = self.env.unwrapped
        hull = environment.car.hull
        x, y = hull.position
        road = np.array([point[2:] for point in environment.track])
        nearest = int(((road - [x, y]) ** 2).sum(1).argmin())
        ahead = road[(nearest + 5) % len(road)] - [x, y]
        error = math.atan2(ahead[1], ahead[0]) - (hull.angle + math.pi / 2)
        error = (error + math.pi) % (2 * math.pi) - math.pi
        speed = math.hypot(*hull.linearVelocity)
        steer = -0.8 * error + 0.3 * self.noise[0]
        push = 0.03 * (35.0 - speed) + 0.2 * self.noise[1]
        action = np.array([steer, push, -0.3 * push])
        return np.clip(action, [-1, 0, 0], [1, 0.6, 0.5]).astype(np.float32)


def record(name: str, episodes: int, length: int) -> Recording:
    """Frames of all episodes; one that ends before its time is started again elsewhere."""
    env = gymnasium.make(name, render_mode="rgb_array", max_episode_steps=10**6)
    frames, actions, seed = [], [], 0
    start = time.perf_counter()
    while len(frames) < episodes:
        policy = Policy(env, seed)
        episode = _record_episode(env, policy, length, seed)
        seed += 1
        if episode is not None:
            frames.append(episode.frames)
            actions.append(episode.actions)
        elif seed > 20 + 5 * episodes:
            raise RuntimeError(f"Episodes of {name} end before {length} frames: take fewer.")
        if len(frames) % 20 == 0 and episode is not None:
            print(f"  {len(frames)} episodes, {time.perf_counter() - start:.0f} s", flush=True)
    env.close()
    return Recording(torch.stack(frames), torch.stack(actions))


def _record_episode(
    env: gymnasium.Env, policy: Policy, length: int, seed: int
) -> Recording | None:
    observation, _ = env.reset(seed=seed)
    racing = policy.racing
    frames, actions = [], []
    action = np.zeros(policy.dim, dtype=np.float32)
    for step in range((WARM_UP if racing else 0) + SKIP * (length - 1) + 1):
        place = step - (WARM_UP if racing else 0)
        if place >= 0 and place % SKIP == 0:
            frames.append(_shrink(observation if _is_image(observation) else env.render()))
            actions.append(torch.from_numpy(action if frames[1:] else 0 * action))
        if step % SKIP == (WARM_UP if racing else 0) % SKIP:
            action = policy.act()
        observation, _, terminated, _, _ = env.step(policy.perform(action))
        if terminated and len(frames) < length:
            return None
    return Recording(torch.stack(frames), torch.stack(actions))


def _is_image(observation: Any) -> bool:
    return getattr(observation, "ndim", 0) == 3 and observation.shape[-1] == 3


def _shrink(image: Any) -> Tensor:
    """Bytes of shape (3, 64, 64); CarRacing's bar of instruments is cut off."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float()
    if image.shape[:2] == (96, 96):
        pixels = pixels[:, :, :84, 6:90]
    small = interpolate(pixels, (SIDE, SIDE), mode="area")
    return small.squeeze(0).round().to(torch.uint8)


# ---- autoencoder --------------------------------------------------------------------------------


class VAE(nn.Module):
    """Convolutional variational autoencoder of frames.

    Args:
        width: Channels after the first convolution; each of the next three doubles them.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 4, stride=2), nn.ReLU()]
        # 64 to 31, 14, 6 and 2 pixels across.
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * width, 2 * CODE_DIM))
        back = [32 * width, 4 * width, 2 * width, width, 3]
        layers = [nn.Linear(CODE_DIM, 32 * width), nn.Unflatten(1, (32 * width, 1, 1))]
        for before, after, size in zip(back, back[1:], (5, 5, 6, 6), strict=False):
            layers += [nn.ConvTranspose2d(before, after, size, stride=2), nn.ReLU()]
        layers[-1] = nn.Sigmoid()
        self.decoder = nn.Sequential(*layers)

    def encode(self, pixels: Tensor) -> dist.TorchDistribution:
        loc, raw = self.encoder(pixels).chunk(2, -1)
        return dist.Normal(loc, (0.5 * raw.clamp(-12, 4)).exp()).to_event(1)

    def model(self, pixels: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("frames", len(pixels)):
            unit = dist.Normal(pixels.new_zeros(CODE_DIM), 1.0).to_event(1)
            code = pyro.sample("code", unit)
            law = dist.Normal(self.decoder(code), PIXEL_SCALE).to_event(3)
            pyro.sample("pixels", law, obs=pixels)

    def guide(self, pixels: Tensor) -> None:
        with pyro.plate("frames", len(pixels)):
            pyro.sample("code", self.encode(pixels))


def as_pixels(frames: Tensor) -> Tensor:
    return frames.float() / 255


def train_vae(frames: Tensor, steps: int, width: int) -> VAE:
    """Maximises the evidence lower bound of frames of shape (N, 3, 64, 64), as bytes."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    vae = VAE(width)
    # Adam at 1e-3, as in the paper, down to 1e-4 at the end.
    decay = 0.1 ** (1 / steps)
    svi = SVI(vae.model, vae.guide, ClippedAdam({"lr": 1e-3, "lrd": decay}), Trace_ELBO())
    generator = Generator().manual_seed(0)
    start, total = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        batch = frames[torch.randint(len(frames), (BATCH,), generator=generator)]
        total += svi.step(as_pixels(batch)) / BATCH
        if step % max(1, steps // 10) == 0:
            seconds = time.perf_counter() - start
            mean = total / max(1, steps // 10)
            print(f"  autoencoder: step {step}, loss {mean:.1f}, {seconds:.0f} s", flush=True)
            total = 0.0
    return vae.eval().requires_grad_(False)


# ---- all ----------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """What world_model.py learns from, and what it draws with."""

    codes: Tensor  # (N, T, 32)
    actions: Tensor  # (N, T, A)
    frames: Tensor
    vae: VAE


def load(
    name: str, out: Path, episodes: int, length: int, steps: int, width: int, held_out: int
) -> Encoded:
    """Records, trains, encodes: or finds under `out` what an earlier run made.

    Args:
        name: Of the environment.
        out: Folder of what is kept.
        episodes: How many to record.
        length: Frames of each.
        steps: Of training the autoencoder.
        width: Of the autoencoder.
        held_out: Last episodes that the autoencoder must not see.
    """
    out.mkdir(parents=True, exist_ok=True)
    label = f"{name.replace('/', '_')}_{episodes}x{length}"
    path = out / f"frames_{label}.safetensors"
    if not path.exists():
        print(f"recording {episodes} episodes of {name}", flush=True)
        recording = record(name, episodes, length)
        save_file({k: v.contiguous() for k, v in recording._asdict().items()}, path)
    recording = Recording(**load_file(path))
    path = out / f"frames_{label}_vae_{steps}_{width}.safetensors"
    if not path.exists():
        print(f"training the autoencoder: {steps} steps", flush=True)
        vae = train_vae(recording.frames[:-held_out].flatten(0, 1), steps, width)
        save_file(vae.state_dict(), path)
    vae = VAE(width).eval().requires_grad_(False)
    vae.load_state_dict(load_file(path))
    # The same draws in all processes that share the work.
    generator = Generator().manual_seed(0)
    codes = []
    for frames in recording.frames:
        law: Any = vae.encode(as_pixels(frames)).base_dist
        noise = torch.randn(law.loc.shape, generator=generator)
        codes.append(law.loc + law.scale * noise)
    return Encoded(torch.stack(codes), recording.actions, recording.frames, vae)
