"""Starting values for the levels of a hierarchy."""

__all__ = ["fields", "start_codes"]

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..mixtures.clusters import find_clusters
from .code_law import CodeParameters
from .tiling import Tiling

# Cells that starting values are made from.
MAX_CELLS = 20_000
# Pseudo-counts of every row of a table, in proportion to the frequencies of all cells together.
COUNT = 5.0
# Layers after the first see what the first left. Their tables are taken to tell half as much.
LATER = 0.5


@torch.no_grad()
def start_codes(
    level: CodeParameters, shown: Tensor, codes: Tensor, layers: tuple[int, int]
) -> None:
    """Sets the parameters of a level from clusters of what its cells show of the arrays.

    Clusters are sought layer by layer, each of what the ones before leave. Tables are made of the
    codes below that occur with a cluster, compared with how often they occur at all.

    Args:
        level: What is set.
        shown: What its cells show of arrays, (N C, D).
        codes: Codes of the cells below, (N, P, L').
        layers: Layers L' and components K' of the cells below.
    """
    tiling, (depth, components) = level.tiling, layers
    own = tiling.take(codes).flatten(0, 1)  # (N C, O, L')
    known = tiling.drawn.repeat(len(codes), 1)
    index = torch.arange(len(shown), device=shown.device)
    if len(shown) > MAX_CELLS:
        index = torch.randperm(len(shown), device=shown.device)[:MAX_CELLS]
    left, own, known = shown[index], own[index], known[index]
    k, positions = level.num_components, tiling.num_positions
    # One hot at every position and layer, where there is something.
    place = torch.arange(positions * depth, device=own.device).reshape(positions, depth)
    cell = own + components * place  # (n, O, L')
    overall = left.new_zeros(components * depth)
    layer_of = components * torch.arange(depth, device=own.device)
    overall.index_add_(0, (codes + layer_of).flatten(), left.new_ones(codes.numel()))
    overall = (overall.reshape(depth, components) + 0.5).log().log_softmax(-1)
    found: list[Tensor] = []
    for layer in range(level.num_layers):
        clusters = find_clusters(left, k)
        code = torch.cdist(left, clusters.loc).argmin(-1)
        left = left - clusters.loc[code]
        level.log_weight[layer] = (torch.bincount(code, minlength=k) + 1.0).log().log_softmax(-1)
        for earlier, before in enumerate(found):
            pair = layer * (layer - 1) // 2 + earlier
            level.links[pair] = _gain(before * k + code, (k, k), 2 * COUNT)
        found.append(code)
        size = positions * depth * components
        flat = (code.reshape(-1, 1, 1) * size + cell)[known]
        counts = left.new_zeros(k * size)
        counts.index_add_(0, flat.flatten(), left.new_ones(flat.numel()))
        counts = counts.reshape(k, positions, depth, components)
        common = counts.sum(0) + overall.exp()
        common = common / common.sum(-1, keepdim=True)
        share = (counts + COUNT * common) / (counts.sum(-1, keepdim=True) + COUNT)
        if layer == 0:
            level.tables[layer] = share.log() - overall
        else:
            level.tables[layer] = LATER * (share.log() - common.log())


def _gain(index: Tensor, shape: tuple[int, int], count: float) -> Tensor:
    """Log of how much more likely a column is in a row than in all rows."""
    counts = torch.bincount(index, minlength=shape[0] * shape[1]).reshape(shape) + 0.1
    common = counts.sum(0) / counts.sum()
    share = (counts + count * common) / (counts.sum(1, keepdim=True) + count)
    return share.log() - common.log()


def fields(value: Tensor, tilings: Sequence[Tiling]) -> Tensor:
    """What cells of a level show of arrays, through all levels below.

    Args:
        value: Arrays, shape (N, P, channels).
        tilings: Windows of the levels from the lowest to the one in question.

    Returns:
        Tensor of shape (N C, positions * channels); zero past the end.
    """
    grid = tilings[0].grid
    size, step = [1] * len(grid), [1] * len(grid)
    for tiling in tilings:
        size = [(w - 1) * s + f for w, s, f in zip(tiling.window, step, size, strict=True)]
        step = [own * s for own, s in zip(tiling.stride, step, strict=True)]
    cells = tilings[-1].cells
    image = value.reshape(len(value), *grid, -1)
    pad = [0, 0]
    for have, count, far, wide in reversed(list(zip(grid, cells, step, size, strict=True))):
        pad += [0, max(0, (count - 1) * far + wide - have)]
    image = nnf.pad(image, pad)
    for dim, (far, wide, count) in enumerate(zip(step, size, cells, strict=True)):
        image = image.unfold(dim + 1, wide, far).narrow(dim + 1, 0, count)
    return image.flatten(len(grid) + 1).flatten(0, len(grid))
