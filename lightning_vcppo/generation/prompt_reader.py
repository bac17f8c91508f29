"""Prompts are read once, whatever the number of their samples, and some ahead of their turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from lightning_vcppo.generation.decoding import PrefilledPrompt, prefill

PREFILL_TOKENS = 16384
"""Prompts are read in passes of at most so many tokens."""
READ_AHEAD_TOKENS = 2048
"""When prompts are read, those that will be next are read with them, up to so many tokens."""

Prompt = tuple[int, ...]


class PromptReader:
    """Holds the keys and values of prompts until their last sample has begun."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], pad: int) -> None:
        """Read nothing yet.

        Args:
            model: Reads them.
            prompts: Of all sequences that will be sampled; equal ones are read once.
            pad: Filler token, for models that read no packed rows.
        """
        self._model, self._pad = model, pad
        self._unread = Counter(prompts)
        self._prefilled: dict[Prompt, PrefilledPrompt] = {}

    def take(self, prompts: Sequence[Prompt], later: Iterable[Prompt]) -> list[PrefilledPrompt]:
        """Return what each of these sequences begins with; `later` will be asked for next."""
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
