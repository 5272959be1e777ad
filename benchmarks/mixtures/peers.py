"""Gaussian mixtures of other libraries behind one interface; `speed.py` compares them.

Every library is used as its documentation says, with its checks of arguments switched off. What
can be prepared once for a density without gradients is prepared once, also in pyromix. Libraries
are imported where they are used: one that is missing is left out.
"""

from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from benchmarks.mixtures.estimators import stratified
from pyromix import MixtureOfMultivariateNormals, MixtureOfNormals

DENSITY, DENSITY_GRADIENT = "log_prob", "log_prob + gradient"
SAMPLE, SAMPLE_GRADIENT = "sample", "sample + gradient"
BUDGET = 2**32  # bytes of the largest intermediate; a backward pass holds several
TASKS = (DENSITY, DENSITY_GRADIENT, SAMPLE, SAMPLE_GRADIENT)


class Law(NamedTuple):
    """Parameters that all libraries are given."""

    covariance: str
    """Diagonal, shared (a diagonal one for all components) or full."""
    logits: Tensor
    """Shape (K,)."""
    loc: Tensor
    """Shape (K, D)."""
    spread: Tensor
    """Standard deviations (K, D) or (1, D), or Cholesky factors (K, D, D)."""

    @property
    def size(self) -> tuple[int, int]:
        """Number of components K and of dimensions D."""
        return self.loc.shape[0], self.loc.shape[1]

    @property
    def covariance_matrix(self) -> Tensor:
        return self.spread @ self.spread.mT

    def double(self) -> "Law":
        return Law(self.covariance, *(t.double() for t in self[1:]))


def make_law(covariance: str, dim: int, k: int) -> Law:
    """Ordinary parameters: centres of order one, and variances from about 0.3 to 4."""
    torch.manual_seed(0)
    logits, loc = torch.randn(k), torch.randn(k, dim)
    if covariance == "full":
        mixing = torch.randn(k, dim, dim) / dim**0.5
        matrix = mixing @ mixing.mT + 0.3 * torch.eye(dim)
        return Law(covariance, logits, loc, torch.linalg.cholesky(matrix))
    count = 1 if covariance == "shared" else k
    return Law(covariance, logits, loc, torch.exp(0.3 * torch.randn(count, dim)))


def payoff(x: Tensor) -> Tensor:
    """The function whose expectation is differentiated through samples."""
    return x.sin().sum(-1)


