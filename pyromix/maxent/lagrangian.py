r"""The augmented Lagrangian of an entropy under constraints on expectations.

.. math:: L = -H + \lambda^\top R + \tfrac{c}{2} R^\top M R, \qquad R = E[T(x)] - t

M is the inverse covariance of the statistics under the present law, so that the penalty counts in
standard deviations, and does not depend on how statistics are scaled or combined linearly. In
this metric the multipliers also converge evenly: near the optimum, the expectations change by
minus the covariance times the change of the multipliers, and the update :math:`\lambda + c M R`
shrinks every violation by the same factor 1 / (1 + c).

Here t are the *levels*: the targets of equalities and the bounds of inequalities. Far from them,
violations of many standard deviations would concentrate the law where it recovers slowly, if at
all. So a round asks for *interim levels*, which move from the expectations of the first law to the
levels by about half a standard deviation in a round. Expectations form a convex set: if the levels
can be met, so can all interim ones.
"""

__all__ = ["AugmentedLagrangian", "squared_violation"]

import torch
from torch import Tensor

from .draws import Draws
from .expectations import Expectations
from .metric import Spread

# Weight of a step in the running means of violations.
SMOOTHING = 0.02
# How far interim levels move in a round: in standard deviations, and at most by what share.
STRIDE = 0.5
SHARE = 0.7
# How far multipliers may be from those that the law itself has, in standard deviations.
LEAD = 2.0
# Distance, in standard deviations, at which a round asks for the levels themselves.
NEAR = 0.1


def squared_violation(first: Tensor, second: Tensor, metric: Tensor) -> Tensor:
    """Unbiased estimate of R' M R, and of its gradient, from two independent estimates of R.

    One estimate in both places would add its variance, and the gradient would shrink the variance
    of the statistics.
    """
    return first @ metric @ second


