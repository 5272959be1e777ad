"""Posteriors from simulations, against reference draws."""
