"""Exchange between ranks."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather(mine: T) -> list[T]:
    """Return what each rank has, in the order of ranks. Every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    of_ranks: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    return of_ranks