class AugmentedLagrangian:
    """Multipliers, penalty and the metric of violations.

    Args:
        expectations: The constraints.
        penalty: c at the start.
        growth: Factor by which c grows.
        max_penalty: What c may grow to.
        reduction: Share of the violation before that a round must reach; otherwise c grows.
    """

    def __init__(
        self,
        expectations: Expectations,
        *,
        penalty: float,
        growth: float,
        max_penalty: float,
        reduction: float,
    ) -> None:
        self.expectations, self.levels = expectations, expectations.levels
        self.interim = self.levels  # those of the present round
        self.penalty, self.growth, self.max_penalty = penalty, growth, max_penalty
        self.reduction = reduction
        self.multipliers = torch.zeros_like(self.levels)
        self.own_multipliers = torch.zeros_like(self.levels)  # for which the law is the optimum
        self.metric = self.covariance = torch.eye(len(self.levels)).to(self.levels)
        self.spread = Spread(torch.ones_like(self.levels).double(), self.metric.double())
        self.running = torch.zeros_like(self.levels)  # mean violation of recent steps
        self._before: Tensor | None = None  # violations of batches at the end of the last round

    @property
    def is_inequality(self) -> Tensor:
        """Which constraints are inequalities, shape (m,)."""
        return self.expectations.is_inequality

    def measure(self, values: Tensor, log_prob: Tensor) -> None:
        r"""Sets the metric of violations, and the law's own multipliers, from draws of the law.

        A law whose entropy is maximal for its expectations has :math:`\log q = -\lambda^\top T`
        up to a constant: the regression of log-densities on statistics says with which ones.

        Args:
            values: Statistics, shape (n, m).
            log_prob: Log-densities, shape (n,).
        """
        spread = Spread.of(values)
        centred = (values.double() - values.double().mean(0)) / spread.scale
        slope = centred.mT @ (log_prob.double() - log_prob.double().mean()) / len(values)
        slope = torch.linalg.solve(spread.correlation, slope) / spread.scale
        self.own_multipliers = (-slope).to(self.levels)
        self.covariance = spread.covariance.to(self.levels)
        self.spread = spread.apart(self.is_inequality)
        self.metric = self.spread.metric().to(self.levels)

    def loss(self, first: tuple[Draws, Tensor], second: tuple[Draws, Tensor]) -> Tensor:
        """An unbiased estimate of the Lagrangian, a scalar with gradients.

        Args:
            first: Draws, and their statistics, shape (n, m).
            second: An independent set.
        """
        means, entropies = [], []
        for draws, values in (first, second):
            # Weights need not sum to one: levels within the sum are a control variate.
            means.append(draws.mean(values - self.interim))
            level = draws.log_prob.detach().mean()
            entropies.append(-draws.mean(draws.log_prob - level) - level)
        violation = (means[0] + means[1]) / 2
        self.running += SMOOTHING * (violation.detach() - self.running)
        slack = self._slack(self.running)
        penalty = squared_violation(means[0] + slack, means[1] + slack, self.metric)
        entropy = (entropies[0] + entropies[1]) / 2
        self.entropy = float(entropy.detach())
        return -entropy + self.multipliers @ violation + 0.5 * self.penalty * penalty

    @property
    def has_arrived(self) -> bool:
        """Whether the present round asks for the levels themselves."""
        return self.interim is self.levels

    def update(self, means: Tensor) -> None:
        """Updates the multipliers at the end of a round, from means (m,) of the statistics."""
        violation = means - self.interim
        shifted = violation + self._slack(violation)
        size = float(self._norm(shifted))
        shifted = shifted * min(1.0, STRIDE / max(size, 1e-12))
        moved = self.multipliers + self.penalty * self.metric @ shifted
        # Otherwise changes that the law has not followed yet would add up over rounds.
        lead = moved - self.own_multipliers
        size = float((lead @ self.covariance @ lead).clamp(min=0).sqrt())
        moved = self.own_multipliers + min(1.0, LEAD / max(size, 1e-12)) * lead
        self.multipliers = torch.where(self.is_inequality, moved.clamp(min=0), moved)

    def aim(self, means: Tensor) -> None:
        """Sets the interim levels of the next round, from means (m,) of the statistics."""
        violation = means - self.levels
        violation = torch.where(self.is_inequality, violation.clamp(min=0), violation)
        size = float(self._norm(violation))
        if size <= NEAR:
            self.interim = self.levels
        else:
            self.interim = self.levels + (1 - min(STRIDE / size, SHARE)) * violation
        self.running = means - self.interim

    def grow(self, violations: Tensor, generator: torch.Generator) -> float:
        """Raises the penalty, with the probability that violations have not been reduced enough.

        Squared violations, estimated without bias from pairs of batches, are compared with those
        of the round before by Welch's test, both in the present metric.

        Args:
            violations: Of batch means at the end of the round, shape (B, m).
            generator: Source of randomness.

        Returns:
            The p-value of the hypothesis that they have been reduced enough.
        """
        from scipy.stats import ttest_ind  # as above

        before, self._before = self._before, violations.clone()
        if before is None:
            return 1.0
        new, old = (self._squares(v) for v in (violations, before))
        test = ttest_ind(
            new.cpu().numpy(), self.reduction**2 * old.cpu().numpy(),
            equal_var=False, alternative="greater",
        )  # fmt: skip
        p_value = float(test.pvalue) if test.pvalue == test.pvalue else 1.0  # constant: no test
        if float(torch.rand((), generator=generator)) > p_value:
            self.penalty = min(self.growth * self.penalty, self.max_penalty)
        return p_value

    def _norm(self, violation: Tensor) -> Tensor:
        """Length of a violation in standard deviations."""
        return (violation @ self.metric @ violation).clamp(min=0).sqrt()

    def _squares(self, violations: Tensor) -> Tensor:
        """Squared norms of the violation, one for each pair of batches."""
        shifted = violations + self._slack(violations.mean(0))
        half = len(shifted) // 2
        return ((shifted[:half] @ self.metric) * shifted[half : 2 * half]).sum(-1)

    def _slack(self, violation: Tensor) -> Tensor:
        """Slack of inequalities at the least penalty, shape (m,); zero for equalities."""
        stiffness = self.penalty * self.metric.diagonal()
        slack = (-violation - self.multipliers / stiffness).clamp(min=0)
        return torch.where(self.is_inequality, slack, 0.0)
