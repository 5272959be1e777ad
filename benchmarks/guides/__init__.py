"""Benchmarks of guides for Pyro."""
