"""Random laws, values and evidence: ordinary ones, extreme ones, and such as make no sense."""

import math

import numpy as np
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from hypothesis import strategies as st

from pyromix import (
    DCGMM,
    DRMM,
    FRMDN,
    RAD,
    AnyOf,
    Box,
    Flow,
    Fold,
    GaussianMixture,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    MixtureOfLowRankNormals,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
    MixtureOfNormals,
    MixtureOfStudentT,
    Observed,
    RelaxedGaussianMixture,
    class_conditional,
)
from pyromix.dcgmm import GMM, Folding

DTYPES = st.sampled_from([torch.float32, torch.float64])
SEEDS = st.integers(0, 2**20)
# Scales of parameters, as powers of ten: most often ordinary ones.
MAGNITUDES = st.sampled_from([0, 0, 0, -2, 2, -5, 5])
# Of values that fit.
SIZES = (0.0, 1.0, 1.0, 100.0, 1e6, 1e15, 1e30)
NASTY_NUMBERS = (0.0, -1.0, 1e-30, 1e4, -1e12, 1e30, -1e30, math.inf, -math.inf, math.nan)


# ---- laws --------------------------------------------------------------------------------------


@st.composite
def tensor_laws(draw, kind, batches=((), (2,), (0,), (2, 1))):
    """A mixture whose parameters are tensors, and the function that builds it from others."""
    shape, dtype = draw(st.sampled_from(batches)), draw(DTYPES)
    k, dim = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    random = torch.Generator().manual_seed(draw(SEEDS))

    def normal(*sizes):
        return torch.randn(*shape, *sizes, generator=random, dtype=torch.float64)

    spread, where = 10.0 ** draw(MAGNITUDES), 10.0 ** draw(MAGNITUDES)
    logits, loc = draw(st.sampled_from([1.0, 50.0])) * normal(k), where * normal(k, dim)
    scale = spread * (0.3 + normal(k, dim).abs())
    if kind is MixtureOfMultivariateNormals:
        scales = (torch.diag_embed(scale) + 0.5 * spread * normal(k, dim, dim).tril(-1),)
    elif kind is MixtureOfLowRankPrecisionNormals:
        rank = draw(st.integers(0, dim))
        scales = (scale**-2, normal(k, dim, rank) / spread)
    elif kind is MixtureOfLowRankNormals:
        rank = draw(st.integers(0, dim))
        scales = (scale**2, normal(k, dim, rank) * spread)
    else:
        scales = (scale,)
    if kind is MixtureOfStudentT:
        df = draw(st.sampled_from([1.0, 5.0, math.inf])) * (1.0 + normal(k).abs())
        parameters = (logits, df, loc, *scales)
        return kind(*(x.to(dtype) for x in parameters))
    return kind(*(x.to(dtype) for x in (logits, loc, *scales)))


