"""Deep convolutional Gaussian mixtures of images."""

from .layers import GMM, Classifier, Folding, Pooling
from .model import DCGMM

__all__ = ["DCGMM", "GMM", "Classifier", "Folding", "Pooling"]
