"""The kinds of gold answers, which decide how a candidate is compared with one.

* `integer`: an integer, as in AIME. A list of guesses or an expression with several values never
  equals it.
* `math`: anything that math-verify compares: decimals, fractions, roots, intervals, sets, tuples,
  matrices, expressions, equations, units, choices.
* `text`: equal after normalisation alone, for puzzles.
"""

from __future__ import annotations

from typing import Literal

AnswerKind = Literal["integer", "math", "text"]

Answer = int | str | tuple[int | str, ...]
"""A gold answer, or several of which each is accepted."""


def kind_of(answer: int | str, kind: AnswerKind | None = None) -> AnswerKind:
    """Return how an answer is compared: as told, else an int as an integer and a text as math."""
    if kind is not None:
        return kind
    return "integer" if isinstance(answer, int) else "math"


def accepted_answers(answer: Answer) -> tuple[int | str, ...]:
    """Return the answers of which each is accepted, as a tuple."""
    return answer if isinstance(answer, tuple) else (answer,)
