r"""Laws within unions of regions, drawn from the law without them.

.. math:: p(x) \, q(x) \, 1[x \in U] / Z

U is an intersection of unions, one of each `AnyOf`. Draws of the other evidence that lie in it are
draws of the law, and Z is the other evidence's, times the share of those: it takes one law and no
combination of alternatives, however many unions there are. That is of use as long as the share is
not small, as where obstacles are to be avoided.
"""

__all__ = ["LawWithinUnions"]

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core.random import draws_from, seeded
from ..numerics.no_gradient import raise_on_gradient
from .law import UNKNOWN_EVIDENCE_GRADIENT, ConditionedLaw, WithinRegions
from .nonlinear import HasNormals
from .polytope import Polytope

# Draws of every entry at first, in all, and of all entries together. The share that lies in the
# unions is known well enough once log Z has this error, or this share of the error that it has.
FIRST_DRAWS = 2048
MAX_DRAWS, ALL_DRAWS = 2**16, 2**20
WANTED_ERROR, SHARE_OF_ERROR = 0.01, 0.5

# Numbers that are drawn at once.
CHUNK_NUMBERS = 2**22


class LawWithinUnions(WithinRegions):
    r"""A law within an intersection of unions of regions, by rejection.

    Draws are exact where those of the other evidence are. The share of them that lies in the
    unions is estimated, to more digits once log Z is asked for: it has that error, and no
    gradient. Seeds are drawn when the law is made: then `log_prob` is deterministic.

    Args:
        law: The law given all other evidence.
        unions: The regions of every union, of which at least one holds.

    Attributes:
        law: The law given all other evidence.
    """

    def __init__(self, law: ConditionedLaw, unions: Sequence[Sequence[Polytope]]) -> None:
        self.law, self._unions = law, tuple(map(tuple, unions))
        super().__init__(law._prior, law.batch_shape, law.event_shape)
        entries, device = law.batch_shape.numel(), law._prior.device
        self._drawn = torch.zeros(entries, dtype=torch.long, device=device)
        self._accepted = torch.zeros_like(self._drawn)
        self._seed = int(torch.randint(2**31, ()))
        self._draw_more(FIRST_DRAWS)

    @property
    def route(self) -> tuple[Any, ...] | None:  # type: ignore[override]
        """How the law given all other evidence is drawn under inequalities."""
        return self.law.route

    @property
    def observed(self) -> Mapping[int, Tensor]:
        r"""Columns that were observed, in ascending order -> their values, shape (\*B,)."""
        return self.law.observed

    @property
    def acceptance(self) -> Tensor:
        r"""Share of the draws given all other evidence that lie in the unions, shape (\*B,)."""
        return self._share.reshape(self.batch_shape).to(self._dtype)

    @property
    def _share(self) -> Tensor:
        """The same in float64, shape (entries,), by the draws that there have been."""
        return self._accepted.double() / self._drawn

    @cached_property
    def _log_share(self) -> tuple[Tensor, Tensor]:
        """Log of the share in the unions, and its standard error, shape (entries,)."""
        # As well as it needs to be next to the error that the other evidence has.
        wanted = self.law.log_normalizer()[1].detach().flatten() * SHARE_OF_ERROR
        wanted = wanted.clamp(min=WANTED_ERROR)
        count = (1.0 / self._share.clamp(min=1e-6) - 1.0) / wanted.square()
        most = max(FIRST_DRAWS, min(MAX_DRAWS, ALL_DRAWS // max(1, len(wanted))))
        with draws_from(*seeded(self._seed, self._drawn.device)):
            self._draw_more(max(0, min(most, int(count.amax())) - FIRST_DRAWS))
        # As if half of one more draw were in: none outside does not mean that all are in.
        spread = (self._accepted + 0.5).double() / (self._drawn + 1)
        error = ((1.0 - spread) / (spread * self._drawn)).sqrt()
        return self._share.log(), error

    @torch.no_grad()
    def _draw_more(self, count: int) -> None:
        """Counts how many of so many more draws of every entry lie in the unions."""
        size = max(1, CHUNK_NUMBERS // self.event_shape[0])
        for entries in torch.arange(len(self._drawn), device=self._drawn.device).split(size):
            left = count
            while left > 0:
                each = min(left, max(1, size // len(entries)))
                entry = entries.repeat_interleave(each)
                inside = self._inside(self.law.draw(entry), entry)
                self._accepted[entries] += inside.reshape(len(entries), each).sum(-1)
                left -= each
        self._drawn += count

    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        r"""Log Z of shape (\*B,) and its standard error, in float64."""
        log_normalizer, error = self.law.log_normalizer()
        log_share, own = (t.reshape(self.batch_shape) for t in self._log_share)
        total = raise_on_gradient(
            log_normalizer.detach() + log_share, log_normalizer, message=UNKNOWN_EVIDENCE_GRADIENT
        )
        return total, (error.square() + own.square()).sqrt()

    def draw(self, entry: Tensor) -> Tensor:
        """Draws (n, D) of the laws at entries (n,) of the flattened batch; see `sample`."""
        x = torch.empty(len(entry), *self.event_shape, dtype=self._dtype, device=entry.device)
        tries = (1.5 / self._share[entry].clamp(min=1e-3)).ceil().long()
        pending = torch.arange(len(entry), device=entry.device)
        size = max(1, CHUNK_NUMBERS // self.event_shape[0])
        while len(pending):
            ends = tries[pending].cumsum(0)
            now = pending[: max(1, int((ends <= size).sum()))]
            repeated = now.repeat_interleave(tries[now])
            drawn = self.law.draw(entry[repeated])
            inside = self._inside(drawn, entry[repeated]).nonzero().squeeze(-1)
            done = repeated[inside]
            first = torch.ones_like(done, dtype=torch.bool)
            first[1:] = done[1:] != done[:-1]
            x[done[first]] = drawn[inside[first]]
            met = torch.zeros(len(entry), dtype=torch.bool, device=entry.device)
            met[done] = True
            pending = pending[~met[pending]]
        return x

    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points meet all inequalities, and lie in the unions; shape (\*S, \*B)."""
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        points = value.expand(*leading, -1).reshape(-1, value.shape[-1])
        inside = self._inside(points, self._entries(leading)).reshape(leading)
        return inside & self.law.holds(value)

    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) of points, in float64, as if there were no inequalities."""
        return self.law.log_joint(value)

    def _inside(self, x: Tensor, entry: Tensor) -> Tensor:
        """Whether points (n, D) at entries (n,) lie in one region of every union."""
        inside = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for regions in self._unions:
            inside = inside & torch.stack([r.contains(x, entry) for r in regions]).any(0)
        return inside

    # ---- what non-linear evidence asks for ------------------------------------------------------

    def normals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and factors of the other evidence's normals; see `NonlinearLaw`."""
        return self._normal_law.normals()

    @property
    def relative_weights(self) -> Tensor | None:
        """Weights of the normals in independent estimates of them; see `NonlinearLaw`."""
        return self._normal_law.relative_weights

    def complete(self, real: Tensor, component: Tensor) -> Tensor:
        """Points with all columns; see `NonlinearLaw`."""
        return self._normal_law.complete(real, component)

    @property
    def _normal_law(self) -> HasNormals:
        if not isinstance(self.law, HasNormals):
            raise TypeError(f"Expected a law of normals, got {type(self.law).__name__}.")
        return self.law

    def _shown(self) -> dict[str, Any]:
        return {"unions": len(self._unions), "acceptance": round(float(self.acceptance.min()), 3)}
