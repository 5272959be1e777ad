"""Runs `benchmarks.tables.compare`."""

from benchmarks.tables.compare import main

main()
