"""A problem with its answer: what a data set is made of."""

from __future__ import annotations

from dataclasses import dataclass

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


@dataclass(frozen=True)
class Problem:
    """A question with an integer answer.

    Attributes:
        problem: The question's text.
        answer: The answer, an integer in 0..999.
        solution: A worked response (reasoning, closing tag, boxed answer), if there is one.
        source: Where the problem comes from: "file.jsonl:12", a hub id, or a family's name.
        year: Of the competition, if the source tells it.
    """

    problem: str
    answer: int
    solution: str | None = None
    source: str = ""
    year: int | None = None
