"""Training: on every form of a batch, against processes whose likelihood is known, and files."""

import copy
import math

import pyro.distributions.transforms as transforms
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyromix import FRMDN, Flow, fit, load, save

from .models import build, close, inputs, kinds, law_of, values

STANDARD_ERRORS = 6.0


def train(model, data, **options):
    options = {
        "steps": 5,
        "batch_size": 10,
        "lr": 0.02,
        "seed": 0,
        "progress_bar": False,
    } | options
    return fit(model, data, **options)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def ragged_data(num=40):
    """Numbers that follow their context, of several lengths, padded with NaN."""
    context, static = torch.randn(num, 5, 1), torch.randn(num, 1)
    y = context + static.unsqueeze(1) + 0.1 * torch.randn(num, 5, 1)
    lengths = torch.arange(num) % 5 + 1
    padding = (torch.arange(5) >= lengths.unsqueeze(-1)).unsqueeze(-1)
    y, context = torch.where(padding, math.nan, y), torch.where(padding, math.nan, context)
    return {"value": y, "context": context, "static": static, "lengths": lengths}


# ---- batches ----------------------------------------------------------------------------------


def test_forms_of_a_batch():
    torch.manual_seed(0)
    y, context = torch.randn(6, 3, 2), torch.randn(6, 3, 1)
    plain = build(dim=2, length=3)
    expected = -plain.log_prob(y).mean()
    for batch in (y, (y,), {"value": y}):
        close(plain.loss(batch), expected)
    lengths = torch.tensor([1, 2, 3, 3, 2, 1])
    expected = -plain.condition(lengths=lengths).log_prob(y).mean()
    close(plain.loss({"value": y, "lengths": lengths}), expected)
    driven = build(dim=2, length=3, context_dim=1)
    expected = -driven.condition(context).log_prob(y).mean()
    for batch in ((y, context), [y, context], {"value": y, "context": context}):
        close(driven.loss(batch), expected)
    labelled = build(dim=2, length=3, static_dim=2)
    static = torch.randn(6, 2)
    expected = -labelled.condition(static).log_prob(y).mean()
    for batch in ((y, static), {"value": y, "static": static}):
        close(labelled.loss(batch), expected)


def test_ragged_batches_with_all_inputs():
    data = ragged_data()
    torch.manual_seed(0)
    model = FRMDN(1, 5, 2, hidden_dim=8, context_dim=1, static_dim=1, encoder="bidirectional")
    part = {name: tensor[:10] for name, tensor in data.items()}
    history = train(model, data, steps=60, validation=part, patience=50, gradient_clip=1.0)
    assert model.initialized
    assert len(history.losses) == 60
    assert all(math.isfinite(loss) for loss in history.losses)
    mean = sum(history.losses[-10:]) / 10
    assert mean < history.losses[0] - 1.0
    best = model.loss(part).item()
    assert math.isclose(best, min(history.validation_losses), rel_tol=1e-9)


def test_a_frozen_head_keeps_its_parameters():
    model = FRMDN(1, 5, 2, hidden_dim=4)
    before = copy.deepcopy(model.head)
    model.head.requires_grad_(False)
    train(model, 5 + 3 * torch.randn(20, 5, 1))
    assert same(model.head, before)
    close(model.standardize.loc, torch.tensor([5.0]), 1.0)


def test_initialisation_is_a_fair_start():
    """Better than a single normal for all steps, though nothing was learnt yet."""
    torch.manual_seed(0)
    clusters = torch.tensor([[-50.0, 0.0], [0.0, 1e-3], [50.0, 1e-3]])
    y = clusters[torch.randint(3, (200, 4))] + torch.tensor([1.0, 1e-4]) * torch.randn(200, 4, 2)
    for options in ({}, {"rank": 1}, {"positivity": "exp", "rank": 2, "factor": "shared"}):
        model = FRMDN(2, 4, 3, hidden_dim=8, **options)
        model.initialize(y)
        flat = y.flatten(0, 1)
        floor = -Normal(flat.mean(0), flat.std(0)).log_prob(flat).sum(-1).mean()
        assert -model.log_prob(y).mean() / 4 < floor - 1.0


# ---- validation on the last steps --------------------------------------------------------------


