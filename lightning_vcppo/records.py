"""Graded responses of all ranks, and the files that hold them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from lightning_vcppo.files import complete_file
from lightning_vcppo.rollout import ResponseRecord, SavedResponse

T = TypeVar("T")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a formula of a spreadsheet may begin with."""


def gather(mine: T) -> list[T]:
    """Return what each rank has, in the order of ranks. Every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    of_ranks: list[T] = [mine] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    return of_ranks


def gather_records(records: list[ResponseRecord]) -> list[ResponseRecord]:
    """Return the records of all ranks, each once.

    Every rank must call it, and gets the same list.
    """
    return unique_records(record for of_rank in gather(records) for record in of_rank)


def unique_records(records: Iterable[ResponseRecord]) -> list[ResponseRecord]:
    """Keep the first record of each sample of each problem, in order of problem and sample.

    Evaluation sets stay in the order in which they appear. A distributed sampler repeats problems
    until every rank has as many; counted twice, they would shift the accuracy.
    """
    sets: dict[str, int] = {}
    first: dict[tuple[int, int, int], ResponseRecord] = {}
    for record in records:
        place = sets.setdefault(record.evaluation_set, len(sets))
        first.setdefault((place, record.index, record.sample), record)
    return [first[key] for key in sorted(first)]


def write_records(path: Path, records: Iterable[ResponseRecord]) -> None:
    """Write records as JSON Lines, one object a line; the file appears complete or not at all."""
    with complete_file(path) as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[ResponseRecord]:
    """Read what `write_records` has written.

    Raises:
        ValueError: If a line is not a record; the message names file and line.
        OSError: If the file cannot be read.
    """
    records: list[ResponseRecord] = []
    with path.open(encoding="utf-8") as file:
        lines = enumerate(file, 1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return records
            except UnicodeDecodeError:
                raise ValueError(f"{path}: expected UTF-8 text") from None
            try:
                row = json.loads(line)
                kind = SavedResponse if "prompt_ids" in row else ResponseRecord
                records.append(kind(**row))
            except (TypeError, ValueError) as error:
                reason = str(error).replace("ResponseRecord.__init__()", "it")
                raise ValueError(
                    f"{path}:{number}: expected a graded response; {reason}"
                ) from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV; the file appears complete or not at all.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    with complete_file(path) as file:
        csv.writer(file).writerows([columns, *([*map(_no_formula, row)] for row in rows)])


def _no_formula(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
