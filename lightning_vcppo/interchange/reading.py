"""Stream responses from the files of other trainers, without holding a file in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import Any

from lightning_vcppo.common.terminal import printable
from lightning_vcppo.data.cell_types import finite, finite_numbers, of_csv, shown, token_ids, truth
from lightning_vcppo.data.compressed import format_of
from lightning_vcppo.data.files import file_rows, is_data_file, text_lines
from lightning_vcppo.data.texts import InvalidRow, half_pair_in
from lightning_vcppo.interchange.cells import Prompt, prompt, text
from lightning_vcppo.interchange.schemas import (
    REWARD_FIELDS,
    TRL,
    Fields,
    ForeignResponse,
    Schema,
    schema_of,
    summed_rewards,
)

SHOWN_ROWS = 5
"""Number of invalid rows that a message shows."""


_MISREAD = (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError)
"""Errors of rows whose fields have other types than their schema has."""
_TYPED = frozenset(
    {*REWARD_FIELDS, "finished", "is_truncated", "values", "prompt_ids", "response_ids"}
)
"""Columns that hold other things than texts, beside those with "reward" in their names."""


class NoResponses(ValueError):
    """Files in which no row holds a response."""


@dataclass
class Reading:
    """Counts of the rows that were read, and of those that could not be read.

    Attributes:
        trainers: Number of rows by the trainer whose schema they have.
        invalid: Number of rows that could not be read.
        first_invalid: The first invalid rows, as "FILE:ROW: reason".
        summed: Columns of TRL whose sum is the reward, if there are several.
    """

    trainers: Counter[str] = field(default_factory=Counter)
    invalid: int = 0
    first_invalid: list[str] = field(default_factory=list)
    summed: tuple[str, ...] = ()

    def refuse(self, place: str, reason: str) -> None:
        """Count a row that could not be read."""
        self.invalid += 1
        if len(self.first_invalid) < SHOWN_ROWS:
            self.first_invalid.append(f"{place}: {printable(reason)}")

    def __str__(self) -> str:
        """Return the first invalid rows, and the number of further ones, in one line."""
        more = self.invalid - len(self.first_invalid)
        return "; ".join([*self.first_invalid, *([f"and {more} more"] if more else [])])


def read_responses(
    paths: Iterable[str | Path],
    fields: Fields = Fields(),
    *,
    drop_invalid: bool = False,
    reading: Reading | None = None,
    vocabulary: int | None = None,
) -> Iterator[tuple[str, ForeignResponse]]:
    """Yield each response with its place, "FILE:ROW".

    Args:
        paths: Files, patterns, or directories, whose data files are read in order of their numbers.
        fields: Names of the fields of plain rows; fields that are None are detected.
        drop_invalid: Skip rows that cannot be read.
        reading: Receives the counts of the rows.
        vocabulary: Number of tokens of the model, which token ids must be below; None if unknown.

    Raises:
        ValueError: If a path names no data file; a file is broken; no row holds a response
            (`NoResponses`); or, after the last row, if rows could not be read and `drop_invalid` is
            off.
        OSError: If a file cannot be read.
    """
    reading = Reading() if reading is None else reading
    prompts: dict[str, Prompt] = {}
    files = _inputs_first([file for path in paths for file in data_files(path)])
    found = False
    for file in files:
        schema: Schema | None = None
        keys: tuple[str, ...] = ()
        is_csv = format_of(file)[0] in (".csv", ".tsv")
        for number, row in _rows(file):
            place = f"{file.name}:{number}"
            try:
                if not isinstance(row, dict):
                    raise InvalidRow(f"expected a JSON object, got {type(row).__name__}")
                if is_csv:
                    row = {name: _typed(name, cell, fields) for name, cell in row.items()}
                if _is_request(row):
                    body = row["body"]
                    asked = body.get("messages") or body.get("prompt")
                    prompts[str(row["custom_id"])] = prompt(asked, "body")
                    continue
                if schema is None or tuple(row) != keys:
                    schema, keys = schema_of(row, fields), tuple(row)
                    if schema.trainer == TRL and not fields.reward:
                        summed = tuple(summed_rewards(row))
                        reading.summed = summed if len(summed) > 1 else reading.summed
                for response in schema.read(row, fields):
                    found = True
                    yield place, _checked(_asked(response, prompts), vocabulary)
                reading.trainers[schema.trainer] += 1
            except InvalidRow as error:
                reading.refuse(place, str(error))
            except _MISREAD as error:
                known = schema.trainer if schema else "a dump"
                missing = isinstance(error, KeyError) and f"no field {error.args[0]}"
                reading.refuse(place, f"not a row of {known} ({missing or f'{error!r:.80}'})")
    if reading.invalid and not drop_invalid:
        raise ValueError(
            f"{reading.invalid} rows cannot be read (--drop_invalid=true skips them): {reading}"
        )
    if not found:
        listed = ", ".join(map(str, paths)) if isinstance(paths, Sequence) else "the files"
        raise NoResponses(f"{listed}: no responses" + (f"; {reading}" if reading.invalid else ""))


def _typed(name: str, cell: object, fields: Fields) -> object:
    """Return a cell of CSV, which is a text, with the type of its column."""
    is_typed = name in _TYPED or name == fields.reward or "reward" in name
    return of_csv(cell) if is_typed and isinstance(cell, str) else cell


def _complete(response: ForeignResponse) -> ForeignResponse:
    if not response.prompt and response.prompt_ids is None:
        raise InvalidRow("no prompt; name the batch's input file, too")
    if response.response_ids is not None and not response.response_ids:
        raise InvalidRow("the response has no tokens")
    return response


def _checked(response: ForeignResponse, vocabulary: int | None) -> ForeignResponse:
    """Check the cells of a response, whichever schema has read them.

    Raises:
        InvalidRow: If a field is not of its type; the message names it.
    """
    text(response.response, "the response")
    texts = {"prompt": response.prompt, "response": response.response, "answer": response.answer}
    for name, value in texts.items():
        for part in _texts(value):
            if fault := half_pair_in(part):
                raise InvalidRow(f"{name}: expected text, found {fault}")
    for name in ("prompt_ids", "response_ids"):
        if (ids := getattr(response, name)) is not None:
            token_ids(ids, name, vocabulary)
    if not isinstance(response.columns, (dict, type(None))):
        raise InvalidRow(f"columns: expected an object, got {shown(response.columns)}")
    ended, values = response.finished, response.values
    return replace(
        response,
        reward=None if response.reward is None else finite(response.reward, "reward"),
        finished=None if ended is None else truth(ended, "finished"),
        values=None if values is None else finite_numbers(values, "values"),
    )


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in a cell."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _asked(response: ForeignResponse, prompts: dict[str, Prompt]) -> ForeignResponse:
    """Add the prompt of the request to the response of a batch."""
    if not response.prompt and response.group in prompts:
        response = replace(response, prompt=prompts[response.group], group=None)
    return _complete(response)


def _is_request(row: dict[str, Any]) -> bool:
    return "custom_id" in row and "response" not in row and isinstance(row.get("body"), dict)


def data_files(path: str | Path) -> list[Path]:
    """Return the data files that a path names, in order of the numbers in their names.

    Raises:
        ValueError: If the path names no data file.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [p for p in place.rglob("*") if p.is_file() and is_data_file(p.name)]
    else:
        found = [Path(name) for name in glob(str(place), recursive=True) if Path(name).is_file()]
    if not found:
        raise ValueError(f"{path}: no such file, and no directory or pattern with data files")
    return sorted(found, key=lambda file: (_numbers(file), str(file)))


def _numbers(file: Path) -> tuple[int, ...]:
    digits = "".join(c if c.isdecimal() else " " for c in str(file))
    return tuple(map(int, digits.split()))


def _inputs_first(files: list[Path]) -> list[Path]:
    """Put the input files of batches before the output files, which refer to them."""
    lines = [file for file in files if format_of(file)[0] == ".jsonl"]  # the format of batches
    if len(lines) < 2:
        return files
    requests = {file for file in lines if (row := _first_row(file)) and _is_request(row)}
    return sorted(files, key=lambda file: file not in requests)


def _first_row(file: Path) -> dict[str, Any] | None:
    row = next((row for _, row in _rows(file)), None)
    return row if isinstance(row, dict) else None


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the numbered rows of a file; keys of JSON Lines are not checked, for speed."""
    if format_of(file)[0] != ".jsonl":
        yield from file_rows(file, lambda row: True, lambda column: True)
        return
    for number, line in text_lines(file):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except RecursionError:
            reason = "nested too deeply"
        except ValueError as error:  # other than of JSON: a number beyond Python's limit of digits
            reason = getattr(error, "msg", "a number of thousands of digits")
        else:
            yield number, row
            continue
        raise ValueError(f"{file.name}:{number}: broken JSON, {reason}")
