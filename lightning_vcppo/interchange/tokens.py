"""Tokenize prompts and responses that a dump has only as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_vcppo.data.prompts import Clock, chat_template_text, fill_template
from lightning_vcppo.interchange.cells import Prompt
from lightning_vcppo.interchange.schemas import ForeignResponse

_TURN = re.compile(r"^(system|user|assistant|model)\n?", re.MULTILINE)


@dataclass
class RoundTrips:
    """Counts of texts that were converted to token ids, and of those that differ afterwards.

    Attributes:
        taken: Responses whose token ids the dump has.
        made: Responses that were tokenized.
        changed: Tokenized responses whose ids decode to another text.
        restored: Prompts without special tokens whose chat template was restored.
        bare: Prompts without special tokens that were tokenized as plain text.
    """

    taken: int = 0
    made: int = 0
    changed: int = 0
    restored: int = 0
    bare: int = 0


class Tokens:
    """Tokenizes responses, and each prompt once.

    Trainers dump texts without special tokens. If a prompt was written with the chat template of
    the tokenizer, the template is restored, provided that the result decodes to the text of the
    dump. A response gets its <eos> back unless the dump or the limit marks it as truncated.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_response_length: int | None = None
    ) -> None:
        """Collect the arguments.

        Args:
            tokenizer: Tokenizer of the policy.
            max_response_length: Number of tokens at which responses were truncated; None if
                unknown.
        """
        self._tokenizer, self._limit = tokenizer, max_response_length
        self._template, self._clock = chat_template_text(tokenizer, "auto"), Clock()
        self._prompts: dict[str, list[int]] = {}
        self.round_trips = RoundTrips()

    def ids_of(self, responses: Sequence[ForeignResponse]) -> list[tuple[list[int], list[int]]]:
        """Return the token ids of the prompt and the response of each."""
        missing = [r for r in responses if r.response_ids is None]
        made = iter(self._tokenise([r.response for r in missing], [r.finished for r in missing]))
        self.round_trips.taken += len(responses) - len(missing)
        return [
            (
                r.prompt_ids if r.prompt_ids is not None else self._prompt_ids(r.prompt),
                r.response_ids if r.response_ids is not None else next(made),
            )
            for r in responses
        ]

    def ends(self, response_ids: list[int]) -> bool | None:
        """Return whether token ids end with <eos>; None if the tokenizer has no <eos>."""
        eos = self._tokenizer.eos_token_id
        return None if eos is None else response_ids[-1:] == [eos]

    def _tokenise(self, texts: list[str], finished: list[bool | None]) -> list[list[int]]:
        if not texts:
            return []
        rows = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        decoded = self._tokenizer.batch_decode(rows, skip_special_tokens=False)
        self.round_trips.made += len(texts)
        self.round_trips.changed += sum(a != b for a, b in zip(texts, decoded, strict=True))
        eos = self._tokenizer.eos_token_id
        limit = math.inf if self._limit is None else self._limit
        for ids, is_finished in zip(rows, finished, strict=True):
            cut = len(ids) >= limit if is_finished is None else not is_finished
            if not cut and eos is not None and ids[-1:] != [eos]:
                ids.append(eos)
        return list(rows)

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        key = repr(prompt)
        if (ids := self._prompts.get(key)) is None:
            ids = self._prompts[key] = self._render(prompt)
        return ids

    def _render(self, prompt: Prompt) -> list[int]:
        tokenizer = self._tokenizer
        if isinstance(prompt, list):
            if self._template is not None:
                return self._chat_ids(prompt)
            prompt = "\n".join(message["content"] for message in prompt)
        specials = [t for t in tokenizer.all_special_tokens if t]
        if any(token in prompt for token in specials):
            return _ids(tokenizer(prompt, add_special_tokens=False))
        if self._template is not None and (ids := self._restore(prompt)):
            self.round_trips.restored += 1
            return ids
        self.round_trips.bare += 1
        return _ids(tokenizer(prompt))

    def _restore(self, text: str) -> list[int] | None:
        """Return the ids of the chat that decodes to a text without special tokens, or None."""
        turns = list(_TURN.finditer(text))
        candidates = [[{"role": "user", "content": text}]]
        if turns and turns[0].start() == 0:
            ends = [turn.start() for turn in turns[1:]] + [len(text)]
            messages = [
                {"role": turn[1], "content": text[turn.end() : end].strip("\n")}
                for turn, end in zip(turns, ends, strict=True)
            ]
            if messages[-1]["role"] in ("assistant", "model") and len(messages) > 1:
                messages.pop()
            candidates.insert(0, messages)
        for messages in candidates:
            ids = self._chat_ids(messages)
            decoded = str(self._tokenizer.decode(ids, skip_special_tokens=True))
            if decoded.strip() == text.strip():
                return ids
        return None

    def _chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        assert self._template is not None
        turns = [(message["role"], message["content"]) for message in messages]
        text = fill_template(self._tokenizer, self._template, turns, self._clock)
        return _ids(self._tokenizer(text, add_special_tokens=False))


def _ids(encoded: Any) -> list[int]:
    ids: list[int] = encoded["input_ids"]
    return ids
