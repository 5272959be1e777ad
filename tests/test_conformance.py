"""Every distribution of the library goes through every check: one line each."""

import dataclasses

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch

from pyromix import (
    DCGMM,
    FRMDN,
    RAD,
    Flow,
    Fold,
    FoldingCoupling,
    GaussianMixture,
    HierarchicalDRMM,
    Level,
    LogitMap,
    MixtureOfNormals,
    RelaxedGaussianMixture,
    RelaxedMixtureOfNormals,
    Top,
    class_conditional,
    near_identity,
)
from pyromix.dcgmm import GMM, Classifier, Folding, Pooling
from pyromix.drmm import DRMM
from pyromix.evidence.pieces import Box, LinearGaussian, Observed
from pyromix.mixtures import (
    LowRankPrecisionNormal,
    MixtureOfLowRankNormals,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
    MixtureOfStudentT,
)
from pyromix.simulations.conditional import ConditionalMixture
from pyromix.testing import Case, parametrize


def _mixture(batch=(), k=3, dim=2):
    return MixtureOfNormals(
        torch.randn(*batch, k), torch.randn(*batch, k, dim), 0.3 + torch.rand(*batch, k, dim)
    )


def _relaxed(batch=(), k=3, dim=2):
    """With enough inner points that nothing here tells draws and density apart."""
    return RelaxedMixtureOfNormals(
        0.4 + torch.rand(batch),
        torch.randn(*batch, k),
        torch.randn(*batch, k, dim),
        0.3 + torch.rand(*batch, k, dim),
        num_inner=96,
    )


def _dense(batch=(), k=3, dim=2, tied=False):
    tril = 0.4 * torch.randn(*batch, 1 if tied else k, dim, dim).tril(-1)
    tril = tril + torch.diag_embed(0.5 + torch.rand(*tril.shape[:-1]))
    return MixtureOfMultivariateNormals(torch.randn(*batch, k), torch.randn(*batch, k, dim), tril)


def _low_rank(batch=(), k=3, dim=2, rank=1, kind=MixtureOfLowRankPrecisionNormals):
    return kind(
        torch.randn(*batch, k),
        torch.randn(*batch, k, dim),
        0.5 + torch.rand(*batch, k, dim),
        torch.randn(*batch, k, dim, rank),
    )


def _student(batch=(), k=3, dim=2, tied=False, full=True):
    logits, loc = torch.randn(*batch, k), torch.randn(*batch, k, dim)
    df = 3.0 + 4.0 * torch.rand(*batch, k)  # tails of which statistics have a variance
    if not full:
        return MixtureOfStudentT(logits, df, loc, 0.3 + torch.rand(*batch, k, dim))
    tril = 0.4 * torch.randn(*batch, 1 if tied else k, dim, dim).tril(-1)
    tril = tril + torch.diag_embed(0.5 + torch.rand(*tril.shape[:-1]))
    return MixtureOfStudentT(logits, df, loc, scale_tril=tril)


def _low_rank_normal(batch=(), dim=2, rank=1):
    parameters = torch.randn(*batch, dim), 0.5 + torch.rand(*batch, dim)
    return LowRankPrecisionNormal(*parameters, torch.randn(*batch, dim, rank))


def _drmm(*args, **options):
    """With weights and links that matter, which a new model does not have."""
    model = DRMM(*args, **options)
    with torch.no_grad():
        for parameter in (model.log_weight, model.link_logits, *model.column_logits):
            parameter.normal_()
        for parameter in model.layers.parameters():
            parameter.normal_().mul_(0.3)
    return model


@torch.no_grad()
def _hierarchy(event_shape, *levels, **options):
    """With codes that depend on those above, which those of a new model do not."""
    model = HierarchicalDRMM(event_shape, [*levels, Top(2, 2)], **options)
    for name, parameter in model.named_parameters():
        if "scale" not in name:
            parameter.normal_().mul_(0.7)
    return model


@torch.no_grad()
def _dcgmm(event_shape, *layers, log_noise=-0.5, **options):
    """With centroids that differ, controls that prefer some codes, and more noise than that."""
    model = DCGMM(event_shape, layers, max_precision=1e3, **options)
    for layer, mixture in enumerate(model.mixtures):
        mixture.logits.normal_()
        if layer:
            mixture.loc.uniform_(-0.1, 1.0)
        else:
            mixture.loc.normal_()
        mixture.log_precision.uniform_(-0.5, 1.5)
    if model.log_noise is not None:
        model.log_noise.fill_(log_noise)
    if model.classifier is not None:
        model.classifier.weight.normal_()
    return model


def _normal(*shape):
    return dist.Normal(torch.zeros(shape), torch.ones(shape))


