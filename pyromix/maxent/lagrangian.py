r"""The augmented Lagrangian of an entropy under constraints on expectations.

.. math:: L = -H + \lambda^\top R + \tfrac{c}{2} R^\top M R, \qquad R = E[T(x)] - t

M is the inverse covariance of the statistics under the present law, so that the penalty is
counted in standard deviations and does not care how statistics are scaled or mixed. That is also
the metric in which the multipliers converge evenly: near the optimum, the expectations change by
minus the covariance times the change of the multipliers, and the update :math:`\lambda + c M R`
shrinks every violation by the same factor 1 / (1 + c).

Far from the targets, violations of many standard deviations would squeeze the law into a corner,
from which it comes out slowly, if at all. So levels move from the expectations of the first law to
the targets, by about half a standard deviation in a round. Expectations form a convex set: if the
targets can be met, so can all levels on the way.
"""

__all__ = ["AugmentedLagrangian", "rejected", "squared_violation"]

import torch
from torch import Tensor

from .draws import Draws
from .expectations import Expectations

# Of correlations: how strongly statistics may depend on each other before it is taken as rounding.
RIDGE = 1e-4
# Weight of a step in the running means of violations.
SMOOTHING = 0.02
# How far levels move in a round, in standard deviations, and as a share of the whole distance.
STRIDE = 0.5
SHARE = 0.7
# How far multipliers may be ahead of those that the law itself has, in the same unit.
LEAD = 2.0
# Distance, in standard deviations, at which the targets themselves become the levels.
NEAR = 0.1


def squared_violation(first: Tensor, second: Tensor, metric: Tensor) -> Tensor:
    """Unbiased estimate of R' M R, and of its gradient, from two independent estimates of R.

    One estimate in both places would add its variance, and the gradient would shrink the variance
    of the statistics.
    """
    return first @ metric @ second


def rejected(violations: Tensor, one_sided: Tensor, level: float = 0.05) -> Tensor:
    """Which constraints sign tests reject, of independent violations (B, m) of batch means.

    The tests ask whether violations are as often above zero as below; the level is Bonferroni's,
    for all constraints together.

    Args:
        violations: Of B batches, shape (B, m).
        one_sided: Which constraints only violations above zero speak against, shape (m,).
        level: Probability of rejecting any constraint of those that hold.

    Returns:
        Booleans, shape (m,).
    """
    from scipy.stats import binom  # adds a filter of warnings: not on import

    m = violations.shape[1]
    above = (violations > 0).sum(0).cpu().numpy()
    count = (violations != 0).sum(0).cpu().numpy()  # a constraint that holds exactly says nothing
    upper = torch.as_tensor(binom.sf(above - 1, count, 0.5))
    lower = torch.as_tensor(binom.cdf(above, count, 0.5))
    both = (2 * torch.minimum(upper, lower)).clamp(max=1)
    p_values = torch.where(one_sided.cpu(), upper, both)
    return (p_values < level / m).to(violations.device)


