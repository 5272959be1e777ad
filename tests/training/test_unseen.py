"""Held-out items whose labels training never shows."""

import warnings

import pytest
import torch
from torch.utils.data import Dataset

from pyromix import GaussianMixture, class_conditional, fit
from pyromix.training import unseen

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(12) % 3


class Pairs(Dataset):
    def __init__(self, *tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, i):
        return tuple(tensor[i] for tensor in self.tensors)


def train(data, validation, kind):
    model = GaussianMixture(2, 2, context_dim=3, hidden_dims=(4,))
    model = class_conditional(model, 3) if kind == "labels" else model
    fit(model, data, validation=validation, steps=1, progress_bar=False)


def context(kind, labels):
    codes = torch.nn.functional.one_hot(labels, 3)
    return {"labels": labels, "integers": codes, "one-hot": codes.double()}[kind]


@pytest.mark.parametrize("kind", ["labels", "integers", "one-hot"])
@pytest.mark.parametrize("chunk", [10_000, 2])  # the whole, and parts that hold one label alone
@pytest.mark.parametrize("form", [lambda *data: data, Pairs])
def test_labels_that_training_lacks_are_named(kind, chunk, form, monkeypatch):
    monkeypatch.setattr(unseen, "CHUNK", chunk)
    order = LABELS.argsort()
    x, labels = X[order], LABELS[order]
    asked = torch.tensor([2, 2])
    known, unknown = ((x[:n], context(kind, labels[:n])) for n in (12, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(form(*known), form(X[:2], context(kind, asked)), kind)
    with pytest.warns(UserWarning, match="2 of 2 held-out items.*Hold out items of every label"):
        train(form(*unknown), form(X[:2], context(kind, asked)), kind)


def test_contexts_that_vary_are_known():
    """They are numbers, of which none is met twice; one that is the same for all is known, too."""
    rates = torch.stack([X[:, 0], X[:, 1] + 5, torch.ones(12).double()], -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train((X, rates), 0.5, "rates")
