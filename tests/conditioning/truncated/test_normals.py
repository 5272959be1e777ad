"""Truncated normals, against quadrature, closed forms and naive rejection in float64."""

import math

import pytest
import torch
from torch.distributions import Normal

from pyromix.conditioning.truncated import TruncatedNormals
from pyromix.conditioning.truncated.interval import interval_moments, log_interval_probability

INF = math.inf
STANDARD_ERRORS = 4.5


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Thousands of small operations: threads that wait for each other only cost time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def well_conditioned(dim, columns=None):
    return torch.eye(dim)[:, :columns] + 0.4 * torch.randn(dim, columns or dim)


def build(loc, factor, *constraints, **options):
    make = TruncatedNormals.diagonal if factor.dim() == loc.dim() else TruncatedNormals
    return make(loc, factor, *constraints, **options)


def covariance_factor(factor):
    return factor.diag_embed() if factor.dim() == 2 else factor


def naive(loc, factor, matrix, low, high, wanted=2500, most=4_000_000):
    """Draws of the whole normal that happen to be inside, and the share that does."""
    kept, tried, inside = [], 0, 0
    while inside < wanted and tried < most:
        x = loc + torch.randn(200_000, factor.shape[-1]) @ factor.mT
        value = x @ matrix.mT
        kept.append(x[((value >= low) & (value <= high)).all(-1)])
        tried, inside = tried + len(x), inside + len(kept[-1])
    share = inside / tried
    return torch.cat(kept), math.log(share), math.sqrt((1 - share) / (share * tried))


def violations(x, matrix, low, high):
    value = x @ matrix.mT
    return int((~((value >= low) & (value <= high)).all(-1)).sum())


def assert_same_law(draws, others):
    """Means, second moments and one-dimensional projections agree."""
    directions = torch.randn(draws.shape[-1], 10)
    for function in (lambda x: x, lambda x: x.square(), lambda x: x @ directions):
        a, b = function(draws), function(others)
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= STANDARD_ERRORS * error + 1e-9).all()
    # Kolmogorov-Smirnov: a distance of 2.4 has a probability of 2e-5.
    pooled = torch.cat([draws, others]) @ directions
    mine = torch.cat([torch.ones(len(draws)), torch.zeros(len(others))])
    order = pooled.argsort(0)
    gap = (mine[order] / len(draws) - (1 - mine[order]) / len(others)).cumsum(0).abs().amax(0)
    assert (gap * math.sqrt(len(draws) * len(others) / len(pooled)) < 2.4).all()


def bounds(*values):
    return torch.tensor(values, dtype=torch.get_default_dtype())


def box(dim, low, high):
    return torch.eye(dim), torch.full((dim,), low), torch.full((dim,), high)


def stack(*constraints):
    return tuple(torch.cat(parts) for parts in zip(*constraints, strict=True))


def oblique(dim, count, low, high=INF):
    return torch.randn(count, dim), torch.full((count,), low), torch.full((count,), high)


# name: (expected routes, dim, factor, constraints, options)
CASES = {
    "nothing": ("independent", 3, "full", lambda d: oblique(d, 2, -INF), {}),
    "box, diagonal": ("independent", 6, "diagonal", lambda d: box(d, -1.0, 1.5), {}),
    "one inequality": ("independent", 5, "full", lambda d: oblique(d, 1, 1.0), {}),
    "one interval": ("independent", 5, "diagonal", lambda d: oblique(d, 1, 0.5, 1.0), {}),
    "two inequalities": ("quadrature", 5, "full", lambda d: oblique(d, 2, 0.5), {}),
    "two intervals": ("quadrature", 2, "full", lambda d: oblique(d, 2, 0.0, 1.0), {}),
    "box, full": ("sequential", 6, "full", lambda d: box(d, -1.0, 1.5), {}),
    "five of twenty": ("sequential", 20, "diagonal", lambda d: oblique(d, 5, 0.5), {}),
    "box of thirty": ("sequential", 30, "full", lambda d: box(d, -2.5, 4.0), {}),
    "box and row": (
        "sequential|box", 6, "diagonal", lambda d: stack(box(d, -1.5, 1.5), oblique(d, 1, 1.5)), {}
    ),
    "tight box and row": (
        "box|sequential", 12, "diagonal",
        lambda d: stack(box(d, -1.0, 1.0), oblique(d, 1, 1.0)), {},
    ),
    "box and rows, full": (
        "sequential", 5, "full", lambda d: stack(box(d, -2.0, 2.0), oblique(d, 3, -0.5)), {}
    ),
    "some of the coordinates": (
        "sequential|box", 8, "diagonal",
        lambda d: stack(box(d, -1.0, 1.0), (torch.eye(1, d) + torch.eye(3, d)[2:],
                                            bounds(0.5), bounds(INF))), {},
    ),
    "singular": ("sequential", 5, "singular", lambda d: box(d, -1.0, 1.5), {}),
    "singular and rows": (
        "sequential", 6, "singular", lambda d: stack(box(d, -1.5, 1.5), oblique(d, 2, -1.0)), {}
    ),
    "any polytope": (
        "hamiltonian", 4, "full", lambda d: stack(box(d, -1.5, 1.5), oblique(d, 4, -0.5)),
        {"min_acceptance": 1.0},
    ),
    "independent rows by force": (
        "hamiltonian", 8, "diagonal", lambda d: oblique(d, 4, 0.3), {"min_acceptance": 1.0}
    ),
}  # fmt: skip


