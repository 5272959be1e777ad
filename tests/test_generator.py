"""Draws from a generator of one's own: the same numbers, and the global state as it was."""

import threading

import pytest
import torch

from pyromix import AnyOf, Box, GaussianMixture, Observed
from pyromix.core.random import draws_from

from .test_conformance import CASES

METHODS = ("sample", "rsample", "rsample_and_log_prob", "rsample_weighted", "rsample_with_score")


def draws(law, name, **options):
    """What a method of a law draws, as a list of tensors; None if the law has no such draws."""
    method = getattr(law, name, None)
    pathwise = name in ("rsample", "rsample_and_log_prob")
    if method is None or (pathwise and not law.has_rsample):
        return None
    try:
        drawn = method(3, **options) if name.endswith("weighted") else method((3,), **options)
    except NotImplementedError:  # depends on the base of a flow, and on the columns
        return None
    return [t.detach() for t in (drawn if isinstance(drawn, tuple) else (drawn,))]


@pytest.mark.parametrize("case", CASES)
def test_every_law_draws_from_a_generator(case):
    law = CASES[case].build()
    for name in METHODS:
        torch.manual_seed(7)
        expected = draws(law, name)
        if expected is None:
            continue
        state = torch.get_rng_state()
        torch.manual_seed(1)
        before = torch.get_rng_state()
        generator = torch.Generator().manual_seed(7)
        got = draws(law, name, generator=generator)
        assert torch.equal(generator.get_state(), state), name
        assert torch.equal(torch.get_rng_state(), before), name
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b), name


def test_laws_given_evidence_draw_from_a_generator():
    model = GaussianMixture(3, 4)
    for evidence in (
        (Observed({0: 0.5}),),
        (Box(-1.0, 1.0),),
        (AnyOf(Box(-1.0, 0.5), Box(-0.5, 1.0)),),
    ):
        law = model.condition(*evidence)
        for drawn in (law, law.free()):
            torch.manual_seed(7)
            expected = drawn.sample((5,))
            before = torch.get_rng_state()
            generator = torch.Generator().manual_seed(7)
            assert torch.equal(drawn.sample((5,), generator=generator), expected)
            assert not torch.equal(drawn.sample((5,), generator=generator), expected)
            assert torch.equal(torch.get_rng_state(), before)
            if not drawn.has_rsample:
                with pytest.raises(NotImplementedError, match=r"draw with sample\(\)"):
                    drawn.rsample((5,), generator=generator)


def test_threads_draw_what_they_would_draw_alone():
    law = GaussianMixture(2, 3)
    alone = [law.sample((500,), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    together = {}

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        parts = [law.sample((50,), generator=generator) for _ in range(40)]
        again = torch.Generator().manual_seed(seed)
        together[seed] = law.sample((500,), generator=again), parts

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in enumerate(alone):
        assert torch.equal(together[seed][0], expected)
        one = torch.Generator().manual_seed(seed)
        for part in together[seed][1]:
            assert torch.equal(part, law.sample((50,), generator=one))


def test_what_is_no_generator_is_refused():
    with pytest.raises(ValueError, match=r"torch.Generator\(\).manual_seed"):
        GaussianMixture(2, 3).sample(generator=7)
    with draws_from(None):
        pass
