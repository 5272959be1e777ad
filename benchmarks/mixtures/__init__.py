"""Mixtures of normals: speed, gradients, expectation maximisation, missing entries."""
