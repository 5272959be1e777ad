r"""Backward sampling of hierarchies: the paper's own method, for comparison with the exact law.

Hämäläinen et al., Deep Residual Mixture Models, sections 3.9, C.3 and C.7. Forward passes encode
what is known: level by level, every cell draws the codes of its layers one after the other, by
how well each component fits what the cell sees. The averages of many passes are categorical laws
A of the codes of each layer. Then a backward pass for each draw goes from the last layer of the
top to the first layer of the windows,

.. math:: h_l \sim \operatorname{softmax}\big(b_l + \alpha_f \log A_l
          + (1 - \alpha_f) \, h^{bwd}_l\big).

The paper packs codes as log-probabilities, and undoes a layer by adding to every stream its
log-probabilities given the layer's component. Here these are the tables of the law, of which the
forward law reads rows, and the backward pass columns:

.. math:: h^{bwd}_l[j] = s_l[j] + \sum_{m > l} T_{ml}[j, h_m], \qquad
          s_l = \log A_l \text{ at the top}, \quad w_l + \tau_l \text{ below it},

with :math:`\tau` what the codes of the cell above add. The columns need not be normalised: a
constant drops out of the softmax. What depends on j alone is up to b, such as how often the
streams together count the probability of a code itself.

Taken from the paper: averages are smoothed by 1e-8, unlikely components are left out, alpha_f is
zero where nothing is known, and windows that overlap are averaged. As in its published code, a
cell below which nothing is known says nothing on the way up.

What differs: averages are of the probabilities that codes are drawn by instead of the codes, which
have the same mean and less noise. Codes have one cell above them, so that only arrays are averaged
where windows overlap. Known entries keep their values, the windows' normals are those given them,
and noise is drawn. The bias correction b is not trained with the model but fitted to draws of it,
by Sinkhorn's iterations: the cross-entropy is least where the averages of both passes are equal.

Without truncation, and with nothing known, draws are of the law itself if windows do not overlap
and levels have one layer each; with b, the top may have two.
"""

