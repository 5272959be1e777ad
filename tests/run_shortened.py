"""Runs a tutorial from its first line to its last, with little training.

    python tests/run_shortened.py tutorials/quickstart.py

Every line is run, but `fit` and `MaximumEntropy.solve` take a few steps, chains of MCMC are short,
and `SVI.step` repeats its last loss after some calls. Warnings of the library are errors.
"""

import functools
import runpy
import sys
import warnings

from pyro.infer import MCMC, SVI

import pyromix

LIMITS = {"steps": 40, "rounds": 3, "start_steps": 20, "num_samples": 20, "warmup_steps": 20}
SVI_STEPS = 20


def shortened(function, *names):
    """The function, with arguments that are given by name no larger than their limits."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        for name in names:
            kwargs[name] = min(kwargs.get(name, LIMITS[name]), LIMITS[name])
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


if __name__ == "__main__":
    pyromix.fit = shortened(pyromix.fit, "steps")
    solve = shortened(pyromix.MaximumEntropy.solve, "steps", "rounds", "start_steps")
    pyromix.MaximumEntropy.solve = solve
    MCMC.__init__ = shortened(MCMC.__init__, "num_samples", "warmup_steps")
    SVI.step = step_or_repeat(SVI.step)
    warnings.filterwarnings("error", category=UserWarning, module=r"pyromix\b")
    script = sys.argv[1]
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")