@st.composite
def modules(draw, build, extreme=True):
    """A module with random parameters; `build` takes the draw function."""
    dtype = draw(DTYPES)
    torch.manual_seed(draw(SEEDS))
    model = build(draw)
    size = draw(st.sampled_from([0.1, 1.0, 3.0] if extreme else [0.1, 0.5]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model.to(dtype).requires_grad_(draw(st.booleans()))


def _mixture(covariance, **options):
    def build(draw):
        return GaussianMixture(
            draw(st.integers(1, 5)), draw(st.integers(1, 5)), covariance, **options
        )

    return build


def _drmm(draw, maps=("shift",), **options):
    dim, num_layers, num_components = (draw(st.integers(1, top)) for top in (4, 3, 3))
    scale = draw(st.sampled_from(["diagonal", "spherical", "scalar"]))
    kinds = tuple(draw(st.sampled_from(maps)) for _ in range(num_layers))
    return DRMM(
        dim,
        num_layers,
        num_components,
        maps=kinds,
        rank=draw(st.integers(1, 2)),
        scale=scale,
        inner_scale=draw(st.sampled_from(["diagonal", "scalar"])),
        truncation=draw(st.sampled_from([0.0, 0.1])),
        **options,
    )


def _dcgmm(draw):
    # Without noise, draws of a DCGMM with several layers are scored by a bound.
    layers = [Folding((1, 2)), GMM(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        layers = [GMM(2), Folding((1, 2)), GMM(draw(st.integers(1, 3)))]
    return DCGMM((1, 1, 2), layers)


def _flow(draw):
    dim = draw(st.integers(2, 4))
    base = dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)
    if draw(st.booleans()):
        base = GaussianMixture(dim, draw(st.integers(1, 3)))
    choices = {
        "fold": lambda: Fold(),
        "coupling": lambda: transforms.affine_coupling(dim, hidden_dims=[4]),
        "autoregressive": lambda: transforms.affine_autoregressive(dim, hidden_dims=[4]),
        "inverted": lambda: transforms.affine_autoregressive(dim, hidden_dims=[4]).inv,
        "affine": lambda: transforms.AffineTransform(torch.ones(dim), 2.0),
        "permutation": lambda: transforms.permute(dim),
    }
    names = draw(st.lists(st.sampled_from(sorted(choices)), max_size=3))
    return Flow(base, [choices[name]() for name in names])


def _frmdn(draw):
    return FRMDN(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        rank=draw(st.integers(0, 1)),
        hidden_dim=4,
        cell=draw(st.sampled_from(["lstm", "gru"])),
        positivity=draw(st.sampled_from(["softplus", "exp"])),
    )


def _class_conditional(draw):
    classes = draw(st.integers(1, 3))
    model = GaussianMixture(
        draw(st.integers(1, 3)), draw(st.integers(1, 3)), context_dim=classes, hidden_dims=(4,)
    )
    return class_conditional(model, classes)


TENSOR_LAWS = {
    kind.__name__: tensor_laws(kind)
    for kind in (
        MixtureOfNormals,
        MixtureOfMultivariateNormals,
        MixtureOfLowRankNormals,
        MixtureOfLowRankPrecisionNormals,
        MixtureOfStudentT,
    )
}

MODULES = {
    **{
        f"GaussianMixture-{covariance}": modules(_mixture(covariance))
        for covariance in (
            *("diagonal", "spherical", "shared", "tied", "full", "low_rank", "low_rank_precision"),
            *("EVI", "VEE", "EVE"),
        )
    },
    "GaussianMixture-gaps": modules(_mixture("full", missing="marginalize")),
    "GaussianMixture-student": modules(_mixture("full", missing="marginalize", tails="student")),
    "RelaxedGaussianMixture": modules(
        lambda draw: RelaxedGaussianMixture(
            *(draw(st.integers(1, 3)) for _ in range(2)),
            draw(st.sampled_from([0.3, 1.0])),
            num_inner=16,
        )
    ),
    "DRMM": modules(_drmm),
    "DRMM-gaps": modules(lambda draw: _drmm(draw, missing="marginalize")),
    "DRMM-categories": modules(lambda draw: _drmm(draw, missing="marginalize", categories=(3, 2))),
    "DRMM-maps": modules(
        lambda draw: _drmm(
            draw, ("shift", "diagonal", "triangular", "low_rank"), missing="marginalize"
        ),
    ),
    "DCGMM": modules(_dcgmm, extreme=False),
    "RAD": modules(
        lambda draw: RAD(draw(st.integers(2, 4)), draw(st.integers(1, 3)), (4,)), extreme=False
    ),
    "Flow": modules(_flow, extreme=False),
    "FRMDN": modules(_frmdn),
    "ClassConditional": modules(_class_conditional),
}

LAWS = {**TENSOR_LAWS, **MODULES}

# Those that take evidence, and say what p(x) q(x) / Z is.
TAKES_EVIDENCE = {
    name: tensor_laws(kind, batches=((),)) if kind else MODULES[name]
    for name, kind in {
        "MixtureOfNormals": MixtureOfNormals,
        "MixtureOfMultivariateNormals": MixtureOfMultivariateNormals,
        "MixtureOfLowRankNormals": MixtureOfLowRankNormals,
        "MixtureOfLowRankPrecisionNormals": MixtureOfLowRankPrecisionNormals,
        "MixtureOfStudentT": MixtureOfStudentT,
        "GaussianMixture-diagonal": None,
        "GaussianMixture-full": None,
        "GaussianMixture-low_rank": None,
        "GaussianMixture-low_rank_precision": None,
        "DRMM": None,
        "DRMM-categories": None,
        "DRMM-maps": None,
    }.items()
}


# ---- values ------------------------------------------------------------------------------------


def dtype_of(law):
    """The dtype that a law works in."""
    with torch.no_grad():
        return law.sample().dtype


@st.composite
def good_values(draw, law, gaps=False, sizes=SIZES):
    """Finite values of a shape that fits: near the law's draws, or far away; or its draws."""
    leading = draw(st.sampled_from([(), (3,), (0,), (2, 1)])) + tuple(law.batch_shape)
    shape = (*leading, *law.event_shape)
    random = torch.Generator().manual_seed(draw(SEEDS))
    size = draw(st.sampled_from(sizes))
    value = size * torch.randn(shape, generator=random, dtype=torch.float64)
    value = with_codes(law, value).to(dtype_of(law))
    if gaps:
        value[torch.rand(shape, generator=random) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = (
            math.nan
        )
    return value


def with_codes(law, value):
    """A value whose categorical columns hold codes."""
    categories = getattr(law, "categories", ())
    for place, count in enumerate(categories, -len(categories)):
        value[..., place] = value[..., place].abs().floor() % count
    return value


@st.composite
def any_values(draw, law):
    """Values of all sorts: most are right in most ways."""
    shape = (*draw(st.sampled_from([(), (3,), (0,)])), *law.batch_shape, *law.event_shape)
    if draw(st.integers(0, 3)) == 0:
        shape = draw(st.sampled_from([(), (1,), (0,), (7,), (2, 7), (3, 0), (*shape, 1)]))
    number = draw(st.sampled_from(NASTY_NUMBERS))
    value = torch.full(shape, 0.5, dtype=dtype_of(law))
    if draw(st.booleans()):
        value = torch.full(shape, number, dtype=dtype_of(law))
    elif value.numel():
        value.view(-1)[draw(st.integers(0, value.numel() - 1))] = number
    forms = [
        *(lambda x: x, lambda x: x, lambda x: x, lambda x: x.tolist(), lambda x: x.numpy()),
        *(lambda x: x.nan_to_num(0.0, 1.0, -1.0).clamp(-9, 9).long(), lambda x: x.half()),
        *(lambda x: x.numpy().astype(np.float32), lambda x: x > 0, lambda x: x.to(torch.cfloat)),
        *(lambda x: None, lambda x: "value", lambda x: [[0.5], [0.5, 0.5]], lambda x: 10**400),
        *(
            lambda x: x.expand(2, *x.shape).mT if x.dim() > 1 else x,
            lambda x: [x],
            lambda x: {0: x},
        ),
    ]
    return draw(st.sampled_from(forms))(value) if shape else value


# ---- evidence ----------------------------------------------------------------------------------


@st.composite
def evidence(draw, law, nasty=True):
    """One to three pieces, which may contradict each other, or say nothing."""
    dim = law.event_shape[0] - len(getattr(law, "categories", ()))
    choices = [_observed, _box, _inequality, _equality, _reading, _prior, _any_of]
    count = draw(st.integers(1, 3))
    number = _numbers(nasty)
    return [draw(st.sampled_from(choices))(draw, number, dim, law) for _ in range(count)]


def _numbers(nasty):
    ordinary = st.sampled_from([0.0, 0.5, -0.5, 1.0, -2.0, 3.0])
    if not nasty:
        return ordinary
    return st.one_of(ordinary, ordinary, ordinary, st.sampled_from(NASTY_NUMBERS))


def _vector(draw, number, count):
    """A tensor of float64, or now and then of float32 or with a batch."""
    value = torch.tensor([draw(number) for _ in range(count)], dtype=torch.float64)
    if draw(st.integers(0, 5)) == 0:
        value = value.float()
    return value.expand(2, count).clone() if draw(st.integers(0, 7)) == 0 else value


def _rows(draw, number, dim):
    rows = draw(st.integers(1, 2))
    return torch.stack(
        [torch.tensor([draw(number) for _ in range(dim)]).double() for _ in range(rows)]
    )


def _observed(draw, number, dim, law):
    columns = draw(st.lists(st.integers(0, dim - 1), max_size=dim, unique=True))
    return Observed({column: draw(number) for column in columns})


def _box(draw, number, dim, law):
    if draw(st.booleans()):
        low = draw(st.sampled_from([-1.0, 0.0, 2.0, 40.0, -math.inf]))
        return Box(low, low + draw(st.sampled_from([1e-3, 1.0, 5.0])))
    return Box(_vector(draw, number, dim), math.inf)


def _inequality(draw, number, dim, law):
    return LinearInequality(_vector(draw, number, dim), draw(number))


def _equality(draw, number, dim, law):
    return LinearEquality(_rows(draw, number, dim), draw(number))


def _reading(draw, number, dim, law):
    matrix = _rows(draw, number, dim)
    noise = draw(st.sampled_from([0.1, 1.0, 1e-6, 1e6]))
    return LinearGaussian(matrix, _vector(draw, number, len(matrix)), noise)


def _prior(draw, number, dim, law):
    scale = draw(st.sampled_from([0.1, 1.0, 1e-6, 1e6, math.inf]))
    return GaussianPrior(_vector(draw, number, dim), scale)


def _any_of(draw, number, dim, law):
    return AnyOf(_box(draw, number, dim, law), _inequality(draw, number, dim, law))
