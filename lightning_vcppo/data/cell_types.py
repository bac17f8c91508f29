"""Check the types of cells that JSON and tables do not fix: numbers, truth values, token ids."""

from __future__ import annotations

import math
from datetime import date, time
from typing import Any

from lightning_vcppo.data.chats import parsed
from lightning_vcppo.data.texts import InvalidRow, half_pair_in, plain

MAX_FLOAT32 = 3.4028234663852886e38
"""Largest number of float32, in which rewards and values are stored."""
MAX_DEPTH = 32
"""Largest number of lists and objects that one cell may nest."""
_TRUTHS = {"true": True, "false": False}


def as_json(value: object, name: str, depth: int = MAX_DEPTH) -> Any:
    """Return a cell with JSON's types, so that checkpoints and records can have it; dates as text.

    Args:
        value: The cell.
        name: Name of the column, for the message.
        depth: Largest number of lists and objects that it may nest.

    Raises:
        InvalidRow: If it has another type, or UTF-8 cannot write it.
    """
    try:
        value = plain(value)
    except InvalidRow as error:
        raise InvalidRow(f"{name}: {error}") from None
    if isinstance(value, str):
        if fault := half_pair_in(value):
            raise InvalidRow(f"{name} holds {fault}")
    elif isinstance(value, (list, tuple, dict)):
        if not depth:
            raise InvalidRow(f"{name}: nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {
                as_json(str(key), name): as_json(each, name, depth - 1)
                for key, each in value.items()
            }
        return [as_json(each, name, depth - 1) for each in value]
    elif isinstance(value, (date, time)):
        return str(value)
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise InvalidRow(
            f"{name}: expected text, a number, a list or an object, got {shown(value)}"
        )
    return value


def finite(value: object, name: str) -> float:
    """Return a number or a truth value as a finite number within float32.

    Raises:
        InvalidRow: If it is not such a number.
    """
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        number = math.inf
    if not abs(number) <= MAX_FLOAT32:
        raise InvalidRow(f"{name}: expected a finite number{_within(number)}, got {shown(value)}")
    return number


def truth(value: object, name: str) -> bool:
    """Return a truth value: true or false, also as 1 or 0.

    Raises:
        InvalidRow: If it is neither.
    """
    if not isinstance(value, (int, float)) or value not in (0, 1):
        raise InvalidRow(f"{name}: expected true or false, got {shown(value)}")
    return bool(value)


def token_ids(value: Any, name: str, vocabulary: int | None = None) -> list[int]:
    """Return a list of token ids unchanged.

    Args:
        value: The cell.
        name: Name of the field, for the message.
        vocabulary: Number of tokens; None checks only that ids fit into 32 bits.

    Raises:
        InvalidRow: If it is not a list of token ids.
    """
    top = 2**31 if vocabulary is None else vocabulary
    is_list = isinstance(value, list)
    wrong = [token for token in value if type(token) is not int] if is_list else [value]
    if not wrong and value and not (min(value) >= 0 and max(value) < top):
        wrong = [token for token in value if not 0 <= token < top]
    if wrong:
        ids = "token ids" if vocabulary is None else f"token ids in 0..{vocabulary - 1}"
        raise InvalidRow(f"{name}: expected a list of {ids}, got {shown(wrong[0])}")
    ids_T: list[int] = value
    return ids_T


def finite_numbers(value: object, name: str) -> list[float]:
    """Return a list of finite numbers.

    Raises:
        InvalidRow: If it is not one.
    """
    if not isinstance(value, list):
        raise InvalidRow(f"{name}: expected a list of finite numbers, got {shown(value)}")
    return [finite(item, name) for item in value]


def shown(value: object) -> str:
    """Return the beginning of a cell for a message, also of numbers too long to be written."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 42 else f"{text[:40]}..."


def of_csv(text: str) -> object:
    """Return the truth value, number or list that a cell of CSV writes, otherwise the text."""
    bare = text.strip().lower()
    if not bare or bare in _TRUTHS:
        return _TRUTHS.get(bare)
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return parsed(text)


def _within(number: float) -> str:
    return " within float32" if abs(number) > MAX_FLOAT32 else ""
