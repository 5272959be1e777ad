"""Deep convolutional Gaussian mixtures of images."""

from .given_class import ClassLaw
from .layers import GMM, Classifier, Folding, Pooling
from .model import DCGMM

__all__ = ["DCGMM", "GMM", "ClassLaw", "Classifier", "Folding", "Pooling"]
