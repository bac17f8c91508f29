"""Check the types of cells that JSON and tables do not fix: numbers, truth values, token ids."""

from __future__ import annotations

import math
from typing import Any

from lightning_vcppo.data.chats import parsed
from lightning_vcppo.data.texts import InvalidRow

MAX_FLOAT32 = 3.4028234663852886e38
"""Largest number of float32, in which rewards and values are stored."""
_TRUTHS = {"true": True, "false": False}


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