def test_a_split_in_time_divides_the_density():
    """Of whole sequences into that of the first steps, and that of the others given these."""
    data = ragged_data(10)
    model = build(dim=1, length=5, context_dim=1, static_dim=1)
    whole = model.loss(data)
    lengths = data["lengths"]  # 1 to 5, twice
    for start, steps in (
        (3, [1, 2, 3, 3, 3]),
        (0.75, [1, 1, 2, 3, 4]),
        (0.1, [1, 1, 1, 1, 1]),
        (0.99, [1, 1, 2, 3, 4]),
    ):
        before, after = model.split_in_time(data, start)
        assert before["lengths"].tolist() == after["scored_from"].tolist() == 2 * steps
        assert torch.equal(after["lengths"], lengths)
        close(model.loss(before) + model.loss(after), whole)
    # A split where nothing is held out of some sequences; these have no share in the loss.
    score = model.condition(data["context"], static=data["static"], lengths=lengths)
    per_step = score.log_prob_per_step(data["value"].nan_to_num())
    _, after = model.split_in_time(data, 3)
    close(model.loss(after), -per_step[:, 3:].sum() / 10)


def test_validation_from_a_step_on():
    """Training does not see the steps that are held out, and they are scored given all before."""
    torch.manual_seed(0)
    y, static = torch.randn(12, 10, 1).cumsum(1), torch.eye(12)
    changed = torch.cat([y[:, :8], 1e6 + y[:, 8:]], 1)

    def trained(y, **options):
        torch.manual_seed(1)
        model = FRMDN(1, 10, 2, hidden_dim=4, static_dim=12)
        data = {"value": y, "static": static}
        return model, data, train(model, data, steps=6, validation_every=6, **options)

    model, data, history = trained(y, validation_from=0.8)
    other, _, _ = trained(changed, validation_from=8)
    assert same(model, other)
    close(other.standardize.scale, model.standardize.scale)
    held_out = model.split_in_time(data, 8)[1]
    assert math.isclose(history.validation_losses[-1], model.loss(held_out).item(), rel_tol=1e-9)
    # The same as splitting first.
    torch.manual_seed(1)
    third = FRMDN(1, 10, 2, hidden_dim=4, static_dim=12)
    before, after = third.split_in_time(data, 8)
    assert train(third, before, steps=6, validation=after).losses == history.losses
    assert same(third, model)


def test_validation_on_whole_sequences_with_labels_of_their_own_warns():
    data = {"value": torch.randn(12, 10, 1), "static": torch.eye(12)}
    model = FRMDN(1, 10, 2, hidden_dim=4, static_dim=12)
    with pytest.warns(UserWarning, match="2 of 2 held-out items have labels.*validation_from=0.8"):
        train(model, data, validation=0.2)


# ---- processes whose likelihood is known ------------------------------------------------------


def test_an_autoregression_is_learnt():
    """Of first order: the exact likelihood is that of normals."""
    torch.manual_seed(0)
    coefficient, deviation, num, length = 0.8, 0.5, 1500, 8

    def series(num):
        y = [deviation / math.sqrt(1 - coefficient**2) * torch.randn(num)]
        for _ in range(length - 1):
            y.append(coefficient * y[-1] + deviation * torch.randn(num))
        return torch.stack(y, -1)

    def exact(y):
        start = Normal(0.0, deviation / math.sqrt(1 - coefficient**2)).log_prob(y[:, 0])
        return start + Normal(coefficient * y[:, :-1], deviation).log_prob(y[:, 1:]).sum(-1)

    model = FRMDN(1, length, 1, hidden_dim=12)
    train(model, 7 + series(num).unsqueeze(-1), steps=300, batch_size=200)
    test = series(2000)
    gap = (exact(test) - model.log_prob(7 + test.unsqueeze(-1))) / length
    assert gap.mean() < 0.05
    # Nothing beats the process itself, but for the error of the test set.
    assert gap.mean() > -STANDARD_ERRORS * gap.std() / math.sqrt(len(gap))
    # Draws have the autocorrelation, with its sampling error and that of the model.
    drawn = model.sample((2000,)).squeeze(-1)
    pairs = torch.stack([drawn[:, 4:-1].flatten(), drawn[:, 5:].flatten()])
    assert abs(torch.corrcoef(pairs)[0, 1] - coefficient) < 0.1


def test_a_walk_with_two_directions_needs_two_components():
    torch.manual_seed(0)
    noise, num, length = 0.2, 1500, 5
    choices = Categorical(torch.ones(2))
    step = MixtureSameFamily(choices, Normal(torch.tensor([-1.0, 1.0]), noise))
    walks = step.sample((num + 1000, length)).cumsum(1)
    train_set, test_set = walks[:num].unsqueeze(-1), walks[num:].unsqueeze(-1)
    moves = torch.cat([walks[num:, :1], walks[num:].diff(dim=1)], 1)
    exact = step.log_prob(moves).sum(-1)
    # The best normal has the mean and the variance of a move.
    normal = Normal(0.0, math.sqrt(1 + noise**2)).log_prob(moves).sum(-1)
    margin = float((exact - normal).mean()) / length
    assert margin > 0.8
    nats = {}
    for k in (1, 2):
        torch.manual_seed(1)
        model = FRMDN(1, length, k, hidden_dim=8)
        train(model, train_set, steps=300, batch_size=200)
        nats[k] = model.log_prob(test_set).detach() / length
    error = (nats[1] - normal / length).std() / math.sqrt(1000)
    assert nats[1].mean() < float(normal.mean()) / length + STANDARD_ERRORS * error
    assert (nats[2] - nats[1]).mean() > 0.7 * margin
    error = (nats[2] - exact / length).std() / math.sqrt(1000)
    assert nats[2].mean() < float(exact.mean()) / length + STANDARD_ERRORS * error


