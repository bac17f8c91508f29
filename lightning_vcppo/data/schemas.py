"""From a row, in the schemas of the wild, to a problem."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable

from lightning_vcppo.data.files import Row
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.rewards.verifier import last_boxed, normalize_answer

PROBLEM_FIELDS = ("problem", "question", "prompt", "messages", "conversations")
ANSWER_FIELDS = (
    "answer",
    "final_answer",
    "expected_answer",
    "ground_truth",
    "reward_model.ground_truth",
    "label",
)
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can say it: "\\ud800"


# From a row to a problem


class _InvalidRow(ValueError):
    """A row that holds no problem with an integer answer in 0..999."""


def _read_row(
    row: Row, source: str, problem_field: str | None, answer_field: str | None
) -> Problem:
    text = problem_text(_field(row, problem_field, PROBLEM_FIELDS))
    if not text:
        raise _InvalidRow(f"the problem is empty or not text; fields: {_listed(row)}")
    if "\0" in text or not _is_unicode(text):
        raise _InvalidRow("the problem's text holds a NUL byte or half a surrogate pair")
    value = _field(row, answer_field, ANSWER_FIELDS)
    answer = parse_answer(value)
    if answer is None:
        seen = repr(value)
        seen = seen if len(seen) <= 60 else f"{seen[:30]} ... {seen[-25:]}"
        raise _InvalidRow(f"expected an integer answer in 0..999, got {seen}")
    solution = row.get("solution")
    if not isinstance(solution, str) and isinstance(value, str) and "####" in value:
        solution = value.rpartition("####")[0]  # GSM8K works the answer out in front of it
    solution = solution.strip() if isinstance(solution, str) else None
    if _HALF_CHARACTER.search(text + (solution or "")):
        raise _InvalidRow("a text holds half a character (a surrogate), which no UTF-8 can write")
    return Problem(text, answer, solution or None, source, find_year(row, source))


def _field(row: Row, wanted: str | None, usual: Iterable[str]) -> object:
    """Return the value of the wanted field, or of the first usual one that the row fills."""
    by_name = {name.lower(): value for name, value in row.items()}
    for name in [wanted] if wanted else usual:
        value = _follow(row if wanted else by_name, name)
        if value is not None and value != "":
            return value
    sought = f"field {wanted!r}" if wanted else f"field {', '.join(usual)}"
    flag = "--data.problem_field" if usual is PROBLEM_FIELDS else "--data.answer_field"
    advice = "" if wanted else f" ({flag} names one)"
    raise _InvalidRow(f"no {sought} with a value; fields: {_listed(row)}{advice}")


def _listed(row: Row) -> str:
    """Return the names of a row's fields, not all of a table that has hundreds."""
    names = [str(name)[:40] for name in row]
    return ", ".join(names if len(names) <= 12 else [*names[:12], f"and {len(names) - 12} more"])


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _follow(row: Row, path: str) -> object:
    """Follow a path such as `prompt[0].content` into a row; None where it leads nowhere."""
    if path in row:
        return row[path]
    value: object = row
    for key in re.findall(r"[^.\[\]]+", path):
        value = _parsed(value)
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _parsed(value: object) -> object:
    """Return the list or object that a JSON string holds, any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def problem_text(value: object) -> str | None:
    """Return the text of a problem given as text or as chat messages.

    Args:
        value: Text; a message `{"role": ..., "content": ...}` or `{"from": ..., "value": ...}`; a
            list of messages, of which the user's last one counts; or any of these as a JSON string.

    Returns:
        The text without surrounding space, or None if there is none.
    """
    parsed = _parsed(value)
    items = parsed if isinstance(parsed, list) else [parsed]
    messages = [item for item in items if isinstance(item, dict)]
    if messages and len(messages) == len(items):
        users = [m for m in messages if m.get("role", m.get("from")) in ("user", "human")]
        message = users[-1] if users else messages[0]
        value = message.get("content", message.get("value"))
        if isinstance(value, list):  # the parts of a multimodal message
            parts = [part.get("text") for part in value if isinstance(part, dict)]
            value = "".join(part for part in parts if isinstance(part, str))
    return value.strip() if isinstance(value, str) else None


def parse_answer(value: object) -> int | None:
    r"""Return the integer in 0..999 that an answer of the wild stands for.

    Args:
        value: 70, 70.0, "070", "70.0", ["70"], "$70$", "70^\circ", "\boxed{70}", "... #### 70" ...

    Returns:
        The integer, or None if the answer is anything else.
    """
    value = _parsed(value)
    if isinstance(value, list) and len(value) == 1:
        return parse_answer(value[0])
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = str(value).rpartition("####")[2]
    boxed = last_boxed(text)
    normalized = normalize_answer(text if boxed is None else boxed)
    return int(normalized) if re.fullmatch("[0-9]{1,3}", normalized) else None


_YEAR = re.compile(r"(?<!\d)((?:19|20)\d\d)(?!\d)|(?:aime|amc)[ _-]?(\d\d)(?!\d)", re.IGNORECASE)


def find_year(row: Row, source: str = "") -> int | None:
    """Return the year of the competition that a row or the name of its source tells.

    Args:
        row: Read are the fields `year`, `competition`, `contest`, `url`, `link` and `id`.
        source: Such as "aime24.jsonl:7".

    Returns:
        The year, or None where no text names one, or one names several.
    """
    fields = {name.lower(): value for name, value in row.items()}
    places = ("year", "competition", "contest", "url", "link", "id")
    texts = [str(fields[place]) for place in places if fields.get(place)]
    for text in [*texts, source.rpartition(":")[0]]:
        found = {int(year or f"20{short}") for year, short in _YEAR.findall(text)}
        # A number alone, but for a year's own field, is the number of a row.
        is_number = text.isdecimal() and text != str(fields.get("year"))
        if len(found) == 1 and not is_number:
            return found.pop()
    return None


def _has_answer(row: Row) -> bool:
    return any(_follow(row, field) is not None for field in ANSWER_FIELDS)
