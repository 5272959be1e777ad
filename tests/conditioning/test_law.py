"""The contract of all laws given evidence: event shapes, free columns, marginals."""

import copy
import math
import pickle
from multiprocessing.reduction import ForkingPickler

import pyro
import pytest
import torch
import torch.multiprocessing
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from torch.distributions import biject_to

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    GaussianMixture,
    GaussianPrior,
    LinearInequality,
    MixtureOfMultivariateNormals,
    Observed,
)
from pyromix.conditioning import ConditionedLaw
from pyromix.mixtures import ConditionedMixture

INF = math.inf


def mixture(covariance="full"):
    model = GaussianMixture(3, 4, covariance)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.4 if name.startswith("raw") else 1.0)
    return model.requires_grad_(False)


MODELS = {
    "diagonal": lambda: mixture("diagonal"),
    "full": mixture,
    "law": lambda: mixture().law,
    "residual": lambda: DRMM(dim=3, num_layers=2, num_components=4),
    "residual, population": lambda: DRMM(dim=3, num_layers=3, num_components=4, max_exact=1),
    "residual, categories": lambda: DRMM(2, num_layers=2, num_components=4, categories=(3,)),
}
QUESTIONS = {
    "values": (Observed({0: 0.5}),),
    "a prior": (Observed({0: 0.5}), GaussianPrior(0.0, 1.0)),
    "a box": (Observed({0: 0.5}), Box(high=1.0)),
    "alternatives": (Observed({0: 0.5}), AnyOf(Box(high=0.75), Box(low=0.25))),
    "many laws": (Observed({0: torch.linspace(-1.0, 1.0, 4)}),),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_keeps_observed_columns(name, question):
    model, evidence = MODELS[name](), QUESTIONS[question]
    law = model.condition(*evidence)
    assert isinstance(law, ConditionedLaw)
    assert law.event_shape == model.event_shape == (3,)
    x = law.sample((5,))
    assert x.shape == (5, *law.batch_shape, 3)
    expected = torch.as_tensor(evidence[0].values[0], dtype=x.dtype)
    assert torch.equal(x[..., 0], expected.expand(5, *law.batch_shape))
    assert list(law.observed) == [0]
    free = law.free()
    assert free.event_shape == (2,)
    assert free.batch_shape == law.batch_shape
    drawn = free.sample((5,))
    assert drawn.shape == (5, *law.batch_shape, 2)
    # Densities are over the free columns, whichever way they are asked for.
    torch.testing.assert_close(free.log_prob(x[..., 1:]), law.log_prob(x), rtol=1e-4, atol=1e-4)


def test_free_columns_given_values_are_a_mixture_in_closed_form():
    model = mixture().double()
    value = torch.tensor([0.25, -1.0], dtype=torch.float64)
    free = model.condition(Observed({1: value})).free()
    assert isinstance(free, MixtureOfMultivariateNormals)
    x = torch.randn(7, 2, 2, dtype=torch.float64)
    whole = torch.stack([x[..., 0], value.expand(7, 2), x[..., 1]], -1)
    expected = model.log_prob(whole) - model.marginal(1).log_prob(value.unsqueeze(-1))
    torch.testing.assert_close(free.log_prob(x), expected)
    one = model.condition(Observed({1: value})).marginal([-1])
    torch.testing.assert_close(one.mean, free.mean[..., 1:])
    assert one.event_shape == (1,)


def test_marginals_of_other_laws_say_what_to_do():
    law = mixture().condition(Box(-1.0, 1.0))
    with pytest.raises(NotImplementedError, match="Keep columns of draws"):
        law.marginal(0)
    with pytest.raises(ValueError, match="were not observed, got 0"):
        mixture().condition(Observed({0: 1.0})).marginal([0, 1])
    with pytest.raises(ValueError, match="were not observed, got none"):
        DRMM(2, 2, 3).condition({0: 0.0, 1: 0.0}).free()


def test_a_mapping_alone_still_drops_columns_of_mixtures_with_a_warning():
    model = mixture()
    with pytest.warns(FutureWarning, match="From version 0.3") as caught:
        law = model.condition({0: 0.5})
    assert caught[0].filename == __file__
    assert law.event_shape == (2,)
    torch.testing.assert_close(law.mean, model.condition(Observed({0: 0.5})).free().mean)
    with pytest.warns(FutureWarning, match="From version 0.3") as caught:
        model.law.condition({0: 0.5})
    assert caught[0].filename == __file__
    # Among other evidence it is evidence.
    both = model.condition(Box(-1.0, 1.0), {0: 0.5})
    assert both.event_shape == (3,)


def test_alternatives_of_which_one_can_hold_are_conditioned_on_once(monkeypatch):
    built = []
    plain = ConditionedMixture.__init__

    def counted(self, *args, **options):
        built.append(args)
        plain(self, *args, **options)

    monkeypatch.setattr(ConditionedMixture, "__init__", counted)
    dead, live = Box(high=torch.tensor([0.0, INF, INF])), LinearInequality(torch.ones(3))
    law = mixture().condition(Observed({0: 0.5}), AnyOf(dead, live))
    assert isinstance(law, ConditionedMixture)
    assert len(built) == 1
    expected = mixture().condition(Observed({0: 0.5}), live)
    assert expected.event_shape == law.event_shape
    # More evidence goes on from all that was given.
    assert law.condition(AnyOf(dead, live)).route == law.route


def boxes():
    """Two boxes in three dimensions, with sides that are open."""
    low = torch.tensor([[0.0, -1.0, -math.inf], [1.0, -math.inf, -math.inf]])
    return Box(low, torch.tensor([[2.0, math.inf, 0.5], [3.0, 0.5, math.inf]]))


def half_spaces():
    """Two parallel planes in three dimensions."""
    return LinearInequality(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([[0.5], [-2.0]]))


WITH_BIJECTION = {
    "batch of boxes": lambda: (boxes(),),
    "values": lambda: (Observed({1: 0.3}),),
    "batch of values": lambda: (Observed({1: torch.tensor([0.3, 0.4])}),),
    "values and a box": lambda: (
        Observed({0: 1.2}),
        Box(low=torch.tensor([0.0, 0.0, -math.inf])),
    ),
    "values and a batch of boxes": lambda: (Observed({0: 1.2}), boxes()),
    "values and a half-space": lambda: (
        Observed({0: 1.2}),
        LinearInequality(torch.tensor([1.0, 1.0, 2.0]), 0.5),
    ),
    "batch of half-spaces": lambda: (half_spaces(),),
    "batch of values and half-spaces": lambda: (
        Observed({1: torch.tensor([0.3, 0.4])}),
        half_spaces(),
    ),
}


@pytest.mark.parametrize(
    "make", [lambda: GaussianMixture(3, 2, "full"), lambda: DRMM(3, 2, 2)], ids=["mixture", "drmm"]
)
@pytest.mark.parametrize("evidence", WITH_BIJECTION.values(), ids=WITH_BIJECTION)
def test_a_bijection_onto_the_support_reaches_draws_and_counts_free_columns(make, evidence):
    """Its Jacobian is that of the free columns, and points of it have a density."""
    with torch.no_grad():
        law = make().condition(*evidence())
    x = law.sample((50,))
    onto = biject_to(law.support)
    assert law.support.check(x).all()
    z = onto.inv(x)
    assert z.shape == (50, *law.batch_shape, len(law.free_columns))
    assert onto.inverse_shape(x.shape) == z.shape
    assert onto.forward_shape(z.shape) == x.shape
    torch.testing.assert_close(onto(z), x)
    assert law.log_prob(onto(torch.randn_like(z))).isfinite().all()
    jacobian = torch.autograd.functional.jacobian(
        lambda at: onto(at.expand(z.shape))[0][..., law.free_columns], z[:1]
    )
    jacobian = jacobian.reshape(z[0].numel(), z[0].numel())
    change = onto.log_abs_det_jacobian(z, x)
    torch.testing.assert_close(change[0].sum(), torch.linalg.slogdet(jacobian)[1])
    assert law.free().support.check(x[..., law.free_columns]).all()


@pytest.mark.parametrize("kind", ["autoguide", "nuts"])
@pytest.mark.parametrize("inequalities", [boxes, half_spaces])
def test_inference_runs_under_values_and_batches_of_inequalities(kind, inequalities):
    with torch.no_grad():
        law = GaussianMixture(3, 2).condition(Observed({0: 1.2}), inequalities())

    def model():
        with pyro.plate("n", 2):
            pyro.sample("x", law)

    if kind == "nuts":
        kernel = NUTS(model, max_tree_depth=3)
        mcmc = MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
        mcmc.run()
        x = mcmc.get_samples()["x"]
    else:
        guide = AutoNormal(model)
        SVI(model, guide, ClippedAdam({"lr": 0.01}), Trace_ELBO()).step()
        x = guide()["x"]
    assert law.support.check(x).all()


@pytest.mark.parametrize(
    "evidence",
    [
        (Box(low=0.0),),
        (Observed({0: 0.3}),),
        (AnyOf(Box(low=1.0), Box(high=-1.0)),),
        (LinearInequality([1.0, 1.0], 0.5), LinearInequality([1.0, -1.0], 0.5)),
    ],
    ids=["box", "values", "alternatives", "inequalities"],
)
def test_copies_and_pickles_have_the_law_without_its_graph(evidence):
    """As chains in other processes get it."""
    law = GaussianMixture(2, 2, "full").condition(*evidence)
    assert law.log_evidence()[0].requires_grad
    x = law.sample((5,))
    pickled = pickle.loads(bytes(ForkingPickler.dumps(law)))
    for other in (copy.deepcopy(law), pickled):
        assert not other.log_prob(x).requires_grad
        assert torch.equal(other.log_prob(x), law.log_prob(x))
        assert other.condition(Box(high=9.0)).sample().shape == (2,)
    assert law.log_evidence()[0].requires_grad


FREED = {
    "box": lambda: Box(low=0.0),
    "values": lambda: Observed({0: 0.5}),
    "alternatives": lambda: AnyOf(Box(low=1.0), Box(high=-1.0)),
}


@pytest.mark.parametrize("evidence", FREED.values(), ids=FREED)
@pytest.mark.parametrize("kind", ["mixture", "drmm"])
def test_a_second_backward_pass_says_whose_graph_was_freed(kind, evidence):
    model = GaussianMixture(2, 2) if kind == "mixture" else DRMM(2, 2, 2)
    options = {"differentiable": True} if kind == "drmm" else {}
    law = model.condition(evidence(), **options)
    x = law.sample((3,))
    law.log_prob(x).sum().backward(retain_graph=True)
    first = model.loc.grad.clone()
    law.log_prob(x).sum().backward()
    torch.testing.assert_close(model.loc.grad, 2 * first)
    for number in (lambda: law.log_prob(x), lambda: law.log_evidence()[0]):
        with pytest.raises(RuntimeError, match=r"freed by an earlier backward.*no_grad"):
            number().sum().backward()
