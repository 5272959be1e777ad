"""How far one mixture is from another: divergences, bounds of them, and merging."""

__all__ = ["divergence", "divergence_bounds", "reduced"]

import math
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import Distribution

from ..core.checks import check_positive_int

# Log-densities of this many points are taken at once.
BLOCK_POINTS = 10_000
# Steps that tighten an upper bound.
BOUND_STEPS = 100


def divergence(p: Distribution, q: Distribution, num_samples: int) -> tuple[Tensor, Tensor]:
    r"""KL(p || q) by draws of p, and its standard error.

    Args:
        p: A law with draws and a density.
        q: A law over the same values, of p's batch shape B or none.
        num_samples: Number of draws.

    Returns:
        Two tensors of shape (\*B,), in nats, without a graph. Infinite where q has no density at
        a draw of p.

    Raises:
        ValueError: If the laws are over values of different shapes.
    """
    num_samples = check_positive_int("num_samples", num_samples)
    if not isinstance(q, Distribution) or q.event_shape != p.event_shape:
        got = getattr(q, "event_shape", None)
        raise ValueError(
            f"Expected a law of event shape {tuple(p.event_shape)}, got "
            f"{type(q).__name__ if got is None else tuple(got)}."
        )
    with torch.no_grad():
        parts = []
        for start in range(0, num_samples, BLOCK_POINTS):
            x = p.sample(Size((min(BLOCK_POINTS, num_samples - start),)))
            parts.append((p.log_prob(x) - q.log_prob(x)).double())
        ratio = torch.cat(parts)
        error = ratio.std(0) / num_samples**0.5 if num_samples > 1 else ratio[0] * math.nan
        return ratio.mean(0), error


class _Normals(NamedTuple):
    """Components in float64: independent coordinates where `tril` has as many dims as `loc`."""

    log_weight: Tensor  # (K,)
    loc: Tensor  # (K, D)
    tril: Tensor  # (K, D, D), or standard deviations (K, D)

    @property
    def independent(self) -> bool:
        return self.tril.dim() == 2

    @property
    def half_log_det(self) -> Tensor:
        diagonal = self.tril if self.independent else self.tril.diagonal(dim1=-2, dim2=-1)
        return diagonal.log().sum(-1)

    @property
    def covariance(self) -> Tensor:
        return self.tril.square() if self.independent else self.tril @ self.tril.mT


def _normals(law: Any, *, correlated: bool) -> _Normals:
    logits, loc = law.logits.double(), law.loc.double()
    if not correlated:
        return _Normals(logits, loc, law._independent_scale.double().expand_as(loc))
    covariance = law.component_covariance.double()
    return _Normals(logits, loc, torch.linalg.cholesky(covariance))


@torch.no_grad()
def divergence_bounds(p: Any, q: Any) -> tuple[Tensor, Tensor]:
    r"""Numbers that KL(p || q) lies between, of two mixtures of normals without batch.

    With :math:`f = \sum_a w_a f_a` and :math:`g = \sum_b v_b g_b`, Jensen's inequality gives

    .. math:: \log \sum_b v_b e^{E_{f_a} \log g_b} \le E_{f_a} \log g
              \le \log \sum_b v_b \int f_a g_b,

    and the same for :math:`E_{f_a} \log f`, of which both bounds of the divergence are made. A
    second upper bound divides the components of both into pairs (Hershey and Olsen,
    "Approximating the Kullback Leibler divergence between Gaussian mixture models", 2007). The
    better ones are returned.
    """
    correlated = p._independent_scale is None or q._independent_scale is None
    f, g = _normals(p, correlated=correlated), _normals(q, correlated=correlated)
    dim = f.loc.shape[-1]
    entropy = f.half_log_det + 0.5 * dim * (1 + math.log(2 * math.pi))  # of every f_a
    weight = f.log_weight.exp()
    own_kl, cross_kl = _pairwise_kl(f, f), _pairwise_kl(f, g)
    # E_{f_a} log g_b = -H(f_a) - KL(f_a || g_b)
    lowest_own = (f.log_weight - own_kl).logsumexp(-1) - entropy
    lowest_cross = (g.log_weight - cross_kl).logsumexp(-1) - entropy
    highest_own = (f.log_weight + _log_products(f, f)).logsumexp(-1)
    highest_cross = (g.log_weight + _log_products(f, g)).logsumexp(-1)
    lower = (weight * (lowest_own - highest_cross)).nan_to_num(0.0, neginf=-math.inf).sum()
    upper = (weight * (highest_own - lowest_cross)).sum()
    upper = torch.minimum(upper, _paired_bound(f.log_weight, g.log_weight, cross_kl))
    return lower.clamp(min=0.0), upper


def _paired_bound(log_weight: Tensor, other: Tensor, kl: Tensor) -> Tensor:
    r"""The sum over pairs of phi log(phi / psi) + phi KL(f_a || g_b), made small.

    phi (K, L) sums to the weights of f over the components of g, psi to those of g over f's.
    """
    phi = log_weight.unsqueeze(-1) + other
    for _ in range(BOUND_STEPS):
        psi = other + phi - phi.logsumexp(0)
        phi = log_weight.unsqueeze(-1) + (psi - kl).log_softmax(-1)
    psi = other + phi - phi.logsumexp(0)
    terms = phi.exp() * (phi - psi + kl)
    return torch.where(phi > -math.inf, terms, 0.0).sum()


