"""Densities, gradients and linear algebra that several laws share."""
