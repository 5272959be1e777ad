"""The relaxed law by quadrature over the choice of a component, in float64.

It knows nothing but the definition: c_k is proportional to exp((l_k + g_k) / t) with Gumbel noise
g, and z given c is normal. Of two components the log-odds u = log(c_1 / c_2) are logistic; of
three the density of both log-odds follows from that of c. Either way the law becomes a finite,
fine mixture of normals, from which everything else is a sum.
"""

import itertools
import math

import numpy as np
import torch
from torch.distributions import Normal
from torch.nn.functional import softplus

from pyromix import RelaxedMixtureOfNormals

LOGITS = torch.tensor([0.3, -0.5], dtype=torch.float64)
LOC = torch.tensor([[-1.5], [1.0]], dtype=torch.float64)
SCALE = torch.tensor([[0.4], [0.8]], dtype=torch.float64)


def build(temperature=0.5, logits=LOGITS, loc=LOC, scale=SCALE, **options):
    return RelaxedMixtureOfNormals(temperature, logits, loc, scale, **options)


def far_apart(temperature, **options):
    """Two components of scale 0.3 at -2 and 2."""
    loc = torch.tensor([[-2.0], [2.0]])
    return build(temperature, torch.zeros(2), loc, torch.full((2, 1), 0.3), **options)


def parameters(law):
    """Temperature, logits, means and scales of a law without batch."""
    return law.temperature, law.logits, law.loc, law.scale


def panels(low, high, count, order=16):
    """Nodes and weights of the rule of Gauss and Legendre on equal panels."""
    x, weight = (torch.as_tensor(t) for t in np.polynomial.legendre.leggauss(order))
    edges = torch.linspace(low, high, count + 1)
    half = edges.diff().unsqueeze(-1) / 2
    return (edges[:-1].unsqueeze(-1) + half * (1 + x)).flatten(), (half * weight).flatten()


def integrate(function, low, high, count=400):
    """The integral of a function of points (n, 1)."""
    x, weight = panels(low, high, count)
    return (weight * function(x.unsqueeze(-1))).sum()


def choices_of_two(temperature, logits, far=40.0):
    """Weights (n,) and choices (n, 2), so that E f(c) is the sum of the weights times f."""
    u, step = panels(-far, far, 200)
    location = logits[0] - logits[1]
    odds = temperature * u - location
    density = temperature * torch.exp(-softplus(odds) - softplus(-odds))
    # Beyond, a choice is one component's to rounding.
    tails = torch.stack([location, -location]) - far * temperature
    choice = torch.stack([torch.sigmoid(u), torch.sigmoid(-u)], -1)
    return torch.cat([step * density, tails.sigmoid()]), torch.cat([choice, torch.eye(2)])


def choices_of_three(temperature, logits, far=40.0, step=0.2):
    """The same by the trapezoidal rule on a plane, whose error falls exponentially in the step."""
    line = torch.arange(-far, far + step / 2, step)
    u = torch.cartesian_prod(line, line)
    log_c = torch.cat([u, torch.zeros(len(u), 1)], -1).log_softmax(-1)
    log_w = logits.log_softmax(-1)
    # The density of c times dc / du = c_1 c_2 c_3.
    log_density = math.log(2) + 2 * torch.log(temperature) + log_w.sum()
    log_density = log_density - temperature * log_c.sum(-1)
    log_density = log_density - 3 * (log_w - temperature * log_c).logsumexp(-1)
    weight = step**2 * log_density.exp()
    kept = weight > 1e-16
    return weight[kept], log_c[kept].exp()


def choices(temperature, logits):
    return (choices_of_two if len(logits) == 2 else choices_of_three)(temperature, logits)


def normals(temperature, logits, loc, scale):
    """Weights (n,), means (n, D) and deviations (n, D) of the normals that make up the law."""
    weight, c = choices(torch.as_tensor(temperature, dtype=loc.dtype), logits)
    return weight, c @ loc, c @ scale


def densities(z, mean, deviation):
    """Densities of points (n, D) under every normal, shape (n, nodes)."""
    law = Normal(mean, deviation, validate_args=False)
    return torch.stack([law.log_prob(x).sum(-1).exp() for x in z])


def exact_log_prob(z, temperature=0.5, logits=LOGITS, loc=LOC, scale=SCALE):
    """Log-density of points (n, D)."""
    weight, *parts = normals(temperature, logits, loc, scale)
    return (densities(z, *parts) @ weight).log()


def relative_variance(z, *law):
    """Of the density of z given c, by its mean's square: that of an estimate by one random c."""
    weight, *parts = normals(*law)
    p = densities(z, *parts)
    return p.square() @ weight / (p @ weight).square() - 1


def stratified_error(z, num_inner, temperature=0.5, logits=LOGITS, loc=LOC, scale=SCALE):
    """Standard error of the log-density by random c, as many for each component as the largest.

    Scrambled nets have at most a small multiple of it, and mostly far less.
    """
    temperature = torch.as_tensor(temperature, dtype=loc.dtype)
    weight, c = choices(temperature, logits)
    p = densities(z, c @ loc, c @ scale)
    variance, k = torch.zeros(len(z)), len(logits)
    for i in range(k):
        own = torch.where(c.argmax(-1) == i, weight, 0.0)
        variance += (p.square() @ own) * own.sum() - (p @ own).square()
    return (k / num_inner * variance.clamp(min=0)).sqrt() / (p @ weight)


def exact_entropy(law, low=-7.0, high=7.0):
    """Entropy of a law of numbers."""

    def integrand(z):
        log_prob = exact_log_prob(z, *parameters(law))
        return -log_prob.exp() * log_prob

    return integrate(integrand, low, high, 30)


def exact_mean(frequency, *law):
    """E sin(frequency . z), in closed form given c."""
    weight, mean, deviation = normals(*law)
    damped = torch.exp(-0.5 * (frequency * deviation).square().sum(-1))
    return (weight * damped * torch.sin((frequency * mean).sum(-1))).sum()


def finite_differences(function, inputs, step=1e-5):
    """Derivatives of a function in every entry of its inputs, one tensor each."""
    results = []
    for i, given in enumerate(inputs):
        gradient = torch.zeros_like(given)
        for index in itertools.product(*map(range, given.shape)):
            change = torch.zeros_like(given)
            change[index] = step
            high, low = (
                function(*inputs[:i], given + sign * change, *inputs[i + 1 :]) for sign in (1, -1)
            )
            gradient[index] = (high - low) / (2 * step)
        results.append(gradient)
    return results


def agrees(values, expected, errors=5.0):
    """Whether the mean over the first dimension is the expected one, by its standard error."""
    error = values.std(0) / math.sqrt(len(values))
    return bool(((values.mean(0) - expected).abs() < errors * error + 1e-12).all())
