"""Training laws of some columns given others, and choosing among them by held-out rows."""

__all__ = ["Plan", "coarse_joint", "learn_conditional"]

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..mixtures.em import fit_em
from ..mixtures.learnable import GaussianMixture
from ..training import fit
from .conditional import ConditionalMixture

# Numbers of components of the coarse joint law.
COARSE = (1, 16)
# Validations in a training, how many without progress end it, and the longest gradient.
VALIDATIONS, PATIENCE, CLIP = 25, 8, 10.0
# Candidates are compared after this share of the steps.
SHORT = 0.25


@dataclass(frozen=True)
class Plan:
    """What is trained, on which rows, and how.

    Args:
        num_components: Numbers of components to choose from.
        num_members: Networks whose mixtures are averaged.
        hidden_dims: Widths of their hidden layers.
        train: Rows to train on.
        held_out: Rows to choose by.
        steps: Steps of training.
        batch_size: Rows of a step.
        lr: Learning rate.
        seed: Seed of everything random.
        progress_bar: Whether to show a bar with the loss.
    """

    num_components: tuple[int, ...]
    num_members: int
    hidden_dims: tuple[int, ...]
    train: Tensor
    held_out: Tensor
    steps: int
    batch_size: int
    lr: float
    seed: int
    progress_bar: bool


def learn_conditional(
    values: Sequence[Tensor], log_slopes: Sequence[float], context: Tensor, plan: Plan
) -> tuple[ConditionalMixture, int]:
    """The law of values given a context, and which of several coordinates it is one of.

    Candidates are trained briefly, with one network each. The one that is best on what is held
    out is then trained for good.

    Args:
        values: Values (N, D) in each of the coordinates to choose from.
        log_slopes: Mean logarithms of the slopes of these coordinates, which make densities in
            them comparable.
        context: Contexts (N, C).
        plan: How it is trained.
    """
    candidates = list(itertools.product(plan.num_components, range(len(values))))
    short = replace(plan, num_members=1, steps=max(1, int(SHORT * plan.steps)))
    scores = [0.0]
    if len(candidates) > 1:
        scores = [
            _trained(count, values[own], context, short)[1] + log_slopes[own]
            for count, own in candidates
        ]
    count, own = candidates[scores.index(max(scores))]
    return _trained(count, values[own], context, plan)[0], own


def coarse_joint(rows: Tensor, plan: Plan) -> GaussianMixture:
    """A mixture with full covariances of all columns of rows (N, D), by expectation maximisation.

    Args:
        rows: The rows.
        plan: Which of them to train on, and to choose the number of components by.
    """
    found = []
    for count in COARSE:
        model = GaussianMixture(
            rows.shape[-1], count, "full", variance_floor=1e-4, standardize=False
        ).to(rows)
        fit_em(
            model,
            rows[plan.train],
            steps=50,
            tolerance=1e-2,
            seed=plan.seed,
            progress_bar=False,
        )
        model.requires_grad_(False)
        found.append((model, float(model.log_prob(rows[plan.held_out]).mean())))
    return max(found, key=lambda one: one[1])[0]


def _trained(
    num_components: int, y: Tensor, context: Tensor, plan: Plan
) -> tuple[ConditionalMixture, float]:
    """A law of y given a context, and its mean log-density on what is held out."""
    model = ConditionalMixture(
        y.shape[-1],
        context.shape[-1],
        num_components,
        num_members=plan.num_members,
        hidden_dims=plan.hidden_dims,
        validate_args=False,
    ).to(y)
    seen, unseen = ((y[rows], context[rows]) for rows in (plan.train, plan.held_out))
    model.initialize(seen)
    start = copy.deepcopy(model)
    fit(
        model,
        seen,
        validation=unseen,
        initialize=False,
        steps=plan.steps,
        batch_size=plan.batch_size,
        lr=plan.lr,
        seed=plan.seed,
        validation_every=max(1, plan.steps // VALIDATIONS),
        patience=PATIENCE,
        gradient_clip=CLIP,
        progress_bar=plan.progress_bar,
    )
    # What is linear and normal is not improved by training: then the start is kept.
    laws = [law.requires_grad_(False).eval() for law in (start, model)]
    with torch.no_grad():
        scores = [-float(law.loss(unseen)) for law in laws]
    best = scores.index(max(scores))
    return laws[best], scores[best]
