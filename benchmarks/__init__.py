"""Timings, one module each; run them with `python -m benchmarks.<name>`."""
