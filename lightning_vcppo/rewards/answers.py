"""Define the kinds of gold answers, which determine how candidates are compared with them.

* `integer`: an integer, as in AIME. A list of guesses or an expression with several values never
  equals it.
* `math`: anything that math-verify compares: decimals, fractions, roots, intervals, sets, tuples,
  matrices, expressions, equations, units, choices.
* `text`: equal after normalization only, for puzzles.
"""

from __future__ import annotations

from typing import Literal

AnswerKind = Literal["integer", "math", "text"]

Answer = int | str | tuple[int | str, ...]
"""A gold answer, or several accepted ones."""


def kind_of(answer: int | str, kind: AnswerKind | None = None) -> AnswerKind:
    """Return the given kind, or without one "integer" for an int and "math" for a text."""
    if kind is not None:
        return kind
    return "integer" if isinstance(answer, int) else "math"


def accepted_answers(answer: Answer) -> tuple[int | str, ...]:
    """Return the accepted answers as a tuple."""
    return answer if isinstance(answer, tuple) else (answer,)
