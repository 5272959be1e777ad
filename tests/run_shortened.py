"""Runs a tutorial from its first line to its last, with little training.

    python tests/run_shortened.py tutorials/quickstart.py

Every line is run, but `fit`, `fit_guide` and `MaximumEntropy.solve` take a few steps, chains of
MCMC are short, deep mixtures have few components and are asked with few particles, and `SVI.step`
repeats its last loss after some calls. Warnings of the library are
errors.
"""

import functools
import runpy
import sys
import warnings

from pyro.infer import MCMC, SVI

import pyromix
import pyromix.guides
from pyromix.simulations import SimulationModel
from pyromix.tables import TableModel

SVI_STEPS = 20


def shortened(function, **limits):
    """The function, with arguments that are given by name no larger than their limits."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        for name, limit in limits.items():
            kwargs[name] = min(kwargs.get(name, limit), limit)
        return function(*args, **kwargs)

    return run


def smaller(function, **limits):
    """The function, with arguments no larger than their limits where they are given by name."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        given = limits.keys() & kwargs.keys()
        kwargs |= {name: min(kwargs[name], limits[name]) for name in given}
        return function(*args, **kwargs)

    return run


def step_or_repeat(step):
    """`SVI.step`, which does nothing more once it was called often enough."""

    @functools.wraps(step)
    def run(self, *args, **kwargs):
        losses = self.__dict__.setdefault("losses_of_steps", [])
        if len(losses) < SVI_STEPS:
            losses.append(step(self, *args, **kwargs))
        return losses[-1]

    return run


def shorten(replace):
    """Replaces what trains and samples, by ``replace(owner, name, function)``."""
    replace(pyromix, "fit", shortened(pyromix.fit, steps=40))
    solve = shortened(pyromix.MaximumEntropy.solve, steps=10, rounds=2, start_steps=10)
    replace(pyromix.MaximumEntropy, "solve", solve)
    table = shortened(TableModel.fit, steps=20, members=1, num_components=8)
    replace(TableModel, "fit", staticmethod(table))
    guide = shortened(pyromix.guides.fit_guide, steps=60, num_draws=500)
    replace(pyromix.guides, "fit_guide", guide)
    replace(SimulationModel, "fit", shortened(SimulationModel.fit, steps=20))
    replace(MCMC, "__init__", shortened(MCMC.__init__, num_samples=20, warmup_steps=20))
    replace(SVI, "step", step_or_repeat(SVI.step))
    replace(pyromix.DRMM, "__init__", smaller(pyromix.DRMM.__init__, num_components=8))
    for model in (pyromix.DRMM, pyromix.HierarchicalDRMM):
        replace(model, "condition", smaller(model.condition, num_particles=64))


if __name__ == "__main__":
    shorten(setattr)
    warnings.filterwarnings("ignore", message="Training made the model worse")
    warnings.filterwarnings("ignore", message="The weights of draws of the guide")
    warnings.filterwarnings("ignore", message="Draws that were moved from the prior")
    warnings.filterwarnings("error", category=UserWarning, module=r"pyromix\b")
    script = sys.argv[1]
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")
