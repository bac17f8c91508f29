"""Rows of a file, whatever its format, with their numbers.

A file is trusted with nothing: its encoding, its keys and the length of its lines are checked while
it is read, and a broken one ends in a line that names the row. Lines are read one by one, so a file
without line ends does not fill the memory before it is refused.
"""

from __future__ import annotations

import csv
import json
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]
NumberedRow = tuple[int, Row]

FILE_SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet")
MAX_LINE = 2**24
"""Characters of a line: 16 Mi, far more than any problem with its solutions."""
MAX_DOCUMENT = 2**29
"""Characters of a JSON document that is a list, which is read as a whole."""
CHUNK = 2**20
ADVICE = {
    b"\xff\xfe": "it is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "it is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\x1f\x8b": "it is compressed; unpack it with `gunzip`",
    b"PK": "it is a zip archive; unpack it",
    b"PA": "it is parquet; name it .parquet",
}
"""What the first two bytes of a file that is no text say."""


def file_rows(file: Path, is_row: Callable[[Row], bool]) -> Iterable[NumberedRow]:
    """Return the rows of a file, counted from 1 (in JSON Lines it is the line).

    Args:
        file: Of a format in `FILE_SUFFIXES`.
        is_row: Whether a JSON document is a row itself; otherwise it may have a list of them.

    Raises:
        ValueError: If the file is not what its name says; the message names file and row.
        OSError: If it cannot be read.
    """
    if file.suffix not in FILE_SUFFIXES:
        listed = ", ".join(FILE_SUFFIXES)
        raise ValueError(f"{file.name}: expected one of {listed}, got {file.suffix!r}")
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f"{file}: expected an ordinary file")
    with file.open("rb"):  # may we? Arrow says it otherwise
        pass
    if file.suffix == ".parquet":
        return enumerate(_parquet_rows(file), 1)
    if file.suffix in (".csv", ".tsv"):
        return _csv_rows(file, "\t" if file.suffix == ".tsv" else ",")
    return _json_rows(file, is_row)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a text file with their ends, in UTF-8 with or without a mark."""
    for number, line in enumerate(_read(file, lambda text: text.readline(MAX_LINE)), 1):
        if len(line) == MAX_LINE:
            raise ValueError(f"{file.name}:{number}: the line is longer than {MAX_LINE >> 20} MiB")
        yield number, line


def _read(file: Path, read: Callable[[TextIO], str]) -> Iterator[str]:
    """Yield a text file piece by piece.

    Raises:
        ValueError: If it is not UTF-8 without NUL bytes.
    """
    with file.open(encoding="utf-8-sig") as text:
        ends = 0
        try:
            while piece := read(text):
                if (place := piece.find("\0")) >= 0:
                    number = ends + piece.count("\n", 0, place) + 1
                    raise ValueError(f"{file.name}:{number}: expected text, found a NUL byte")
                ends += piece.count("\n")
                yield piece
        except UnicodeDecodeError:
            raise ValueError(_not_utf8(file)) from None


def _not_utf8(file: Path) -> str:
    """Say where a file is not UTF-8, and what it may be."""
    with file.open("rb") as lines:
        head = lines.read(2)
        if head in ADVICE:
            return f"{file.name}: expected UTF-8 text, but {ADVICE[head]}"
        lines.seek(0)
        number = 1
        while line := lines.readline(MAX_LINE):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                wrong = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
                advice = "convert it with `iconv -f LATIN1 -t UTF-8`, if that is what it is"
                return f"{file.name}:{number}: expected UTF-8 text, {wrong}; {advice}"
            number += 1
    raise AssertionError("called for a file that is not UTF-8")


# JSON


def _json_rows(file: Path, is_row: Callable[[Row], bool]) -> Iterable[NumberedRow]:
    """Read JSON Lines if the first line is an object, and one JSON document otherwise."""
    head = next(_read(file, lambda text: text.read(CHUNK)), "").lstrip()
    if head.startswith("["):
        return _document_rows(file, _parse_document(file), is_row)
    lines = _lines(file)
    number, first = _next(lines) or (1, "")
    if not first:
        return ()
    try:
        row = _parse(first)
    except json.JSONDecodeError as error:
        # An object that goes on in the next lines is wrong at the end of the first one alone.
        if not head.startswith("{") or error.pos < len(first.rstrip()):
            raise _broken(file.name, number, error, a_line=True) from error
        row = _parse_document(file)
    except ValueError as error:
        raise ValueError(f"{file.name}:{number}: {error}") from error
    else:
        if second := _next(lines):
            return _json_lines(file.name, chain([(number, first), second], lines))
    return _document_rows(file, row, is_row)


def _next(lines: Iterator[tuple[int, str]]) -> tuple[int, str] | None:
    """Return the next line that is not empty."""
    return next(((number, line) for number, line in lines if line.strip()), None)


def _parse_document(file: Path) -> Any:
    """Read a JSON document as a whole."""
    parts, length = [], 0
    for part in _read(file, lambda text: text.read(CHUNK)):
        parts.append(part)
        length += len(part)
        if length > MAX_DOCUMENT:
            raise ValueError(
                f"{file.name}: a JSON document of more than {MAX_DOCUMENT >> 20} MiB; write it as "
                "JSON Lines, one object a line"
            )
    try:
        return _parse("".join(parts))
    except json.JSONDecodeError as error:
        raise _broken(file.name, error.lineno, error, a_line=False) from error
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error


def _document_rows(
    file: Path, document: Any, is_row: Callable[[Row], bool]
) -> Iterable[NumberedRow]:
    """Return the rows of a document: a list, a single row, or a list beside remarks."""
    if isinstance(document, dict):
        lists = [v for v in document.values() if v and isinstance(v, list)]
        nested = [v for v in lists if all(isinstance(row, dict) for row in v)]
        document = nested[0] if len(nested) == 1 and not is_row(document) else [document]
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise ValueError(f"{file.name}: expected a list of JSON objects or one object a line")
    return enumerate(document, 1)


def _broken(name: str, number: int, error: json.JSONDecodeError, *, a_line: bool) -> ValueError:
    expected = "; expected one JSON object a line" if a_line else ""
    return ValueError(f"{name}:{number}: broken JSON, {error.msg} (column {error.colno}){expected}")


def _json_lines(name: str, lines: Iterable[tuple[int, str]]) -> Iterator[NumberedRow]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = _parse(line)
        except json.JSONDecodeError as error:
            raise _broken(name, number, error, a_line=True) from error
        except ValueError as error:
            raise ValueError(f"{name}:{number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{name}:{number}: expected a JSON object, got {line.strip():.40}")
        yield number, row


def _parse(text: str) -> Any:
    """Read JSON whose objects have each key once.

    Raises:
        ValueError: For what the parser of the standard library takes, or cannot hold.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("broken JSON, nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        thousands = "Exceeds the limit" in str(error)
        raise ValueError("a number of thousands of digits" if thousands else str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is there twice")
    return row


# Tables


def _csv_rows(file: Path, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(MAX_LINE)  # worked solutions exceed the default of 128 KiB
    name, number = file.name, 0
    reader = csv.reader((line for _, line in _lines(file)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        _check_columns(name, header)
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) > len(header):
                raise ValueError(f"{name}:{number}: more cells than the header names")
            padded = [*cells, *[None] * (len(header) - len(cells))]
            yield number, dict(zip(header, padded, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}:{number + 1}: broken CSV, {error}") from error


def _parquet_rows(file: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            _check_columns(file.name, parquet.schema_arrow.names)
            rows: list[Row] = parquet.read().to_pylist()
    except UnicodeDecodeError:
        raise ValueError(f"{file.name}: expected text in UTF-8, but a cell is not") from None
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file.name}: not a complete parquet file, {reason}") from error
    return rows


def _check_columns(name: str, columns: list[str]) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise ValueError(f"{name}: two columns are called {twice[0]!r}")