def test_a_context_is_used_as_soon_as_it_is_known():
    """A causal model cannot use the context of the next step; one that reads all of it can."""
    torch.manual_seed(0)
    context = torch.randn(400, 4, 1)
    shifted = torch.cat([context[:, 1:], torch.zeros(400, 1, 1)], 1)
    y = shifted + 0.1 * torch.randn(400, 4, 1)
    nats = {}
    for encoder in ("causal", "bidirectional"):
        model = FRMDN(1, 4, 1, hidden_dim=12, context_dim=1, encoder=encoder)
        train(model, (y, context), steps=120, batch_size=100)
        nats[encoder] = model.condition(context).log_prob(y).mean().item()
    # Three steps with a deviation of 1, or of 0.1.
    assert nats["bidirectional"] > nats["causal"] + 0.5 * 3 * math.log(10)


# ---- reproducibility and files ----------------------------------------------------------------


def test_seeds():
    data = {name: tensor for name, tensor in ragged_data().items() if name != "static"}
    start = FRMDN(1, 5, 2, hidden_dim=4, context_dim=1)
    models = [copy.deepcopy(start) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train(model, data, seed=seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_resuming_gives_the_same_numbers(tmp_path):
    data = ragged_data()
    start = FRMDN(1, 5, 2, hidden_dim=4, context_dim=1, static_dim=1, cell="gru")
    straight, broken = copy.deepcopy(start), copy.deepcopy(start)
    expected = train(straight, data, steps=12)
    path = tmp_path / "training.safetensors"
    train(broken, data, steps=7, checkpoint=path)
    fresh = copy.deepcopy(start)
    history = train(fresh, data, steps=12, checkpoint=path)
    assert history.losses == expected.losses
    assert same(fresh, straight)
    assert torch.equal(fresh.standardize.loc, straight.standardize.loc)


@kinds()
def test_files(options, tmp_path):
    model = build(**options)
    path = tmp_path / "model.safetensors"
    save(model, path)
    other = load(path)
    assert repr(other) == repr(model)
    y, given = values(model, 3), inputs(model, 3)
    close(law_of(other, given).log_prob(y), law_of(model, given).log_prob(y))
    state = other.state_dict()
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    torch.manual_seed(3)
    drawn = law_of(other, given).sample()
    torch.manual_seed(3)
    close(drawn, law_of(model, given).sample())


def test_a_flow_on_sequences():
    """A conditional base, trained through the flow, in its own units."""
    torch.manual_seed(0)
    labels = torch.nn.functional.one_hot(torch.arange(40) % 2, 2).to(torch.get_default_dtype())
    pixels = 60 + 120 * labels[:, :1, None] + 10 * torch.rand(40, 3, 2)
    squash = [transforms.SigmoidTransform(), transforms.AffineTransform(0.0, 256.0)]
    model = Flow(FRMDN(2, 3, 2, static_dim=2, hidden_dim=8), squash)
    assert model.conditional
    assert model.event_shape == (3, 2)
    train(model, (pixels, labels), steps=60, batch_size=20)
    x = model.condition(labels).sample((5,))
    assert ((x > 0) & (x < 256)).all()
    bright = x[:, labels[:, 0] == 1].mean()
    assert bright > x[:, labels[:, 0] == 0].mean() + 60
    z = (pixels / 256).logit()
    slope = 256 * z.sigmoid() * (-z).sigmoid()
    expected = model.base.condition(labels).log_prob(z) - slope.log().sum((-1, -2))
    close(model.condition(labels).log_prob(pixels), expected)


def test_a_transform_that_occurs_twice_is_one_when_loaded(tmp_path):
    coupling = transforms.affine_coupling(2, [4])
    model = FRMDN(2, 3, 2, hidden_dim=4, transforms=[coupling, coupling])
    path = tmp_path / "model.safetensors"
    save(model, path)
    other = load(path)
    assert other.transforms[0] is other.transforms[1]
    y = model.sample((3,))
    torch.testing.assert_close(other.log_prob(y), model.log_prob(y))
