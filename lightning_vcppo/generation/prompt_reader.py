"""Read each prompt once, whatever the number of its samples, and some prompts ahead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from lightning_vcppo.generation.decoding import PrefilledPrompt, prefill

PREFILL_TOKENS = 16384
"""Largest number of tokens of a forward pass over prompts."""
READ_AHEAD_TOKENS = 2048
"""Largest number of tokens up to which the next prompts are read in the same pass."""

Prompt = tuple[int, ...]


class PromptReader:
    """Keeps the keys and values of prompts until their last sample has begun."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], pad: int) -> None:
        """Keep the prompts; none is read yet.

        Args:
            model: The model that reads them.
            prompts: Prompts of all sequences to sample; equal ones are read once.
            pad: Padding token id, for models that cannot read packed rows.
        """
        self._model, self._pad = model, pad
        self._unread = Counter(prompts)
        self._prefilled: dict[Prompt, PrefilledPrompt] = {}

    def take(self, prompts: Sequence[Prompt], later: Iterable[Prompt]) -> list[PrefilledPrompt]:
        """Return the prefilled prompt of each sequence; those in `later` will be taken next."""
        self._read(prompts, later)
        taken = [self._prefilled[ids] for ids in prompts]
        for ids in prompts:
            self._unread[ids] -= 1
            if not self._unread[ids]:
                self._prefilled.pop(ids, None)
        return taken

    def _read(self, prompts: Sequence[Prompt], later: Iterable[Prompt]) -> None:
        unread = {ids for ids in prompts if ids not in self._prefilled}
        if not unread:
            return
        tokens = sum(map(len, unread))
        for ids in later:
            if tokens + len(ids) > READ_AHEAD_TOKENS:
                break
            if ids not in self._prefilled and ids not in unread:
                unread.add(ids)
                tokens += len(ids)
        longest_first = sorted(unread, key=lambda ids: (-len(ids), ids))
        while longest_first:
            count = max(1, PREFILL_TOKENS // len(longest_first[0]))
            some, longest_first = longest_first[:count], longest_first[count:]
            self._prefilled |= dict(zip(some, prefill(self._model, some, self._pad), strict=True))
