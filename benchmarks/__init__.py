"""Benchmarks: ``python -m benchmarks --list`` names them, ``python -m benchmarks`` runs all."""
