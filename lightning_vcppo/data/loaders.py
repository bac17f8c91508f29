"""Distribute prompts to processes: the batches of training and of evaluation.

The loaders are plain iterables of `PromptBatch`, not `torch.utils.data.DataLoader`s: prompts are in
memory and need no workers, and Lightning does not inject a sampler into such iterables.

1. The order of training prompts is a pure function of (seed, epoch). A resumed run reads its
   position from Lightning's progress, which every checkpoint has. So it gets exactly the remaining
   batches of the interrupted run, and there is no second counter that could disagree.
2. A training batch holds `prompts_per_rollout` prompts over all processes, of which each takes its
   slice: a rollout has the same prompts whatever the number of processes.
3. Every evaluation prompt is used once, by one process, and every process gets the same number of
   batches (the last may be empty): nothing is counted twice, and no process waits for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning_vcppo.common.errors import require
from lightning_vcppo.data.prompts import PromptBatch


class TrainLoader:
    """Training batches: each epoch has another order, of which each process takes its slice.

    Problems that do not fill a last batch are not used in that epoch.
    """

    def __init__(
        self,
        prompts: PromptBatch,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """Collect the arguments.

        Args:
            prompts: All training prompts.
            batch_size: Number of prompts of a batch, over all processes.
            seed: Seed of the order.
            rank: Number of this process.
            world_size: Number of processes.
            position: Returns the epoch and its number of finished batches; called for the first
                batch, because only then Lightning has restored its progress.

        Raises:
            ValueError: If the batch cannot be divided among the processes.
        """
        require(
            batch_size % world_size == 0,
            f"prompts_per_rollout: {batch_size} cannot be divided among {world_size} processes",
        )
        self.prompts = prompts
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.position = position

    def __len__(self) -> int:
        """Number of batches of a complete epoch, as Lightning counts them also after resuming."""
        return len(self.prompts) // self.batch_size

    def __iter__(self) -> Iterator[PromptBatch]:
        """Yield the remaining batches of the epoch."""
        epoch, seen = self.position()
        order = epoch_order(len(self.prompts), self.seed, epoch)
        share = self.batch_size // self.world_size
        for batch in range(seen, len(self)):
            start = batch * self.batch_size + self.rank * share
            yield select(self.prompts, order[start : start + share])

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: having this method tells Lightning that the loader can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing, because `position` has the state."""


class EvalLoader:
    """Evaluation batches: each prompt once, in strides; empty batches make the numbers equal."""

    def __init__(
        self, prompts: PromptBatch, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Collect the arguments.

        Args:
            prompts: All prompts.
            batch_size: Number of prompts of a batch of one process.
            rank: Number of this process.
            world_size: Number of processes.
        """
        self.prompts = prompts
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Number of batches, the same for every process."""
        return -(-len(self.prompts) // (self.world_size * self.batch_size))

    def __iter__(self) -> Iterator[PromptBatch]:
        """Yield this process's batches in the order of the data set."""
        rows = range(self.rank, len(self.prompts), self.world_size)
        for batch in range(len(self)):
            start = batch * self.batch_size
            yield select(self.prompts, rows[start : start + self.batch_size])


def select(prompts: PromptBatch, rows: Sequence[int]) -> PromptBatch:
    """Return some rows of a batch."""
    return PromptBatch(
        [prompts.problems[row] for row in rows],
        [prompts.prompt_ids[row] for row in rows],
        [prompts.indices[row] for row in rows],
        prompts.evaluation_set,
    )


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """Return the permutation of `range(size)` of a seed and an epoch."""
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
