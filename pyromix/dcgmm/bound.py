r"""A lower bound of the log-density where codes do not form a tree.

Codes of the top, and of as many layers below it as is feasible, are enumerated. Given those, k,
the others' posterior is approximated by independent ones, :math:`q(c) = \prod_p q_p(c_p)`, which a
few sweeps of coordinate ascent improve:

.. math:: \log p(x) \ge \log \sum_k \pi_k e^{F_k(q)}, \qquad
          F_k(q) = E_q[\log p(x \mid c)] + E_q[\log p(c \mid k)] + H(q)

The decoded image is linear in the codes' indicators, so that the expected squared error is that
of the mean image, plus a variance which is a sum over patches. The expected logarithm of a
control that averages over slices is bounded, as the logarithm of a sum of exponentials is convex:

.. math:: E \log \sum_i w_i S_i \ge \log \sum_i w_i e^{E \log S_i}
"""

__all__ = ["Bound"]

import torch
from torch import Tensor

from .law import TopDownLaw, draw
from .overlap import PatchGroups


class Bound:
    """The bound, and the approximate posterior distribution of codes that gives it.

    Args:
        law: The law.
        images: Shape (N, H, W, C).
        evidence: 1 for pixels that are known, 0 for others, shape (N, H, W, C); by default all
            are known.
    """

    # Shapes: images N, enumerated codes T (1 if there are none), positions P or Q, groups of
    # positions G, slices in an average I, components K, those above A, those below B.

    def __init__(self, law: TopDownLaw, images: Tensor, evidence: Tensor | None = None) -> None:
        self.law = law
        prior, weights = self._enumerate()
        self.bottom: _Disjoint | PatchGroups
        if law.architecture.disjoint:
            self.bottom = _Disjoint(law.patch_log_prob(images, evidence))
        else:
            self.bottom = PatchGroups(law.blocks[0], law.loc, law.scale, images, evidence)
        self._ascend(prior.expand(len(images), -1, -1, -1))
        self.top = self._free_energy() + weights
        self.log_evidence = self.top.logsumexp(-1)

    def marginals(self) -> Tensor:
        """Returns probabilities of all codes of the bottom patches, shape (N, P, K)."""
        return torch.einsum("nt,ntpk->npk", self.top.softmax(-1), self.factors[0])

    def draw(self) -> Tensor:
        """Draws codes of the bottom patches, shape (N, P)."""
        top = draw(self.top.softmax(-1))
        return draw(self.factors[0][torch.arange(len(top), device=top.device), top])

    def _enumerate(self) -> tuple[Tensor, Tensor]:
        """Enumerates the codes of as many layers, from the top, as `max_codes` allows.

        Returns:
            Logarithms of the control of the layer below these, shape (N or 1, T, P, K), and
            log-weights of their codes, shape (N or 1, T).
        """
        law, blocks = self.law, self.law.blocks
        prior = law.log_weights.log_softmax(-1)
        prior = prior.reshape(-1, 1, 1, prior.shape[-1])
        prior = prior.expand(-1, -1, blocks[-1].num_positions, -1)  # (N or 1, T, P, K)
        weights = prior.new_zeros(len(prior), 1)
        self.num_free = len(blocks)
        for layer in reversed(range(1, len(blocks))):
            k, positions = blocks[layer].num_components, blocks[layer].num_positions
            total = weights.shape[-1] * k**positions
            if total > law.max_codes and not (layer == len(blocks) - 1 and positions == 1):
                break
            digits = k ** torch.arange(positions, device=prior.device)
            codes = torch.arange(k**positions, device=prior.device).unsqueeze(-1) // digits % k
            chosen = codes.expand(*prior.shape[:2], -1, -1).movedim(-1, -2)  # (N, T, P, new)
            added = prior.gather(-1, chosen).sum(-2)
            weights = (weights.unsqueeze(-1) + added).flatten(1)
            codes = codes.repeat(total // len(codes), 1)
            prior = law.controls(layer - 1, codes).log().unsqueeze(0)
            self.num_free = layer
        return prior, weights

    def _ascend(self, prior: Tensor) -> None:
        """Improves the factors by sweeps of coordinate ascent, which start at the prior.

        Args:
            prior: Logarithms of the control of the highest layer that is not enumerated, shape
                (N, T, P, K).
        """
        # Factors given the layers above alone.
        factors = [prior.softmax(-1)]
        controls = [prior]
        for layer in reversed(range(self.num_free - 1)):
            controls.insert(0, self._control(layer, factors[0])[0])
            factors.insert(0, controls[0].softmax(-1))
        factors[0] = self.bottom.start(controls[0])
        for _ in range(self.law.sweeps):
            factors[0] = self.bottom.sweep(controls[0])
            for layer in range(1, self.num_free):
                below = self._from_below(layer, factors)
                factors[layer] = (controls[layer] + below).softmax(-1)
            for layer in reversed(range(self.num_free - 1)):
                controls[layer] = self._control(layer, factors[layer + 1])[0]
        self.factors, self.controls = factors, controls

    def _control(self, layer: int, above: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a bound of the expected logarithms of a layer's control.

        Args:
            layer: From 0 at the bottom; not the top.
            above: Factors of the layer above, shape (N, T, Q, A).

        Returns:
            Tensor of shape (N, T, P, K), and the terms whose exponentials are summed up in it, for
            groups of positions, shape (N, T, G, I, K).
        """
        wiring = self.law.blocks[layer + 1].wiring.to(above)
        log_slices = self.law.control[layer].log()
        expected = torch.einsum("ntqa,ajk->ntqjk", above, log_slices)
        terms = expected[:, :, wiring.parent, wiring.slice] + wiring.log_weight.unsqueeze(-1)
        return terms.logsumexp(-2)[:, :, wiring.group], terms

    def _from_below(self, layer: int, factors: list[Tensor]) -> Tensor:
        """Returns the expected log-likelihood of a layer's codes, given the factors below.

        Shares of the slices in their average are held fixed. So it is a lower bound, which is
        tight at the present factors.

        Args:
            layer: From 1 above the bottom.
            factors: Of all layers that are not enumerated, from the bottom.

        Returns:
            Tensor of shape (N, T, Q, A).
        """
        block = self.law.blocks[layer]
        wiring = block.wiring.to(factors[0])
        _, terms = self._control(layer - 1, factors[layer])
        below = factors[layer - 1]
        counts = below.new_zeros(*below.shape[:2], len(wiring.parent), below.shape[-1])
        counts = counts.index_add(2, wiring.group, below)  # (N, T, G, B)
        shares = terms.softmax(-2) * counts.unsqueeze(-2)
        num_slices = self.law.control[layer - 1].shape[1]
        place = (wiring.parent * num_slices + wiring.slice).flatten()
        sums = below.new_zeros(*below.shape[:2], block.num_positions * num_slices, below.shape[-1])
        sums = sums.index_add(2, place, shares.flatten(2, 3))
        sums = sums.unflatten(2, (block.num_positions, num_slices))
        return torch.einsum("ntqjb,ajb->ntqa", sums, self.law.control[layer - 1].log())

    def _free_energy(self) -> Tensor:
        """The bound of the log-density given each of the enumerated codes, shape (N, T)."""
        total = self.bottom.expected_log_prob()
        for factor, control in zip(self.factors, self.controls, strict=True):
            # Not torch.special.entr, whose slope is infinite at zero.
            log_factor = factor.clamp(min=torch.finfo(factor.dtype).tiny).log()
            total = total + (factor * (control - log_factor)).sum((-1, -2))
        return total


class _Disjoint:
    """Factors of patches that do not overlap: given their codes, patches are independent.

    It has the methods of `PatchGroups`.

    Args:
        log_prob: Log-density of each patch given each of its codes, shape (N, P, K).
    """

    def __init__(self, log_prob: Tensor) -> None:
        self.log_prob = log_prob.unsqueeze(1)

    def start(self, control: Tensor) -> Tensor:
        """Returns factors given the logarithms of their control, both of shape (N, T, P, K)."""
        self.factor = (control + self.log_prob).softmax(-1)
        return self.factor

    sweep = start

    def expected_log_prob(self) -> Tensor:
        """Returns the expected log-density of the image given the last factors, shape (N, T)."""
        return (self.factor * self.log_prob).sum((-1, -2))
