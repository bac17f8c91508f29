"""Prepend a hint to a prompt that only the critic reads (BPCO, piPPO).

A value function may know more than the policy: a baseline is valid as long as it does not depend
on the response's own tokens. So the critic gets its own rows, with a hint before the prompt; the
positions of responses and values do not change. The rollout that the actor reads is never changed.

1. `answer` (BPCO, arXiv 2608.23566): the reference answer.
2. `siblings` (piPPO, arXiv 2609.37825): one right and one wrong response to the same prompt, each
   with its label, never the judged response. If one kind is missing, two of the other kind and the
   answer.

Shapes: B responses, L tokens of hint + prompt + response, T response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import ValueSettings

ANSWER = "Reference answer: {}\n\n"
LABELS = {True: "A correct response:\n", False: "An incorrect response:\n"}
END = "\n\n"


class PrivilegedPrompt:
    """Puts hints before the prompts that a critic reads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ValueSettings) -> None:
        """Collect the parts.

        Args:
            tokenizer: Tokenizer of actor and critic.
            settings: Kind and largest length of the hint.
        """
        self._tokenizer, self._settings = tokenizer, settings

    @property
    def longest(self) -> int:
        """Largest number of tokens of a hint; 0 without hints."""
        without = self._settings.privileged_prompt == "none"
        return 0 if without else self._settings.privileged_max_length

    def view(self, rollout: Rollout) -> Rollout:
        """Return the rollout as the critic reads it; unchanged if it already has hints.

        Args:
            rollout: Rollout with complete groups.
        """
        if self._settings.privileged_prompt == "none" or rollout.hint_lengths_B is not None:
            return rollout
        return prepend(rollout, self.hints(rollout))

    def hints(self, rollout: Rollout) -> list[list[int]]:
        """Return the tokens of each response's hint, at most `privileged_max_length`."""
        if self._settings.privileged_prompt == "answer":
            return [self.hint(problem.answer) for problem in rollout.problems]
        mask_BT = rollout.response_mask_BT
        prompts = rollout.prompt_lengths_B.tolist()
        responses = [
            ids[length : length + len(mask)][mask[: len(ids) - length]].tolist()
            for ids, length, mask in zip(rollout.input_ids_BL, prompts, mask_BT, strict=True)
        ]
        groups, correct = rollout.group_ids_B.tolist(), rollout.correct_B.tolist()
        rows_of: dict[int, list[int]] = {}
        for row, group in enumerate(groups):
            rows_of.setdefault(group, []).append(row)
        return [
            self.hint(
                rollout.problems[row].answer,
                [
                    (responses[sibling], correct[sibling])
                    for sibling in choose_siblings(row, rows_of[group], correct)
                ],
            )
            for row, group in enumerate(groups)
        ]

    def hint(
        self, answer: int | str, siblings: Sequence[tuple[Sequence[int], bool]] = ()
    ) -> list[int]:
        """Return the tokens of one hint, at most `privileged_max_length`.

        Args:
            answer: The reference answer; an empty text means that there is none.
            siblings: Tokens of the responses that `choose_siblings` chose, and whether each is
                right.
        """
        most = self._settings.privileged_max_length
        both = len({correct for _, correct in siblings}) == 2
        hint = [] if both or answer == "" else self._ids(ANSWER.format(answer))[-most:]
        # Responses share the room; of a longer one the end is kept, which has its answer.
        room = (most - len(hint)) // max(len(siblings), 1)
        for response, correct in siblings:
            label, end = self._ids(LABELS[correct]), self._ids(END)
            left = room - len(label) - len(end)
            if left > 0:
                hint = hint + label + self._without_end(list(response))[-left:] + end
        return hint

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _without_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] == self._tokenizer.eos_token_id else ids


def prepend(rollout: Rollout, hints: Sequence[Sequence[int]]) -> Rollout:
    """Return the rollout with a hint before each prompt, only for the critic."""
    device = rollout.input_ids_BL.device
    ids_BL = torch.nn.utils.rnn.pad_sequence(
        [
            torch.cat([torch.tensor(hint, dtype=ids.dtype, device=device), ids])
            for hint, ids in zip(hints, rollout.input_ids_BL, strict=True)
        ],
        batch_first=True,
    )
    lengths_B = torch.tensor([len(hint) for hint in hints], device=device)
    return rollout.with_(
        input_ids_BL=ids_BL,
        prompt_lengths_B=rollout.prompt_lengths_B + lengths_B,
        hint_lengths_B=lengths_B,
    )


def choose_siblings(
    row: int, rows: Sequence[int], correct: Sequence[bool] | Mapping[int, bool]
) -> list[int]:
    """Return a right and a wrong response of a group, or up to two if all others are of one kind.

    Args:
        row: The judged response, which is never returned and whose correctness is not read.
        rows: Rows of all responses of its group.
        correct: Whether a response is right, by row.

    Returns:
        The first of each kind after the judged response, wrapping around at the group's end.
    """
    place = rows.index(row)
    others = [*rows[place + 1 :], *rows[:place]]
    right = [other for other in others if correct[other]]
    wrong = [other for other in others if not correct[other]]
    return [right[0], wrong[0]] if right and wrong else others[:2]
