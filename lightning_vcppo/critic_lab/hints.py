"""Prepend the hints of privileged critics to the prompts of stored rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lightning_vcppo.common.errors import require
from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.rollouts.privileged import PrivilegedPrompt, choose_siblings, prepend
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import ValueSettings


class Hints:
    """Hints of one kind for the responses of a store."""

    def __init__(
        self, store: TokenStore, tokenizer: PreTrainedTokenizerBase, settings: ValueSettings
    ) -> None:
        """Check that the rollouts have the data for the hints.

        Args:
            store: Store of the rollouts.
            tokenizer: Tokenizer of actor and critic.
            settings: Kind and largest length of the hints; the kind may be "none".

        Raises:
            ValueError: If a prompt has no reference answer, or only one response.
        """
        self._store, self._kind = store, settings.privileged_prompt
        self._prompt = PrivilegedPrompt(tokenizer, settings)
        if self._kind == "answer":
            missing = sum(problem.answer == "" for problem in store.problems)
            require(
                not missing,
                f"value.privileged_prompt=answer: {missing} of {store.prompts} prompts have no "
                "stored answer; import the rollouts with --problems=FILE",
            )
        if self._kind == "siblings":
            sizes = [0] * store.prompts
            for group in store.groups:
                sizes[group] += 1
            alone = sum(size < 2 for size in sizes)
            require(
                not alone,
                f"value.privileged_prompt=siblings: {alone} of {store.prompts} prompts have only "
                "one response; expected at least two",
            )

    def view(self, rollout: Rollout, rows: Sequence[int]) -> Rollout:
        """Return a rollout with the hints that the critic reads.

        Args:
            rollout: Responses to the prompts of stored responses.
            rows: Stored response whose hint each of them gets; the hint never contains it.
        """
        if self._kind == "none":
            return rollout
        found: dict[int, list[int]] = {}
        for row in rows:
            if row not in found:
                found[row] = self._hint(row)
        return prepend(rollout, [found[row] for row in rows])

    def _hint(self, row: int) -> list[int]:
        store = self._store
        answer = store.problems[store.groups[row]].answer
        if self._kind == "answer":
            return self._prompt.hint(answer)
        rows = store.rows_of_prompt(row)
        correct = {each: bool(store.correct[each]) for each in rows}
        chosen = choose_siblings(row, rows, correct)
        return self._prompt.hint(answer, [(store.response(each), correct[each]) for each in chosen])
