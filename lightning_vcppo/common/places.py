"""Record this process's current work and when it last made progress, for messages.

Names are for messages: "update of the policy". `move_on` is cheap, so loops call it each time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

OUTSIDE = "the work between training steps"
"""Place of a process outside of all named ones."""

_names: list[str] = []
_moved_at = time.monotonic()
_longest: dict[str, float] = {}


@contextmanager
def place(name: str, patience_s: float = 0.0) -> Iterator[None]:
    """Set the process's place while the body runs; places may be nested.

    Args:
        name: Name of the work, which completes "waits in ...".
        patience_s: Seconds without progress that are normal there.
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
    """Record progress."""
    global _moved_at
    now = time.monotonic()
    name = current()
    _longest[name] = max(_longest.get(name, 0.0), now - _moved_at)
    _moved_at = now


def current() -> str:
    """Return the name of the innermost place."""
    return _names[-1] if _names else OUTSIDE


def idle_s() -> float:
    """Return the seconds since the last progress."""
    return time.monotonic() - _moved_at


def longest_s() -> float:
    """Return the longest time between two progresses in this place so far, in seconds.

    Outside of all places it is 0, because work there varies too much.
    """
    return 0.0 if current() == OUTSIDE else _longest.get(current(), 0.0)
