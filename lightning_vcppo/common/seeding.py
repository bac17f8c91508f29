"""Derive random streams from names, without state.

Every random stream of a run has a name (purpose, rollout, problem, sample, ...) and is seeded from
it. So samples depend neither on the rest of their batch nor on the number of processes, and a
resumed run needs no stored generator state.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(*name: int | str) -> int:
    """Return a 63-bit seed for the stream of that name, the same on every machine."""
    digest = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stream(*name: int | str) -> torch.Generator:
    """Return a CPU generator for the stream of that name."""
    return torch.Generator().manual_seed(stream_seed(*name))
