r"""Check that external texts contain only characters that their author intended.

A file may contain unintended characters: `"\frac"` with a single backslash is, in JSON, a form feed
and "rac", `"\theta"` a tab and "heta". The prompts would be wrong without any error. So every text
of a row (question, turns, choices, answer, solution) and of a flag is checked here.
"""

from __future__ import annotations

import re
from decimal import Decimal

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTROL_BYTES = bytes({*range(32), 127} - set(b"\t\n\r"))
_ESCAPES = {"\b": "b", "\f": "f", "\t": "t", "\n": "n", "\r": "r"}
# Remains of commands that begin no English word.
_REMAINS = {
    "\t": r"heta|imes|riangle|ext\{|extbf|extrm|extit|frac|ilde\{|herefore",
    "\n": r"eq(?![A-Za-z])|abla|otin",
    "\r": r"ight|ho(?![A-Za-z])",
}
_REMAINS_BEHIND = {start: re.compile(f"{start}(?:{rest})") for start, rest in _REMAINS.items()}
_COMMAND = re.compile("[A-Za-z]*")


class InvalidRow(ValueError):
    """A row without a problem with an answer of the expected kind."""


def plain(value: object) -> object:
    """Return a cell with JSON's types: bytes as text, decimals as integers or as text.

    Raises:
        InvalidRow: If the bytes are not UTF-8.
    """
    if isinstance(value, str):  # most are
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise InvalidRow("expected text in UTF-8, found other bytes") from None
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == int(value) else str(value)
    return value


def check_text(text: str, name: str) -> None:
    """Check that a text contains only characters that its author can have intended.

    Args:
        text: Text to check.
        name: Name of the text in the message, such as "the problem".

    Raises:
        InvalidRow: If it does not; the message has the position.
    """
    if fault := fault_in(text):
        raise InvalidRow(f"{name} holds {fault}")


def fault_in(text: str) -> str | None:
    """Describe the first unintended character of a text; None if there is none.

    It takes about a nanosecond per character.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        return _describe_half_pair(error)
    if len(encoded.translate(None, _CONTROL_BYTES)) < len(encoded):
        found = _CONTROL.search(text)
        assert found is not None
        return _describe(text, found.start())
    for character, remains in _REMAINS_BEHIND.items():
        if character in text and (found := remains.search(text)):
            return _describe(text, found.start())
    return None


def half_pair_in(text: str) -> str | None:
    """Describe the first character that UTF-8 cannot write; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return _describe_half_pair(error)
    return None


def _describe_half_pair(error: UnicodeEncodeError) -> str:
    return f"half a surrogate pair (character {error.start + 1}), which UTF-8 cannot write"


def _describe(text: str, place: int) -> str:
    character = text[place]
    where = f"(character {place + 1})"
    if character == "\0":
        return f"a NUL byte {where}"
    rest = _COMMAND.match(text, place + 1)
    if character in _ESCAPES and rest and rest[0]:
        command = _ESCAPES[character] + rest[0][:20]
        return (
            f"the control character {character!r} in front of {rest[0][:20]!r} {where}: LaTeX's "
            rf"\{command} with one backslash; write \\{command} in JSON"
        )
    return f"the control character {character!r} {where}"
