"""Record this process's current work and when it last made progress, for messages.

Names are for messages: "update of the policy". `move_on` is cheap, so loops call it each time. A
thread that works aside has no place: it records progress only while it is waited for, and it ends
at its next `move_on` once it has been told to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

OUTSIDE = "the work between training steps"
"""Place of a process outside of all named ones."""
SAMPLING = "sampling"
"""Place of a process that samples, or waits for a thread that does."""

_names: list[str] = []
_moved_at = time.monotonic()
_longest: dict[str, float] = {}
_aside = threading.local()  # in a thread that works aside: `told_to_end`, an Event


class EndedError(Exception):
    """A thread was told to end its work."""


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
    """Record progress.

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
    """Return the seconds since the last progress."""
    return time.monotonic() - _moved_at


def longest_s() -> float:
    """Return the longest time between two progresses in this place so far, in seconds.

    Outside of all places it is 0, because work there varies too much.
    """
    return 0.0 if current() == OUTSIDE else _longest.get(current(), 0.0)