class Peer:
    """A library's mixture of given parameters."""

    name: ClassVar[str]
    covariances: ClassVar[tuple[str, ...]] = ("diagonal", "full")
    tasks: ClassVar[tuple[str, ...]] = (DENSITY, DENSITY_GRADIENT, SAMPLE)

    def __init__(self, law: Law) -> None:
        self.law = law
        self.leaves = self.prepare()
        self.prepared = self.build()

    def prepare(self) -> list[Tensor]:
        """Makes what outlives a call; returns the tensors in which the library has gradients."""
        return [t.clone().requires_grad_() for t in self.law[1:]]

    def build(self) -> Any:
        """The library's distribution. Gradients build it anew, as a step of training does."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        return (self.build() if torch.is_grad_enabled() else self.prepared).log_prob(x)

    def sample(self, n: int) -> Any:
        return self.prepared.sample((n,))

    def expectation(self, n: int) -> Tensor:
        """Estimates the expected payoff from n samples, with gradients in the parameters."""
        return payoff(self.build().rsample((n,))).mean()

    def intermediate(self, task: str, n: int) -> int:  # noqa: ARG002
        """Numbers in the largest tensor on the way: of points, components and dimensions."""
        k, dim = self.law.size
        return n * k * dim

    def per_operation(self, task: str) -> int:
        """Numbers for every point that one operation works on."""
        return self.intermediate(task, 1)

    def most_points(self, task: str) -> int:
        """The number of points up to which it gets all at once."""
        return BUDGET // (4 * self.intermediate(task, 1))


class Pyromix(Peer):
    """The mixtures of this library, with pathwise gradients by `rsample`."""

    name = "pyromix"
    covariances = ("diagonal", "shared", "full")

    def __init__(self, law: Law) -> None:
        super().__init__(law)
        self.tasks = TASKS[:3] if law.covariance == "full" else TASKS

    def build(self) -> Any:
        logits, loc, spread = self.leaves
        if self.law.covariance == "full":
            return MixtureOfMultivariateNormals(logits, loc, spread)
        return MixtureOfNormals(logits, loc, spread.expand(loc.shape))

    def intermediate(self, task: str, n: int) -> int:  # noqa: ARG002
        return n * max(self.law.size)


class PyromixWeighted(Pyromix):
    """The same, with gradients by `rsample_weighted`."""

    name = "pyromix, weighted"

    def __init__(self, law: Law) -> None:
        super().__init__(law)
        self.tasks = (SAMPLE_GRADIENT,)

    def expectation(self, n: int) -> Tensor:
        return stratified(self.build(), n, payoff)


class Torch(Peer):
    """`MixtureSameFamily` of PyTorch itself."""

    name = "torch"
    covariances = ("diagonal", "shared", "full")

    def build(self) -> Any:
        logits, loc, spread = self.leaves
        if self.law.covariance == "full":
            components: Distribution = MultivariateNormal(loc, scale_tril=spread)
        else:
            components = Independent(Normal(loc, spread.expand(loc.shape)), 1)
        return MixtureSameFamily(Categorical(logits=logits), components)

    def intermediate(self, task: str, n: int) -> int:
        k, dim = self.law.size
        repeated = self.law.covariance == "full" and task == SAMPLE  # factors, for every draw
        return n * k * dim * (dim if repeated else 1)


class Pyro(Peer):
    """`MixtureOfDiagNormals` of Pyro, or the one with a shared covariance."""

    name = "Pyro"
    covariances = ("diagonal", "shared")
    tasks = TASKS

    def build(self) -> Any:
        logits, loc, scale = self.leaves
        if self.law.covariance == "shared":
            return dist.MixtureOfDiagNormalsSharedCovariance(loc, scale[0], logits)
        return dist.MixtureOfDiagNormals(loc, scale, logits)

    def intermediate(self, task: str, n: int) -> int:
        k, dim = self.law.size
        pairs = {SAMPLE: 1, SAMPLE_GRADIENT: k * k}
        return n * pairs.get(task, k) * dim


class Zuko(Torch):
    """`GMM` of zuko."""

    name = "zuko"

    def prepare(self) -> list[Tensor]:
        from zuko.mixtures import GMM

        k, dim = self.law.size
        kind = "full" if self.law.covariance == "full" else "diagonal"
        tied = self.law.covariance == "shared"
        self.module = GMM(dim, components=k, covariance_type=kind, tied=tied, epsilon=0.0)
        values = [self.law.logits, self.law.loc]
        if kind == "full":
            row, column = torch.tril_indices(dim, dim, offset=-1)
            diagonal = self.law.spread.diagonal(dim1=-2, dim2=-1)
            values += [diagonal.log(), self.law.spread[:, row, column]]
        else:
            values.append(self.law.spread.log())
        with torch.no_grad():
            for parameter, value in zip(self.module.phi, values, strict=True):
                parameter.copy_(value)
        return list(self.module.parameters())

    def build(self) -> Any:
        return self.module()


class Normflows(Peer):
    """`GaussianMixture` of normflows, a base of its flows."""

    name = "normflows"
    covariances = ("diagonal",)
    tasks = TASKS

    def prepare(self) -> list[Tensor]:
        from normflows.distributions.base import GaussianMixture

        weights, loc, scale = self.law.logits.softmax(-1), self.law.loc, self.law.spread
        arrays = (t.numpy() for t in (loc, scale, weights))
        self.module = GaussianMixture(*self.law.size, *arrays).float()
        return list(self.module.parameters())

    def build(self) -> Any:
        return self.module

    def sample(self, n: int) -> Tensor:
        return self.module.sample(n)

    def expectation(self, n: int) -> Tensor:
        return payoff(self.module.sample(n)).mean()


class Pomegranate(Peer):
    """`GeneralMixtureModel` of pomegranate."""

    name = "pomegranate"

    def prepare(self) -> list[Tensor]:
        from pomegranate.distributions import Normal as Component
        from pomegranate.gmm import GeneralMixtureModel

        full = self.law.covariance == "full"
        spread = self.law.covariance_matrix if full else self.law.spread.square()
        kind = "full" if full else "diag"
        parts = [
            Component(m, s, covariance_type=kind, check_data=False)
            for m, s in zip(self.law.loc, spread, strict=True)
        ]
        priors = self.law.logits.double().softmax(-1).float()
        self.model = GeneralMixtureModel(parts, priors=priors, check_data=False)
        return []  # what the density is computed from is cached: only points have gradients

    def build(self) -> Any:
        return self.model

    def log_prob(self, x: Tensor) -> Tensor:
        return self.prepared.log_probability(x)

    def sample(self, n: int) -> Tensor:
        return self.prepared.sample(n)

    def intermediate(self, task: str, n: int) -> int:
        k, dim = self.law.size
        return n * dim * (1 if task == DENSITY else k)

    def per_operation(self, task: str) -> int:  # noqa: ARG002
        return self.law.size[1]  # components come one after the other

    def most_points(self, task: str) -> int:
        # Several times as slow where every component takes some 100 MiB from the system.
        return min(super().most_points(task), 2**24 // self.law.size[1])


class Sklearn(Peer):
    """`GaussianMixture` of scikit-learn."""

    name = "scikit-learn"
    tasks = (DENSITY, SAMPLE)

    def prepare(self) -> list[Tensor]:
        from sklearn.mixture import GaussianMixture

        k, dim = self.law.size
        full = self.law.covariance == "full"
        model = GaussianMixture(k, covariance_type="full" if full else "diag")
        model.weights_ = self.law.logits.softmax(-1).numpy()
        model.means_ = self.law.loc.numpy()
        if full:
            model.covariances_ = self.law.covariance_matrix.numpy()
            inverse = torch.linalg.solve_triangular(self.law.spread, torch.eye(dim), upper=False)
            model.precisions_cholesky_ = inverse.mT.contiguous().numpy()
        else:
            model.covariances_ = self.law.spread.square().numpy()
            model.precisions_cholesky_ = self.law.spread.reciprocal().numpy()
        model.n_features_in_ = dim
        self.model = model
        return []

    def build(self) -> Any:
        return self.model

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.prepared.score_samples(x.numpy()))

    def sample(self, n: int) -> Any:
        return self.prepared.sample(n)[0]

    def intermediate(self, task: str, n: int) -> int:  # noqa: ARG002
        return n * max(self.law.size)


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (Pyromix, PyromixWeighted, Torch, Pyro, Zuko, Normflows, Pomegranate, Sklearn)
}


def available(law: Law) -> dict[str, Peer]:
    """Every installed library's mixture of these parameters, if it has such a mixture."""
    found = {}
    for name, peer in PEERS.items():
        if law.covariance in peer.covariances:
            try:
                found[name] = peer(law)
            except ImportError as error:
                print(f"{name} is left out: {error}")
    return found


def reference_log_prob(law: Law, x: Tensor) -> Tensor:
    """The log-density in float64, by PyTorch's own distributions."""
    return Torch(law.double()).build().log_prob(x.double())
