"""Buffer groups until a rollout is full, for dynamic sampling and for partial rollouts.

1. *Dynamic sampling* of DAPO (arXiv 2503.14476, section 3.2): a group whose responses are all right
   or all wrong has no advantage to learn from. It is dropped, and the next prompts are sampled in
   its place.
2. *Partial rollouts* (partial.py): groups become complete in different steps, and those that are
   too many for one rollout wait for the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_vcppo.distributed.collectives import Ranks, gather
from lightning_vcppo.rollouts.rollout import Rollout, join

PATIENCE = 8
"""Number of batches without a rollout after which there is a warning."""


def informative_rows(correct_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Return the rows of groups with at least one right and one wrong response, (M,) int64."""
    _, group_B = group_ids_B.unique(return_inverse=True)
    # Whole numbers: the default type of floats is that of the Trainer's precision.
    right_G = torch.zeros_like(group_ids_B).index_add_(0, group_B, correct_B.to(group_ids_B))
    size_G = torch.zeros_like(right_G).index_add_(0, group_B, torch.ones_like(right_G[group_B]))
    mixed_G = (right_G > 0) & (right_G < size_G)
    return mixed_G[group_B].nonzero()[:, 0]


class GroupBuffer:
    """Buffers groups until the rollout is full.

    Every rank has the groups of all ranks, on the CPU, so that only their number decides when there
    are enough, and any number of ranks can resume from a checkpoint.

    Args:
        informative: Whether other groups are dropped: those that are all right or all wrong.
        keeps_rest: Whether groups that are too many for a rollout wait for the next one. If not,
            they are dropped, because the update makes them off-policy.
    """

    def __init__(self, informative: bool = True, keeps_rest: bool = False) -> None:
        """Start empty."""
        self._informative, self._keeps_rest = informative, keeps_rest
        self._parts: list[Rollout] = []
        self.batches = 0

    @property
    def is_used(self) -> bool:
        """Whether a batch may not make a rollout."""
        return self._informative or self._keeps_rest

    def __len__(self) -> int:
        """Number of buffered responses, over all ranks."""
        return sum(len(part) for part in self._parts)

    def add(
        self,
        rollout: Rollout | None,
        *,
        gather: Callable[[Rollout | None], list[Rollout | None]] = lambda mine: [mine],
    ) -> None:
        """Keep the groups of newly sampled responses.

        Args:
            rollout: Responses of this rank, if there are any.
            gather: Returns the arguments of all ranks, in the order of ranks.
        """
        if rollout is not None and self._informative:
            rollout = rollout.select(informative_rows(rollout.correct_B, rollout.group_ids_B))
        self.batches += 1
        mine = None if rollout is None else rollout.to(torch.device("cpu"))
        if parts := [part for part in gather(mine) if part is not None and len(part)]:
            new = join(parts)
            self._parts.append(new.select(new.positions_B.argsort()))
        if self.batches == PATIENCE and self._informative:
            rank_zero_warn(
                f"Dynamic sampling: {PATIENCE} batches have not filled a rollout; {len(self)} "
                "responses are kept. In the other groups all are right or all wrong: use other "
                "problems (--data.path), a cold start, or more --model.sampling.num_generations."
            )

    def fill(
        self,
        rollout: Rollout | None,
        size: int,
        num_generations: int,
        ranks: Ranks,
        device: torch.device,
    ) -> Rollout | None:
        """Keep new groups; return this rank's part of a rollout once there are enough.

        Called on every rank.

        Args:
            rollout: New responses of this rank, if there are any.
            size: Number of responses of this rank in a rollout.
            num_generations: Responses of a group.
            ranks: Of the run.
            device: Device of the rollout.
        """
        self.add(rollout, gather=gather)
        if len(self) < size * ranks.count:
            return None
        return self.take(size, num_generations, ranks).to(device)

    def take(self, size: int, num_generations: int, ranks: Ranks) -> Rollout:
        """Return this rank's part of the rollout, and take those of all ranks from the buffer.

        Args:
            size: Number of responses of each rank.
            num_generations: Number of responses in a group.
            ranks: Of the run.
        """
        assert len(self) >= size * ranks.count
        whole = join(self._parts)
        rest = torch.arange(size * ranks.count, len(whole))
        self._parts = [whole.select(rest)] if self._keeps_rest and len(rest) else []
        self.batches = 0
        positions_B = torch.arange(size) + ranks.rank * size
        mine = whole.select(positions_B)
        return mine.with_(positions_B=positions_B, group_ids_B=positions_B // num_generations)

    def group_sizes(self) -> set[int]:
        """Return the numbers of responses that buffered groups have."""
        counts = [p.group_ids_B.unique_consecutive(return_counts=True)[1] for p in self._parts]
        return {size for count_G in counts for size in count_G.tolist()}

    def state_dict(self) -> dict[str, Any]:
        """Return the buffered groups as plain lists and tensors."""
        return {"batches": self.batches, "parts": [part.to_plain() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the buffered groups."""
        self.batches = state["batches"]
        self._parts = [Rollout.from_plain(part) for part in state["parts"]]
