"""Exchange objects and numbers between ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_vcppo.algorithm.statistics import Reduce, identity

T = TypeVar("T")


def gather(mine: T) -> list[T]:
    """Return the arguments of all ranks, in the order of ranks. Every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    of_ranks: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    return of_ranks


@dataclass(frozen=True)
class Ranks:
    """Collectives of a run on numbers; the default is a run of one rank.

    Attributes:
        sum: Returns the sum of a small tensor over ranks.
        max: Returns the largest of the ranks' numbers.
        rank: Number of this rank.
        count: Number of ranks.
    """

    sum: Reduce = identity
    max: Callable[[int], int] = int
    rank: int = 0
    count: int = 1

    @classmethod
    def of(cls, module: LightningModule) -> Ranks:
        """Return the collectives of a module's run; every rank must call them."""
        strategy, device = module.trainer.strategy, module.device

        def total(statistics: Tensor) -> Tensor:
            summed = strategy.reduce(statistics.clone(), reduce_op="sum")
            assert isinstance(summed, Tensor)
            return summed

        def largest(number: int) -> int:
            return int(strategy.reduce(torch.tensor(number, device=device), reduce_op="max"))

        return cls(total, largest, module.global_rank, module.trainer.world_size)
