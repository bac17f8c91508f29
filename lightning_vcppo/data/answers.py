r"""Parse answers of real data sets, and choose the kind of a set's answers.

    aime      an integer in 0..999, and nothing else
    integer   any integer
    math      anything that math-verify can compare: numbers, expressions, sets, choices
    text      any text, compared after normalization

`auto` chooses among the first three for a complete set: `aime` if all answers are integers in
0..999, except a few, which count as mistakes; `integer` if all are integers; else `math`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

from lightning_vcppo.data.chats import parsed
from lightning_vcppo.data.texts import InvalidRow, check_text, plain
from lightning_vcppo.rewards.answers import AnswerKind
from lightning_vcppo.rewards.verifier import MAX_ANSWER_CHARS, last_boxed, normalize_answer

ReadAs = Literal["aime", "integer", "math", "text"]
ReadKind = Literal["auto", "aime", "integer", "math", "text"]

KINDS: dict[ReadAs, AnswerKind] = {
    "aime": "integer",
    "integer": "integer",
    "math": "math",
    "text": "text",
}
"""Kind of comparison of answers, by the kind as which they were read."""

EXPECTED: dict[ReadAs, str] = {
    "aime": "an integer answer in 0..999",
    "integer": "an integer answer",
    "math": f"a mathematical answer of at most {MAX_ANSWER_CHARS} characters",
    "text": f"an answer of at most {MAX_ANSWER_CHARS} characters",
}
NO_ANSWERS = frozenset({"proof", "notfound", "none", "null", "nan", "n/a", "unknown", "error"})
"""Words that data sets use in place of a missing answer, without spaces."""

_INTEGER = re.compile(r"-?[0-9]+")
_DIGIT = re.compile("[0-9]")
_DRESS = re.compile(r"\s|\\text|[${}.]")
_CACHED = 2**12


class Answers(NamedTuple):
    """The accepted answers of a problem: the first, and others."""

    first: int | str
    others: tuple[int | str, ...] = ()


def answer_values(value: object) -> tuple[object, ...]:
    """Return the accepted answers of a cell.

    Args:
        value: A value, a list of values, or a list of texts in JSON or Python syntax. A text
            such as "[1, 2]" is one value, an interval or a vector.
    """
    value = plain(value)
    if isinstance(value, str) and value[:1] != "[":
        return (value,)
    found = parsed(value) if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)):
        return (value,)
    if isinstance(value, str) and not all(isinstance(item, str) for item in found):
        return (value,)
    return tuple(dict.fromkeys(plain(item) for item in found if not isinstance(item, (list, dict))))


def parse_answer(value: object) -> int | None:
    r"""Return the integer in 0..999 that an answer of a data set denotes.

    Args:
        value: 70, 70.0, "070", "70.0", ["70"], "$70$", "70^\circ", "\boxed{70}", "... #### 70" ...

    Returns:
        The integer, or None if the answer is anything else.
    """
    number = parse_integer(value)
    return number if number is not None and 0 <= number <= 999 else None


def parse_integer(value: object) -> int | None:
    """Return the integer that an answer of a data set denotes, see `parse_answer`."""
    value = plain(value)
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    found = parsed(value)
    if isinstance(found, list):
        return parse_integer(found[0]) if len(found) == 1 else None
    return _integer_in(value) if isinstance(value, str) else None


@lru_cache(_CACHED)
def _integer_in(text: str) -> int | None:
    text = _final_part(text)
    if len(text) > MAX_ANSWER_CHARS or not _DIGIT.search(text):
        return None
    normalized = text if _INTEGER.fullmatch(text) else normalize_answer(text)
    return int(normalized) if _INTEGER.fullmatch(normalized) else None


def _final_part(text: str) -> str:
    r"""Return the text after `####` (GSM8K), or in the last box, or the complete text."""
    text = text.rpartition("####")[2]
    boxed = last_boxed(text) if "box" in text else None
    return (text if boxed is None else boxed).strip()


def answer_text(value: object, *, is_math: bool) -> str | None:
    """Return the text of an answer; None if there is none.

    Args:
        value: A text or a number.
        is_math: Whether words such as "none" mean that there is no answer.
    """
    value = plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None if is_math or not isinstance(value, bool) else str(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = _final_part(value) if isinstance(value, str) else str(value)
    is_word = is_math and len(text) < 20 and not _DIGIT.search(text)
    if is_word and _DRESS.sub("", text).lower() in NO_ANSWERS:
        return None
    return text if 0 < len(text) <= MAX_ANSWER_CHARS else None


def read_answers(values: tuple[object, ...], kind: ReadAs) -> Answers:
    """Read the accepted answers of a problem as a kind.

    Args:
        values: Accepted values; for "aime" they must be equal.
        kind: Kind of answer, not "auto", which `choose_kind` replaces.

    Raises:
        InvalidRow: If there is no answer of this kind, or one of several is of another kind.
    """
    for value in values:
        if isinstance(value, str):
            check_text(value, "the answer")
    found = list(dict.fromkeys(_read(value, kind) for value in values))
    if not found or None in found or (kind == "aime" and len(found) > 1):
        given = values[0] if len(values) == 1 else list(values)
        seen = repr(given)
        seen = seen if len(seen) <= 60 else f"{seen[:30]} ... {seen[-25:]}"
        raise InvalidRow(f"expected {EXPECTED[kind]}, got {seen}")
    first, *others = (answer for answer in found if answer is not None)
    return Answers(first, tuple(others))


def _read(value: object, kind: ReadAs) -> int | str | None:
    if kind == "aime":
        return parse_answer(value)
    if kind == "integer":
        return parse_integer(value)
    return answer_text(value, is_math=kind == "math")


class Choice(NamedTuple):
    """The choice of `auto` for a set, and the counts on which it is based."""

    kind: ReadAs
    answers: int
    integers: int
    of_aime: int

    def __str__(self) -> str:
        """Return a description of the choice."""
        share = {"aime": self.of_aime, "integer": self.answers}.get(self.kind, self.integers)
        name = {"aime": "integers in 0..999", "integer": "integers"}.get(self.kind, "integers")
        return f"answers are read as {self.kind}, for {share} of {self.answers} are {name}"


def choose_kind(rows: Iterable[tuple[object, ...]], *, tolerant: bool = True) -> Choice:
    """Choose the kind of a set's answers.

    Answers count as AIME's if at most a hundredth of them are others, or at most three if these
    are no more than a tenth. Rows without an answer do not count.

    Args:
        rows: Values of each row.
        tolerant: Whether a few exceptions count as mistakes; otherwise the kind is another one.
    """
    answers = integers = of_aime = 0
    for values in rows:
        if not values or answer_text(values[0], is_math=True) is None:
            continue
        answers += 1
        numbers = [parse_integer(value) for value in values]
        integers += None not in numbers
        of_aime += len({*numbers}) == 1 and parse_answer(values[0]) is not None
    others = answers - of_aime
    few = max(answers / 100, min(3, answers / 10)) if tolerant else 0
    kind: ReadAs = "aime" if others <= few else "integer" if integers == answers else "math"
    return Choice(kind, answers, integers, of_aime)
