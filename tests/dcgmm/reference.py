"""Convolutional mixtures written out, code by code: slow and obvious.

Everything is built from the descriptions of the layers and the parameters alone, by loops over
windows, cells and codes. An image, or what stands in its place higher up, is a nested list
``[row][column][channel]``; the codes of a layer are a tuple, row by row.
"""

import itertools
import math

import torch

from pyromix.dcgmm import GMM, Folding, Pooling

SMALLEST = 1e-6  # of a number of a control signal


# ---- windows ----------------------------------------------------------------------------------


def size_of(image):
    return len(image), len(image[0])


def corners(size, layer):
    """The windows that fit: their places, and their top left corners."""
    (height, width), (h, w), (down, right) = size, layer.size, layer.step
    rows = range(0, height - h + 1, down)
    columns = range(0, width - w + 1, right)
    return [[(top, left) for left in columns] for top in rows]


def fold(image, layer):
    """What each window sees, in the order row, column, channel."""
    h, w = layer.size
    return [
        [
            [value for i in range(h) for j in range(w) for value in image[top + i][left + j]]
            for top, left in row
        ]
        for row in corners(size_of(image), layer)
    ]


def unfold(folded, layer, size):
    """Every place takes the mean of what the windows that hold it say about it."""
    h, w = layer.size
    channels = len(folded[0][0]) // (h * w)
    said = {place: [] for place in itertools.product(range(size[0]), range(size[1]))}
    for u, row in enumerate(corners(size, layer)):
        for v, (top, left) in enumerate(row):
            for i, j in itertools.product(range(h), range(w)):
                start = (i * w + j) * channels
                cell = folded[u][v][start : start + channels]
                said[top + i, left + j].append(cell)
    return [[_mean(said[i, j]) for j in range(size[1])] for i in range(size[0])]


def pool(image, layer):
    """The largest value of each channel in each window."""
    h, w = layer.size
    return [
        [
            [
                max(image[top + i][left + j][c] for i in range(h) for j in range(w))
                for c in range(len(image[0][0]))
            ]
            for top, left in row
        ]
        for row in corners(size_of(image), layer)
    ]


def unpool(pooled, layer, size):
    """Every place takes the mean of the windows that hold it; of one, where they are disjoint."""
    h, w = layer.size
    said = {place: [] for place in itertools.product(range(size[0]), range(size[1]))}
    for u, row in enumerate(corners(size, layer)):
        for v, (top, left) in enumerate(row):
            for i, j in itertools.product(range(h), range(w)):
                said[top + i, left + j].append(pooled[u][v])
    return [[_mean(said[i, j]) for j in range(size[1])] for i in range(size[0])]


def _mean(vectors):
    assert vectors, "A place that no window holds."
    return [sum(values) / len(vectors) for values in zip(*vectors, strict=True)]


def as_lists(image):
    """A tensor (C, H, W) as nested lists [row][column][channel]."""
    return image.permute(1, 2, 0).tolist()


def as_tensor(image):
    """The way back: (C, H, W)."""
    return torch.tensor(image, dtype=torch.float64).permute(2, 0, 1)


# ---- the model --------------------------------------------------------------------------------


