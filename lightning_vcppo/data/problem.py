"""A problem with its answer: what a data set is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_vcppo.rewards.answers import Answer, AnswerKind

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

Message = tuple[str, str]
"""Role ("system", "user", "assistant", ...) and text of a turn of a chat."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with an answer that can be graded.

    Attributes:
        problem: The question's text, choices included.
        answer: The answer: an integer of any size for kind "integer", a text for the other kinds.
        solution: A worked response (reasoning, closing tag, boxed answer), if there is one.
        source: Where the problem comes from: "file.jsonl:12", a hub id, or a family's name.
        year: Of the competition, if the source tells it.
        accepted: Further answers that are right as well.
        answer_kind: How answers are compared.
        context: The system message and the earlier turns of the chat that the question ends.
        level: Of difficulty, if the source tells it.
        subject: If the source tells it.
    """

    # Checkpoints hold these fields in this order: new ones go to the end.
    problem: str
    answer: int | str
    solution: str | None = None
    source: str = ""
    year: int | None = None
    accepted: tuple[int | str, ...] = ()
    answer_kind: AnswerKind = "integer"
    context: tuple[Message, ...] = ()
    level: str | None = None
    subject: str | None = None

    @property
    def gold(self) -> Answer:
        """The answer, or all of those that are right, for graders."""
        return (self.answer, *self.accepted) if self.accepted else self.answer
