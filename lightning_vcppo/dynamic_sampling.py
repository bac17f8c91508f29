"""DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): sample on until every group can teach.

A group whose responses are all right or all wrong has no advantage to learn from. It is dropped,
and the next prompts are sampled in its place until the rollout is full.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from lightning_vcppo.problems import Problem
from lightning_vcppo.rollout import Rollout


def informative_rows(correct_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Return the rows of groups with at least one right and one wrong response, (M,) int64."""
    _, group_B = group_ids_B.unique(return_inverse=True)
    right_G = torch.zeros(len(group_ids_B), device=correct_B.device).index_add_(
        0, group_B, correct_B.float()
    )
    size_G = torch.zeros_like(right_G).index_add_(0, group_B, torch.ones_like(right_G[group_B]))
    mixed_G = (right_G > 0) & (right_G < size_G)
    return mixed_G[group_B].nonzero()[:, 0]


class GroupBuffer:
    """Informative groups of this rank that wait for the rollout to fill up."""

    def __init__(self) -> None:
        """Start empty."""
        self._parts: list[Rollout] = []
        self.batches = 0

    def __len__(self) -> int:
        """Number of responses that wait."""
        return sum(len(part) for part in self._parts)

    def add(self, rollout: Rollout) -> None:
        """Keep the informative groups of freshly sampled responses."""
        rows = informative_rows(rollout.correct_B, rollout.group_ids_B)
        self.batches += 1
        if len(rows):
            self._parts.append(rollout.select(rows))

    def take(self, size: int, first_position: int, num_generations: int) -> Rollout:
        """Return `size` responses as a rollout and empty the buffer.

        What is left over is dropped: the update makes it off-policy.

        Args:
            size: Responses of this rank; not more than there are.
            first_position: Row number of the first of them in the rollout over all ranks.
            num_generations: Responses of a group.
        """
        assert len(self) >= size
        whole = join(self._parts).select(torch.arange(size))
        self._parts, self.batches = [], 0
        positions_B = torch.arange(first_position, first_position + size).to(whole.positions_B)
        return whole.with_(positions_B=positions_B, group_ids_B=positions_B // num_generations)

    def state_dict(self) -> dict[str, Any]:
        """Return the waiting groups as plain lists and tensors."""
        return {"batches": self.batches, "parts": [_to_plain(part) for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the waiting groups."""
        self.batches = state["batches"]
        self._parts = [_from_plain(part) for part in state["parts"]]


def join(parts: list[Rollout]) -> Rollout:
    """Stack freshly sampled responses, padding all to the longest."""
    joined: dict[str, Any] = {}
    for name, first in vars(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        if isinstance(first, tuple):
            joined[name] = tuple(item for value in values for item in value)
        elif isinstance(first, Tensor) and first.dim() == 2:
            width = max(value.shape[1] for value in values)
            joined[name] = torch.cat(
                [torch.nn.functional.pad(value, (0, width - value.shape[1])) for value in values]
            )
        elif isinstance(first, Tensor):
            joined[name] = torch.cat(values)
    return Rollout(**joined)


def _to_plain(part: Rollout) -> dict[str, Any]:
    plain = {k: v for k, v in vars(part).items() if v is not None}
    plain["problems"] = [list(astuple(problem)) for problem in part.problems]
    return plain | {"responses": list(part.responses)}


def _from_plain(plain: dict[str, Any]) -> Rollout:
    problems = tuple(Problem(*fields) for fields in plain["problems"])
    return Rollout(**plain | {"problems": problems, "responses": tuple(plain["responses"])})
