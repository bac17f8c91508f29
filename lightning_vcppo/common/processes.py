"""Divide cores and threads among processes that run side by side."""

from __future__ import annotations

import os

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Environment of a process that computes in one thread."""


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere all cores are available
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
