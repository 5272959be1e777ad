"""Inference from simulations, by conditioning a joint law of parameters and simulations."""

__all__ = ["Posterior", "SimulationModel", "learn_joint"]

from .model import SimulationModel, learn_joint
from .posterior import Posterior
