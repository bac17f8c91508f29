"""Read rollouts from a file of `vcppo predict`, for value pretraining without generation.

Shapes: B responses, L tokens of prompt + response, T response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.seeding import stream
from lightning_vcppo.rollouts.records import SavedResponse, read_records
from lightning_vcppo.rollouts.rollout import Rollout


class SavedRollouts:
    """Responses of a file, divided into rollouts, with problems in a random but fixed order."""

    def __init__(
        self,
        path: str,
        origin: Mapping[str, str | float],
        seed: int,
        vocabulary: int | None = None,
    ) -> None:
        """Read the file.

        Args:
            path: File that `vcppo predict` has written.
            origin: Tokenizer, model and sampling that the responses must come from.
            seed: Seed of the order.
            vocabulary: Number of tokens of the model; None does not check the token ids.

        Raises:
            ValueError: If the file has another form, comes from another policy, has a token id
                outside the vocabulary, or its problems do not have equally many responses.
            OSError: If it cannot be read.
        """
        self._path = path
        groups: dict[tuple[int, ...], list[SavedResponse]] = {}
        for row, response in enumerate(read_records(Path(path)), 1):
            if not isinstance(response, SavedResponse):
                raise ValueError(f"{path}: expected token ids, as `vcppo predict` writes them")
            _check_origin(path, response.origin, origin)
            if vocabulary is not None:
                _check_vocabulary(f"{path}:{row}", response, vocabulary)
            require(
                bool(response.response_ids),
                f"{path}:{row}: response_ids: expected at least one token",
            )
            groups.setdefault((response.index, *response.prompt_ids), []).append(response)
        sizes = {len(group) for group in groups.values()}
        require(bool(sizes), f"{path}: no responses")
        require(len(sizes) == 1, f"{path}: problems have {min(sizes)} to {max(sizes)} responses")
        (self._num_generations,) = sizes
        ordered = list(groups.values())
        order = torch.randperm(len(ordered), generator=stream(seed, "saved rollouts"))
        self._groups = [ordered[i] for i in order.tolist()]

    def count(self, prompts: int) -> int:
        """Return how many rollouts of `prompts` prompts, over all ranks, the file holds.

        Raises:
            ValueError: If there are too few problems for one rollout.
        """
        rollouts = len(self._groups) // prompts
        require(
            rollouts > 0,
            f"{self._path}: expected at least the {prompts} problems of a rollout "
            f"(data.prompts_per_rollout), got {len(self._groups)}",
        )
        return rollouts

    def take(self, number: int, prompts: int, rank: int = 0, world_size: int = 1) -> Rollout:
        """Return this rank's part of a rollout, on the CPU; the first follows the last one again.

        Args:
            number: Number of the rollout, from 0.
            prompts: Number of prompts of this rank.
            rank: Number of this process.
            world_size: Number of processes.
        """
        first = number % self.count(prompts * world_size) * prompts * world_size + rank * prompts
        responses = [r for group in self._groups[first : first + prompts] for r in group]
        start = rank * len(responses)
        positions_B = torch.arange(start, start + len(responses))
        rewards_B = torch.tensor([r.reward for r in responses], dtype=torch.float32)
        mask_BT = _padded([[True] * len(r.response_ids) for r in responses])
        return Rollout(
            problems=tuple(r.as_problem() for r in responses),
            responses=tuple(r.response for r in responses),
            input_ids_BL=_padded([r.prompt_ids + r.response_ids for r in responses]),
            prompt_lengths_B=torch.tensor([len(r.prompt_ids) for r in responses]),
            response_mask_BT=mask_BT,
            sampler_logprobs_BT=torch.zeros(mask_BT.shape),
            finished_B=torch.tensor([r.finished for r in responses]),
            positions_B=positions_B,
            group_ids_B=positions_B // self._num_generations,
            scores_B=rewards_B,
            correct_B=torch.tensor([r.correct for r in responses]),
        )


def _check_origin(path: str, saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    different = [key for key in ours if saved.get(key) != ours[key]]
    listed = ", ".join(f"{key} {saved.get(key)} instead of {ours[key]}" for key in different)
    require(not different, f"{path}: the responses come from another policy: {listed}")


def _check_vocabulary(place: str, response: SavedResponse, vocabulary: int) -> None:
    """Refuse ids that the model does not have; `read_records` has checked that they are ids."""
    for name in ("prompt_ids", "response_ids"):
        beyond = next((i for i in getattr(response, name) if i >= vocabulary), None)
        require(
            beyond is None,
            f"{place}: {name}: expected a list of token ids in 0..{vocabulary - 1}, got {beyond}",
        )


def _padded(rows: list[list[Any]]) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
