"""End a run of several processes when one of them dies or stands still.

1. A collective that waits longer than the strategy's timeout ends its process; torch sees to that.
   `in_place` turns torch's message into one line that names the rank and what it was doing.
2. A process whose launcher (torchrun, or the first process of a machine) has gone ends, too.
3. SIGTERM and Ctrl-C wait for the rollout to end. A process that stands still cannot even note
   them: Python runs its handlers between two instructions, and a collective is one. A thread does,
   and ends a process that has not moved on for `GRACE_S`, or twice as long as it ever took there.

The other ranks lose their connection to a process that ends, and end as well.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType

import torch.distributed as dist
from lightning.pytorch.strategies import Strategy

from lightning_vcppo.common import places
from lightning_vcppo.common.errors import UserError
from lightning_vcppo.common.ranks import own_rank

TIMEOUT = timedelta(minutes=30)
"""A rank that samples short responses may wait so long for one with long ones; torch's default."""
GRACE_S = 10.0
"""Seconds without progress after which a signal ends a process at once."""
FILES_S = 600.0
"""Seconds that large files may take: a signal does not end the saving that it has asked for."""
LEAVE_S = 15.0
"""Seconds that a process has to end by itself when it has lost the others."""
_LOST = re.compile(
    r"gloo|NCCL|pair closure|[Tt]imed out waiting|Connection (?:closed|reset|refused)|Broken pipe"
)
_TIMED_OUT = re.compile(r"[Tt]imed? ?out")


class StandstillError(UserError):
    """A rank has waited too long for the others, or lost them; the message says where."""


@contextmanager
def in_place(name: str, patience_s: float = 0.0) -> Iterator[None]:
    """Be in a place, and name it if the other ranks are lost there.

    Args:
        name: Completes "waits in ...".
        patience_s: What may well pass there before the work goes on.

    Raises:
        StandstillError: In place of torch's error.
    """
    with places.place(name, patience_s):
        try:
            yield
        except RuntimeError as error:
            if not _lost(error):
                raise
            raise StandstillError(_describe(error)) from error


def _lost(error: RuntimeError) -> bool:
    """Return whether an error is about other processes, in the rendezvous or later."""
    if not dist.is_available():
        return False
    if isinstance(error, dist.DistError):
        return "EADDRINUSE" not in str(error)  # a port is taken, and nobody is lost
    return dist.is_initialized() and bool(_LOST.search(str(error)))


def _describe(error: RuntimeError) -> str:
    """Say which rank has lost the others where, and see that the process ends."""
    timer = threading.Timer(LEAVE_S, os._exit, (1,))  # should what ends a run wait for others
    timer.daemon = True
    timer.start()
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if _is_ours(frame)]
    who, where = f"rank {own_rank()}", f"in {places.current()!r} ({_at(frames[-1])})"
    if _TIMED_OUT.search(str(error)):
        return (
            f"{who} has waited {places.idle_s():.0f} s {where} for other ranks, which stand still, "
            "have ended or are that much slower (--trainer.strategy.timeout)"
        )
    return f"{who} has lost another rank {where}: it has ended, see what it says"


class Watch(threading.Thread):
    """Ends this process where it cannot do so itself."""

    def __init__(self, timeout_s: float) -> None:
        """Watch from now on; called in the main thread, or signals are not heard.

        Args:
            timeout_s: Of the collectives.
        """
        super().__init__(name="standstill", daemon=True)
        self.timeout_s = timeout_s
        self._launcher = os.getppid() if _has_launcher() else None
        self._signals: list[int] = []
        self._told = False
        self._over = False
        self._heard, self._hear = socket.socketpair()
        for end in (self._heard, self._hear):
            end.setblocking(False)
        self._before: int | None = None
        with suppress(ValueError):  # not in the main thread
            self._before = signal.set_wakeup_fd(self._hear.fileno(), warn_on_full_buffer=False)
        self.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._over = True
        if self._before is not None:
            with suppress(ValueError):
                signal.set_wakeup_fd(self._before)

    def run(self) -> None:
        """Look every second, and whenever a signal comes."""
        while not self._over:
            if select.select([self._heard], [], [], 0.25 if self._signals else 1.0)[0]:
                for number in self._heard.recv(64):
                    self._note(number)
            if self._launcher is not None and os.getppid() != self._launcher:
                self._end("its launcher has ended", 1)
            if self._signals and self._stands_still():
                name = signal.Signals(self._signals[0]).name
                self._end(f"ended by {name}; the last checkpoint stays", 128 + self._signals[0])
            self._tell()

    def _note(self, number: int) -> None:
        if number not in (signal.SIGTERM, signal.SIGINT):
            return
        self._signals.append(number)
        if self._signals.count(signal.SIGINT) > 1:
            self._end("ended by a second Ctrl-C", 128 + signal.SIGINT)

    def _stands_still(self) -> bool:
        return places.idle_s() > max(GRACE_S, 2 * places.longest_s())

    def _tell(self) -> None:
        """Say once that the process has not moved on for as long as a collective may wait."""
        stands_still = places.idle_s() > self.timeout_s
        if stands_still and not self._told:
            _say("")
        self._told = stands_still

    def _end(self, why: str, code: int) -> None:
        if not self._over:
            _say(f"; {why}")
            os._exit(code)


def _say(more: str) -> None:
    """Write where the process is, at once: the main thread may hold any lock."""
    place, line = places.current(), _line()
    who = f"rank {own_rank()} has been in {place!r} ({line}) for {places.idle_s():.0f} s"
    os.write(2, f"vcppo: {who}{more}\n".encode())


def _line() -> str:
    """Return file and line at which the main thread is, of the innermost that is no library's."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame.f_back is not None and not _is_ours(frame):
        frame = frame.f_back
    return _at(frame)


def _is_ours(frame: FrameType) -> bool:
    """Return whether code is this package's or its user's, no library's."""
    return not re.search(r"[/\\](?:site-packages|lib[/\\]python3)", frame.f_code.co_filename)


def _at(frame: FrameType) -> str:
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _has_launcher() -> bool:
    """Return whether the parent of this process has to outlive it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    return "SLURM_PROCID" not in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


_watch: Watch | None = None


def watch(strategy: Strategy) -> None:
    """Watch over this process, if it is one of several, from now on, and no longer as before."""
    global _watch
    unwatch()
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if together or _has_launcher():
        timeout = getattr(strategy, "_timeout", None) or TIMEOUT
        _watch = Watch(timeout.total_seconds())


def collective_timeout() -> timedelta:
    """Return how long a collective of this run may wait."""
    return TIMEOUT if _watch is None else timedelta(seconds=_watch.timeout_s)


def unwatch() -> None:
    """Stop watching."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None
