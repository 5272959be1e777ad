"""The fold of one number, its five pieces written out one by one: slow and obvious."""

import math

import pyro.distributions as dist
import torch

LEFT, MIDDLE, RIGHT = 0, 1, 2


class SlowFold:
    """A folded line, from eight unconstrained numbers and a function z -> two free scores."""

    def __init__(self, raw, free_scores):
        self.edge_left, self.edge_right = (math.tanh(r) for r in raw[:2])
        left, right, middle = (3.0 * math.exp(0.7 * math.tanh(r)) for r in raw[2:5])
        self.slope = {LEFT: left, MIDDLE: middle, RIGHT: right}
        self.loc, self.shift = raw[5], raw[6]
        self.b = 1 + math.tanh(raw[7] / 2) + 1e-3
        self.limit = middle * self.b
        self.free_scores = free_scores
        # Where the fold ends, and the slopes beyond.
        self.left_end = -self.b - 2 * self.limit / left
        self.right_end = self.b + 2 * self.limit / right
        self.left_tail = left * self.gates(-self.limit)[LEFT]
        self.right_tail = right * self.gates(self.limit)[RIGHT]

    def gates(self, within):
        """Probabilities of the three pieces, of z less the shift within the fold."""
        w = (self.limit + within) / (2 * self.limit)
        left, right = (16 * math.tanh(s) for s in self.free_scores(within + self.shift))
        strength = math.tanh(self.b)
        score = {
            LEFT: strength * (1 - w) * (self.edge_left + 4 * w * left),
            MIDDLE: 0.0,
            RIGHT: strength * w * (self.edge_right + 4 * (1 - w) * right),
        }
        weight = [math.exp(score[k]) / self.slope[k] for k in (LEFT, MIDDLE, RIGHT)]
        return [v / sum(weight) for v in weight]

    def fold(self, x):
        """z, log p(k|z) + log |dz/dx|, k, and p(k|z)."""
        t = x - self.loc
        if t < self.left_end:
            within, slope = -self.limit + self.left_tail * (t - self.left_end), self.left_tail
            return within + self.shift, math.log(slope), LEFT, 1.0
        if t <= -self.b:
            branch, within = LEFT, self.limit + self.slope[LEFT] * (t + self.b)
        elif t < self.b:
            branch, within = MIDDLE, -self.slope[MIDDLE] * t
        elif t <= self.right_end:
            branch, within = RIGHT, -self.limit + self.slope[RIGHT] * (t - self.b)
        else:
            within, slope = self.limit + self.right_tail * (t - self.right_end), self.right_tail
            return within + self.shift, math.log(slope), RIGHT, 1.0
        gate = self.gates(min(max(within, -self.limit), self.limit))[branch]
        return within + self.shift, math.log(gate * self.slope[branch]), branch, gate

    def unfold(self, z, branch):
        """The x on a given piece; None if there is none."""
        within = z - self.shift
        if abs(within) <= self.limit:
            t = {
                LEFT: -self.b - (self.limit - within) / self.slope[LEFT],
                MIDDLE: -within / self.slope[MIDDLE],
                RIGHT: self.b + (self.limit + within) / self.slope[RIGHT],
            }[branch]
        elif within < 0 and branch == LEFT:
            t = self.left_end + (within + self.limit) / self.left_tail
        elif within > 0 and branch == RIGHT:
            t = self.right_end + (within - self.limit) / self.right_tail
        else:
            return None
        return t + self.loc


# The library's order of a fold's parameters: pieces as (middle, right, left), loc, shift, width.
ORDER = [1, 0, 4, 3, 2, 5, 6, 7]


def to_library(raw):
    """Parameters of folds (N, 8) as the library orders them, (8, N, 1, 1)."""
    return raw[:, ORDER].mT.reshape(8, -1, 1, 1)


def from_library(raw):
    """The inverse for a single fold: a list of eight numbers."""
    return raw.flatten()[ORDER].tolist()


@torch.no_grad()
def sharpen(module, factor=3.0):
    """Makes folds that differ from the nearly symmetric ones of a new module, and strong gates."""
    for name, part in module.named_modules():
        if name.endswith("conditioner"):
            part[-1].weight.mul_(factor)
            part[-1].bias.add_(0.5 * torch.randn_like(part[-1].bias))
        elif name.endswith("gate"):
            part[-1].weight.mul_(factor)
            part[-1].bias.mul_(factor)
        elif hasattr(part, "raw"):
            part.raw.add_(0.7 * torch.randn_like(part.raw))
    return module


def normal(*shape):
    return dist.Normal(torch.zeros(shape), torch.ones(shape))


def box(law, margin=0.5, num=20_000):
    """A box around nearly all draws of a law, as tensors of its lower and upper ends."""
    x = law.sample((num,)).reshape(num, -1)
    low, high = x.amin(0), x.amax(0)
    return low - margin * (high - low), high + margin * (high - low)


def grid(low, high, size):
    """Midpoints of the cells of a box, (size^D, D), and the volume of a cell."""
    step = (high - low) / size
    axes = [a + s * (torch.arange(size) + 0.5) for a, s in zip(low, step, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return points.reshape(-1, len(axes)), step.prod()


@torch.no_grad()
def integral(law, size):
    """The integral of the density of a law on a line or a plane."""
    points, volume = grid(*box(law), size)
    parts = (points if law.event_shape else points.squeeze(-1)).split(50_000)
    return float(sum(law.log_prob(part).exp().sum() for part in parts) * volume)
