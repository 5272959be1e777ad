"""Images that benchmarks of deep convolutional mixtures are trained and tested on.

They are MNIST's test set, 8,000 to train on and 2,000 to test on, or with `full` the 60,000 and
the 10,000; or all of FashionMNIST; or scikit-learn's digits, 8 pixels a side.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyromix.datasets import digits, fashion_mnist, mnist

INLIERS = range(5)  # classes


class Images(NamedTuple):
    """Images of shape (N, 1, H, W) and their labels, to train and to test with."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def side(self) -> int:
        return self.train.shape[-1]

    def scaled(self, pixels: int) -> int:
        """A length that is given for images of 28 pixels."""
        return max(2, round(pixels * self.side / 28))

    def only(self, classes: Iterable[int]) -> "Images":
        """The same test images, but only some classes to train on."""
        kept = torch.isin(self.train_labels, torch.tensor(list(classes)))
        return self._replace(train=self.train[kept], train_labels=self.train_labels[kept])


def load_images(name: str, full: bool = False) -> Images:
    if name == "digits":
        images, labels = digits()
        split = 1400
    elif full or name == "fashion":
        load = fashion_mnist if name == "fashion" else mnist
        parts = [load("train"), load("test")]
        images, labels = (torch.cat(pair) for pair in zip(*parts, strict=True))
        split = len(parts[0][0])
    else:
        images, labels = mnist("test")
        split = 8000
    return Images(name, images[:split], labels[:split], images[split:], labels[split:])
