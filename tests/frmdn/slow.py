"""A recurrent mixture density network, one sequence and one step at a time: slow and obvious."""

import torch
from torch.distributions import MultivariateNormal

from pyromix import FRMDN
from pyromix.flows.branching import BranchingTransform

MAX_COLUMN = 100.0


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def lstm_step(weights, x, h, c):
    from_input, from_hidden, input_bias, hidden_bias = weights
    gates = from_input @ x + input_bias + from_hidden @ h + hidden_bias
    enter, forget, proposal, leave = gates.chunk(4)
    c = sigmoid(forget) * c + sigmoid(enter) * torch.tanh(proposal)
    return sigmoid(leave) * torch.tanh(c), c


def gru_step(weights, x, h, c):
    from_input, from_hidden, input_bias, hidden_bias = weights
    a, b = (from_input @ x + input_bias).chunk(3), (from_hidden @ h + hidden_bias).chunk(3)
    reset, update = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
    return (1 - update) * torch.tanh(a[2] + reset * b[2]) + update * h, c


def run(rnn, inputs):
    """The outputs of a recurrent network for a list of inputs; both directions side by side."""
    step = lstm_step if isinstance(rnn, torch.nn.LSTM) else gru_step
    zeros = torch.zeros(rnn.hidden_size)
    for layer in range(rnn.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 1 + rnn.bidirectional]:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [getattr(rnn, f"{name}_l{layer}{suffix}") for name in names]
            h = c = zeros
            one_way = []
            for x in reversed(inputs) if suffix else inputs:
                h, c = step(weights, x, h, c)
                one_way.append(h)
            outputs.append(one_way[::-1] if suffix else one_way)
        inputs = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return inputs


def standard(units, value):
    return (value - units.loc) / units.scale


def states(model, y, context=None, static=None):
    """The state before every value of a sequence y (n, D), given those before it."""
    inputs = [[model.start], *([standard(model.standardize, v)] for v in y[:-1])]
    if context is not None:
        features = [standard(model.inputs.standardize_context, c) for c in context[: len(y)]]
        if model.encoder == "bidirectional":
            features = run(model.inputs.encoder.rnn, features)
        for part, feature in zip(inputs, features, strict=True):
            part.append(feature)
    if static is not None:
        for part in inputs:
            part.append(standard(model.inputs.standardize_static, static))
    return run(model.recurrence.rnn, [torch.cat(part) for part in inputs])


def positive(model, raw):
    return torch.exp(raw) if model.positivity == "exp" else torch.log1p(torch.exp(raw))


def mixture(model, state):
    """Log-weights and normals of z given a state: the documented law of the head's numbers."""
    k, dim, rank = model.num_components, model.dim, model.rank
    numbers = model.head.network(state).split(1)
    numbers = [n.squeeze() for n in numbers]

    def take(count):
        taken = torch.stack(numbers[:count])
        del numbers[:count]
        return taken

    weight = torch.exp(take(k))
    loc = take(k * dim).reshape(k, dim)
    deviation = model.scale_floor + positive(model, take(k * dim)).reshape(k, dim)
    precision = [torch.diag(1 / d**2) for d in deviation]
    bound = MAX_COLUMN / dim**0.5
    for r in range(rank):
        for i in range(k):
            shared = model.factor == "shared"
            raw = model.head.raw_factor[r, i] if shared else take(dim)
            column = bound * torch.tanh(raw / bound)
            column = column if shared else column / deviation[i]
            precision[i] = precision[i] + torch.outer(column, column)
    assert not numbers
    laws = [MultivariateNormal(m, precision_matrix=p) for m, p in zip(loc, precision, strict=True)]
    return torch.log(weight / weight.sum()), laws


def parts_of_flow(model, state):
    return [t.condition(state) if hasattr(t, "condition") else t for t in model.transforms]


def pull_back(model, state, y):
    """z, and log |det dz/dy| of a forward map z -> y by autodiff."""
    parts = parts_of_flow(model, state)
    z, log_det = standard(model.standardize, y), -torch.log(model.standardize.scale).sum()
    for part in reversed(parts):
        if isinstance(part, BranchingTransform):
            # No map z -> y has a Jacobian: the fold y -> z does, and its branches probabilities.
            before = z
            z, _ = part.encode(before)
            jacobian = torch.autograd.functional.jacobian(lambda v, p=part: p.encode(v)[0], before)
            log_det = log_det + torch.linalg.slogdet(jacobian).logabsdet
            log_det = log_det + part.log_branch_prob(z, before).sum()
        else:
            z = part.inv(z).detach()
            jacobian = torch.autograd.functional.jacobian(part, z)
            log_det = log_det - torch.linalg.slogdet(jacobian).logabsdet
    return z, log_det


@torch.no_grad()
def log_prob_per_step(model: FRMDN, y, context=None, static=None):
    """log p(y_t | y_<t, x, s) of one sequence y (n, D), with x (>= n, C) and s (S)."""
    result = []
    for value, state in zip(y, states(model, y, context, static), strict=True):
        log_weight, laws = mixture(model, state)
        z, log_det = pull_back(model, state, value)
        scores = [w + law.log_prob(z) for w, law in zip(log_weight, laws, strict=True)]
        result.append(torch.logsumexp(torch.stack(scores), 0) + log_det)
    return torch.stack(result)
