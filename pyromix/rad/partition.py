"""Which coordinates a coupling folds, and which it keeps."""

__all__ = ["Partition"]

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..core.checks import as_items, check_index, check_positive_int


class Partition(nn.Module):
    """Splits vectors into coordinates that are kept and coordinates that are folded.

    Args:
        dim: Length of the vectors.
        folded: Indices of the coordinates to fold; by default the second half.

    Raises:
        ValueError: If there are no such indices, or one is out of range or named twice; and in
            `load_state_dict`, if the state is that of another partition.
    """

    order: Tensor
    back: Tensor

    def __init__(self, dim: int, folded: Iterable[int] | None = None) -> None:
        super().__init__()
        self.dim = check_positive_int("dim", dim)
        if folded is None:
            folded = range(self.dim // 2, self.dim)
        items = as_items(folded)
        if items is None:
            raise ValueError(f"Expected folded to be a sequence of indices, got {folded!r}.")
        indices = [check_index("every index in folded", i, dim) for i in items]
        if not 0 < len(indices) == len(set(indices)):
            raise ValueError(
                f"Expected folded to be different indices of {dim} coordinates, at least one, got "
                f"{indices}."
            )
        self.folded = tuple(sorted(indices))
        self.kept = tuple(i for i in range(dim) if i not in self.folded)
        # Blocks are sliced; other coordinates are put into the order (kept, folded) first.
        self.folds_first = self.folded == tuple(range(len(self.folded)))
        self.in_blocks = self.folds_first or self.kept == tuple(range(len(self.kept)))
        order = torch.tensor(self.kept + self.folded)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def get_extra_state(self) -> Tensor:
        """The indices of folded coordinates, for the state dict: weights depend on them."""
        return torch.tensor(self.folded)

    def set_extra_state(self, state: Tensor) -> None:
        """Checks that a state is that of this partition.

        Raises:
            ValueError: If it is not.
        """
        folded = tuple(state.tolist())
        if folded != self.folded:
            raise ValueError(
                f"Expected the state of a coupling that folds coordinates {self.folded}, got that "
                f"of one that folds {folded}. Build the model with that partition, or use "
                f"pyromix.save and pyromix.load, which keep it."
            )

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns kept and folded coordinates of vectors of shape (..., dim).

        Raises:
            ValueError: If the vectors are of another length.
        """
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(f"Expected vectors of length {self.dim}, got shape {tuple(x.shape)}.")
        if not self.in_blocks:
            x = x.index_select(-1, self.order)
        elif self.folds_first:
            folded, kept = x.split([len(self.folded), len(self.kept)], -1)
            return kept, folded
        kept, folded = x.split([len(self.kept), len(self.folded)], -1)
        return kept, folded

    def join(self, kept: Tensor, folded: Tensor) -> Tensor:
        """Returns vectors of shape (..., dim), from what `split` returned."""
        if not self.in_blocks:
            return torch.cat([kept, folded], -1).index_select(-1, self.back)
        return torch.cat([folded, kept] if self.folds_first else [kept, folded], -1)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"dim={self.dim}, folded={self.folded}"