class AugmentedLagrangian:
    """Multipliers, penalty and the metric of violations.

    Args:
        expectations: The constraints.
        penalty: c at the start.
        growth: Factor by which c grows.
        max_penalty: What c may grow to.
        reduction: Share of the violation before that a round must come down to, lest c grow.
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
        self.targets, self.split = expectations.levels, expectations.num_equalities
        self.levels = self.targets  # of the present round
        self.penalty, self.growth, self.max_penalty = penalty, growth, max_penalty
        self.reduction = reduction
        m = len(self.targets)
        self.multipliers = torch.zeros_like(self.levels)
        self.own_multipliers = torch.zeros_like(self.targets)
        self.metric = self.covariance = torch.eye(m).to(self.targets)
        self.running = torch.zeros_like(self.levels)  # mean violation of recent steps
        self._before: Tensor | None = None  # violations of batches at the end of the last round

    @property
    def is_inequality(self) -> Tensor:
        """Which constraints are inequalities, shape (m,)."""
        m = len(self.levels)
        return torch.arange(m, device=self.levels.device) >= self.split

    def measure(self, values: Tensor, log_prob: Tensor) -> None:
        r"""Looks at draws of the present law: the metric of violations, and its own multipliers.

        A law whose entropy is maximal for its expectations has :math:`\log q = -\lambda^\top T`
        up to a constant: the regression of log-densities on statistics says with which ones.

        Args:
            values: Statistics, shape (n, m).
            log_prob: Log-densities, shape (n,).
        """
        covariance = torch.cov(values.double().mT).reshape(len(self.levels), -1)
        variance = covariance.diagonal()
        scale = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
        correlation = covariance / scale / scale.unsqueeze(-1)
        correlation = correlation + RIDGE * torch.eye(len(scale)).to(correlation)
        centred = (values.double() - values.double().mean(0)) / scale
        slope = centred.mT @ (log_prob.double() - log_prob.double().mean()) / len(values)
        self.own_multipliers = (-torch.linalg.solve(correlation, slope) / scale).to(self.targets)
        self.covariance = (correlation * scale * scale.unsqueeze(-1)).to(self.targets)
        # An inequality is met by slack of its own, which a metric must not mix with the others'.
        apart = self.is_inequality.unsqueeze(-1) | self.is_inequality
        correlation = torch.where(apart & ~torch.eye(len(scale)).to(apart), 0.0, correlation)
        inverse = torch.linalg.inv(correlation)
        self.metric = (inverse / scale / scale.unsqueeze(-1)).to(self.levels)

    def loss(self, first: tuple[Draws, Tensor], second: tuple[Draws, Tensor]) -> Tensor:
        """The Lagrangian's estimate from two independent sets of draws and their statistics."""
        means, entropies = [], []
        for draws, values in (first, second):
            # Weights need not sum to one: levels within the sum are a control variate.
            means.append(draws.mean(values - self.levels))
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
        """Whether the levels of the present round are the targets themselves."""
        return self.levels is self.targets

    def update(self, means: Tensor) -> None:
        """Moves the multipliers at the end of a round, by expectations (m,) of the statistics."""
        violation = means - self.levels
        shifted = violation + self._slack(violation)
        size = float(self._norm(shifted))
        shifted = shifted * min(1.0, STRIDE / max(size, 1e-12))
        moved = self.multipliers + self.penalty * self.metric @ shifted
        # What the law has not followed yet must not add up, round by round.
        lead = moved - self.own_multipliers
        size = float((lead @ self.covariance @ lead).clamp(min=0).sqrt())
        moved = self.own_multipliers + min(1.0, LEAD / max(size, 1e-12)) * lead
        self.multipliers = torch.where(self.is_inequality, moved.clamp(min=0), moved)

    def aim(self, means: Tensor) -> None:
        """Sets the levels of the next round, from expectations (m,) on the way to the targets."""
        violation = means - self.targets
        violation = torch.where(self.is_inequality, violation.clamp(min=0), violation)
        size = float(self._norm(violation))
        if size <= NEAR:
            self.levels = self.targets
        else:
            self.levels = self.targets + (1 - min(STRIDE / size, SHARE)) * violation
        self.running = means - self.levels

    def _norm(self, violation: Tensor) -> Tensor:
        return (violation @ self.metric @ violation).clamp(min=0).sqrt()

    def grow(self, violations: Tensor, generator: torch.Generator) -> float:
        """Raises the penalty, with the probability that violations have not come down enough.

        Squared violations, estimated without bias from pairs of batches, are compared with those
        of the round before by Welch's test, both in the present metric.

        Args:
            violations: Of batch means at the end of the round, shape (B, m).
            generator: Source of randomness.

        Returns:
            The p-value of having come down enough, as far as the test can tell.
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

    def _squares(self, violations: Tensor) -> Tensor:
        """Squared norms of the violation, one for each pair of batches."""
        shifted = violations + self._slack(violations.mean(0))
        half = len(shifted) // 2
        return ((shifted[:half] @ self.metric) * shifted[half : 2 * half]).sum(-1)

    def _slack(self, violation: Tensor) -> Tensor:
        """What inequalities may lack without cost: the penalty ends where the multiplier does."""
        stiffness = self.penalty * self.metric.diagonal()
        slack = (-violation - self.multipliers / stiffness).clamp(min=0)
        return torch.where(self.is_inequality, slack, 0.0)
