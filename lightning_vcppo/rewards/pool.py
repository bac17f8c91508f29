"""Compare answers in worker processes, so that no comparison can stop a training run.

* Verdicts, and their order, depend on neither the number of workers nor the load: expressions are
  bounded by their text first (`expressions.is_harmless`), and the workers' limits, in CPU seconds
  and memory, are far above what any expression within those bounds needs.
* A comparison that reaches a limit counts as wrong and is counted in `limit_hits`.
* A worker that dies for another reason is started again, and its comparison is repeated.

A worker is a new interpreter with pipes, not a fork: it has neither the run's memory nor its GPU,
and ends with the run, however that ends.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_vcppo.rewards.answers import AnswerKind
from lightning_vcppo.rewards.equality import answers_equal
from lightning_vcppo.rewards.worker import OUT_OF_MEMORY
from lightning_vcppo.settings import GradingSettings

PROGRESS_S = 2.0
"""Seconds of grading after which a line reports its progress, repeated at this interval."""

_AHEAD = 8  # comparisons that wait in a worker's pipe, a few hundred bytes each
_MAX_FAILED_STARTS = 3
_SIGXCPU = 24


class Comparison(NamedTuple):
    """A candidate, the accepted answers, and the kind of comparison."""

    candidate: str
    accepted: tuple[int | str, ...]
    kind: AnswerKind | None


@dataclass
class _Worker:
    """A process, and its unanswered comparisons, in order."""

    process: subprocess.Popen[bytes]
    asked: deque[int] = field(default_factory=deque)
    unread: bytes = b""
    is_ready: bool = False


class GradingPool:
    """Compares answers in worker processes, which are started when they are first needed.

    Attributes:
        limit_hits: Number of comparisons so far that reached a limit and count as wrong.
    """

    def __init__(self, settings: GradingSettings) -> None:
        """Collect the settings; `compare` starts the workers."""
        self.settings = settings
        self.limit_hits = 0
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def compare(self, comparisons: Sequence[Comparison]) -> list[bool]:
        """Return the verdict of each comparison, in order.

        Raises:
            RuntimeError: If workers end before they have compared anything.
        """
        unique = {comparison: n for n, comparison in enumerate(dict.fromkeys(comparisons))}
        if self.settings.workers == 0:
            found = [answers_equal(*comparison) for comparison in unique]
        else:
            found = _Round(self, list(unique)).run() if unique else []
        return [found[unique[comparison]] for comparison in comparisons]

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            _end(worker.process)
        self._workers = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without processes, because a copy starts its own."""
        return vars(self) | {"_workers": []}

    def workers(self) -> list[_Worker]:
        """Return the workers; start those again that have died since the last call."""
        alive = [worker for worker in self._workers if worker.process.poll() is None]
        self._workers = alive + [self.start() for _ in range(self.settings.workers - len(alive))]
        return list(self._workers)

    def start(self) -> _Worker:
        """Start a worker, which takes a second or two to be ready."""
        settings = self.settings
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
        }
        arguments = [str(settings.limit_s), str(settings.memory_mb)]
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_vcppo.rewards.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        weakref.finalize(self, _end, process)
        return _Worker(process)

    def replace(self, worker: _Worker) -> _Worker:
        """Start a worker to replace a dead one.

        Raises:
            RuntimeError: If several in a row have ended before they were ready.
        """
        self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise RuntimeError(
                f"grading: {_MAX_FAILED_STARTS} workers ended with exit code "
                f"{worker.process.returncode} before they were ready; raise "
                f"model.grading.memory_mb (now {self.settings.memory_mb}), or set "
                "model.grading.workers=0 to grade without them"
            )
        self._workers.remove(worker)
        self._workers.append(self.start())
        return self._workers[-1]


class _Round:
    """One call of `compare`: distributes comparisons, and collects verdicts."""

    def __init__(self, pool: GradingPool, comparisons: list[Comparison]) -> None:
        self.pool = pool
        self.comparisons = comparisons
        self.verdicts: dict[int, bool] = {}
        self.waiting = deque(range(len(comparisons)))
        self.crashed: set[int] = set()  # comparisons during which a worker has died once
        self.selector = selectors.DefaultSelector()
        self.started = self.reported = time.monotonic()

    def run(self) -> list[bool]:
        with self.selector:
            for worker in self.pool.workers():
                self._add(worker)
            while len(self.verdicts) < len(self.comparisons):
                for key, _ in self.selector.select(timeout=PROGRESS_S):
                    self._receive(key.data)
                self._report_progress()
        return [self.verdicts[n] for n in range(len(self.comparisons))]

    def _add(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        """Send a worker comparisons until enough of them wait in its pipe."""
        assert worker.process.stdin is not None
        lines = []
        while self.waiting and len(worker.asked) < _AHEAD:
            number = self.waiting.popleft()
            worker.asked.append(number)
            lines.append(json.dumps([number, *self.comparisons[number]]).encode() + b"\n")
        with suppress(BrokenPipeError):  # it has died; its closed output will show that
            worker.process.stdin.write(b"".join(lines))
            worker.process.stdin.flush()

    def _receive(self, worker: _Worker) -> None:
        """Read the verdicts of a worker, and send it more comparisons."""
        assert worker.process.stdout is not None
        received = os.read(worker.process.stdout.fileno(), 1 << 16)
        if not received:
            self._replace(worker)
            return
        *lines, worker.unread = (worker.unread + received).split(b"\n")
        for line in lines:
            number, verdict = json.loads(line)
            if number < 0:
                worker.is_ready = True
                continue
            worker.asked.remove(number)
            if verdict == OUT_OF_MEMORY:
                self._give_up(number, "memory")
            else:
                self.verdicts[number] = verdict
        self._send(worker)

    def _replace(self, worker: _Worker) -> None:
        """Replace a worker that has ended, and repeat or give up its current comparison."""
        assert worker.process.stdout is not None
        self.selector.unregister(worker.process.stdout)
        code = worker.process.wait()
        pending = list(worker.asked)
        if pending and worker.is_ready:
            number = pending[0]
            if code == -_SIGXCPU or number in self.crashed:
                self._give_up(number, "CPU seconds" if code == -_SIGXCPU else f"exit code {code}")
                del pending[0]
            self.crashed.add(number)
        self.waiting.extendleft(reversed(pending))
        self._add(self.pool.replace(worker))

    def _give_up(self, number: int, limit: str) -> None:
        self.verdicts[number] = False
        self.pool.limit_hits += 1
        candidate, accepted, _ = self.comparisons[number]
        rank_zero_warn(
            f"grading: comparing {candidate[:80]!r} with {accepted[0]!r} has reached its limit "
            f"({limit}) and counts as wrong; model.grading.limit_s and memory_mb set the limits"
        )

    def _report_progress(self) -> None:
        """Print a line of progress every `PROGRESS_S` seconds."""
        now = time.monotonic()
        if now - self.reported >= PROGRESS_S and len(self.verdicts) < len(self.comparisons):
            self.reported = now
            rank_zero_info(
                f"Grading: {len(self.verdicts):,} of {len(self.comparisons):,} answers compared "
                f"in {now - self.started:.0f} s"
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker by closing its input, or else by force."""
    if process.stdin is not None and not process.stdin.closed:
        with suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
