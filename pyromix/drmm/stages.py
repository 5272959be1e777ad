r"""What the stages of training a deep residual mixture minimise.

``"em"``
    The paper's: hard expectation maximisation of all layers at once. Every layer is a mixture of
    its own, over what the layers before leave of a point and over their codes. A point goes to
    one component, that with the greatest

    .. math:: \log N(r_l; \mu_l[k], s_l^2) + \rho \sum_{c<l} \log p_{lc}[k, h_c],

    whose log-likelihood, with weights and :math:`\rho = 1`, is increased by a gradient step; none
    passes between layers. :math:`\rho` rises from 0 to 1 (eq. 5): first layers only quantise what
    is left, later they learn which codes go together.
``"real"``, ``"latents"``, ``"joint"``
    Soft assignments instead: the negative log-likelihood of every layer as a mixture, of what is
    left; then of the codes of the layers before, too; then with weights, and with gradients
    between layers. Codes are drawn from the responsibilities, without those below half of the
    likeliest one.
``"likelihood"``
    The negative log-density itself, of the codes that a beam search finds. It does not depend on
    the inner scales: they follow what is left of the points.
``"proposal"``
    The inner scales alone.
"""

__all__ = ["STAGES", "em_loss", "learning_rate_factor", "likelihood_loss", "mixture_loss", "rho"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics.diagonal_density import LOG_2PI, component_log_prob, log_sum_exp
from .columns import Values, pick_value
from .law import ResidualMixture
from .links import sum_rows, sum_rows_of_layers
from .prefix import ShiftPrefix
from .rows import Rows
from .shifts import ShiftMixture

STAGES = ("em", "real", "latents", "joint", "likelihood", "proposal")

# Components less likely than this share of the likeliest are not drawn in soft stages.
SOFT_TRUNCATION = 0.5

# With less weight than this, earlier codes do not enter the E-step, and cost nothing.
NEGLIGIBLE_RHO = 1e-6


def rho(progress: float) -> float:
    """Weight of the codes of earlier layers in the E-step, from 0 to 1 (eq. 5 of the paper)."""
    return 0.5 + 0.5 * math.tanh(20.0 * (progress - 0.5))


def learning_rate_factor(progress: float) -> float:
    """Constant for half of the stage, then falling to zero (eq. 6 of the paper)."""
    return min(1.0, (2.0 - 2.0 * progress) ** 2)


def em_loss(law: ShiftMixture, rows: Rows, rho: float, orphans: float) -> Tensor:
    """Mean over points of the layers' negative log-likelihoods, codes being assigned.

    Args:
        law: The law.
        rows: N points.
        rho: Weight of the codes of earlier layers in the assignment.
        orphans: Weight of the distance of every component to its nearest point, which draws
            components that no point is assigned to; of the points with the fewest missing entries.
    """
    residuals, codes, nearest, logits = _assign(law, rows, rho)
    n, count = codes.shape
    total = -law.log_weight.log_softmax(-1).gather(1, codes.mT).sum() / n
    seen = None if rows.observed is None else rows.observed.unsqueeze(1)
    loc = law.loc[torch.arange(count, device=codes.device), codes]  # (N, L, D)
    inner = law.inner_scale.expand(n, -1, -1)
    scale = torch.cat([inner, law.scale[codes[:, -1]].unsqueeze(1)], 1)
    total = total + _normal_loss(residuals, loc, scale, seen)
    if orphans:
        layer = torch.arange(count, device=codes.device).unsqueeze(-1)
        points = residuals[nearest, layer]  # (L, K, D)
        spread = torch.stack([law.scale_of(i) for i in range(count)]).detach()
        near = None if rows.observed is None else rows.observed[nearest]
        # Summed over layers, and the mean over components.
        distance = _normal_loss(points, law.loc, spread, near) * count / law.num_components
        total = total + orphans * distance
    for i in range(count if rows.columns else 0):
        total = total - _column_log_prob(law, i, logits[i], codes[:, i], rows.columns).mean()
    return total - _link_log_prob(law, codes).mean()


@torch.no_grad()
def _assign(
    law: ShiftMixture, rows: Rows, rho: float
) -> tuple[Tensor, Tensor, Tensor, list[tuple[Tensor, ...]]]:
    """The E-step.

    Returns:
        What each layer sees of the points, (N, L, D); their codes, (N, L); the point that is
        nearest to each component, (L, K); logits of categorical columns that each layer sees.
    """
    prefix = law.prefix(rows)
    residuals, nearest, all_logits = [], [], []
    zero = rows.real.new_zeros(())
    for layer in range(law.num_layers):
        residual = prefix.residual.squeeze(1)
        normal = component_log_prob(
            residual, law.loc[layer], law.scale_of(layer), zero, rows.observed
        )
        score = normal + law.columns.score(layer, prefix.logits, rows.columns).squeeze(1)
        if rho > NEGLIGIBLE_RHO:
            score = score + rho * sum_rows(law.links, law.link_rows(layer, prefix.codes[:, 0]))
        if rows.observed is not None:
            # Of a point of which little is known, all components are near.
            seen = rows.observed.sum(-1, keepdim=True)
            normal = normal.masked_fill(seen < seen.amax(), -math.inf)
        residuals.append(residual)
        nearest.append(normal.argmax(0))
        all_logits.append(prefix.logits)
        prefix = prefix.extend(score.argmax(-1, keepdim=True))
    return torch.stack(residuals, 1), prefix.codes[:, 0], torch.stack(nearest), all_logits


def mixture_loss(law: ShiftMixture, rows: Rows, stage: str) -> Tensor:
    """Mean over points of the negative log-likelihoods of the layers as mixtures.

    Args:
        law: The law.
        rows: N points.
        stage: ``"real"``, ``"latents"`` or ``"joint"``.
    """
    with torch.no_grad():
        codes = _draw_codes(law, rows, stage)
    links: Sequence[Tensor | float] = [0.0] * law.num_layers
    if stage != "real" and law.num_layers > 1:
        selected = [law.link_rows(layer, codes) for layer in range(1, law.num_layers)]
        links = [0.0, *sum_rows_of_layers(law.links, selected)]
    total = law.loc.new_zeros(())
    prefix = law.prefix(rows)
    for layer in range(law.num_layers):
        score = _layer_scores(law, prefix, rows, stage) + links[layer]
        total = total - log_sum_exp(score).mean()
        prefix = prefix.extend(codes[:, layer : layer + 1])
        prefix = prefix if stage == "joint" else prefix.detach()
    return total


def _layer_scores(law: ShiftMixture, prefix: ShiftPrefix, rows: Rows, stage: str) -> Tensor:
    """Log-density of the next layer's components, without the codes before: shape (N, K)."""
    layer = prefix.layer
    if stage == "joint":
        offset = law.log_weight[layer].log_softmax(-1)
    else:
        offset = law.loc.new_full((), -math.log(law.num_components))
    score = component_log_prob(
        prefix.residual.squeeze(1), law.loc[layer], law.scale_of(layer), offset, rows.observed
    )
    logits = prefix.logits
    if stage != "joint":
        logits = tuple(before.detach() for before in logits)
    return score + law.columns.score(layer, logits, rows.columns).squeeze(1)


def _draw_codes(law: ShiftMixture, rows: Rows, stage: str) -> Tensor:
    """Draws codes (N, L) from the responsibilities, layer by layer."""
    prefix = law.prefix(rows)
    for layer in range(law.num_layers):
        score = _layer_scores(law, prefix, rows, stage)
        if stage != "real":
            score = score + sum_rows(law.links, law.link_rows(layer, prefix.codes[:, 0]))
        lowest = score.amax(-1, keepdim=True) + math.log(SOFT_TRUNCATION)
        kept = score.masked_fill(score < lowest, -math.inf).softmax(-1)
        prefix = prefix.extend(torch.multinomial(kept, 1))
    return prefix.codes[:, 0]


def _link_log_prob(law: ShiftMixture, codes: Tensor) -> Tensor:
    """Sum of log p_lc[h_l, h_c] over all pairs of layers, shape (N,), given codes (N, L)."""
    layers = range(1, law.num_layers)
    if not layers:
        return law.loc.new_zeros(len(codes))
    rows = torch.cat([law.link_rows(layer, codes) for layer in layers], -1)
    columns = torch.cat([codes[:, layer : layer + 1].expand(-1, layer) for layer in layers], -1)
    return law.select_links(rows, columns).sum(-1)


# Points with gaps are trained on a sample of so many times as many codes as others.
TRAINING_WIDER = 4


def likelihood_loss(law: ResidualMixture, rows: Rows, beam: int) -> tuple[Tensor, Tensor]:
    """Mean negative log-density, and what the inner scales are to minimise next to it.

    Args:
        law: The law.
        rows: N points.
        beam: Number of codes that are kept from layer to layer.

    Returns:
        Two scalars. The second is the mean negative log-density of what the inner layers leave
        of a point, encoded by its likeliest code, under noise of the inner scales.
    """
    total, proposal = law.log_weight.new_zeros(()), law.log_weight.new_zeros(())
    count = len(rows.real)
    for index, joint, codes in law.joint_blocks(rows, beam, start=None, wider=TRAINING_WIDER):
        # In one sum: codes that do not occur make partial sums of nothing, whose gradient is NaN.
        total = total - log_sum_exp(joint.flatten(1)).sum()
        if not isinstance(law, ShiftMixture):  # no inner scales
            continue
        best = joint.detach().logsumexp(-1).argmax(-1)
        codes = codes[torch.arange(len(codes), device=codes.device), best]
        own = proposal_loss(law, rows.take(index), codes)
        proposal = proposal + own * (len(index) / count)
    return total / count, proposal


def proposal_loss(law: ShiftMixture, rows: Rows, codes: Tensor) -> Tensor:
    """Mean negative log-density of what the inner layers leave, under the inner scales.

    Args:
        law: The law.
        rows: N points.
        codes: Their codes, of at least the first L - 1 layers, shape (N, L).
    """
    total = law.inner_scale[:0].sum()  # zero, with a graph also where there is one layer
    prefix = law.prefix(rows)
    for layer in range(law.num_layers - 1):
        with torch.no_grad():
            prefix = prefix.extend(codes[:, layer : layer + 1])
        scale = law.inner_scale[layer]
        residual = prefix.residual.squeeze(1)
        total = total + _normal_loss(residual, torch.zeros_like(scale), scale, rows.observed)
    return total


def _normal_loss(x: Tensor, loc: Tensor, scale: Tensor, observed: Tensor | None) -> Tensor:
    """Negative log-density of points (n, *, D) under normals of their own: the mean over n."""
    term = 0.5 * ((x - loc) / scale).square() + scale.log() + 0.5 * LOG_2PI
    return (term if observed is None else term * observed).sum() / len(x)


def _column_log_prob(
    law: ShiftMixture,
    layer: int,
    logits: tuple[Tensor, ...],
    chosen: Tensor,
    values: Values,
) -> Tensor:
    """Log-probability (N,) of categorical columns, given codes of a layer and those before."""
    total = law.loc.new_zeros(len(chosen))
    for before, table, value in zip(logits, law.columns.tables, values, strict=True):
        own = sum_rows(table[layer].flatten(1), chosen.unsqueeze(-1))
        log_probs = (before + own.reshape(-1, 1, *table.shape[2:])).log_softmax(-1)
        total = total + pick_value(log_probs, value).squeeze(1)
    return total