def make_case(name, num=3):
    route, dim, kind, constraints, options = CASES[name]
    factor = {
        "diagonal": lambda: torch.rand(num, dim) + 0.6,
        "full": lambda: torch.stack([well_conditioned(dim) for _ in range(num)]),
        "singular": lambda: torch.stack([well_conditioned(dim, dim - 2) for _ in range(num)]),
    }[kind]()
    if kind == "full" and dim > 10:
        factor = torch.eye(dim) + 0.3 * (factor - torch.eye(dim))
    return route.split("|"), (0.3 * torch.randn(num, dim), factor, *constraints(dim)), options


@pytest.mark.parametrize("name", CASES)
def test_normaliser_and_law_against_naive_rejection(name):
    routes, args, options = make_case(name)
    normals = build(*args, **options)
    assert set(normals.route) <= set(routes)
    loc, factor, matrix, low, high = args
    index = torch.arange(3).repeat(4000)
    draws = normals.sample(index)
    assert violations(draws, matrix, low, high) == 0
    for k in range(3):
        others, expected, error = naive(loc[k], covariance_factor(factor)[k], matrix, low, high)
        error = math.hypot(error, float(normals.log_normalizer_error[k]))
        distance = abs(float(normals.log_normalizer[k]) - expected)
        assert distance <= STANDARD_ERRORS * error + 1e-12
        assert_same_law(draws[index == k], others)


def plane_quadrature(matrix, low, high):
    """Log-probability and means under N(0, I) in the plane, one coordinate exact."""
    z = torch.linspace(-9.0, 9.0, 200_001)
    a, b = matrix[:, 0, None] * z, matrix[:, 1, None]
    first, second = (low[:, None] - a) / b, (high[:, None] - a) / b
    left = torch.where(b > 0, first, second).amax(0)
    right = torch.where(b > 0, second, first).amin(0)
    inner = torch.where(left < right, log_interval_probability(left, right), -INF)
    density = (Normal(0.0, 1.0).log_prob(z) + inner).exp()
    whole = torch.trapezoid(density, z)
    open_ = left < right
    other = torch.zeros_like(z)
    other[open_] = interval_moments(left[open_], right[open_])[0]
    mean = torch.stack([torch.trapezoid(density * t, z) / whole for t in (z, other)])
    return whole.log(), mean


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("min_acceptance", [0.01, 1.0])
def test_against_quadrature_in_the_plane(rows, min_acceptance):
    angle = 0.3 + torch.arange(rows) * 2.2
    matrix = torch.stack([angle.cos(), angle.sin()], -1)
    low, high = torch.full((rows,), -INF), torch.linspace(0.2, 1.0, rows)
    low[0] = -1.5
    normals = TruncatedNormals(
        torch.zeros(1, 2), torch.eye(2)[None], matrix, low, high, min_acceptance=min_acceptance
    )
    log_normalizer, mean = plane_quadrature(matrix, low, high)
    error = normals.log_normalizer_error.item()
    if normals.route[0] in ("independent", "quadrature"):
        assert error == 0
    # The trapezoidal rule is off by the square of its step where the interval closes.
    distance = abs(normals.log_normalizer.item() - log_normalizer.item())
    assert distance < STANDARD_ERRORS * error + 1e-7
    draws = normals.sample(torch.zeros(40_000, dtype=torch.long))
    spread = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - mean).abs() < STANDARD_ERRORS * spread).all()


