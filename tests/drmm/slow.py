"""Deep residual mixtures written out, code by code: slow and obvious."""

import itertools
import math

import torch
from torch.distributions import MultivariateNormal, Normal

from pyromix.drmm import DRMM


def random_model(*args, **options):
    """A model whose parameters all matter."""
    model = DRMM(*args, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        if model.affine:
            for parameter in model.layers.parameters():
                parameter.mul_(0.6)
            model.units.loc.normal_()
            model.units.scale.uniform_(0.5, 2.0)
        else:
            model.raw_scale.sub_(1.0)
    return model


def matrices_of(layer, floor):
    """The matrices A (K, D, D) of a layer's components, written out."""
    k, d = layer.num_components, layer.dim
    scale = (floor + layer.raw_scale.detach().exp()).sqrt().expand(k, d)
    result = []
    for own in range(k):
        matrix = torch.eye(d)
        if layer.kind == "triangular":
            below = iter(layer.raw_lower[own].tolist())
            for i in range(d):
                for j in range(i):
                    matrix[i, j] = -next(below)
            matrix = torch.diag(1 / scale[own]) @ matrix
        elif layer.kind == "low_rank":
            matrix = matrix + layer.raw_factor[own].detach() @ layer.raw_factor[own].detach().mT
            matrix = torch.linalg.inv(matrix) @ torch.diag(1 / scale[own])
        else:
            matrix = torch.diag(1 / scale[own])
        result.append(matrix)
    return torch.stack(result)


def standard_deviation(model, raw):
    return (raw.detach().exp() + model.scale_floor**2).sqrt()


class Slow:
    """Everything that a model's law says, by loops over all of its codes."""

    def __init__(self, model):
        self.dim, self.num_layers, self.k = model.dim, model.num_layers, model.num_components
        self.truncation = model.truncation
        self.log_weight = model.log_weight.detach()
        self.loc = model.loc.detach()
        if model.affine:
            self.units = model.units.loc, model.units.scale
            self.matrices, floor = [], torch.full((self.dim,), model.scale_floor**2)
            for layer in model.layers:
                self.matrices.append(matrices_of(layer, floor))
                floor = floor / (floor + layer.raw_scale.detach().exp()).amin(0)
        else:
            self.matrices = None
            self.scale = standard_deviation(model, model.raw_scale).expand(self.k, self.dim)
            inner = standard_deviation(model, model.raw_inner_scale)
            self.inner_scale = inner.expand(self.num_layers - 1, self.dim)
        self.tables = [table.detach() for table in model.column_logits]
        # links[l, c][k, j] = log Pr(h_c = j | h_l = k)
        self.links = {}
        pairs = [(layer, c) for layer in range(self.num_layers) for c in range(layer)]
        for pair, logits in zip(pairs, model.link_logits.detach(), strict=True):
            probs = logits.softmax(0).mT
            self.links[pair] = probs.clamp(min=model.smoothing / self.k).log()
        self.codes = list(itertools.product(range(self.k), repeat=self.num_layers))

    def log_conditional(self, before):
        """Log p(h_l = k | h_<l) for every k."""
        layer = len(before)
        scores = []
        for k in range(self.k):
            score = self.log_weight[layer, k]
            for c, j in enumerate(before):
                score = score + self.links[layer, c][k, j]
            scores.append(score)
        probs = torch.stack(scores).softmax(-1)
        probs = torch.where(probs < self.truncation * probs.max(), 0.0, probs)
        return (probs / probs.sum()).log()

    def log_prior(self, code):
        return sum(self.log_conditional(code[:layer])[k] for layer, k in enumerate(code))

    def mean(self, code):
        return self.normal(code)[0]

    def normal(self, code):
        """Mean and covariance matrix of the real columns, given a code."""
        if self.matrices is None:
            mean = sum(self.loc[layer, k] for layer, k in enumerate(code))
            return mean, torch.diag(self.scale[code[-1]].square())
        # What is left is B x + b.
        origin, unit = self.units
        factor = torch.diag(1 / unit)
        shift = -factor @ origin
        for layer, k in enumerate(code):
            matrix = self.matrices[layer][k]
            shift = matrix @ (shift - self.loc[layer, k])
            factor = matrix @ factor
        inverse = torch.linalg.inv(factor)
        return -inverse @ shift, inverse @ inverse.mT

    def column_log_probs(self, code):
        return [
            sum(table[layer, k] for layer, k in enumerate(code)).log_softmax(-1)
            for table in self.tables
        ]

    def joint(self, x, code):
        """Log p(h, x) for one point; NaN is missing."""
        total = self.log_prior(code)
        mean, covariance = self.normal(code)
        known = [d for d in range(self.dim) if not x[d].isnan()]
        if known:
            normal = MultivariateNormal(mean[known], covariance[known][:, known])
            total = total + normal.log_prob(x[: self.dim][known])
        for j, log_probs in enumerate(self.column_log_probs(code)):
            value = x[self.dim + j]
            if not value.isnan():
                total = total + log_probs[int(value)]
        return total

    def log_prob(self, x):
        """Log p(x) of points (N, D + columns)."""
        points = [torch.stack([self.joint(point, code) for code in self.codes]) for point in x]
        return torch.stack(points).logsumexp(-1)

    def best_code(self, x):
        """The likeliest code of every point (N, D + columns)."""
        return torch.tensor([max(self.codes, key=lambda code: self.joint(p, code)) for p in x])

    def cell_probability(self, low, high, columns):
        """Probability that the first real column is in an interval, and of categories."""
        total = 0.0
        for code in self.codes:
            mean, covariance = self.normal(code)
            normal = Normal(mean[0], covariance[0, 0].sqrt())
            probability = self.log_prior(code).exp() * (
                normal.cdf(torch.tensor(high)) - normal.cdf(torch.tensor(low))
            )
            for value, log_probs in zip(columns, self.column_log_probs(code), strict=True):
                probability = probability * log_probs[value].exp()
            total += probability.item()
        return total


def with_gaps(x):
    """Points with every pattern of missing entries: shape (N 2^D, D)."""
    patterns = torch.tensor(list(itertools.product([0.0, math.nan], repeat=x.shape[-1])))
    return (x.unsqueeze(1) + patterns).flatten(0, 1)
