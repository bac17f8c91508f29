"""Keep where this process is in its work, and when it last moved on, for messages about it.

The names are for people: "update of the policy". Moving on is cheap, so loops do it each time. A
thread that works aside has no place: it moves the process on only while it is waited for, and it
ends where it would move on once it has been told to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

OUTSIDE = "the work between training steps"
"""The place of a process that is in none."""
SAMPLING = "sampling"
"""The place of a process that samples, or waits for a thread that does."""

_names: list[str] = []
_moved_at = time.monotonic()
_longest: dict[str, float] = {}
_aside = threading.local()  # in a thread that works aside: `told_to_end`, an Event


class EndedError(Exception):
    """A thread was told to end its work."""


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


@contextmanager
def aside(told_to_end: threading.Event) -> Iterator[None]:
    """Work in another thread than the one whose place is kept, while the body runs.

    Args:
        told_to_end: Set to end the work: the next `move_on` raises `EndedError`.
    """
    _aside.told_to_end = told_to_end
    try:
        yield
    finally:
        del _aside.told_to_end


def move_on() -> None:
    """Note that the work goes on.

    Raises:
        EndedError: In a thread that works aside and has been told to end.
    """
    global _moved_at
    told_to_end: threading.Event | None = getattr(_aside, "told_to_end", None)
    if told_to_end is not None:
        if told_to_end.is_set():
            raise EndedError
        if current() != SAMPLING:
            return
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
