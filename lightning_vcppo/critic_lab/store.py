"""Store rollouts as token ids in one file, with an index in memory of some tens of bytes a row.

Shapes: B responses, L tokens of prompt + response, T response tokens.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import IO

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.seeding import stream
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.rollouts.records import ImportedResponse, ResponseRecord, SavedResponse
from lightning_vcppo.rollouts.rollout import Rollout

NO_PROBLEM = Problem("", 0)


class TokenStore:
    """Responses with their rewards, in any order of access; the file is deleted with the object.

    Attributes:
        rewards: Reward of each response.
        groups: Number of the prompt of each response.
        prompt_lengths: Tokens of the prompt of each response.
        response_lengths: Tokens of each response.
        finished: 1 for each response that was not truncated.
        correct: 1 for each response that was graded as right.
        problems: Problem of each prompt; its answer is an empty text if none is stored.
    """

    def __init__(self, records: Iterable[ResponseRecord], vocabulary: int) -> None:
        """Store records with token ids.

        Args:
            records: Records in any order.
            vocabulary: Size of the vocabulary; token ids must be below it.

        Raises:
            ValueError: If a record has no token ids, an id is out of range, or there are no
                records.
        """
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the store)
        self._starts = array("q")
        self.rewards, self.groups = array("f"), array("i")
        self.prompt_lengths, self.response_lengths = array("i"), array("i")
        self.finished, self.correct = array("b"), array("b")
        self.problems: list[Problem] = []
        self._siblings: list[list[int]] = []
        numbers: dict[tuple[str, int], int] = {}
        end = 0
        for record in records:
            self._check(record, vocabulary)
            assert isinstance(record, SavedResponse)
            ids = np.array([*record.prompt_ids, *record.response_ids], dtype=np.int32)
            self._file.write(ids.tobytes())
            self._starts.append(end)
            end += len(ids)
            self.rewards.append(record.reward)
            key = (record.evaluation_set, record.index)
            if key not in numbers:
                numbers[key] = len(numbers)
                self.problems.append(record.as_problem())
            self.groups.append(numbers[key])
            self.prompt_lengths.append(len(record.prompt_ids))
            self.response_lengths.append(len(record.response_ids))
            self.finished.append(record.finished)
            self.correct.append(record.correct)
        require(len(self) > 0, "no rollouts")
        self.prompts = len(numbers)

    @staticmethod
    def _check(record: ResponseRecord, vocabulary: int) -> None:
        require(
            not isinstance(record, ImportedResponse),
            f"{record.source}: no token ids; import the rollouts with --model",
        )
        if not isinstance(record, SavedResponse):
            raise ValueError(
                f"{record.source}: no token ids; `vcppo predict` and `vcppo import` write them"
            )
        require(len(record.response_ids) > 0, f"{record.source}: the response has no tokens")
        top = max(max(record.prompt_ids, default=0), max(record.response_ids))
        require(
            top < vocabulary,
            f"{record.source}: token id {top} is not in the model's vocabulary of {vocabulary}: "
            "the rollouts come from a model with other tokens",
        )

    def __len__(self) -> int:
        """Number of responses."""
        return len(self.rewards)

    @property
    def reward_range(self) -> tuple[float, float]:
        """The lowest and the highest reward."""
        return min(self.rewards), max(self.rewards)

    def split(self, held_out_share: float, seed: int) -> tuple[list[int], list[int]]:
        """Return the rows to fit on and the held-out ones; no prompt has rows in both.

        Args:
            held_out_share: Share of the prompts; at least one is held out and one is not.
            seed: Seed of the choice.

        Raises:
            ValueError: If there is only one prompt.
        """
        require(
            self.prompts > 1,
            "the rollouts have only one prompt; expected at least two, one to fit the critic on "
            "and one to judge it",
        )
        count = min(max(1, round(held_out_share * self.prompts)), self.prompts - 1)
        order = torch.randperm(self.prompts, generator=stream(seed, "held-out prompts"))
        held_out = set(order[:count].tolist())
        rows: tuple[list[int], list[int]] = ([], [])
        for row, group in enumerate(self.groups):
            rows[group in held_out].append(row)
        return rows

    def rollout(self, rows: Sequence[int], positions: Sequence[int] | None = None) -> Rollout:
        """Return responses as a rollout with Monte-Carlo returns, on the CPU.

        Args:
            rows: Numbers of the responses.
            positions: Their numbers in the batch over all ranks; None means 0, 1, ...
        """
        scores_B = torch.tensor([self.rewards[row] for row in rows])
        rollout = self._assemble(rows, [self.response(row) for row in rows], [0] * len(rows))
        return rollout.with_(
            finished_B=torch.tensor([bool(self.finished[row]) for row in rows]),
            positions_B=torch.tensor(range(len(rows)) if positions is None else positions),
            scores_B=scores_B,
            correct_B=torch.tensor([bool(self.correct[row]) for row in rows]),
            returns_BT=torch.where(rollout.response_mask_BT, scores_B[:, None], 0.0),
        )

    def continued(
        self, rows: Sequence[int], places: Sequence[int], endings: Sequence[Sequence[int]]
    ) -> Rollout:
        """Return stored responses with other endings, whose values can be read; without rewards.

        Args:
            rows: Numbers of the responses.
            places: Number of tokens of each that are kept; the response mask begins after them.
            endings: Tokens that follow the kept ones.
        """
        responses = [
            [*self.response(row)[:place], *ending]
            for row, place, ending in zip(rows, places, endings, strict=True)
        ]
        return self._assemble(rows, responses, places)

    def _assemble(
        self, rows: Sequence[int], responses: Sequence[Sequence[int]], firsts: Sequence[int]
    ) -> Rollout:
        """Return responses to stored prompts; `firsts` is where each response mask begins."""
        pairs = zip(rows, responses, strict=True)
        lengths_B = torch.tensor([len(response) for response in responses])
        place_T = torch.arange(int(lengths_B.max()))
        mask_BT = (place_T < lengths_B[:, None]) & (place_T >= torch.tensor(firsts)[:, None])
        zeros_B = torch.zeros(len(rows))
        return Rollout(
            problems=(NO_PROBLEM,) * len(rows),
            responses=("",) * len(rows),
            input_ids_BL=pad_sequence(
                [torch.tensor([*self.prompt(row), *response]) for row, response in pairs],
                batch_first=True,
            ),
            prompt_lengths_B=torch.tensor([self.prompt_lengths[row] for row in rows]),
            response_mask_BT=mask_BT,
            sampler_logprobs_BT=torch.zeros(mask_BT.shape),
            finished_B=zeros_B.bool(),
            positions_B=torch.arange(len(rows)),
            group_ids_B=torch.tensor([self.groups[row] for row in rows]),
            scores_B=zeros_B,
            correct_B=zeros_B.bool(),
        )

    def prompt(self, row: int) -> list[int]:
        """Return the token ids of the prompt of a response."""
        return self._read(self._starts[row], self.prompt_lengths[row])

    def response(self, row: int) -> list[int]:
        """Return the token ids of a response."""
        return self._read(self._starts[row] + self.prompt_lengths[row], self.response_lengths[row])

    def rows_of_prompt(self, row: int) -> list[int]:
        """Return the rows with the prompt of a row, including itself, in stored order."""
        if not self._siblings:
            self._siblings = [[] for _ in range(self.prompts)]
            for each, group in enumerate(self.groups):
                self._siblings[group].append(each)
        return self._siblings[self.groups[row]]

    def _read(self, start: int, count: int) -> list[int]:
        self._file.seek(4 * start)
        ids: list[int] = np.frombuffer(self._file.read(4 * count), dtype=np.int32).tolist()
        return ids
