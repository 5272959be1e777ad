"""Factors of overlapping patches, given an image that is their average and noise."""

__all__ = ["PatchGroups"]


import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..numerics.diagonal_density import LOG_2PI
from .wiring import WindowStack


class PatchGroups:
    """Coordinate ascent in the factors of patches, for those that do not overlap at once.

    A factor is the approximate posterior probabilities of a patch's codes. A pixel's mean is the
    average over the n patches that hold it. Given the factors of the others, the rest of the image
    that they leave is compared with each centroid of a patch, divided by n.

    Args:
        patches: The windows, of one size, through which patches are seen.
        loc: Centroids of patches, shape (K, D).
        scale: Standard deviation of all pixels, shape ().
        images: Shape (N, H, W, C).
        evidence: 1 for pixels that are known, 0 for others, shape (N, H, W, C); by default all
            are known.
    """

    # Shapes: images N, top components T, rows and columns of a group of patches H' and W',
    # numbers in a patch D, components K.

    def __init__(
        self,
        patches: WindowStack,
        loc: Tensor,
        scale: Tensor,
        images: Tensor,
        evidence: Tensor | None = None,
    ) -> None:
        (self.window,) = patches.windows
        self.rows, self.columns = patches.size
        self.images = images.unsqueeze(1)
        self.evidence = None if evidence is None else evidence.unsqueeze(1)
        self.loc, self.scale = loc, scale
        (h, w), (down, right) = self.window.size, self.window.step
        apart = -(-h // down), -(-w // right)  # patches so far apart do not overlap
        self.period = apart[0] * down, apart[1] * right
        self.groups = [
            (slice(a, None, apart[0]), slice(b, None, apart[1]))
            for a in range(min(apart[0], self.rows))
            for b in range(min(apart[1], self.columns))
        ]
        place = torch.arange(self.rows * self.columns).reshape(patches.size)
        order = torch.cat([place[group].flatten() for group in self.groups])
        self.restore = order.argsort().to(images.device)
        share = patches.coverage.reciprocal().to(images)
        self.share = [self._take(share, group) for group in self.groups]  # (1, H', W', D)
        seen = [
            share if self.evidence is None else share * self._take(self.evidence, group)
            for share, group in zip(self.share, self.groups, strict=True)
        ]
        self.seen = seen  # (N or 1, 1, H', W', D), or without the first dimension
        # Half the squared norm of each centroid's contribution, (N or 1, 1, H', W', K).
        square = 0.5 * self.loc.square().mT
        self.norms = [
            (seen * share) @ square for seen, share in zip(self.seen, self.share, strict=True)
        ]

    def start(self, control: Tensor) -> Tensor:
        """Returns factors of patches as if each were the only one.

        Args:
            control: Log-probabilities of their codes before the image is seen, shape
                (N, T, P, K).

        Returns:
            Tensor of shape (N, T, P, K).
        """
        control = control.unflatten(2, (self.rows, self.columns))
        square = 0.5 * self.loc.square().mT
        factors = []
        for group, seen in zip(self.groups, self.seen, strict=True):
            patches = self._take(self.images, group) * seen
            fit = (patches @ self.loc.mT - seen @ square) / self.scale.square()
            factors.append((control[:, :, *group] + fit).softmax(-1))
        self.parts = factors
        self.own = [factor @ self.loc for factor in factors]
        total = sum(
            self._place(own * share, group)
            for own, share, group in zip(self.own, self.share, self.groups, strict=True)
        )
        assert isinstance(total, Tensor)
        self.mean = total
        return self._factor()

    def sweep(self, control: Tensor) -> Tensor:
        """Returns factors after each group was updated once, given the others.

        Args:
            control: Log-probabilities of codes before the image is seen, shape (N, T, P, K).

        Returns:
            Tensor of shape (N, T, P, K).
        """
        control = control.unflatten(2, (self.rows, self.columns))
        for i, group in enumerate(self.groups):
            share = self.share[i]
            rest = self._take(self.images - self.mean, group) + self.own[i] * share
            fit = (rest * self.seen[i]) @ self.loc.mT - self.norms[i]
            self.parts[i] = (control[:, :, *group] + fit / self.scale.square()).softmax(-1)
            own = self.parts[i] @ self.loc
            self.mean = self.mean + self._place((own - self.own[i]) * share, group)
            self.own[i] = own
        return self._factor()

    def expected_log_prob(self) -> Tensor:
        """Returns the expected log-density of the image given the last factors, shape (N, T)."""
        error = (self.images - self.mean).square()
        if self.evidence is None:
            count = error.new_ones(error.shape[2:]).sum()
        else:
            error = error * self.evidence
            count = self.evidence.sum((-1, -2, -3))
        total = error.sum((-1, -2, -3))
        for part, own, norms, seen, share in zip(
            self.parts, self.own, self.norms, self.seen, self.share, strict=True
        ):
            total = total + 2 * (part * norms).sum((-1, -2, -3))
            total = total - (own.square() * (seen * share)).sum((-1, -2, -3))
        variance = self.scale.square()
        return -0.5 * (total / variance + count * (variance.log() + LOG_2PI))

    def _factor(self) -> Tensor:
        """The factors of all patches in the order of their positions, shape (N, T, P, K)."""
        return torch.cat([part.flatten(2, 3) for part in self.parts], 2)[:, :, self.restore]

    def _take(self, images: Tensor, group: tuple[slice, slice]) -> Tensor:
        """Patches of a group, which do not overlap: (*B, H, W, C) becomes (*B, H', W', D)."""
        (h, w), (rows, columns) = self.window.size, self._extent(group)
        top, left = self._corner(group)
        down, right = self.period
        bottom = rows * down - images.shape[-3] + top
        beside = columns * right - images.shape[-2] + left
        cut = nnf.pad(images, (0, 0, -left, beside, -top, bottom))
        cells = cut.unflatten(-2, (columns, right)).unflatten(-4, (rows, down))
        return cells[..., :h, :, :w, :].transpose(-4, -3).flatten(-3)

    def _place(self, patches: Tensor, group: tuple[slice, slice]) -> Tensor:
        """Images (*B, H, W, C) that hold the patches of a group, and are zero elsewhere."""
        (h, w), (rows, columns) = self.window.size, self._extent(group)
        top, left = self._corner(group)
        down, right = self.period
        height, width, channels = self.images.shape[-3:]
        cells = patches.unflatten(-1, (h, w, channels)).transpose(-4, -3)
        cells = nnf.pad(cells, (0, 0, 0, right - w, 0, 0, 0, down - h))
        whole = cells.flatten(-3, -2).flatten(-4, -3)
        beside = width - left - columns * right
        return nnf.pad(whole, (0, 0, left, beside, top, height - top - rows * down))

    def _extent(self, group: tuple[slice, slice]) -> tuple[int, int]:
        """Rows and columns of a group."""
        rows, columns = (
            len(range(side)[part])
            for side, part in zip((self.rows, self.columns), group, strict=True)
        )
        return rows, columns

    def _corner(self, group: tuple[slice, slice]) -> tuple[int, int]:
        """Row and column of the first pixel of a group."""
        down, right = self.window.step
        return group[0].start * down, group[1].start * right
