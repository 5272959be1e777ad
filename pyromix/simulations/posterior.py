"""Laws of the parameters given simulations."""

__all__ = ["NetworkPosterior", "Posterior", "WeightedPosterior"]

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.types import _size

from ..core.checks import check_value, number
from ..core.conversions import as_tensor
from ..core.draws import without_graph
from ..core.random import draws_from, takes_generator
from ..mixtures.em import fit_em
from ..mixtures.finite import FiniteMixture
from ..mixtures.learnable import GaussianMixture
from ..numerics.resampling import effective, systematic, tempered
from .checks import within

# Draws that moments, quantiles and intervals are of.
SUMMARY_DRAWS = 10_000
# Most points that are weighted for a call of `sample`, for every draw that is asked for.
LARGEST_POOL = 30
# Rounds in which the proposal is fitted to weighted draws; its largest number of components; how
# many effective draws each of them needs; by how much scales are widened; and the share of draws
# that still come from the first proposal.
ROUNDS, COMPONENTS, PER_COMPONENT, WIDER, DEFENSIVE = 8, 24, 60, 1.15, 0.2
# Draws that the proposal is fitted to, and the share of effective ones that needs no better one.
FITTED, GOOD = 4000, 0.5
# Before a proposal is fitted to weighted draws, log-weights are cut off so far below the largest,
# and flattened until so many draws are effective.
FARTHEST, LEAST_EFFECTIVE = 1e4, 400

# Points whose likelihood is worked out at once.
CHUNK = 2000

LogDensity = Callable[[Tensor], Tensor]


