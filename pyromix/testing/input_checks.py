"""Values that a law must refuse."""

import math

import torch

from .cases import Case, check, is_module


@check(lambda case, d: case.rejects_integers or is_module(case, d))
def check_bad_input(case: Case) -> None:
    """Values of the wrong shape, dtype or kind raise ValueError; Pyro's own laws let some pass."""
    d = case.build()
    x = d.sample(torch.Size((2,)))
    bad = {"integers": torch.zeros_like(x).long()} if case.rejects_integers else {}
    if len(d.event_shape):
        bad["another event shape"] = torch.cat([x, x[..., :1]], -1)
        bad["too few dimensions"] = torch.zeros(())
        if x.shape[-1] > 1:
            bad["an event of length 1"] = x[..., :1]
    if case.rejects_nan and x.is_floating_point():
        bad["NaN"] = torch.full_like(x, math.nan)
    for what, value in bad.items():
        try:
            d.log_prob(value)
        except ValueError:
            continue
        raise AssertionError(f"Expected log_prob of {what} to raise ValueError.")
