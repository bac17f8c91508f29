"""Ranks without processes: what `reduce` does between them, in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from lightning_vcppo.algorithm.statistics import Reduce

Shard = TypeVar("Shard")
Result = TypeVar("Result")


def on_ranks(compute: Callable[[Shard, Reduce], Result], shards: Sequence[Shard]) -> list[Result]:
    """Run `compute(shard, reduce)` for all shards at once; `reduce` sums over them."""
    barrier = threading.Barrier(len(shards), timeout=30)
    slots = [torch.empty(0) for _ in shards]

    def run(rank: int) -> Result:
        def reduce(statistics: Tensor) -> Tensor:
            slots[rank] = statistics
            barrier.wait()
            total = torch.stack(slots).sum(0)
            barrier.wait()
            return total

        return compute(shards[rank], reduce)

    with ThreadPoolExecutor(len(shards)) as pool:
        return list(pool.map(run, range(len(shards))))