class Posterior(TorchDistribution):
    """A law of parameters given simulations: densities, draws, and what follows from draws.

    Moments, quantiles and intervals are those of 10,000 draws, the same at every call.

    Args:
        prior: The law of the parameters, whose support it has.
        batch_shape: Shape B of the simulations that it is given.

    Example:
        >>> from pyromix.simulations import learn_joint
        >>> import pyro
        >>> prior = pyro.distributions.Uniform(torch.zeros(1), torch.ones(1)).to_event(1)
        >>> noisy = lambda theta: theta + 0.1 * torch.randn_like(theta)
        >>> model = learn_joint(prior, noisy, 1000, steps=10, seed=0, progress_bar=False)
        >>> low, high = model.posterior([0.9]).interval(0.5)
        >>> bool(low < 0.9 < high < 1)
        True
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = False
    _dtype: torch.dtype
    """Values of other dtypes are converted to this one."""

    def __init__(self, prior: Distribution, batch_shape: Size = Size()) -> None:
        self._prior = prior
        self._kept: Tensor | None = None
        super().__init__(batch_shape, prior.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """That of the prior."""
        support: Any = self._prior.support
        return support

    @abstractmethod
    def _draw(self, count: int) -> Tensor:
        """Draws, shape (count, *B, D)."""

    @abstractmethod
    def _log_prob(self, value: Tensor) -> Tensor:
        """Log-densities of values within the support, (*S, *B, D)."""

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of parameters (\*S, \*B, D), shape (\*S, \*B); minus infinity outside."""
        value = check_value(self, value).to(self._dtype)
        inside = within(self._prior, value)
        if bool(inside.all()):
            return self._log_prob(value)
        with torch.no_grad():
            safe = self._draw(1)[0]
        scores = self._log_prob(torch.where(inside.unsqueeze(-1), value, safe))
        return torch.where(inside, scores, -math.inf)

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws, shape (\*S, \*B, D), within the support of the prior.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        shape = Size(sample_shape)
        draws = self._draw(shape.numel())
        return draws.reshape(*shape, *self.batch_shape, *self.event_shape)

    def __repr__(self) -> str:
        """Its shapes, and how well it is known."""
        batch = f"batch_shape={tuple(self.batch_shape)}, " if self.batch_shape else ""
        count = self.event_shape[0]
        return f"{type(self).__name__}({batch}num_parameters={count}{self._facts()})"

    def _facts(self) -> str:
        """What else its text tells."""
        return ""

    @property
    def _summary(self) -> Tensor:
        if self._kept is None:
            with torch.no_grad(), draws_from(torch.Generator().manual_seed(0)):
                self._kept = self._draw(SUMMARY_DRAWS)
        return self._kept

    @property
    def mean(self) -> Tensor:
        r"""Mean, shape (\*B, D)."""
        return self._summary.mean(0)

    @property
    def variance(self) -> Tensor:
        r"""Variance of every parameter, shape (\*B, D)."""
        return self._summary.var(0)

    def quantile(self, probs: float | Sequence[float]) -> Tensor:
        r"""Quantiles of every parameter.

        Args:
            probs: Probabilities from 0 to 1, of shape P: a number or a sequence.

        Returns:
            Tensor of shape (\*P, \*B, D).
        """
        asked = as_tensor("probs", probs, like=self._summary)
        if not bool(((asked >= 0) & (asked <= 1)).all()):
            raise ValueError(f"Expected probs from 0 to 1, got {probs}.")
        return self._summary.quantile(asked, 0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        r"""Ends of the central interval of every parameter, two tensors of shape (\*B, D).

        Args:
            level: Its probability.
        """
        level = number(0, 1)("level", level)
        low, high = self.quantile([0.5 - level / 2, 0.5 + level / 2])
        return low, high


class NetworkPosterior(Posterior):
    r"""A mixture of normals in coordinates of the parameters, as a network gives it.

    Args:
        prior: The law of the parameters.
        mixture: The mixture, of batch shape B.
        to_parameters: From its values to parameters.
    """

    def __init__(
        self, prior: Distribution, mixture: FiniteMixture, to_parameters: Transform
    ) -> None:
        self._mixture, self._map = mixture, to_parameters
        self._dtype = mixture.logits.dtype
        super().__init__(prior, mixture.batch_shape)

    def _draw(self, count: int) -> Tensor:
        return self._map(self._mixture.sample(Size((count,))))

    def _log_prob(self, value: Tensor) -> Tensor:
        z = self._map.inv(value)
        return self._mixture.log_prob(z) - self._map.log_abs_det_jacobian(z, value)


class WeightedPosterior(Posterior):
    r"""The prior times a likelihood, normalised and drawn from by importance sampling.

    .. math:: p(\theta \mid x) = \frac{p(\theta) \, q(x \mid \theta)}{Z}, \qquad
              Z \approx \frac{1}{n} \sum_i \frac{p(\theta_i) \, q(x \mid \theta_i)}{r(\theta_i)}

    A few rounds fit a mixture of normals to weighted draws, which then proposes r. A call of
    `sample` weights fresh proposals, and keeps draws by their weights: these are from the
    posterior up to an error that falls with the effective number of proposals. Where that is
    small, draws repeat.

    Args:
        prior: The law of the parameters.
        log_likelihood: Of coordinates z (N, D) of parameters.
        log_prior: Log-density of coordinates under the prior.
        proposal: A first law to draw coordinates from.
        to_parameters: From coordinates to parameters.
        num_draws: Number n of proposals of a round.

    Attributes:
        effective: The share of proposals that is effective.
    """

    def __init__(
        self,
        prior: Distribution,
        log_likelihood: LogDensity,
        log_prior: LogDensity,
        proposal: "Proposal",
        to_parameters: Transform,
        num_draws: int,
    ) -> None:
        super().__init__(prior)
        self._log_likelihood, self._log_prior = log_likelihood, log_prior
        self._map = to_parameters
        with torch.no_grad():
            self._proposal = proposal
            weight = self._weighted(num_draws // 2)
            for _ in range(ROUNDS):
                share = effective(weight[1]) / len(weight[1])
                if share > GOOD:
                    break
                self._proposal = proposal.refined(*weight)
                weight = self._weighted(num_draws // 2)
            weight = self._weighted(num_draws)
        log_weight = weight[1]
        self.effective = effective(log_weight) / num_draws
        self._log_evidence = log_weight.logsumexp(0) - math.log(num_draws)
        self._dtype = log_weight.dtype
        spread = (log_weight - log_weight.amax()).exp()
        self._error = float(spread.std() / spread.mean()) / math.sqrt(num_draws)

    def _facts(self) -> str:
        return (
            f", effective={float(self.effective):.3f}, "
            f"log_evidence={float(self._log_evidence):.3f}"
        )

    def log_evidence(self) -> tuple[Tensor, Tensor]:
        """Logarithm of the density of the simulations under the model, and its standard error."""
        return self._log_evidence, torch.tensor(self._error).to(self._log_evidence)

    def _log_joint(self, z: Tensor) -> Tensor:
        parts = [self._log_prior(part) + self._log_likelihood(part) for part in z.split(CHUNK)]
        scores = torch.cat(parts)
        return torch.where(scores.isnan(), -math.inf, scores)

    def _weighted(self, count: int) -> tuple[Tensor, Tensor]:
        """Proposals (n, D), coordinates, and their log-weights."""
        z = self._proposal.sample(count)
        return z, self._log_joint(z) - self._proposal.log_prob(z)

    def _draw(self, count: int) -> Tensor:
        pool = int(count * min(LARGEST_POOL, max(2.0, 2.0 / max(self.effective, 1e-3))))
        z, log_weight = self._weighted(max(pool, 1000))
        order = systematic(log_weight)
        order = order[torch.randperm(len(order), device=order.device)[:count]]
        return self._map(z[order])

    def _log_prob(self, value: Tensor) -> Tensor:
        z = self._map.inv(value)
        flat = z.reshape(-1, z.shape[-1])
        scores = self._log_joint(flat).reshape(z.shape[:-1])
        return scores - self._log_evidence - self._map.log_abs_det_jacobian(z, value)


class Proposal:
    """A mixture of laws that proposes coordinates of parameters.

    Args:
        parts: Laws and their shares.
    """

    def __init__(self, parts: Sequence[tuple[float, Distribution]]) -> None:
        total = sum(share for share, _ in parts)
        self.parts = [(share / total, law) for share, law in parts]

    def sample(self, count: int) -> Tensor:
        """Coordinates (count, D), as many of each law as its share says."""
        sizes = [int(share * count) for share, _ in self.parts]
        sizes[0] += count - sum(sizes)
        return torch.cat(
            [law.sample(Size((n,))) for n, (_, law) in zip(sizes, self.parts, strict=True)]
        )

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of coordinates (N, D)."""
        scores = [math.log(share) + law.log_prob(z) for share, law in self.parts]
        return torch.stack(scores).logsumexp(0)

    def refined(self, z: Tensor, log_weight: Tensor) -> "Proposal":
        """This proposal with a small share, and a mixture fitted to weighted coordinates.

        Args:
            z: Coordinates (n, D).
            log_weight: Logarithms of their weights.
        """
        log_weight = log_weight.clamp(min=float(log_weight.amax()) - FARTHEST)
        least = min(LEAST_EFFECTIVE, len(log_weight) / 4)
        log_weight = tempered(log_weight, least) * log_weight
        count = effective(log_weight)
        dim = z.shape[-1]
        num_components = max(1, min(COMPONENTS, int(count / (PER_COMPONENT * math.sqrt(dim)))))
        order = systematic(log_weight)
        chosen = z[order[torch.randperm(len(order))[:FITTED]]]
        scale = chosen.std(0).clamp(min=1e-6)
        mixture = GaussianMixture(
            dim, num_components, "full", variance_floor=1e-4, standardize=False
        ).to(z)
        fit_em(
            mixture,
            (chosen - chosen.mean(0)) / scale,
            steps=40,
            seed=int(torch.randint(2**31, ())),
            progress_bar=False,
        )
        law = mixture.law
        wide = law.with_covariances(
            law.logits.detach(),
            (chosen.mean(0) + scale * law.loc).detach(),
            (WIDER * scale.unsqueeze(-1) * law.scale_tril).detach(),
        )
        first = [(DEFENSIVE * share, part) for share, part in self.parts]
        return Proposal([(1 - DEFENSIVE, wide), *first])
