"""Hints of stored rollouts are those of a run, and rollouts that lack their parts are refused."""

from __future__ import annotations

import pytest

from lightning_vcppo.critic_lab.hints import Hints
from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.rollouts.privileged import PrivilegedPrompt
from lightning_vcppo.settings import ValueSettings
from tests.support.saved_responses import saved_response as record

TOKENIZER = default_tokenizer(320)


def store(**changes: object) -> TokenStore:
    records = [
        record(i, j, answer=i, correct=(i + j) % 2 == 0, response_ids=[20 + i, 30 + j], **changes)
        for i in range(2)
        for j in range(3)
    ]
    return TokenStore(records, 320)


@pytest.mark.parametrize("kind", ["answer", "siblings"])
def test_hints_are_those_of_a_run_whatever_the_batch(kind: str) -> None:
    stored, settings = store(), ValueSettings(privileged_prompt=kind)  # type: ignore[arg-type]
    whole = stored.rollout(range(6))
    whole = whole.with_(problems=tuple(Problem("", i) for i in (0, 0, 0, 1, 1, 1)))
    expected = PrivilegedPrompt(TOKENIZER, settings).view(whole)
    rows = [4, 1]
    seen = Hints(stored, TOKENIZER, settings).view(stored.rollout(rows), rows)
    assert seen.hint_lengths_B is not None and expected.hint_lengths_B is not None
    for place, row in enumerate(rows):
        length = int(expected.lengths_B[row])
        assert seen.hint_lengths_B[place] == expected.hint_lengths_B[row] > 0
        assert seen.input_ids_BL[place, :length].tolist() == (
            expected.input_ids_BL[row, :length].tolist()
        )
    plain = stored.rollout(rows)
    assert Hints(stored, TOKENIZER, ValueSettings()).view(plain, rows) is plain


def test_rollouts_without_the_parts_of_a_hint_are_refused() -> None:
    answer, siblings = (ValueSettings(privileged_prompt=k) for k in ("answer", "siblings"))
    without = TokenStore([record(0, answer=""), record(1), record(1, 1)], 10)
    with pytest.raises(ValueError, match="answer: 1 of 2 prompts have no stored answer; import"):
        Hints(without, TOKENIZER, answer)
    with pytest.raises(ValueError, match="siblings: 1 of 2 prompts have only one response"):
        Hints(without, TOKENIZER, siblings)


def test_a_hint_without_an_answer_has_the_siblings_alone() -> None:
    prompt = PrivilegedPrompt(TOKENIZER, ValueSettings(privileged_prompt="siblings"))
    assert (
        prompt.hint("", [([21], True)])
        == prompt.hint("7", [([21], True)])[-len(prompt.hint("", [([21], True)])) :]
    )
    assert prompt.hint("") == []
