"""Read rows of JSON files: objects line by line, a list of objects, or one object.

The text of a file determines which of these it is, not its name. A list is read object by object,
so its complete text is never in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from lightning_vcppo.data.files import (
    CHUNK,
    MAX_LINE,
    NumberedRow,
    Row,
    read_text,
    text_lines,
)

MAX_DOCUMENT = 2**29
"""Largest number of characters of a JSON document that is one object, which is read at once."""
_SPACE = " \t\r\n"


def json_rows(file: Path, is_row: Callable[[Row], bool]) -> Iterable[NumberedRow]:
    """Read JSON Lines if the first line is an object, and one JSON document otherwise.

    Args:
        file: File to read.
        is_row: Whether an object is a row itself; otherwise it may contain a list of rows.

    Raises:
        ValueError: If the file is not JSON; the message names file and line.
    """
    head = next(read_text(file, lambda text: text.read(CHUNK)), "").lstrip()
    if head.startswith("["):
        return enumerate(_list_rows(file), 1)
    lines = text_lines(file)
    number, first = _next(lines) or (1, "")
    if not first:
        return ()
    try:
        row = _parse(first)
    except json.JSONDecodeError as error:
        # An object that continues on the next lines fails only at the end of the first one.
        if not head.startswith("{") or error.pos < len(first.rstrip()):
            raise _broken(file.name, number, error, a_line=True) from error
        row = _parse_document(file)
    except ValueError as error:
        raise ValueError(f"{file.name}:{number}: {error}") from error
    else:
        if second := _next(lines):
            return _json_lines(file.name, chain([(number, first), second], lines))
    return _document_rows(file.name, row, is_row)


def _next(lines: Iterator[tuple[int, str]]) -> tuple[int, str] | None:
    """Return the next line that is not empty."""
    return next(((number, line) for number, line in lines if line.strip()), None)


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


# Documents


def _parse_document(file: Path) -> Any:
    """Read a complete JSON document."""
    parts, length = [], 0
    for part in read_text(file, lambda text: text.read(CHUNK)):
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
    name: str, document: Any, is_row: Callable[[Row], bool]
) -> Iterable[NumberedRow]:
    """Return the rows of an object: itself, or the list that it contains next to metadata."""
    if not isinstance(document, dict):
        raise _no_rows(name)
    lists = [value for value in document.values() if value and isinstance(value, list)]
    nested = [rows for rows in lists if all(isinstance(row, dict) for row in rows)]
    return enumerate(nested[0] if len(nested) == 1 and not is_row(document) else [document], 1)


def _list_rows(file: Path) -> Iterator[Row]:
    """Yield the objects of a list, whose text is read in pieces."""
    text = _Window(file)
    text.skip("[")
    if text.next_character() == "]":
        text.skip("]")
    else:
        while True:
            yield _as_row(file.name, text.value())
            if text.next_character() == "]":
                break
            text.skip(",")
        text.skip("]")
    if text.next_character():
        text.fail("Extra data")


def _as_row(name: str, value: Any) -> Row:
    """Return an object, or a list of objects (a chat) with positions as names."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {str(place): item for place, item in enumerate(value)}
    if not isinstance(value, dict):
        raise _no_rows(name)
    return value


def _no_rows(name: str) -> ValueError:
    return ValueError(f"{name}: expected a list of JSON objects or one object a line")


class _Window:
    """A part of a JSON text, from which values are taken one by one."""

    def __init__(self, file: Path) -> None:
        self._name = file.name
        self._pieces = read_text(file, lambda text: text.read(CHUNK))
        self._text, self._at = "", 0
        self._line, self._column = 1, 1  # of the window's first character

    def next_character(self) -> str:
        """Return the next character that is not white space, "" at the end."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in _SPACE:
                at += 1
            self._at = at
            if at < len(text):
                return text[at]
            if not self._read():
                return ""

    def skip(self, character: str) -> None:
        """Take the next character, which must be this one."""
        if self.next_character() != character:
            self.fail(f"Expecting '{character}' delimiter")
        self._at += 1

    def value(self) -> Any:
        """Take the next value."""
        self.next_character()
        while True:
            try:
                # A number could continue in the next piece, but no row is a number.
                value, self._at = _DECODER.raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError as error:
                # A value that continues in the next piece fails only at the end of this one.
                is_open = error.msg.startswith("Unterminated") or len(self._text) < error.pos + 16
                if is_open and len(self._text) - self._at > MAX_LINE:
                    self.fail(f"a row of more than {MAX_LINE >> 20} MiB", self._at)
                if not is_open or not self._read():
                    self.fail(error.msg, error.pos)
            except RecursionError:
                raise ValueError(f"{self._name}: {_TOO_DEEP}") from None
            except ValueError as error:
                raise ValueError(f"{self._name}: {_reason(error)}") from None

    def fail(self, reason: str, place: int | None = None) -> NoReturn:
        """Raise ValueError with line and column of a place (default: the current one)."""
        before = self._text[: self._at if place is None else place]
        line = self._line + before.count("\n")
        column = len(before) - before.rfind("\n") if "\n" in before else self._column + len(before)
        raise ValueError(f"{self._name}:{line}: broken JSON, {reason} (column {column})")

    def _read(self) -> bool:
        """Drop the text taken so far and append the next piece; return whether there is one."""
        piece = next(self._pieces, "")
        if not piece:
            return False
        taken = self._text[: self._at]
        self._line += taken.count("\n")
        self._column = (
            len(taken) - taken.rfind("\n") if "\n" in taken else self._column + len(taken)
        )
        self._text, self._at = self._text[self._at :] + piece, 0
        return True


# JSON with each key once


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is there twice")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_TOO_DEEP = "broken JSON, nested too deeply"


def _parse(text: str) -> Any:
    """Read JSON whose objects have each key once.

    Raises:
        ValueError: If it is not such JSON, or beyond the limits of the standard library.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(_reason(error)) from None


def _reason(error: ValueError) -> str:
    is_long = "Exceeds the limit" in str(error)
    return "a number of thousands of digits" if is_long else str(error)


def _broken(name: str, number: int, error: json.JSONDecodeError, *, a_line: bool) -> ValueError:
    expected = "; expected one JSON object a line" if a_line else ""
    return ValueError(f"{name}:{number}: broken JSON, {error.msg} (column {error.colno}){expected}")
