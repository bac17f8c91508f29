"""Exchange between ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from lightning_vcppo.algorithm.statistics import Reduce, identity

T = TypeVar("T")


def gather(mine: T) -> list[T]:
    """Return what each rank has, in the order of ranks. Every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    of_ranks: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    return of_ranks


@dataclass(frozen=True)
class Ranks:
    """How the ranks of a run agree on numbers; as it is, there is one rank.

    Attributes:
        sum: Returns the sum of a small tensor over ranks.
        max: Returns the largest of one number a rank.
        rank: Number of this one.
        count: How many there are.
    """

    sum: Reduce = identity
    max: Callable[[int], int] = int
    rank: int = 0
    count: int = 1
