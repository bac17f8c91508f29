"""Define a problem with its answer, the element of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
        source: Source of the problem: "file.jsonl:12", a hub id, or a family's name.
        year: Year of the competition, if the source states it.
        accepted: Further correct answers.
        answer_kind: Kind of comparison of answers.
        context: The system message and the earlier turns of the chat before the question.
        level: Level of difficulty, if the source states it.
        subject: Subject of the problem, if the source states it.
        columns: Columns of its row that the reward function reads, by name, with JSON's types.
    """

    # Checkpoints have these fields in this order, so new ones go to the end.
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
    columns: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def gold(self) -> Answer:
        """The answer, or all correct answers, for graders."""
        return (self.answer, *self.accepted) if self.accepted else self.answer
