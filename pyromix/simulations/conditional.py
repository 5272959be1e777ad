"""A law of some columns given others: mixtures whose parameters come from networks."""

__all__ = ["ConditionalMixture"]

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.batch import Batch, split_batch
from ..core.checks import Check, check_arguments, check_positive_int, number
from ..core.conversions import as_rows
from ..core.law_module import LawModule
from ..core.networks import check_widths
from ..mixtures.full import MixtureOfMultivariateNormals

LOG_2PI = math.log(2 * math.pi)
# How far the means of components start apart, in standard deviations of what a linear regression
# leaves.
SPREAD = 0.7
# Logarithms of scales stay within so much of those of the linear regression.
RANGE = 9.0
# Decay of weights, and the share of training in which the learning rate rises.
DECAY, WARM = 0.02, 0.05


class ConditionalMixture(LawModule[MixtureOfMultivariateNormals]):
    r"""Mixture of normals around a linear regression, with parameters from networks of a context.

    .. math:: q(y \mid c) = \frac{1}{M} \sum_{m=1}^M \sum_{k=1}^K w_{mk}(c)
              N\big(y; B c + b + T^{-1} \mu_{mk}(c), \; (A_{mk}(c) T)^{-1} (A_{mk}(c) T)^{-\top}
              \big)

    B, b and T are those of the least-squares regression of y on c, and of what it leaves: T
    whitens the residuals. Networks start at zero, so that what is linear and normal is
    right before the first step of training. The M networks of
    the ensemble see the same batches from different starts; in validation the loss is that of
    their average.

    Args:
        dim: Number of columns of y.
        context_dim: Number of columns of the context.
        num_components: Components K of each network's mixture.
        num_members: Networks M.
        hidden_dims: Widths of their hidden layers.
        ridge: Variance that is added to those of standardised contexts in the regression.
        validate_args: Whether to check the values that are scored.

    Example:
        >>> from pyromix import fit
        >>> _ = torch.manual_seed(0)
        >>> c = torch.randn(500, 1)
        >>> y = c.square() + 0.1 * torch.randn(500, 1)
        >>> model = ConditionalMixture(dim=1, context_dim=1, num_components=2, num_members=1)
        >>> history = fit(model, (y, c), steps=300, lr=0.005, progress_bar=False)
        >>> abs(model.condition(torch.tensor([1.5])).mean.item() - 2.25) < 0.2
        True
    """

    argument_checks: ClassVar[Mapping[str, Check]] = {
        "dim": check_positive_int,
        "context_dim": check_positive_int,
        "num_components": check_positive_int,
        "num_members": check_positive_int,
        "hidden_dims": check_widths,
        "ridge": number(0),
    }
    has_rsample = True
    default_lr = 2e-3
    dim: int
    context_dim: int
    num_components: int
    num_members: int
    hidden_dims: tuple[int, ...]
    ridge: float
    centre: Tensor
    spread: Tensor
    slope: Tensor
    intercept: Tensor
    place: Tensor
    """Where entries below a diagonal are in a matrix, (entries, D D)."""
    tril: Tensor
    """Cholesky factor of the covariance of what the regression leaves: the inverse of T."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_components: int = 8,
        *,
        num_members: int = 3,
        hidden_dims: Sequence[int] = (64, 64),
        ridge: float = 1e-6,
        validate_args: bool | None = None,
    ) -> None:
        arguments = check_arguments(ConditionalMixture.argument_checks, locals())
        super().__init__(event_shape=(arguments["dim"],), validate_args=validate_args)
        self.keep_arguments(arguments)
        rows, columns = torch.tril_indices(self.dim, self.dim, -1)
        self._widths = [1, self.dim, self.dim, len(rows)]
        place = nn.functional.one_hot(rows * self.dim + columns, self.dim**2)
        self.register_buffer("place", place.to(torch.get_default_dtype()), persistent=False)
        layers = [self.context_dim, *self.hidden_dims, self.num_components * sum(self._widths)]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for number_in, number_out in itertools.pairwise(layers):
            weight = torch.randn(self.num_members, number_in, number_out) / math.sqrt(number_in)
            self.weights.append(weight)
            self.biases.append(torch.zeros(self.num_members, 1, number_out))
        with torch.no_grad():
            self.weights[-1].zero_()
            last = self.biases[-1].view(self.num_members, self.num_components, -1)
            if self.num_components > 1:
                last[..., 1 : 1 + self.dim].normal_().mul_(SPREAD)
        self.register_buffer("centre", torch.zeros(self.context_dim))
        self.register_buffer("spread", torch.ones(self.context_dim))
        self.register_buffer("slope", torch.zeros(self.context_dim, self.dim))
        self.register_buffer("intercept", torch.zeros(self.dim))
        self.register_buffer("tril", torch.eye(self.dim))

    @property
    def conditional(self) -> bool:
        """True: it is a law given a context."""
        return True

    def condition(self, context: Any) -> MixtureOfMultivariateNormals:
        r"""The mixture of all members given contexts (\*B, context_dim).

        Raises:
            ValueError: For a context of another shape, or one that is not finite.
        """
        context = as_rows("context", context, self.context_dim, like=self.slope)
        if not bool(context.isfinite().all()):
            raise ValueError("Expected a finite context, got NaN or infinity.")
        return self._law_given(context)

    @torch.no_grad()
    def initialize(self, data: Batch) -> None:
        """Finds the linear regression of pairs of values (N, D) and contexts (N, C)."""
        y, context = split_batch(data)
        assert context is not None
        self.centre.copy_(context.mean(0))
        self.spread.copy_(context.std(0).clamp(min=1e-6))
        c = ((context - self.centre) / self.spread).double()
        y = y.double()
        centred, size = y - y.mean(0), len(y)
        gram = c.T @ c / size
        gram.diagonal().add_(self.ridge)
        slope = torch.linalg.solve(gram, c.T @ centred / size)
        rest = centred - c @ slope
        covariance = rest.T @ rest / size
        covariance.diagonal().mul_(1 + 1e-6).add_(1e-12)
        self.slope.copy_(slope)
        self.intercept.copy_(y.mean(0))
        self.tril.copy_(torch.linalg.cholesky(covariance))
        super().initialize(data)

    def member_log_prob(self, value: Tensor, context: Tensor) -> Tensor:
        """Log-densities of values (N, D) given contexts (N, C) under each member, (M, N)."""
        c = (context - self.centre) / self.spread
        y = self._whitened(value - self.intercept - c @ self.slope)
        log_weight, loc, log_scale, below = self._outputs(c)
        factor = self._factor(log_scale, below)  # (M, N, K, D, D)
        # Products of many small matrices take longer than sums of products.
        u = (factor * (y.unsqueeze(-2) - loc).unsqueeze(-2)).sum(-1)
        scores = log_weight + log_scale.sum(-1) - 0.5 * u.square().sum(-1)
        constant = 0.5 * self.dim * LOG_2PI + self.tril.diagonal().log().sum()
        return scores.logsumexp(-1) - constant

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:  # noqa: ARG002
        """Mean of minus log-densities of members; in evaluation mode that of their average."""
        value, context = split_batch(batch)
        assert context is not None
        scores = self.member_log_prob(value, context)
        if self.training:
            return -scores.mean()
        return math.log(self.num_members) - scores.logsumexp(0).mean()

    def learning_rate_factor(self, progress: float) -> float:
        """Up at the start, then down along a cosine."""
        return min(1.0, 0.02 + progress / WARM) * 0.5 * (1 + math.cos(math.pi * progress))

    def make_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Adam with a decay of weights."""
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=DECAY)

    def _whitened(self, rest: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.tril, rest.T, upper=False).T

    def _outputs(self, c: Tensor) -> tuple[Tensor, ...]:
        """What networks make of standardised contexts (N, C): tensors (M, N, K, ...)."""
        h = c.expand(self.num_members, *c.shape)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            h = nn.functional.silu(h) if layer < last else h
        parts = h.unflatten(-1, (self.num_components, -1)).split(self._widths, -1)
        log_weight = parts[0].squeeze(-1).log_softmax(-1)
        return log_weight, parts[1], RANGE * (parts[2] / RANGE).tanh(), parts[3]

    def _factor(self, log_scale: Tensor, below: Tensor) -> Tensor:
        """Triangular matrices A (*, D, D) of their parameters (*, D) and (*, D (D - 1) / 2)."""
        lower = (below @ self.place).unflatten(-1, (self.dim, self.dim))
        return lower + torch.diag_embed(log_scale.exp())

    def _law_given(self, context: Any = None) -> MixtureOfMultivariateNormals:
        shape = context.shape[:-1]
        c = (context.reshape(-1, self.context_dim) - self.centre) / self.spread
        log_weight, loc, log_scale, below = (
            p.movedim(0, 1).flatten(1, 2) for p in self._outputs(c)
        )
        factor = self._factor(log_scale, below)
        eye = torch.eye(self.dim).to(factor)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        centre = self.intercept + c @ self.slope
        loc = centre.unsqueeze(-2) + loc @ self.tril.T
        tril = self.tril @ inverse
        law = MixtureOfMultivariateNormals(
            log_weight.reshape(*shape, -1),
            loc.reshape(*shape, *loc.shape[1:]),
            tril.reshape(*shape, *tril.shape[1:]),
            validate_args=False,
        )
        law._validate_args = self._validate_args
        return law