class Slow:
    """All that a model's law says, by loops over all of its codes."""

    def __init__(self, model, top_s=None, temperature=1.0):
        self.top_s, self.temperature = top_s, temperature
        self.channels, *size = model.event_shape
        self.mixtures = [
            {
                "loc": m.loc.detach().double().tolist(),
                "scale": m.scale.detach().double().tolist(),
                "log_weights": m.log_weights.detach().double().tolist(),
            }
            for m in model.mixtures
        ]
        scale = model.noise_scale
        self.noise_scale = None if scale is None else float(scale.detach())
        # Between one mixture and the next: windows, and the sizes before each.
        self.chains, self.sizes, chain = [], [], []
        size = tuple(size)
        for layer in model.layers:
            if isinstance(layer, Folding | Pooling):
                chain.append((layer, size))
                grid = corners(size, layer)
                size = len(grid), len(grid[0])
            elif isinstance(layer, GMM):
                self.chains.append(chain)
                self.sizes.append(size)
                chain = []
        self.num_layers = len(self.mixtures)
        self.components = [len(m["loc"]) for m in self.mixtures]
        self.decoded = {}

    # ---- down ----

    def down(self, image, layer):
        """Through the windows below a mixture, from its input to the output of the one below."""
        for window, size in reversed(self.chains[layer]):
            back = unfold if isinstance(window, Folding) else unpool
            image = back(image, window, size)
        return image

    def grid(self, layer, codes):
        """Codes by row and column."""
        height, width = self.sizes[layer]
        assert len(codes) == height * width
        return [codes[i * width : (i + 1) * width] for i in range(height)]

    def control(self, layer, codes):
        """Given all codes of a mixture, the law of each code of the one below."""
        below = self.components[layer - 1]
        signals = [self._slices(vector, below) for vector in self.mixtures[layer]["loc"]]
        rows = self.down([[signals[k] for k in row] for row in self.grid(layer, codes)], layer)
        return [self.restrict(place) for row in rows for place in row]

    def expected_control(self, layer, activities):
        """Expectation of `control` over codes with probabilities [row][column][code]."""
        below = self.components[layer - 1]
        signals = [self._slices(vector, below) for vector in self.mixtures[layer]["loc"]]

        def expected(probs):
            numbers = zip(*signals, strict=True)  # of all codes, one place after the other
            return [sum(p * v for p, v in zip(probs, part, strict=True)) for part in numbers]

        rows = [[expected(probs) for probs in row] for row in activities]
        return self.down(rows, layer)

    def restrict(self, probs):
        """Changes that `sample` may be asked for: a temperature, and the S largest alone."""
        probs = [value ** (1 / self.temperature) for value in probs]
        if self.top_s is not None:
            kept = sorted(range(len(probs)), key=probs.__getitem__)[-self.top_s :]
            probs = [value if k in kept else 0.0 for k, value in enumerate(probs)]
        return [value / sum(probs) for value in probs]

    @staticmethod
    def _slices(vector, length):
        """A centroid as distributions over the components below, one after the other."""
        result = []
        for start in range(0, len(vector), length):
            clipped = [max(value, SMALLEST) for value in vector[start : start + length]]
            result += [value / sum(clipped) for value in clipped]
        return result

    def decode(self, codes):
        """Mean and variance of the image, given all codes of the bottom: each (C, H, W)."""
        if codes not in self.decoded:
            rows = self.grid(0, codes)
            loc, scale = self.mixtures[0]["loc"], self.mixtures[0]["scale"]
            mean = as_tensor(self.down([[loc[k] for k in row] for row in rows], 0))
            if self.noise_scale is None:
                squares = [[value**2 for value in vector] for vector in scale]
                variance = as_tensor(self.down([[squares[k] for k in row] for row in rows], 0))
            else:
                variance = torch.full_like(mean, self.noise_scale**2)
            self.decoded[codes] = mean, variance
        return self.decoded[codes]

    def all_codes(self, layer):
        height, width = self.sizes[layer]
        return list(itertools.product(range(self.components[layer]), repeat=height * width))

    def top_weights(self, probs=None):
        """Probability of all codes of the top: by the weights, or by others of one position."""
        if probs is None:
            logits = self.mixtures[-1]["log_weights"]
            total = sum(math.exp(value) for value in logits)
            probs = [math.exp(value) / total for value in logits]
        return {c: math.prod(probs[k] for k in c) for c in self.all_codes(self.num_layers - 1)}

    def below(self, layer, weights):
        """Probability of all codes of the mixture below, from those of a layer."""
        result = dict.fromkeys(self.all_codes(layer - 1), 0.0)
        for codes, weight in weights.items():
            laws = self.control(layer, codes)
            for lower in result:
                result[lower] += weight * math.prod(
                    law[k] for law, k in zip(laws, lower, strict=True)
                )
        return result

    def bottom_weights(self, weights=None):
        """Probability of all codes of the bottom: by default those of the law."""
        weights = self.top_weights() if weights is None else weights
        for layer in range(self.num_layers - 1, 0, -1):
            weights = self.below(layer, weights)
        return weights

    def law(self, weights=None):
        """The finite mixture of normals that the law is."""
        return Finite(self, self.bottom_weights(weights))

    def log_prob(self, x):
        return self.law().log_prob(x)

    def joint(self, image, codes):
        """Log-density of an image and all of its codes, from the bottom; image (C, H, W)."""
        total = math.log(self.top_weights()[codes[-1]])
        for layer in range(1, self.num_layers):
            laws = self.control(layer, codes[layer])
            total += sum(math.log(law[k]) for law, k in zip(laws, codes[layer - 1], strict=True))
        mean, variance = self.decode(codes[0])
        return total + torch.distributions.Normal(mean, variance.sqrt()).log_prob(image).sum()

    # ---- up ----

    def scores(self, layer, vector):
        """Log of weight times density of every component."""
        m = self.mixtures[layer]
        result = []
        for log_weight, loc, scale in zip(m["log_weights"], m["loc"], m["scale"], strict=True):
            total = log_weight
            for value, mean, deviation in zip(vector, loc, scale, strict=True):
                total -= 0.5 * ((value - mean) / deviation) ** 2
                total -= math.log(deviation) + 0.5 * math.log(2 * math.pi)
            result.append(total)
        return result

    def up(self, image):
        """Log-likelihoods and responsibilities of every layer, each [row][column]."""
        likelihoods, activities = [], []
        for scores in self.all_scores(image):
            likelihoods.append([[_logsumexp(s) for s in row] for row in scores])
            activities.append([[_softmax(s) for s in row] for row in scores])
        return likelihoods, activities

    def all_scores(self, image):
        """Scores of every layer, each [row][column][code]."""
        signal, result = as_lists(image), []
        for layer, chain in enumerate(self.chains):
            for window, _ in chain:
                signal = (fold if isinstance(window, Folding) else pool)(signal, window)
            scores = [[self.scores(layer, vector) for vector in row] for row in signal]
            signal = [[_softmax(s) for s in row] for row in scores]
            result.append(scores)
        return result