def _pairwise_kl(f: _Normals, g: _Normals) -> Tensor:
    """KL(f_a || g_b), (K, L)."""
    if f.independent:
        precision = g.tril.square().reciprocal()
        trace = f.covariance @ precision.mT
        distance = ((f.loc.unsqueeze(1) - g.loc) / g.tril).square().sum(-1)
    else:
        traces, distances = [], []
        for loc, tril in zip(g.loc, g.tril, strict=True):
            solved = torch.linalg.solve_triangular(tril, f.tril, upper=False)
            traces.append(solved.square().sum((-2, -1)))
            away = torch.linalg.solve_triangular(tril, (f.loc - loc).mT, upper=False)
            distances.append(away.square().sum(0))
        trace, distance = torch.stack(traces, -1), torch.stack(distances, -1)
    log_det = g.half_log_det - f.half_log_det.unsqueeze(-1)
    return 0.5 * (trace + distance - f.loc.shape[-1]) + log_det


def _log_products(f: _Normals, g: _Normals) -> Tensor:
    """Log of the integrals of f_a g_b, (K, L): N(m_a; m_b, S_a + S_b)."""
    constant = 0.5 * f.loc.shape[-1] * math.log(2 * math.pi)
    rows = []
    for loc, covariance in zip(g.loc, g.covariance, strict=True):
        total = f.covariance + covariance
        if f.independent:
            log_det = 0.5 * total.log().sum(-1)
            distance = ((f.loc - loc).square() / total).sum(-1)
        else:
            tril = torch.linalg.cholesky(total)
            log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            away = torch.linalg.solve_triangular(tril, (f.loc - loc).unsqueeze(-1), upper=False)
            distance = away.square().sum((-2, -1))
        rows.append(-0.5 * distance - log_det - constant)
    return torch.stack(rows, -1)


@torch.no_grad()
def reduced(law: Any, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Merges components two by two, until there are so many (Runnalls 2007).

    Two components i and j become the normal of the mean and covariance that they have together,
    of which those pairs go first that cost least by a bound of the divergence:

    .. math:: B_{ij} = \tfrac12 \big((w_i + w_j) \log |P_{ij}| - w_i \log |P_i|
              - w_j \log |P_j|\big)

    Mean and covariance of the mixture stay as they are; of independent coordinates, variances.

    Args:
        law: A mixture of normals without batch.
        num_components: How many are left, at most K.

    Returns:
        Logits (n,), means (n, D), and scale factors (n, D, D) or standard deviations (n, D), in
        float64.
    """
    normals = _normals(law, correlated=law._independent_scale is None)
    alive = normals.log_weight > -math.inf
    weight = normals.log_weight.exp()[alive]
    loc, covariance = normals.loc[alive], normals.covariance[alive]
    log_det = 2 * normals.half_log_det[alive]

    def merged(i: Tensor, j: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights, means, covariances and their log-determinants of pairs of components."""
        total = weight[i] + weight[j]
        a, b = (weight[i] / total), (weight[j] / total)
        apart = loc[i] - loc[j]
        tail = (1,) * (covariance.dim() - 1)
        a_, b_ = a.reshape(-1, *tail), b.reshape(-1, *tail)
        if normals.independent:
            between = apart.square()
        else:
            between = apart.unsqueeze(-1) * apart.unsqueeze(-2)
        joined = a_ * covariance[i] + b_ * covariance[j] + a_ * b_ * between
        if normals.independent:
            size = joined.log().sum(-1)
        else:
            tril = torch.linalg.cholesky(joined)
            size = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        mean = a.unsqueeze(-1) * loc[i] + b.unsqueeze(-1) * loc[j]
        return total, mean, joined, size

    def cost(i: Tensor, j: Tensor) -> Tensor:
        total, _, _, size = merged(i, j)
        return 0.5 * (total * size - weight[i] * log_det[i] - weight[j] * log_det[j])

    count = len(weight)
    costs = weight.new_full((count, count), math.inf)
    everyone = torch.arange(count, device=weight.device)
    for i in range(count - 1):
        others = everyone[i + 1 :]
        costs[i, i + 1 :] = cost(torch.full_like(others, i), others)
    kept = torch.ones(count, dtype=torch.bool, device=weight.device)
    for _ in range(count - num_components):
        i, j = divmod(int(costs.argmin()), count)
        index = torch.tensor([i]), torch.tensor([j])
        total, mean, joined, size = merged(*index)
        weight[i], loc[i], covariance[i], log_det[i] = total[0], mean[0], joined[0], size[0]
        kept[j] = False
        costs[j], costs[:, j] = math.inf, math.inf
        others = everyone[kept & (everyone != i)]
        if len(others):
            found = cost(torch.full_like(others, i), others)
            low, high = torch.minimum(others, everyone[i]), torch.maximum(others, everyone[i])
            costs[low, high] = found
    covariance = covariance[kept]
    factor = covariance.sqrt() if normals.independent else torch.linalg.cholesky(covariance)
    return weight[kept].log(), loc[kept], factor
