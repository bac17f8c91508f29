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

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from lightning_vcppo.common.suggestions import did_you_mean, near_file
from lightning_vcppo.common.terminal import printable
from lightning_vcppo.data.files import FILE_SUFFIXES, NumberedRow, Row, file_rows
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.schemas import (
    _has_answer,
    _InvalidRow,
    _read_row,
)

REASONING_GYM = "reasoning_gym"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
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
