"""Benchmarks, one module for each; run them with `python -m benchmarks.<name>`."""

import os

# torch reads these variables on import. By default a waiting thread spins for long, which makes two
# threads up to fifty times slower than one if other processes use the same cores. Without spinning,
# operations of a few microseconds, as in decoding, take twice as long on idle cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
