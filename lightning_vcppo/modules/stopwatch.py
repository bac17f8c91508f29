"""Measure the time of the parts of a rollout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_vcppo.rewards.functions import Grader


class Stopwatch:
    """Adds up the seconds of each part; grading, which runs within other parts, is its own part."""

    def __init__(self, grader: Grader) -> None:
        """Keep the grader, which counts its own seconds."""
        self._grader = grader
        self._seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the time of the body to a part, without that of grading."""
        start, graded = time.perf_counter(), self._grader.seconds
        yield
        graded = self._grader.seconds - graded
        taken = time.perf_counter() - start - graded
        for name, seconds in ((part, taken), ("grade", graded)):
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Return the seconds by part since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken
