"""Exchange between ranks."""

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

    @classmethod
    def of(cls, module: LightningModule) -> Ranks:
        """Return those of the run that a module is in; every rank must call what they hold."""
        strategy, device = module.trainer.strategy, module.device

        def total(statistics: Tensor) -> Tensor:
            summed = strategy.reduce(statistics.clone(), reduce_op="sum")
            assert isinstance(summed, Tensor)
            return summed

        def largest(number: int) -> int:
            return int(strategy.reduce(torch.tensor(number, device=device), reduce_op="max"))

        return cls(total, largest, module.global_rank, module.trainer.world_size)
