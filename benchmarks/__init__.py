"""Timings, one module each; run them with `python -m benchmarks.<name>`."""

import os

# Read when torch is imported. A waiting thread that spins, as is the default, can make two threads a
# hundred times slower than one where other processes want the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
