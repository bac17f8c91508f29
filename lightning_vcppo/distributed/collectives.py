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
from lightning_vcppo.distributed.standstill import collective_timeout

T = TypeVar("T")


def gather(mine: T) -> list[T]:
    """Return the arguments of all ranks, in the order of ranks. Every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    of_ranks: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine, group=_host_group())
    return of_ranks


_host_groups: dict[dist.ProcessGroup, dist.ProcessGroup] = {}
"""For a run's group, the one that exchanges in the host's memory; of the last run only."""


def _host_group() -> dist.ProcessGroup | None:
    """Return a group whose objects stay in the host's memory; None is the run's own.

    NCCL would put on the GPU what all ranks have, and stored rollouts are gigabytes.
    """
    if "gloo" in dist.get_backend_config():
        return None
    own = dist.group.WORLD
    assert own is not None
    if own not in _host_groups:
        _host_groups.clear()
        _host_groups[own] = dist.new_group(backend="gloo", timeout=collective_timeout())
    return _host_groups[own]


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
