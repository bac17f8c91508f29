"""Read problems from files, data sets and puzzle generators, in the schemas of public data sets.

A source is named by one string, see `addresses.py`. The fields of problem and answer are found row
by row unless they are named, see `schemas.py`; the kind of answers is chosen for the complete
source, see `answers.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, get_args

from lightning.pytorch.utilities import rank_zero_info

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.suggestions import did_you_mean
from lightning_vcppo.common.terminal import printable
from lightning_vcppo.data.addresses import (
    REASONING_GYM,
    HubAddress,
    find_source,
    gym_task,
)
from lightning_vcppo.data.answers import Choice, ReadAs, ReadKind, choose_kind
from lightning_vcppo.data.files import Row, file_rows
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.schemas import Draft, RowReader, has_answer
from lightning_vcppo.data.texts import InvalidRow
from lightning_vcppo.rewards.signatures import Reads

SHOWN_ROWS = 5
"""Largest number of invalid rows that a message names."""

NamedRow = tuple[str, Row]
"""A row with its source: the name of its file or data set, and its number there."""


class Invalid(NamedTuple):
    """A row that cannot be read.

    Attributes:
        source: Source of the row.
        reason: Reason in words.
        of_kind: Whether its answer is of another kind than that of the set.
    """

    source: str
    reason: str
    of_kind: bool = False


def load_problems(
    path: str | Path,
    *,
    answer_kind: ReadKind = "auto",
    problem_field: str | None = None,
    answer_field: str | None = None,
    drop_invalid: bool = False,
    split: str | None = None,
    config: str | None = None,
    size: int = 500,
    seed: int = 0,
    reads: Reads = Reads(),
) -> list[Problem]:
    """Read problems with answers that can be graded.

    Args:
        path: A file, pattern, directory, hub id or reasoning-gym task, see `addresses.py`.
        answer_kind: Kind of all answers, see `answers.py`; "auto" chooses it and logs the choice,
            which is never "text".
        problem_field: Field of a row with the problem; None finds it among `PROBLEM_FIELDS`.
        answer_field: Field of a row with the answer; None finds it among `ANSWER_FIELDS`.
        drop_invalid: Skip rows without a problem or a valid answer, with a warning, instead of
            refusing the source.
        split: Split of a directory or hub data set with several. The path may contain one.
        config: Configuration (subset) of a hub data set. The path may contain one.
        size: Number of problems to generate (reasoning-gym).
        seed: Seed of the generator (reasoning-gym).
        reads: Columns that a reward function reads, which are kept in `Problem.columns`.

    Returns:
        The problems in the order of the source. Their `source` is "name:row", with rows numbered
        from 1 (in JSON Lines by line).

    Raises:
        ValueError: If the source is missing, empty, unreadable or has invalid rows; the message
            names them and what was expected. Likewise if no row has a column that is read.
    """
    require(
        answer_kind in get_args(ReadKind),
        f"answer_kind: expected one of {', '.join(get_args(ReadKind))}, got {answer_kind!r}",
    )
    reader = RowReader(problem_field, answer_field, reads)
    task = gym_task(str(path))
    if task:
        name = f"{REASONING_GYM}:{task}"
        rows: Iterable[NamedRow] = _numbered(name, _generated_rows(task, size, seed))
    else:
        name, rows = _open(str(path), split, config, reader)

    drafts = [_draft(reader, row, source) for source, row in rows]
    kind, chosen = answer_kind, None
    if kind == "auto":
        # A generator makes no mistakes: there a single exception means another kind.
        values = (draft.values or () for draft in drafts if isinstance(draft, Draft))
        chosen = choose_kind(values, tolerant=task is None)
        kind = chosen.kind
    problems, invalid = _read_answers(drafts, kind)
    _judge_invalid(name, len(problems), invalid, chosen, drop=drop_invalid)
    reader.check_columns(name)
    if chosen and chosen.answers:
        rank_zero_info(f"data: {name}: {chosen}")
    return problems


def is_generator(path: str) -> bool:
    """Return whether a source generates any number of problems from a seed."""
    return gym_task(path) is not None


def _draft(reader: RowReader, row: Row, source: str) -> Draft | Invalid:
    try:
        return reader.read(row, source)
    except InvalidRow as error:
        return Invalid(source, str(error))


def _read_answers(
    drafts: list[Draft | Invalid], kind: ReadAs
) -> tuple[list[Problem], list[Invalid]]:
    """Return the problems of drafts, and the rows that are invalid, in their order.

    The list of drafts is emptied meanwhile, so that a large set is not in memory twice.
    """
    problems: list[Problem] = []
    invalid: list[Invalid] = []
    drafts.reverse()
    while drafts:
        draft = drafts.pop()
        if isinstance(draft, Invalid):
            invalid.append(draft)
            continue
        try:
            problems.append(draft.as_problem(kind))
        except InvalidRow as error:
            invalid.append(Invalid(draft.source, str(error), of_kind=True))
    return problems, invalid


def _judge_invalid(
    name: str, valid: int, invalid: list[Invalid], chosen: Choice | None, *, drop: bool
) -> None:
    """Refuse invalid rows, or warn that they are skipped.

    Raises:
        ValueError: If no row is valid, or some are invalid and must not be dropped.
    """
    first = printable(f"{invalid[0].source}: {invalid[0].reason}") if invalid else ""
    if not valid:
        none = "no rows; expected problems with a text and an answer"
        reason = f"none of {len(invalid)} rows is valid; {first}" if invalid else none
        raise ValueError(f"{name}: {reason}")
    if not invalid:
        return
    others = [row.source for row in invalid[1:]]
    named = ", ".join(others[:SHOWN_ROWS]) + (", ..." if len(others) > SHOWN_ROWS else "")
    more = f" (and {len(others)} more such rows: {printable(named)})" if others else ""
    if not drop:
        chosen_here = chosen and any(row.of_kind for row in invalid)
        why = f"; {chosen}, --data.answer_kind chooses another kind" if chosen_here else ""
        raise ValueError(f"{first}{more}{why}; --data.drop_invalid=true leaves such rows out")
    warnings.warn(f"{name}: left out {len(invalid)} rows, {first}{more}", stacklevel=3)


# From a source to rows


def _numbered(name: str, rows: Iterable[Row]) -> Iterator[NamedRow]:
    for number, row in enumerate(rows, 1):
        yield f"{name}:{number}", row


def _open(
    path: str, split: str | None, config: str | None, reader: RowReader
) -> tuple[str, Iterable[NamedRow]]:
    """Return the short name of a source, and its rows."""
    found = find_source(path)
    if isinstance(found, HubAddress):
        address = found._replace(config=found.config or config, split=found.split or split)
        directory = address.path
        name = directory.name if isinstance(directory, Path) else directory
        return name, _numbered(name, _data_set_rows(address, reader))
    name = found[0].name if len(found) == 1 else Path(path).name
    return name, _rows_of_files(found, reader)


def _rows_of_files(files: list[Path], reader: RowReader) -> Iterator[NamedRow]:
    for file in files:
        for number, row in file_rows(file, has_answer, reader.needs):
            yield f"{file.name}:{number}", row


def _data_set_rows(address: HubAddress, reader: RowReader) -> Iterator[Row]:
    """Read a directory or a data set of the hub through `datasets`.

    Raises:
        ValueError: If it cannot be read, or has several splits, none of which is chosen.
    """
    import datasets

    from lightning_vcppo.data.tables import BATCH_ROWS, batch_rows
    from lightning_vcppo.models import hub

    path, split = address.path, address.split
    try:
        if isinstance(path, Path) and any((path / f).exists() for f in _SAVED_TO_DISK):
            data = datasets.load_from_disk(str(path))
            data = data[split] if split and isinstance(data, dict) else data
        else:
            with nullcontext() if isinstance(path, Path) else hub.without_retries():
                data = datasets.load_dataset(
                    str(path), address.config, split=split, revision=address.revision
                )
    except Exception as error:  # whatever the builders of `datasets` raise, its line is the reason
        reason = _first_line(error)
        if reason.startswith("Couldn't reach") and hub.fault_of_hub():
            reason = f"the hub cannot be asked for it: {hub.fault_of_hub()}"
        raise ValueError(f"{path}: cannot be read as a data set, {reason}") from error
    if isinstance(data, dict):
        if len(data) > 1:
            raise ValueError(f"{path}: holds the splits {', '.join(data)}; choose one")
        (data,) = data.values()
    names = list(data.column_names)
    read = [name for name in names if reader.needs(name)]
    if not read:
        yield from (dict.fromkeys(names) for _ in range(len(data)))
        return
    for table in data.select_columns(read).with_format("arrow").iter(BATCH_ROWS):
        yield from batch_rows(table, names)


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
