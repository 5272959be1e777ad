"""Integrals over what evidence leaves of the plane, to nearly full accuracy."""

import itertools
import math

import numpy as np
import torch

from pyromix.evidence.pieces import AnyOf, Box, LinearInequality

REACH = 8.0


def half_planes(piece):
    """Rows (a1, a2, b) with a1 x1 + a2 x2 + b > 0, one for each finite bound and inequality."""
    rows = []
    match piece:
        case Box(low=low, high=high):
            for sign, bound in ((1.0, low), (-1.0, high)):
                b = -sign * torch.as_tensor(bound).expand(2)
                rows = rows + [(*(sign * torch.eye(2)[d]), b[d]) for d in range(2)]
        case LinearInequality(a=a, b=b):
            a = torch.atleast_2d(a)
            b = torch.as_tensor(b).expand(len(a))
            rows = [(*a[i], b[i]) for i in range(len(a))]
    return [tuple(float(v) for v in row) for row in rows if math.isfinite(row[-1])]


def convex_parts(evidence):
    """Half-planes of convex regions without overlap, which make up what the evidence leaves."""
    parts = [[]]
    for piece in evidence:
        if not isinstance(piece, AnyOf):
            parts = [part + half_planes(piece) for part in parts]
            continue
        # Each alternative without those before it, of one half-plane each.
        alternatives = [
            [row for p in pieces for row in half_planes(p)] for pieces in piece.alternatives
        ]
        assert all(len(rows) == 1 for rows in alternatives)
        rows = [rows[0] for rows in alternatives]
        outside = [tuple(-v for v in row) for row in rows]
        parts = [[*part, *outside[:i], rows[i]] for part in parts for i in range(len(rows))]
    return parts


def polygon(rows):
    """Corners, in order, of what half-planes leave of a square of reach `REACH`."""
    corners = [(-REACH, -REACH), (REACH, -REACH), (REACH, REACH), (-REACH, REACH)]
    for a1, a2, b in rows:
        kept = []
        for p, q in zip(corners, corners[1:] + corners[:1], strict=True):
            at_p, at_q = (a1 * x + a2 * y + b for x, y in (p, q))
            if at_p >= 0:
                kept.append(p)
            if at_p * at_q < 0:  # the edge leaves or enters
                t = at_p / (at_p - at_q)
                kept.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        corners = kept
    return corners


def nodes_and_weights(evidence, order=128):
    """Nodes, shape (N, 2), and weights of a rule for what boxes and inequalities leave.

    Every convex part is cut into triangles. Each is the image of the unit square, on which the
    rule is a product of two Gauss-Legendre rules.
    """
    node, weight = (torch.as_tensor(t) for t in np.polynomial.legendre.leggauss(order))
    u, w = (1 + node) / 2, weight / 2
    nodes, weights = [], []
    for part in convex_parts(evidence):
        first, *others = (torch.tensor(corner) for corner in polygon(part))
        for second, third in itertools.pairwise(others):
            one, two = second - first, third - second
            s, t = u[:, None, None], u[None, :, None]
            nodes.append((first + s * (one + t * two)).reshape(-1, 2))
            area = (one[0] * two[1] - one[1] * two[0]).abs()
            weights.append((area * u.unsqueeze(-1) * w.unsqueeze(-1) * w).flatten())
    return torch.cat(nodes), torch.cat(weights)
