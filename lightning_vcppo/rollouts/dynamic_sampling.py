"""Keep sampling until every group is informative: DAPO's dynamic sampling.

Source: arXiv 2503.14476, section 3.2. A group whose responses are all right or all wrong has no
advantage to learn from. It is dropped, and the next prompts are sampled in its place until the
rollout is full.
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
    """Buffers informative groups until the rollout is full.

    Every rank has the groups of all ranks, on the CPU, so that only their number decides when there
    are enough, and any number of ranks can resume from a checkpoint.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._parts: list[Rollout] = []
        self.batches = 0

    def __len__(self) -> int:
        """Number of buffered responses, over all ranks."""
        return sum(len(part) for part in self._parts)

    def add(
        self,
        rollout: Rollout,
        *,
        gather: Callable[[Rollout], list[Rollout]] = lambda mine: [mine],
    ) -> None:
        """Keep the informative groups of newly sampled responses.

        Args:
            rollout: Responses of this rank.
            gather: Returns the arguments of all ranks, in the order of ranks.
        """
        rows = informative_rows(rollout.correct_B, rollout.group_ids_B)
        self.batches += 1
        parts = gather(rollout.select(rows).to(torch.device("cpu")))
        self._parts += [part for part in parts if len(part)]
        if self.batches == PATIENCE:
            rank_zero_warn(
                f"Dynamic sampling: {PATIENCE} batches have not filled a rollout; {len(self)} "
                "responses are kept. In the other groups all are right or all wrong: use other "
                "problems (--data.path), a cold start, or more --model.sampling.num_generations."
            )

    def fill(self, rollout: Rollout, num_generations: int, ranks: Ranks) -> Rollout | None:
        """Keep the informative groups; return this rank's part of a rollout once there are enough.

        Called on every rank.

        Args:
            rollout: Freshly sampled responses of this rank.
            num_generations: Responses of a group.
            ranks: Of the run.
        """
        self.add(rollout, gather=gather)
        size = len(rollout)
        if len(self) < size * ranks.count:
            return None
        return self.take(size, ranks.rank * size, num_generations).to(rollout.scores_B.device)

    def take(self, size: int, first_position: int, num_generations: int) -> Rollout:
        """Return this rank's part of the rollout and empty the buffer.

        Remaining groups are dropped, because the update makes them off-policy.

        Args:
            size: Number of responses of this rank.
            first_position: Row number of its first response in the rollout over all ranks.
            num_generations: Number of responses in a group.
        """
        assert len(self) >= first_position + size
        positions_B = torch.arange(first_position, first_position + size)
        mine = join(self._parts).select(positions_B)
        self._parts, self.batches = [], 0
        return mine.with_(positions_B=positions_B, group_ids_B=positions_B // num_generations)

    def state_dict(self) -> dict[str, Any]:
        """Return the buffered groups as plain lists and tensors."""
        return {"batches": self.batches, "parts": [part.to_plain() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the buffered groups."""
        self.batches = state["batches"]
        self._parts = [Rollout.from_plain(part) for part in state["parts"]]
