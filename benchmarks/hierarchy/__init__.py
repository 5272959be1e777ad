"""Hierarchies of residual mixtures: images, trajectories."""
