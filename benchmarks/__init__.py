"""Timings, one module each; run them with `python -m benchmarks.<name>`."""

import os

# Read when torch is imported. By default a waiting thread spins for long, which makes two threads
# up to fifty times slower than one where other processes want the same cores. Without any spinning,
# operations of some microseconds, as in decoding, take twice as long on idle cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
