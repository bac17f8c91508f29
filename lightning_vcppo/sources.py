"""Reading problems from files, data sets and puzzle generators, in the schemas of the wild.

A source is named by one string:

    data/aime24.jsonl           .jsonl .json .txt (JSON Lines too) .csv .tsv .parquet
    data/aime                   a folder, as `datasets.load_dataset` or `save_to_disk` knows it
    math-ai/aime25              a data set of the hub
    reasoning_gym:chain_sum     a task of reasoning-gym, generated from `size` and `seed`

Which fields hold the problem and its answer is found out row by row unless they are named. A field
may be a path through nested values: `reward_model.ground_truth`, `prompt[0].content`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from lightning_vcppo.problem_files import FILE_SUFFIXES, NumberedRow, Row, file_rows
from lightning_vcppo.problems import Problem
from lightning_vcppo.rewards import last_boxed, normalize_answer
from lightning_vcppo.suggestions import did_you_mean, near_file
from lightning_vcppo.untrusted import printable

PROBLEM_FIELDS = ("problem", "question", "prompt", "messages", "conversations")
ANSWER_FIELDS = (
    "answer",
    "final_answer",
    "expected_answer",
    "ground_truth",
    "reward_model.ground_truth",
    "label",
)
REASONING_GYM = "reasoning_gym"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can say it: "\\ud800"
_GYM_TASK = re.compile(rf"{REASONING_GYM}[:/](\w+)")


def load_problems(
    path: str | Path,
    *,
    problem_field: str | None = None,
    answer_field: str | None = None,
    drop_invalid: bool = False,
    split: str | None = None,
    config: str | None = None,
    size: int = 500,
    seed: int = 0,
) -> list[Problem]:
    """Read problems with integer answers in 0..999.

    Args:
        path: A file, a folder, a hub id or a reasoning-gym task, see the head of this file.
        problem_field: Where a row holds the problem; found among `PROBLEM_FIELDS` if None.
        answer_field: Where a row holds the answer; found among `ANSWER_FIELDS` if None.
        drop_invalid: Leave rows without a problem or a valid answer out, with a warning, instead of
            refusing the source.
        split: Of a folder or hub data set; needed where there are several.
        config: Configuration (subset) of a hub data set.
        size: Number of problems to generate (reasoning-gym).
        seed: Of the generator (reasoning-gym).

    Returns:
        The problems in the order of the source. Their `source` is "name:row", the row counted from
        1 (in JSON Lines it is the line).

    Raises:
        ValueError: The source is missing, empty, unreadable or has invalid rows; one line that says
            which and what was expected.
    """
    name, rows = _open(str(path), split, config, size, seed)
    problems: list[Problem] = []
    invalid: list[str] = []
    for number, row in rows:
        source = f"{name}:{number}"
        try:
            problems.append(_read_row(row, source, problem_field, answer_field))
        except _InvalidRow as error:
            invalid.append(printable(f"{source}: {error}"))
    if not problems:
        none = "no rows; expected problems with a text and an integer answer"
        reason = f"none of {len(invalid)} rows is valid; {invalid[0]}" if invalid else none
        raise ValueError(f"{name}: {reason}")
    if invalid and not drop_invalid:
        others = f" (and {len(invalid) - 1} more such rows)" if len(invalid) > 1 else ""
        raise ValueError(f"{invalid[0]}{others}; --data.drop_invalid=true leaves such rows out")
    if invalid:
        warnings.warn(f"{name}: left out {len(invalid)} rows, {invalid[0]}", stacklevel=2)
    return problems


def is_generator(path: str) -> bool:
    """Tell whether a source makes up its problems, any number of them, from a seed."""
    return bool(_GYM_TASK.fullmatch(path))


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


# From a source to rows


def _open(
    path: str, split: str | None, config: str | None, size: int, seed: int
) -> tuple[str, Iterable[NumberedRow]]:
    """Return the source's short name and its numbered rows."""
    if task := _GYM_TASK.fullmatch(path):
        return f"{REASONING_GYM}:{task[1]}", enumerate(_generated_rows(task[1], size, seed), 1)
    if not path or "\0" in path:
        raise ValueError(f"path: expected a file, a folder or a data set of the hub, got {path!r}")
    file = Path(path).expanduser()
    if file.exists() and not file.is_dir():
        return file.name, file_rows(file, _has_answer)
    if file.is_dir():
        return file.name, enumerate(_data_set_rows(file, split, config), 1)
    if _HUB_ID.fullmatch(path) and file.suffix not in FILE_SUFFIXES and not file.parent.exists():
        return path, enumerate(_data_set_rows(path, split, config), 1)
    if file.is_symlink():
        raise ValueError(f"{path}: a symbolic link to {os.readlink(file)}, which leads to no file")
    if not file.parent.is_dir():
        raise ValueError(f"{path}: no such file, the folder {file.parent} does not exist")
    raise ValueError(f"{path}: no such file{near_file(file)}")


def _has_answer(row: Row) -> bool:
    return any(_follow(row, field) is not None for field in ANSWER_FIELDS)


def _data_set_rows(path: str | Path, split: str | None, config: str | None) -> Iterable[Row]:
    """Read a folder or a data set of the hub through `datasets`."""
    import datasets

    try:
        if isinstance(path, Path) and any((path / f).exists() for f in _SAVED_TO_DISK):
            data = datasets.load_from_disk(str(path))
            data = data[split] if split and isinstance(data, dict) else data
        else:
            data = datasets.load_dataset(str(path), config, split=split)
    except Exception as error:  # whatever the builders of `datasets` raise, its line is the reason
        raise ValueError(f"{path}: cannot be read as a data set, {_first_line(error)}") from error
    if isinstance(data, dict):
        if len(data) > 1:
            raise ValueError(f"{path}: holds the splits {', '.join(data)}; choose one")
        (data,) = data.values()
    rows: Iterable[Row] = data
    return rows


_SAVED_TO_DISK = ("dataset_dict.json", "state.json")


def _generated_rows(task: str, size: int, seed: int) -> Iterable[Row]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(f"{REASONING_GYM}:{task}: needs `pip install reasoning-gym`") from error
    if task not in DATASETS:
        raise ValueError(f"{REASONING_GYM}:{task}: no such task{did_you_mean(task, DATASETS)}")
    rows: Iterable[Row] = reasoning_gym.create_dataset(task, size=size, seed=seed)
    return rows


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
