"""Read the numbered rows of a file of any supported format.

Encoding, keys and line lengths are checked while a file is read, and an error names the row. Lines
are read one by one, so a file without line ends does not fill the memory before it is refused.
Compressed files are unpacked while they are read (`compressed.py`).
"""

from __future__ import annotations

import csv
import io
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from lightning_vcppo.data.compressed import COMPRESSIONS, format_of, open_bytes, unpacking

Row = dict[str, Any]
NumberedRow = tuple[int, Row]

FILE_SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet")
MAX_LINE = 2**24
"""Largest number of characters of a line: 16 Mi, far more than a problem with its solutions."""
CHUNK = 2**20
ADVICE = {
    b"\xff\xfe": "it is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "it is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\x1f\x8b": "it is compressed with gzip; unpack it or call it {name}.gz",
    b"\x28\xb5": "it is compressed with Zstandard; unpack it or call it {name}.zst",
    b"\xfd7": "it is compressed with xz; unpack it or call it {name}.xz",
    b"PK": "it is a zip archive; unpack it",
    b"PA": "it is parquet; call it .parquet",
}
"""Advice by the first two bytes of a file that is not text."""


def is_data_file(name: str) -> bool:
    """Return whether a file name has a supported format."""
    return format_of(Path(name))[0] in FILE_SUFFIXES


def file_rows(
    file: Path, is_row: Callable[[Row], bool], needs: Callable[[str], bool]
) -> Iterable[NumberedRow]:
    """Return the rows of a file, numbered from 1 (in JSON Lines by line).

    Args:
        file: File of a format in `FILE_SUFFIXES`, compressed or not.
        is_row: Whether a JSON document is a row itself; otherwise it may have a list of them.
        needs: Whether a field must be read from a format with columns.

    Raises:
        ValueError: If the content does not match the file name; the message names file and row.
        OSError: If it cannot be read.
    """
    suffix, _ = format_of(file)
    if suffix not in FILE_SUFFIXES:
        listed, packed = ", ".join(FILE_SUFFIXES), ", ".join(COMPRESSIONS)
        raise ValueError(
            f"{file.name}: expected one of {listed}, got {suffix!r}; {packed} may follow"
        )
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f"{file}: expected a regular file")
    with file.open("rb"):  # may we? Arrow says it otherwise
        pass
    if suffix == ".parquet":
        from lightning_vcppo.data.tables import parquet_rows

        return enumerate(parquet_rows(file, needs), 1)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(file, "\t" if suffix == ".tsv" else ",")
    from lightning_vcppo.data.json_rows import json_rows

    return json_rows(file, is_row)


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a text file with their ends, in UTF-8 with or without a mark.

    Raises:
        ValueError: If a line is too long, or the file is not UTF-8 without NUL bytes.
    """
    for number, line in enumerate(read_text(file, lambda text: text.readline(MAX_LINE)), 1):
        if len(line) == MAX_LINE:
            raise ValueError(f"{file.name}:{number}: the line is longer than {MAX_LINE >> 20} MiB")
        yield number, line


def read_text(file: Path, read: Callable[[TextIO], str]) -> Iterator[str]:
    """Yield a text file piece by piece.

    Raises:
        ValueError: If it is not UTF-8 without NUL bytes, or it is compressed and broken.
    """
    with unpacking(file), io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig") as text:
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
    """Return where a file is not UTF-8, and its probable encoding."""
    with open_bytes(file) as lines:
        head = lines.read(2)
    if head in ADVICE:
        advice = ADVICE[head].format(name=file.name)
        return f"{file.name}: expected UTF-8 text, but {advice}"
    with open_bytes(file) as lines:
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


def _csv_rows(file: Path, delimiter: str) -> Iterator[NumberedRow]:
    name, number = file.name, 0
    lines = (line for _, line in text_lines(file))
    reader = _long_cells(csv.reader(lines, delimiter=delimiter, strict=True))
    try:
        header = next(reader, [])
        check_columns(name, header)
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


def _long_cells(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Read rows with cells of up to `MAX_LINE` characters; solutions exceed csv's 128 KiB.

    csv has one limit for the whole process. It is raised only while a row is read, so that other
    tables have their own limit, also between two rows of this one.
    """
    while True:
        before = csv.field_size_limit(MAX_LINE)
        try:
            row = next(rows, None)
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        yield row


def check_columns(name: str, columns: list[str]) -> None:
    """Check that a table has each column once.

    Raises:
        ValueError: If a column occurs twice.
    """
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise ValueError(f"{name}: two columns are named {twice[0]!r}")