@torch.no_grad()
def _folded(law):
    """With folds that matter, more than the nearly symmetric ones of a new model."""
    for name, part in law.named_modules():
        if name.endswith(("conditioner", "gate")):
            part[-1].weight.mul_(2.0)
            part[-1].bias.add_(0.3 * torch.randn_like(part[-1].bias))
        elif isinstance(part, Fold):
            part.raw.add_(0.5 * torch.randn_like(part.raw))
    return law


@torch.no_grad()
def _sequences(dim, length, num_components=2, *parts, **options):
    """With states that matter: those of a new model hardly change the law."""
    options = {"hidden_dim": 4, **options}
    model = FRMDN(dim, length, num_components, transforms=parts, **options)
    for name, parameter in model.named_parameters():
        if not name.startswith("transforms"):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def _given_context(model, num_contexts=2):
    """The laws of a model with one number as context, given several: they differ."""
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    context = torch.linspace(-1.0, 1.0, num_contexts).unsqueeze(-1)
    return model.requires_grad_(False).condition(context)


CASES = {
    "mixture-1d": Case(lambda: _mixture(dim=1)),
    "mixture-2d": Case(_mixture),
    "mixture-8d": Case(lambda: _mixture(dim=8)),
    "mixture-batch": Case(lambda: _mixture((2, 3))),
    "mixture-many": Case(lambda: _mixture(k=20, dim=40)),
    "full": Case(_dense),
    "full-batch": Case(lambda: _dense((2,))),
    "full-many": Case(lambda: _dense(k=6, dim=12)),
    "tied": Case(lambda: _dense(tied=True)),
    "low-rank": Case(_low_rank),
    "low-rank-batch": Case(lambda: _low_rank((2,))),
    "low-rank-many": Case(lambda: _low_rank(k=6, dim=12, rank=3)),
    "factors": Case(lambda: _low_rank(kind=MixtureOfLowRankNormals)),
    "factors-batch": Case(lambda: _low_rank((2,), kind=MixtureOfLowRankNormals)),
    "factors-many": Case(lambda: _low_rank(k=6, dim=12, rank=3, kind=MixtureOfLowRankNormals)),
    "low-rank-normal": Case(_low_rank_normal),
    "low-rank-normal-batch": Case(lambda: _low_rank_normal((2, 2), dim=1, rank=0)),
    "conditioned-box": Case(
        lambda: _dense().condition(Box(torch.tensor([-1.0, -1.5]), torch.tensor([1.0, 0.8]))),
        smooth=False,
        traceable=False,
    ),
    "conditioned-observation": Case(
        lambda: _dense().condition(LinearGaussian(torch.ones(1, 2), torch.zeros(1), 0.5)),
        traceable=False,
    ),
    "student": Case(lambda: _student(full=False)),
    "student-full-batch": Case(lambda: _student((2,))),
    "student-tied": Case(lambda: _student(tied=True)),
    "student-given-value": Case(lambda: _student(dim=3).condition(Observed({1: 0.5})).free()),
    "learnable-full": Case(lambda: GaussianMixture(2, 3, "full")),
    "learnable-VVE": Case(lambda: GaussianMixture(2, 3, "VVE")),
    "learnable-student": Case(lambda: GaussianMixture(2, 3, "full", tails="student")),
    "learnable-tied": Case(lambda: GaussianMixture(2, 3, "tied")),
    "learnable-factors": Case(lambda: GaussianMixture(3, 2, "low_rank", rank=2)),
    "learnable-low-rank": Case(lambda: GaussianMixture(3, 2, "low_rank_precision", rank=2)),
    "learnable-missing": Case(
        lambda: GaussianMixture(2, 3, missing="marginalize"), rejects_nan=False, traceable=False
    ),
    "learnable-diagonal": Case(lambda: GaussianMixture(2, 3)),
    "learnable-spherical": Case(lambda: GaussianMixture(3, 4, "spherical")),
    "learnable-shared": Case(lambda: GaussianMixture(3, 4, "shared")),
    "relaxed": Case(_relaxed),
    "relaxed-1d": Case(lambda: _relaxed(dim=1)),
    "relaxed-batch": Case(lambda: _relaxed((2,))),
    "relaxed-learnable": Case(lambda: RelaxedGaussianMixture(2, 3, 0.7, num_inner=96)),
    "drmm": Case(lambda: _drmm(2, 2, 4)),
    "drmm-1d": Case(lambda: _drmm(1, 3, 2, scale="spherical", inner_scale="scalar")),
    "drmm-one-layer": Case(lambda: _drmm(3, 1, 4, scale="scalar")),
    "drmm-beam": Case(lambda: _drmm(2, 2, 4, max_exact=0, beam=4)),  # wide enough for all codes
    "drmm-truncated": Case(lambda: _drmm(2, 3, 3, truncation=0.3)),
    "drmm-triangular": Case(lambda: _drmm(2, 2, 4, maps="triangular")),
    "drmm-low-rank-missing": Case(
        lambda: _drmm(3, 2, 3, maps=("low_rank", "diagonal"), rank=1, missing="marginalize"),
        rejects_nan=False,
    ),
    "drmm-triangular-conditioned": Case(
        lambda: _drmm(2, 2, 3, maps="triangular").condition(Box(torch.tensor([-1.0, -9.0]), 9.0)),
        smooth=False,
        traceable=False,
    ),
    "drmm-missing": Case(lambda: _drmm(2, 2, 3, missing="marginalize"), rejects_nan=False),
    "hierarchy": Case(lambda: _hierarchy((1, 3), Level(1, num_components=2))),
    "hierarchy-continued": Case(
        lambda: _hierarchy((1, 3), Level(2, 1, 2, 2, "triangular"), Level(2, 1, 1, 2))
    ),
    "hierarchy-beam": Case(  # wide enough for all codes
        lambda: _hierarchy((1, 2, 2), Level((1, 2), num_components=2), max_codes=0, beam=4)
    ),
    "drmm-categories": Case(
        lambda: _drmm(2, 2, 3, categories=(3, 2)), smooth=False, continuous=False, nuts=False
    ),
    "drmm-conditioned-box": Case(
        lambda: _drmm(2, 2, 4).condition(
            Box(torch.tensor([-1.0, -1.5]), torch.tensor([1.0, 0.8]))
        ),
        smooth=False,
        traceable=False,
    ),
    "drmm-conditioned-observation": Case(
        lambda: _drmm(2, 2, 4).condition(LinearGaussian(torch.ones(1, 2), torch.zeros(1), 0.5)),
        traceable=False,
    ),
    "dcgmm": Case(lambda: _dcgmm((1, 1, 2), Folding((1, 2)), GMM(3))),
    "dcgmm-two-layers": Case(
        lambda: _dcgmm((1, 1, 3), GMM(3), Folding((1, 3)), GMM(4), noise="component")
    ),
    "dcgmm-three-layers": Case(
        lambda: _dcgmm(
            (2, 2, 2), Folding((1, 2)), GMM(2), Pooling((2, 1)), GMM(3), GMM(3), Classifier(2)
        )
    ),
    "dcgmm-shared-noise": Case(
        lambda: _dcgmm((1, 2, 1), GMM(3), Folding(1), GMM(2), noise="shared")
    ),
    # No trees: so much noise that the bound is tight.
    "dcgmm-overlap": Case(
        lambda: _dcgmm(
            *((1, 1, 3), Folding((1, 2), 1), GMM(3), Folding((1, 2)), GMM(2)), log_noise=0.7
        )
    ),
    "dcgmm-overlap-above": Case(
        lambda: _dcgmm(*((1, 1, 3), GMM(2), Folding((1, 2), 1), GMM(2), Folding((1, 2)), GMM(2)))
    ),
    "drmm-many": Case(lambda: _drmm(8, 3, 4, max_exact=0, beam=4**2)),
    "flow-normal": Case(
        lambda: Flow(
            dist.Normal(torch.zeros(2), torch.ones(2)),
            [transforms.affine_coupling(2), transforms.AffineTransform(torch.ones(2), 2.0)],
        )
    ),
    "flow-mixture": Case(
        lambda: Flow(GaussianMixture(2, 3), [transforms.affine_autoregressive(2).inv])
    ),
    "flow-relaxed": Case(
        lambda: Flow(
            RelaxedGaussianMixture(2, 3, (1.0, 0.1), num_inner=96),
            [transforms.affine_autoregressive(2).inv],
        )
    ),
    "flow-fold": Case(lambda: _folded(Flow(_normal(), [Fold(), Fold()]))),
    "flow-fold-batch": Case(lambda: _folded(Flow(_normal(3), [Fold()]))),
    "flow-fold-mixed": Case(
        lambda: _folded(
            Flow(
                _normal(2),
                [
                    FoldingCoupling(2),
                    transforms.affine_coupling(2),
                    transforms.permute(2, torch.tensor([1, 0])),
                    FoldingCoupling(2),
                ],
            )
        )
    ),
    "rad": Case(lambda: _folded(RAD(2, num_layers=3))),
    "rad-many": Case(lambda: _folded(RAD(5, num_layers=4, partition="random"))),
    "rad-mixture": Case(lambda: _folded(RAD(2, num_layers=2, base=GaussianMixture(2, 3)))),
    "frmdn-numbers": Case(lambda: _sequences(1, 2, 3)),
    "frmdn-gru": Case(lambda: _sequences(2, 1, cell="gru", num_layers=2, head_dims=(4,))),
    "frmdn-rank": Case(lambda: _sequences(3, 2, rank=2, cell="gru"), num_samples=8000),
    "frmdn-shared-factor": Case(
        lambda: _sequences(2, 2, rank=1, factor="shared", positivity="exp", num_layers=2),
        num_samples=8000,
    ),
    "frmdn-flow": Case(
        lambda: _sequences(1, 3, 2, near_identity(transforms.spline(1, count_bins=4))),
        traceable=False,  # Pyro's splines index by a mask
        num_samples=8000,
    ),
    "frmdn-conditional-flow": Case(
        lambda: _sequences(2, 2, 2, transforms.conditional_affine_coupling(2, 4, hidden_dims=[4])),
        num_samples=8000,
    ),
    "frmdn-fold": Case(lambda: _folded(_sequences(1, 2, 2, Fold((4,)))), seed=1),
    "frmdn-logit": Case(
        lambda: Flow(_sequences(1, 2, 3), [LogitMap(num_levels=4, margin=0.05)]),
        smooth=False,
    ),
    "tied-context": Case(
        lambda: _given_context(GaussianMixture(2, 2, "tied", context_dim=1, hidden_dims=(4,)))
    ),
    "networks-context": Case(
        lambda: _given_context(ConditionalMixture(2, 1, 2, num_members=2, hidden_dims=(4,)))
    ),
    "flow-context": Case(
        lambda: _given_context(Flow(_normal(2), [transforms.conditional_spline(2, 1, [4], 4)])),
        traceable=False,  # Pyro's splines index by a mask
    ),
    "rad-context": Case(lambda: _given_context(RAD(2, num_layers=2, context_dim=1))),
    "classes": Case(
        lambda: class_conditional(GaussianMixture(2, 2, context_dim=3, hidden_dims=(4,)), 3)
    ),
    "classes-sequences": Case(
        lambda: class_conditional(
            _sequences(1, 2, static_dim=2), 2, prior=torch.tensor([0.3, 0.7])
        )
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_no_draws_and_no_values_have_the_shapes_of_none(name):
    law = CASES[name].build()
    for shape in ((0,), (2, 0)):
        drawn = law.sample(shape)
        assert drawn.shape == (*shape, *law.batch_shape, *law.event_shape)
        assert law.log_prob(drawn).shape == (*shape, *law.batch_shape)
        if law.has_rsample:
            assert law.rsample(shape).shape == drawn.shape
        if hasattr(law, "rsample_and_log_prob"):
            assert [part.shape for part in law.rsample_and_log_prob(shape)] == [
                drawn.shape,
                (*shape, *law.batch_shape),
            ]
    rows = law.sample((0,))
    for question in ("encode", "responsibilities", "classify", "class_log_prob"):
        if hasattr(law, question) and not isinstance(law, DCGMM):
            getattr(law, question)(rows)
    if hasattr(law, "impute") and not law.batch_shape and len(law.event_shape) == 1:
        assert law.impute(rows).shape == rows.shape
        assert law.impute(rows, 3).shape == (3, *rows.shape)
        assert law.impute(law.sample((2,)), 0).shape == (0, 2, *law.event_shape)


# Cases that share nearly all of their code with another one, and the checks that take longest: of
# those cases they are marked as slow (conftest.py).
VARIANTS = {
    *("mixture-1d", "mixture-many", "full-batch", "full-many", "low-rank-batch", "low-rank-many"),
    *("factors-batch", "factors-many", "low-rank-normal-batch", "student-tied"),
    *("student-given-value", "learnable-tied", "learnable-shared", "learnable-spherical"),
    *("learnable-VVE", "relaxed-1d", "relaxed-batch", "drmm-1d", "drmm-one-layer"),
    *("drmm-truncated", "drmm-triangular-conditioned", "drmm-low-rank-missing", "drmm-many"),
    *("hierarchy-beam", "dcgmm-two-layers", "dcgmm-shared-noise", "dcgmm-overlap-above"),
    *("flow-fold-batch", "rad-many", "frmdn-rank", "frmdn-shared-factor", "frmdn-logit"),
    *("frmdn-conditional-flow", "tied-context", "flow-context"),
}
LONGEST = {"nuts", "pyro_guide", "function_transforms", "jit", "normalized_in_expectation"}


def is_long(name):
    """Whether a test of conformance, by its name, is left to longer runs."""
    case, _, check = name.partition("[")[2].rstrip("]").rpartition("-")
    return case in VARIANTS and check in LONGEST


def test_variants_are_cases():
    assert CASES.keys() > VARIANTS


@parametrize(CASES)
def test_conformance(check, case, device):
    check(dataclasses.replace(case, device=device, rejects_integers=True))
