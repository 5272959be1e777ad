"""What benchmarks of several models share."""
