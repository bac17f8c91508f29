"""Keep where this process is in its work, and when it last moved on, for messages about it.

The names are for people: "update of the policy". Moving on is cheap, so loops do it each time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

OUTSIDE = "the work between training steps"
"""The place of a process that is in none."""

_names: list[str] = []
_moved_at = time.monotonic()
_longest: dict[str, float] = {}


@contextmanager
def place(name: str, patience_s: float = 0.0) -> Iterator[None]:
    """Be in a place while the body runs; it may be within another.

    Args:
        name: Completes "waits in ...".
        patience_s: What may well pass there before the work goes on.
    """
    move_on()
    _longest[name] = max(_longest.get(name, 0.0), patience_s)
    _names.append(name)
    try:
        yield
    finally:
        move_on()
        _names.pop()


def move_on() -> None:
    """Note that the work goes on."""
    global _moved_at
    now = time.monotonic()
    name = current()
    _longest[name] = max(_longest.get(name, 0.0), now - _moved_at)
    _moved_at = now


def current() -> str:
    """Return the name of the innermost place."""
    return _names[-1] if _names else OUTSIDE


def idle_s() -> float:
    """Return the seconds since the work last went on."""
    return time.monotonic() - _moved_at


def longest_s() -> float:
    """Return the longest time, in seconds, after which the work has gone on in this place.

    Outside of all places it is 0: what happens there is too different for it to say anything.
    """
    return 0.0 if current() == OUTSIDE else _longest.get(current(), 0.0)