class Finite:
    """A finite mixture of normals, one for every code of the bottom."""

    def __init__(self, slow, weights):
        self.codes = list(weights)
        self.weights = torch.tensor([weights[c] for c in self.codes], dtype=torch.float64)
        decoded = [slow.decode(c) for c in self.codes]
        self.means = torch.stack([mean for mean, _ in decoded]).flatten(1)
        self.variances = torch.stack([variance for _, variance in decoded]).flatten(1)
        self.event_shape = decoded[0][0].shape

    def joint(self, x, seen=None):
        """Log of weight times density of the pixels seen: (N, codes)."""
        flat = x.detach().double().reshape(-1, 1, self.means.shape[1])
        seen = (
            torch.ones_like(flat) if seen is None else seen.double().reshape(-1, 1, flat.shape[2])
        )
        terms = (flat - self.means) ** 2 / self.variances + (2 * math.pi * self.variances).log()
        terms = torch.where(seen > 0, terms, 0.0)
        return self.weights.log() - 0.5 * terms.sum(-1)

    def log_prob(self, x):
        """Log-density of images (N, C, H, W)."""
        return self.joint(x).logsumexp(-1)

    def posterior(self, x, seen=None):
        """Probability of every code given the pixels seen: (N, codes)."""
        return self.joint(x, seen).softmax(-1)

    def fill(self, x, seen):
        """Images whose unseen pixels are their posterior means."""
        mean = self.posterior(x, seen) @ self.means
        return torch.where(seen, x, mean.reshape(x.shape))

    def mean(self):
        return (self.weights @ self.means).reshape(self.event_shape)


def _logsumexp(values):
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _softmax(values):
    total = _logsumexp(values)
    return [math.exp(value - total) for value in values]
