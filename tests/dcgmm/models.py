"""Tiny models of every kind, with random parameters that matter, and images for them."""

import math

import pytest
import torch

from pyromix import DCGMM
from pyromix.dcgmm import GMM, Classifier, Folding, Pooling

WHOLE = Folding((2, 2))

# Event shape and layers. In trees log_prob is exact.
TREES = {
    "one layer": ((1, 2, 2), [WHOLE, GMM(3)]),
    "one layer, channels": ((2, 2, 3), [Folding((2, 3)), GMM(4)]),
    "one layer, pixels": ((2, 1, 3), [GMM(3)]),
    "one layer, four tops": ((1, 4, 4), [Folding(2), GMM(3)]),
    "2L-b": ((1, 4, 4), [Folding(2), GMM(3), Folding(2), GMM(4)]),
    "2L-b, channels": ((2, 4, 6), [Folding((2, 3)), GMM(3), Folding(2), GMM(2)]),
    "2L-d": ((1, 2, 2), [WHOLE, GMM(4), Folding(1), GMM(3)]),
    "2L, no folding": ((1, 2, 4), [Folding(2), GMM(3), GMM(4)]),
    "3L-b": ((1, 2, 2), [WHOLE, GMM(3), Folding(1), GMM(4), Folding(1), GMM(2)]),
    "3L": (
        (1, 4, 4),
        [Folding(2), GMM(2), Folding((1, 2)), GMM(3), Folding((2, 1)), GMM(3)],
    ),
    "two tops": ((1, 2, 4), [Folding((2, 1)), GMM(3), Folding((1, 2)), GMM(2)]),
    "two tops, 3L": (
        (1, 2, 4),
        [Folding((2, 1)), GMM(2), Folding((1, 2)), GMM(3), Folding(1), GMM(2)],
    ),
    "pooling": ((1, 4, 4), [Folding(2), GMM(3), Pooling(2), GMM(4)]),
    "pooling, folding": (
        (1, 2, 6),
        [Folding((2, 1)), GMM(2), Pooling((1, 2)), Folding((1, 3)), GMM(3)],
    ),
    "folding, pooling": (
        (1, 1, 4),
        [Folding((1, 1)), GMM(3), Folding((1, 2)), Pooling((1, 2)), GMM(2)],
    ),
    "overlap under one parent": (
        (1, 2, 3),
        [Folding((2, 1)), GMM(3), Folding((1, 2), 1), Folding((1, 2)), GMM(3)],
    ),
}

# Pixels in several patches, or codes under several codes: log_prob is a bound.
LOOPS = {
    "pixels": ((1, 4, 4), [Folding(2, 1), GMM(2), Folding(3), GMM(3)]),
    "pixels, large patches": ((1, 4, 4), [Folding(3, 1), GMM(4), Folding(2), GMM(3)]),
    "pixels, channels": ((2, 3, 4), [Folding((2, 3), 1), GMM(3), Folding(2), GMM(3)]),
    "pixels, one layer": ((1, 1, 5), [Folding((1, 3), 1), GMM(3)]),
    "controls": ((1, 2, 6), [Folding(2), GMM(3), Folding((1, 2), 1), GMM(3)]),
    "controls, one top": (
        (1, 2, 6),
        [Folding(2), GMM(3), Folding((1, 2), 1), GMM(2), Folding((1, 2)), GMM(3)],
    ),
    "three layers": (
        (1, 4, 4),
        [Folding(2, 1), GMM(2), Folding(2, 1), GMM(2), Folding(2), GMM(2)],
    ),
    "pooling": (
        (1, 2, 5),
        [Folding(2, 1), GMM(3), Pooling((1, 2)), Folding((1, 2)), GMM(3)],
    ),
    "pooling twice": (
        (1, 1, 8),
        [Folding((1, 2)), GMM(3), Pooling((1, 2), 1), Pooling((1, 2), 1), GMM(2)],
    ),
    "overlapping pooling": ((1, 1, 6), [Folding((1, 2)), GMM(3), Pooling((1, 2), 1), GMM(2)]),
}

KINDS = {**{f"tree: {k}": v for k, v in TREES.items()}, **LOOPS}


def kinds(*names):
    """Parametrises a test with some kinds of model, or with all."""
    return pytest.mark.parametrize("name", names or KINDS)


trees = pytest.mark.parametrize("name", [f"tree: {name}" for name in TREES])
loops = pytest.mark.parametrize("name", list(LOOPS))


def build(name, *, seed=0, noise=None, num_classes=None, deviation=0.15, **options):
    """A model of a kind whose parameters all matter.

    Args:
        name: The kind.
        seed: Seed of the parameters.
        noise: As the constructor's.
        num_classes: Adds a classifier.
        deviation: Of the noise, in units of the distance between centroids.
        options: More arguments of the constructor.
    """
    event_shape, layers = KINDS[name]
    layers = layers if num_classes is None else [*layers, Classifier(num_classes)]
    options = {"max_precision": 1e6, **options}  # no limit
    torch.manual_seed(seed)
    return randomize(DCGMM(event_shape, layers, noise=noise, **options), deviation)


@torch.no_grad()
def randomize(model, deviation=0.15):
    """Centroids about as far apart as one, controls that prefer some codes, and a noise."""
    for layer, mixture in enumerate(model.mixtures):
        mixture.logits.normal_(0.0, 0.7)
        if layer == 0:
            mixture.loc.normal_()
            mixture.log_precision.copy_(
                -2 * (deviation * (0.5 + torch.rand_like(mixture.loc))).log()
            )
        else:  # like responsibilities, though training may leave some below zero
            mixture.loc.copy_(torch.rand_like(mixture.loc) ** 2 - 0.05)
            mixture.log_precision.copy_(-2 * (0.2 + 0.3 * torch.rand_like(mixture.loc)).log())
    if model.log_noise is not None:
        model.log_noise.fill_(math.log(deviation))
    return model


def images_for(model, num=20):
    """Draws of a model, images between them, and images that it would never draw."""
    torch.manual_seed(1)
    draws = model.sample((num,)).detach()
    between = 0.5 * (draws[: num // 4] + draws[-(num // 4) :])
    return torch.cat([draws, between, 3 * torch.randn(num // 4, *model.event_shape)])


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