__all__ = ["BackwardSettings", "fit_bias_corrections", "known_array", "sample_backward"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Size, Tensor
from torch.nn.functional import one_hot

from ..core.checks import as_float_or_nan, as_items, check_positive_int
from ..drmm.law import BLOCK_SCORES, ResidualMixture
from ..drmm.prefix import Prefix
from ..drmm.rows import Rows
from ..evidence.collect import collect
from ..evidence.pieces import Observed
from .arrays import flat_evidence
from .beams import Beams
from .code_prior import CodePrior, draw_index
from .fits import CellFits, Scores
from .law import HierarchicalLaw
from .window_law import WindowLaw

# Of averages, so that they have logarithms.
SMOOTHING = 1e-8
# Iterations of a bias correction at most, and the difference of averages that ends them.
ITERATIONS, TOLERANCE = 500, 1e-5

Correct = Callable[[int, int, Tensor], Tensor]
"""Corrects the scores (N, C, K) of a layer, given numbers of the level and of the layer."""


@dataclass(frozen=True)
class BackwardSettings:
    """How draws are made; see `HierarchicalDRMM.sample_backward`.

    Raises:
        ValueError: For an argument that is out of range.
    """

    passes: int = 256
    alpha_f: float = 1 / 3
    truncation: float = 0.02
    forward_truncation: float = 0.05

    def __post_init__(self) -> None:
        check_positive_int("passes", self.passes)
        for name in ("alpha_f", "truncation", "forward_truncation"):
            value = getattr(self, name)
            if not 0 <= as_float_or_nan(value) <= 1:
                raise ValueError(f"Expected {name} to be a number from 0 to 1, got {value!r}.")


class Encoding(NamedTuple):
    """What forward passes say of the cells of a level."""

    log_prob: Tensor
    """Logarithms of the averages A, (C, L, K)."""
    known: Tensor
    """Whether something is known below the cells, (C,)."""


@dataclass(frozen=True)
class WindowFits(CellFits):
    """Of windows of which some entries are known, with one hypothesis each."""

    mixture: ResidualMixture
    rows: Rows
    prefix: Prefix

    def scores(self) -> Scores:
        """Scores of all hypotheses with every component of the next layer."""
        return Scores(self.mixture.fit_of(self.prefix, self.rows))

    def extend(self, parent: Tensor, chosen: Tensor) -> Self:  # noqa: ARG002
        """Hypotheses (n, 1) that go on with codes of the next layer."""
        return replace(self, prefix=self.prefix.extend(chosen))


def known_array(evidence: Sequence[Any], event_shape: Size, like: Tensor) -> Tensor:
    """What is known of an array, (1, P, channels), NaN elsewhere.

    Args:
        evidence: Pieces: `Observed`, mappings, or arrays with NaN.
        event_shape: The shape of an array.
        like: A tensor of the dtype and on the device of the result.

    Raises:
        ValueError: If a piece does not fit, or is other evidence.
    """
    pieces = [flat_evidence(piece, event_shape) for piece in evidence]
    for piece in pieces:
        if not isinstance(piece, Observed):
            raise ValueError(
                f"Expected known entries, by index or as an array with NaN where nothing is "
                f"known, got {type(piece).__name__}. For other evidence use condition."
            )
    known = collect(pieces, event_shape.numel(), like.device)
    if known.batch_shape:
        raise ValueError(
            "Expected evidence for one array, got a batch. Draw for each of several by itself."
        )
    value = like.new_full((event_shape.numel(),), math.nan)
    for index, number in known.observed.items():
        value[index] = number.to(value)
    return value.reshape(1, -1, event_shape[0])


@torch.no_grad()
def sample_backward(
    law: HierarchicalLaw,
    value: Tensor,
    count: int,
    how: BackwardSettings,
    corrections: Sequence[Tensor] | None = None,
) -> Tensor:
    """Draws arrays (N, P, channels).

    Args:
        law: The hierarchy.
        value: What is known, (1, P, channels), NaN elsewhere.
        count: Number N of draws.
        how: How they are made.
        corrections: Of each level b, (L, K), the lowest first; zero by default.

    Raises:
        ValueError: If the corrections do not fit.
    """
    correct = _plain if corrections is None else _add(_check_corrections(corrections, law))
    rows = _rows(law.windows, value)
    encodings = _forward(law, rows, how)
    codes = _backward(law, encodings, count, how, correct)[0]
    drawn = law.windows.mixture.draw_given(codes.flatten(0, 1), _repeat(rows, count))
    tiling = law.windows.tiling
    windows = drawn.reshape(*codes.shape[:2], tiling.num_positions, law.windows.channels)
    return torch.where(value.isnan(), tiling.mean_shown(windows), value)


@torch.no_grad()
def fit_bias_corrections(law: HierarchicalLaw, count: int) -> list[Tensor]:
    r"""Bias corrections b of all levels, (L, K) each, the lowest first.

    .. math:: L(b_l) = -A(\operatorname{onehot}(h_l))^\top
              \log A(\operatorname{softmax}(b_l + h^{bwd}_l))

    is least where both averages are equal. These are over draws and over the cells of a level.

    Args:
        law: The hierarchy.
        count: Number of draws of the law that stand for data.
    """
    encodings = []
    for codes, prior in zip(law.sample_codes(count), law.priors, strict=True):
        average = one_hot(codes, prior.num_components).to(prior.log_weight).mean(0)
        unknown = torch.zeros(len(average), dtype=torch.bool, device=codes.device)
        encodings.append(Encoding(_log_smooth(average), unknown))
    found = [torch.zeros_like(prior.log_weight) for prior in law.priors]

    def correct(place: int, layer: int, scores: Tensor) -> Tensor:
        wanted = encodings[place].log_prob[:, layer].exp().mean(0)
        found[place][layer] = _balance(scores.flatten(0, 1), wanted)
        return scores + found[place][layer]

    _backward(law, encodings, count, BackwardSettings(truncation=0.0), correct)
    return found


# ---- the forward pass ---------------------------------------------------------------------------


def _rows(windows: WindowLaw, value: Tensor) -> Rows:
    """What windows see of an array (1, P, channels) with gaps: C rows."""
    known = windows.windows((~value.isnan()).to(value))
    return Rows(windows.windows(value.nan_to_num()), known, ())


def _repeat(rows: Rows, count: int) -> Rows:
    """The rows, so many times one after the other."""
    assert rows.observed is not None
    return Rows(rows.real.repeat(count, 1), rows.observed.repeat(count, 1), ())


def _forward(law: HierarchicalLaw, rows: Rows, how: BackwardSettings) -> list[Encoding]:
    """Averages of forward passes over all cells, level by level from the lowest."""
    assert rows.observed is not None
    known = [rows.observed.any(-1)]  # below the cells of each level
    for level in law.levels:
        known.append(level.tiling.sum_drawn(known[-1].unsqueeze(0).float())[0] > 0)
    mixture = law.windows.mixture
    cost = len(rows.real) * mixture.num_components * mixture.cost(rows)
    size = max(1, BLOCK_SCORES // cost)
    total = [prior.log_weight.new_zeros(()) for prior in law.priors]
    for first in range(0, how.passes, size):
        passes = min(size, how.passes - first)
        sums = _pass_forward(law, rows, known, passes, how.forward_truncation)
        total = [before + own for before, own in zip(total, sums, strict=True)]
    return [
        Encoding(_log_smooth(probs / how.passes), own)
        for probs, own in zip(total, known, strict=True)
    ]


def _pass_forward(
    law: HierarchicalLaw, rows: Rows, known: Sequence[Tensor], passes: int, truncation: float
) -> list[Tensor]:
    """Sums over passes of the laws that codes are drawn from, (C, L, K) of each level."""
    mixture, every, found = law.windows.mixture, _repeat(rows, passes), []
    fits: CellFits = WindowFits(mixture, every, mixture.prefix(every))
    for place, (prior, here) in enumerate(zip(law.priors, known, strict=True)):
        codes, probs = _encode(prior, fits, passes * len(here), truncation)
        found.append(probs.reshape(passes, -1, *probs.shape[1:]).sum(0))
        if place < len(law.levels):
            codes = codes.reshape(passes, -1, 1, prior.num_layers)
            below = Beams(codes, probs.new_zeros(codes.shape[:-1]))
            # Cells below which nothing is known say nothing.
            fits = law.stream_fits(place + 1, below, None, here.expand(passes, -1))
    return found


def _encode(
    prior: CodePrior, fits: CellFits, count: int, truncation: float
) -> tuple[Tensor, Tensor]:
    """Draws codes (n, L) of n cells, layer by layer, with the laws they are of, (n, L, K)."""
    codes = torch.zeros(count, 1, 0, dtype=torch.long, device=prior.log_weight.device)
    probs = []
    for layer in range(prior.num_layers):
        log_prob = prior.log_conditional(layer, codes, None, fits.scores().fit)
        log_prob = _truncate(log_prob, truncation)
        chosen = draw_index(log_prob)
        probs.append(log_prob.squeeze(1).exp())
        fits = fits.extend(torch.zeros_like(chosen), chosen)
        codes = torch.cat([codes, chosen.unsqueeze(-1)], -1)
    return codes.squeeze(1), torch.stack(probs, 1)


def _log_smooth(probs: Tensor) -> Tensor:
    return ((1 - SMOOTHING) * probs + SMOOTHING / probs.shape[-1]).log()


def _truncate(log_prob: Tensor, truncation: float) -> Tensor:
    """Leaves out what is less likely than this share of the likeliest (section C.3)."""
    least = log_prob.amax(-1, keepdim=True).exp() * truncation
    return log_prob.masked_fill(log_prob.exp() < least, -math.inf).log_softmax(-1)


# ---- the backward pass --------------------------------------------------------------------------


def _backward(
    law: HierarchicalLaw,
    encodings: Sequence[Encoding],
    count: int,
    how: BackwardSettings,
    correct: Correct,
) -> list[Tensor]:
    """Draws codes from the top down, (N, C, L) of each level, the lowest first."""
    found: list[Tensor] = []
    for place in reversed(range(len(law.priors))):
        prior, (log_prob, known) = law.priors[place], encodings[place]
        stream = law.shifts_from(place, found[0]) + prior.log_weight if found else log_prob
        stream = stream.expand(count, *log_prob.shape)
        share = how.alpha_f * known.to(stream).unsqueeze(-1)
        codes = torch.zeros(count, *log_prob.shape[:2], dtype=torch.long, device=stream.device)
        for layer in reversed(range(prior.num_layers)):
            later = prior.scores_given_later(layer, codes.flatten(0, 1))
            scores = stream[:, :, layer] + later.reshape_as(stream[:, :, layer])
            scores = share * log_prob[:, layer] + (1 - share) * scores
            corrected = correct(place, layer, scores).log_softmax(-1)
            codes[..., layer] = draw_index(_truncate(corrected, how.truncation))
        found.insert(0, codes)
    return found


def _plain(place: int, layer: int, scores: Tensor) -> Tensor:  # noqa: ARG001
    """No correction."""
    return scores


def _add(corrections: Sequence[Tensor]) -> Correct:
    return lambda place, layer, scores: scores + corrections[place][layer]


def _check_corrections(corrections: Any, law: HierarchicalLaw) -> list[Tensor]:
    shapes = [tuple(prior.log_weight.shape) for prior in law.priors]
    items = as_items(corrections)
    got = None if items is None else [tuple(getattr(item, "shape", ())) for item in items]
    if items is None or got != shapes:
        raise ValueError(
            f"Expected corrections of shapes {shapes}, as bias_corrections() makes them, got "
            f"{type(corrections).__name__ if got is None else got}."
        )
    return [item.to(law.priors[0].log_weight) for item in items]


def _balance(scores: Tensor, wanted: Tensor) -> Tensor:
    """The vector b (K,) with which laws softmax(b + scores), (n, K), have a wanted average."""
    bias, log_wanted = torch.zeros_like(wanted, dtype=torch.float64), wanted.double().log()
    scores = scores.double()
    for _ in range(ITERATIONS):
        log_mean = (scores + bias).log_softmax(-1).logsumexp(0) - math.log(len(scores))
        bias = bias + log_wanted - log_mean
        if float((log_wanted.exp() - log_mean.exp()).abs().amax()) < TOLERANCE:
            break
    return (bias - bias.mean()).to(wanted)