@pytest.mark.parametrize("correlation", [0.5, -0.3, 0.99])
@pytest.mark.parametrize("threshold", [0.0, 3.0, 20.0, 60.0])
def test_two_rows_far_out_against_a_dense_sum(correlation, threshold):
    factor = torch.linalg.cholesky(torch.tensor([[1.0, correlation], [correlation, 1.0]]))
    low = torch.full((2,), threshold)
    normals = TruncatedNormals(torch.zeros(2), factor, torch.eye(2), low, torch.full((2,), INF))
    assert normals.route == ("quadrature",)
    # In steps that are fine where the density is sharp, far beyond where it has vanished.
    x = threshold + torch.linspace(0.0, 1.0, 2_000_001).square() * (200 if threshold < 30 else 300)
    inner = log_interval_probability(
        (threshold - correlation * x) / math.sqrt(1 - correlation**2), torch.full_like(x, INF)
    )
    log_density = Normal(0.0, 1.0).log_prob(x) + inner
    top = log_density.max()
    expected = top + torch.trapezoid((log_density - top).exp(), x).log()
    torch.testing.assert_close(normals.log_normalizer, expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("dim", [3, 10, 30])
def test_orthant_of_equicorrelated_normals(dim):
    """With correlations of one half, every one of dim + 1 orders is equally likely."""
    factor = torch.linalg.cholesky(0.5 * torch.eye(dim) + 0.5)
    normals = TruncatedNormals(torch.zeros(dim), factor, *box(dim, 0.0, INF))
    assert normals.route == ("sequential",)
    assert normals.acceptance > 0.5
    error = normals.log_normalizer_error.item()
    assert 0 < error < 0.02
    assert abs(normals.log_normalizer.item() + math.log(dim + 1)) < STANDARD_ERRORS * error


FAR = {
    "independent": (5, lambda d: torch.ones(d), lambda d: box(d, 60.0, 60.5)),
    "quadrature": (
        3,
        lambda d: torch.ones(d),
        lambda d: (bounds([1, 0, 0], [0.7, 0.7, 0.1]), bounds(60, 50), bounds(INF, 50.5)),
    ),
    "sequential": (
        4,
        lambda d: torch.eye(d) + 0.2 * torch.ones(d, d),
        lambda d: box(d, 60.0, INF),
    ),
    "sequential, dependent": (
        4,
        lambda d: torch.eye(d) + 0.2 * torch.ones(d, d),
        lambda d: stack(box(d, -70.0, INF), (torch.ones(1, d), bounds(120.0), bounds(INF))),
    ),
    "box": (
        20,
        lambda d: torch.ones(d),
        lambda d: stack(box(d, 59.0, 61.0), (torch.ones(1, d), bounds(1180.5), bounds(INF))),
    ),
    "hamiltonian": (
        3,
        lambda d: torch.ones(d),
        lambda d: stack(box(d, 59.0, 62.0), (torch.ones(1, d), bounds(179.0), bounds(183.0))),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAR)
def test_no_draw_of_100_000_leaves_far_constraints(name, dtype):
    dim, factor, constraints = FAR[name]
    args = [torch.zeros(dim), factor(dim), *constraints(dim)]
    args = [t.to(dtype) for t in args]
    options = {"min_acceptance": 1.0, "num_moves": 2} if name == "hamiltonian" else {}
    normals = build(*args, **options)
    assert normals.route == (name.split(",")[0],)
    assert normals.log_normalizer.isfinite()
    draws = normals.sample(torch.zeros(100_000, dtype=torch.long))
    assert draws.dtype == dtype
    assert violations(draws, *args[2:]) == 0
    # However the products are summed: one by one, too.
    value = torch.zeros(len(draws), len(args[2]), dtype=dtype)
    for d in range(dim):
        value = value + draws[:, d, None] * args[2][:, d]
    assert ((value >= args[3]) & (value <= args[4])).all()


@pytest.mark.parametrize("name", ["quadrature", "sequential", "sequential, dependent"])
def test_markov_chain_agrees_with_exact_draws_far_out(name):
    dim, factor, constraints = FAR[name]
    args = (torch.zeros(dim), factor(dim), *constraints(dim))
    exact, chain = build(*args), build(*args, min_acceptance=1.0)
    assert chain.route == ("hamiltonian",)
    index = torch.zeros(2000, dtype=torch.long)
    assert_same_law(chain.sample(index), exact.sample(index))
    error = math.hypot(exact.log_normalizer_error.item(), chain.log_normalizer_error.item())
    distance = (exact.log_normalizer - chain.log_normalizer).abs().item()
    assert distance < STANDARD_ERRORS * error


def test_observed_plane_within_a_box():
    """The factor of a normal given that a row has a value: draws stay in the plane."""
    dim = 5
    row = torch.ones(dim)
    scale = torch.rand(dim) + 0.5
    gain = scale.square() * row / (scale.square() * row.square()).sum()
    loc = torch.zeros(dim) + gain * 3.0
    projected = torch.diag(scale) - torch.outer(gain, row) @ torch.diag(scale)
    left, values, _ = torch.linalg.svd(projected)
    factor = left[:, : dim - 1] * values[: dim - 1]
    normals = TruncatedNormals(loc, factor, *box(dim, 0.0, 1.0))
    draws = normals.sample(torch.zeros(5000, dtype=torch.long))
    assert violations(draws, *box(dim, 0.0, 1.0)) == 0
    torch.testing.assert_close(draws.sum(-1), torch.full((5000,), 3.0), rtol=0, atol=1e-13)
    others, expected, error = naive(loc, factor, *box(dim, 0.0, 1.0))
    assert_same_law(draws, others)
    error = math.hypot(error, normals.log_normalizer_error.item())
    assert abs(normals.log_normalizer.item() - expected) < STANDARD_ERRORS * error


def test_components_take_routes_of_their_own():
    dim = 4
    rows = torch.cat([torch.eye(dim), torch.randn(3, dim)])
    low = torch.full((6, 7), -INF)
    low[1, :4] = -1.0
    low[2, 4] = 0.5
    low[3, 4:6] = 0.5
    low[4, 4:] = 0.5
    low[5] = -0.5
    high = torch.full((7,), 2.0)
    high[4:] = INF
    high = torch.where(low > -INF, high, INF)
    loc, scale = 0.2 * torch.randn(2, 3, dim), torch.rand(2, 3, dim) + 0.5
    normals = TruncatedNormals.diagonal(loc, scale, rows, low.view(2, 3, 7), high.view(2, 3, 7))
    expected = ["independent"] * 3 + ["quadrature", "sequential", "sequential"]
    assert list(normals.route) == expected
    assert normals.log_normalizer.shape == normals.batch_shape == (2, 3)
    index = torch.arange(6).repeat(3000)[torch.randperm(18_000)]
    draws = normals.sample(index)
    for k in range(6):
        args = (loc.view(6, -1)[k], scale.view(6, -1)[k].diag(), rows, low[k], high[k])
        others, log_share, error = naive(*args)
        assert violations(draws[index == k], rows, low[k], high[k]) == 0
        assert_same_law(draws[index == k], others)
        error = math.hypot(error, normals.log_normalizer_error.view(-1)[k].item())
        distance = abs(normals.log_normalizer.view(-1)[k].item() - log_share)
        assert distance <= STANDARD_ERRORS * error


def test_parallel_rows_are_merged():
    row = torch.randn(4)
    matrix = torch.stack([row, -2 * row, 3 * row])
    low, high = bounds(0.2, -INF, -INF), bounds(INF, -1.0, 4.5)
    loc, factor = torch.randn(4), well_conditioned(4)
    normals = TruncatedNormals(loc, factor, matrix, low, high)
    assert normals.route == ("independent",)
    once = TruncatedNormals(loc, factor, matrix[:1], bounds(0.5), bounds(1.5))
    torch.testing.assert_close(normals.log_normalizer, once.log_normalizer)


def test_more_rows_than_any_proposal_takes():
    matrix = torch.nn.functional.normalize(torch.randn(300, 3), dim=-1)
    low, high = torch.full((300,), -INF), torch.ones(300)
    normals = TruncatedNormals(torch.zeros(3), torch.eye(3), matrix, low, high)
    assert normals.route == ("hamiltonian",)
    draws = normals.sample(torch.zeros(4000, dtype=torch.long))
    assert violations(draws, matrix, low, high) == 0
    others, expected, error = naive(torch.zeros(3), torch.eye(3), matrix, low, high)
    assert_same_law(draws, others)
    error = math.hypot(error, normals.log_normalizer_error.item())
    assert abs(normals.log_normalizer.item() - expected) < STANDARD_ERRORS * error


def test_order_and_scale_of_rows_do_not_matter():
    loc, factor = torch.randn(5), well_conditioned(5)
    matrix, low, high = torch.randn(2, 5), bounds(0.1, -INF), bounds(2.0, 0.5)
    given = TruncatedNormals(loc, factor, matrix, low, high).log_normalizer
    flipped = TruncatedNormals(
        loc, factor, -7 * matrix.flip(0), -7 * high.flip(0), -7 * low.flip(0)
    )
    torch.testing.assert_close(flipped.log_normalizer, given)


def test_a_diagonal_is_a_factor():
    _, args, _ = make_case("box and row")
    given = build(*args)
    same = TruncatedNormals(args[0], args[1].diag_embed(), *args[2:])
    error = (given.log_normalizer_error.square() + same.log_normalizer_error.square()).sqrt()
    distance = (given.log_normalizer - same.log_normalizer).abs()
    assert (distance < STANDARD_ERRORS * error).all()


def test_weights_stay_below_their_bounds():
    """What makes accepted draws exact."""
    for name in CASES:
        _, args, options = make_case(name)
        normals = build(*args, **options)
        for group in normals._groups:
            for proposal in group._proposals:
                solved = proposal.log_bound.isfinite().nonzero().squeeze(-1)
                index = solved.repeat(2000)
                uniform = torch.rand(len(index), proposal.num_uniforms)
                _, log_weight = proposal.propose(index, uniform)
                assert (log_weight <= proposal.log_bound[index] + 1e-9).all(), name


@pytest.mark.parametrize("min_acceptance", [0.01, 1.0])
def test_infeasible_constraints_name_the_rows(min_acceptance):
    constraints = stack(box(3, 0.0, 1.0), (torch.ones(1, 3), bounds(3.5), bounds(INF)))
    with pytest.raises(ValueError, match=r"rows \[0, 1, 2, 3\] of matrix contradict"):
        TruncatedNormals.diagonal(
            torch.zeros(2, 3), torch.ones(2, 3), *constraints, min_acceptance=min_acceptance
        )


def test_empty_interiors():
    constraints = stack(box(3, 0.0, 1.0), (torch.ones(1, 3), bounds(3.0), bounds(INF)))
    with pytest.raises(ValueError, match="leave no interior"):
        TruncatedNormals.diagonal(torch.zeros(2, 3), torch.ones(2, 3), *constraints)
    with pytest.raises(ValueError, match=r"rows \[1\] of matrix leave no interior"):
        TruncatedNormals.diagonal(
            torch.zeros(2), torch.ones(2), torch.eye(2), bounds(0, 1), bounds(1, 1)
        )
    with pytest.raises(ValueError, match=r"rows \[0\] of matrix contradict"):
        TruncatedNormals.diagonal(
            torch.zeros(2), torch.ones(2), torch.eye(2), bounds(2, 0), bounds(1, 1)
        )


def test_component_without_room_has_no_normaliser():
    low = bounds([0.0, 0.0, 1.5], [0.0, 0.0, 2.5])
    matrix = torch.cat([torch.eye(2), torch.ones(1, 2)])
    high = bounds(1.0, 1.0, INF)
    normals = TruncatedNormals.diagonal(torch.zeros(2, 2), torch.ones(2, 2), matrix, low, high)
    assert normals.route[1] == "empty"
    assert normals.log_normalizer[0].isfinite()
    assert normals.log_normalizer[1] == -INF
    with pytest.raises(ValueError, match=r"index \[1\]"):
        normals.sample(torch.tensor([0, 1]))


def test_singular_normals_away_from_the_constraints():
    factor = torch.tensor([[1.0], [0.0]])
    loc = bounds([0.0, 0.5], [0.0, 2.0], [0.0, 1.0])
    normals = TruncatedNormals(loc, factor.expand(3, 2, 1), *box(2, 0.0, 1.0))
    assert normals.route == ("independent", "empty", "independent")  # the bound itself is inside
    with pytest.raises(ValueError, match="singular"):
        TruncatedNormals(loc[1], factor, *box(2, 0.0, 1.0))


def test_polytope_thinner_than_the_numbers():
    low = torch.full((2,), 60.0, dtype=torch.float32)
    matrix = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float32) / 3
    high = torch.nextafter(low, torch.tensor(INF, dtype=torch.float32))
    normals = TruncatedNormals.diagonal(
        torch.zeros(2, dtype=torch.float32), torch.ones(2, dtype=torch.float32), matrix, low, high
    )
    try:
        draws = normals.sample(torch.zeros(100, dtype=torch.long))
    except RuntimeError as error:
        assert "Use float64" in str(error)  # noqa: PT017
    else:
        assert violations(draws, matrix, low, high) == 0


GOOD = {
    "loc": torch.zeros(3, 2),
    "scale": torch.ones(3, 2),
    "matrix": torch.eye(2),
    "low": torch.zeros(2),
    "high": torch.ones(2),
}
BAD = [
    ({"loc": [0.0, 0.0]}, r"loc to be a torch\.Tensor"),
    ({"loc": torch.zeros(3, 2).long()}, "dtype"),
    ({"scale": torch.ones(3, 2).double()}, "dtype torch.float32"),
    ({"scale": torch.ones(2)}, "same shape"),
    ({"scale": torch.zeros(3, 2)}, "positive scales"),
    ({"loc": torch.full((3, 2), math.nan)}, "finite values of loc"),
    ({"matrix": torch.full((2, 2), INF)}, "finite values of matrix"),
    ({"matrix": torch.eye(3)}, r"matrix of shape \(p, D = 2\)"),
    ({"matrix": torch.ones(2)}, r"matrix of shape \(p, D = 2\)"),
    ({"low": torch.zeros(3)}, r"low of shape \(p,\)"),
    ({"high": torch.zeros(4, 2)}, r"high of shape \(p,\)"),
    ({"low": torch.full((2,), math.nan)}, "low without NaN"),
    ({"low": torch.full((2,), INF)}, "exchanged"),
    ({"loc": torch.zeros(0, 2), "scale": torch.ones(0, 2)}, "at least one component"),
    ({"min_acceptance": 1.5}, "min_acceptance"),
    ({"num_points": 0}, "num_points"),
    ({"num_moves": 1.5}, "num_moves"),
]


@pytest.mark.parametrize(("change", "match"), BAD)
def test_bad_input(change, match):
    good = {k: v.float() for k, v in GOOD.items()}
    TruncatedNormals.diagonal(**good)
    with pytest.raises(ValueError, match=match):
        TruncatedNormals.diagonal(**{**good, **change})


def test_bad_factor_and_index():
    matrix, low, high = box(2, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"TruncatedNormals\.diagonal"):
        TruncatedNormals(torch.zeros(3, 2), torch.ones(3, 2), matrix, low, high)
    normals = TruncatedNormals.diagonal(torch.zeros(3, 2), torch.ones(3, 2), matrix, low, high)
    assert normals.sample(torch.zeros(0, dtype=torch.long)).shape == (0, 2)
    for index in (torch.zeros(2), torch.zeros(2, 2).long(), 0):
        with pytest.raises(ValueError, match="integers of shape"):
            normals.sample(index)
    with pytest.raises(ValueError, match="from 0 to 2"):
        normals.sample(torch.tensor([0, 3]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["five of twenty", "box and rows, full", "any polytope"])
def test_standard_errors_are_honest(name):
    """Over many runs, estimates scatter around their mean as their errors say."""
    _, args, options = make_case(name, num=1)
    runs = [build(*args, **options) for _ in range(40)]
    estimates = torch.stack([r.log_normalizer.exp() for r in runs]).squeeze(-1)
    errors = torch.stack([r.log_normalizer_error for r in runs]).squeeze(-1) * estimates
    ratio = estimates.std() / errors.square().mean().sqrt()
    # A sample deviation of 40 is off by a tenth, and errors come from twenty groups.
    assert 0.5 < ratio < 1.5
    _, expected, error = naive(args[0][0], covariance_factor(args[1])[0], *args[2:], wanted=40_000)
    expected = math.exp(expected)
    error = math.hypot(error * expected, float(estimates.std() / math.sqrt(len(runs))))
    assert abs(estimates.mean() - expected) < STANDARD_ERRORS * error


@pytest.mark.slow
def test_markov_chain_agrees_with_exact_draws_in_thirty_dimensions():
    dim = 30
    constraints = stack(box(dim, -1.0, 1.0), oblique(dim, 3, 3.0))
    args = (torch.zeros(dim), torch.ones(dim), *constraints)
    exact = TruncatedNormals.diagonal(*args, min_acceptance=0.0)
    chain = TruncatedNormals.diagonal(*args, min_acceptance=1.0)
    assert exact.route != chain.route == ("hamiltonian",)
    error = math.hypot(exact.log_normalizer_error.item(), chain.log_normalizer_error.item())
    distance = (exact.log_normalizer - chain.log_normalizer).abs().item()
    assert distance < STANDARD_ERRORS * error
    index = torch.zeros(2000, dtype=torch.long)
    assert_same_law(chain.sample(index), exact.sample(index))
