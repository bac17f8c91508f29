"""End a run of several processes when one of them dies or hangs.

1. torch ends a process whose collective waits longer than the strategy's timeout. `in_place` turns
   torch's message into one line that names the rank and its current work.
2. A process whose launcher (torchrun, or the first process of a machine) has ended also ends.
3. SIGTERM and Ctrl-C wait for the end of the rollout. A process that hangs in a collective cannot
   handle them, because Python runs handlers only between two instructions. So a thread receives
   them, and ends a process without progress for `GRACE_S`, or for twice its longest time there.

The other ranks lose their connection to a process that ends, and end, too.
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
"""Default time that a rank waits for a slower one, such as one with longer responses."""
GRACE_S = 10.0
"""Seconds without progress after which a signal ends a process immediately."""
FILES_S = 600.0
"""Seconds that saving large files may take, during which a signal does not end the process."""
LEAVE_S = 15.0
"""Seconds in which a process that has lost the others must end by itself."""
_CONNECTION_LOST = re.compile(
    r"gloo|NCCL|pair closure|[Tt]imed out waiting|Connection (?:closed|reset|refused)|Broken pipe"
)
_TIMED_OUT = re.compile(r"[Tt]imed? ?out")


class StandstillError(UserError):
    """A rank has waited too long for the others, or lost them; the message names the place."""


@contextmanager
def in_place(name: str, patience_s: float = 0.0) -> Iterator[None]:
    """Name the work of the body, for the message if the other ranks are lost during it.

    Args:
        name: Name of the work, which completes "waits in ...".
        patience_s: Seconds without progress that are normal there.

    Raises:
        StandstillError: In place of torch's error.
    """
    with places.place(name, patience_s):
        try:
            yield
        except RuntimeError as error:
            if not _is_about_other_ranks(error):
                raise
            raise StandstillError(_describe(error)) from error


def _is_about_other_ranks(error: RuntimeError) -> bool:
    """Return whether an error is about other processes, in the rendezvous or later."""
    if not dist.is_available():
        return False
    if isinstance(error, dist.DistError):
        return "EADDRINUSE" not in str(error)  # the port is in use; no rank is lost
    return dist.is_initialized() and bool(_CONNECTION_LOST.search(str(error)))


def _describe(error: RuntimeError) -> str:
    """Return a line about the lost connection, and make sure that the process ends."""
    timer = threading.Timer(LEAVE_S, os._exit, (1,))  # in case ending the run waits for other ranks
    timer.daemon = True
    timer.start()
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if _is_ours(frame)]
    who, where = f"rank {own_rank()}", f"in {places.current()!r} ({_at(frames[-1])})"
    if _TIMED_OUT.search(str(error)):
        return (
            f"{who} has waited {places.idle_s():.0f} s {where} for other ranks, which hang, "
            "have ended or are that much slower (--trainer.strategy.timeout)"
        )
    return f"{who} has lost another rank {where}: it has ended, see its messages"


class Watch(threading.Thread):
    """A thread that ends this process when its main thread cannot."""

    def __init__(self, timeout_s: float) -> None:
        """Start to watch; signals are received only if it is called in the main thread.

        Args:
            timeout_s: Timeout of the collectives.
        """
        super().__init__(name="standstill", daemon=True)
        self.timeout_s = timeout_s
        self._launcher = os.getppid() if _has_launcher() else None
        self._signals: list[int] = []
        self._reported = False
        self._stopped = False
        self._receiver, self._sender = socket.socketpair()
        for end in (self._receiver, self._sender):
            end.setblocking(False)
        self._old_fd: int | None = None
        with suppress(ValueError):  # not in the main thread
            self._old_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped = True
        if self._old_fd is not None:
            with suppress(ValueError):
                signal.set_wakeup_fd(self._old_fd)

    def run(self) -> None:
        """Check every second, and whenever a signal arrives."""
        while not self._stopped:
            if select.select([self._receiver], [], [], 0.25 if self._signals else 1.0)[0]:
                for number in self._receiver.recv(64):
                    self._note(number)
            if self._launcher is not None and os.getppid() != self._launcher:
                self._end("its launcher has ended", 1)
            if self._signals and self._hangs():
                name = signal.Signals(self._signals[0]).name
                self._end(f"ended by {name}; the last checkpoint stays", 128 + self._signals[0])
            self._report_once()

    def _note(self, number: int) -> None:
        if number not in (signal.SIGTERM, signal.SIGINT):
            return
        self._signals.append(number)
        if self._signals.count(signal.SIGINT) > 1:
            self._end("ended by a second Ctrl-C", 128 + signal.SIGINT)

    def _hangs(self) -> bool:
        return places.idle_s() > max(GRACE_S, 2 * places.longest_s())

    def _report_once(self) -> None:
        """Report once if there was no progress for the collectives' timeout."""
        hangs = places.idle_s() > self.timeout_s
        if hangs and not self._reported:
            _report("")
        self._reported = hangs

    def _end(self, why: str, code: int) -> None:
        if not self._stopped:
            _report(f"; {why}")
            os._exit(code)


def _report(more: str) -> None:
    """Write the process's place directly to stderr, because the main thread may hold any lock."""
    place, line = places.current(), _line()
    who = f"rank {own_rank()} has been in {place!r} ({line}) for {places.idle_s():.0f} s"
    os.write(2, f"vcppo: {who}{more}\n".encode())


def _line() -> str:
    """Return file and line of the main thread's innermost frame outside libraries."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame.f_back is not None and not _is_ours(frame):
        frame = frame.f_back
    return _at(frame)


def _is_ours(frame: FrameType) -> bool:
    """Return whether a frame is of this package or of user code, not of a library."""
    return not re.search(r"[/\\](?:site-packages|lib[/\\]python3)", frame.f_code.co_filename)


def _at(frame: FrameType) -> str:
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _has_launcher() -> bool:
    """Return whether the parent of this process is a launcher, which must outlive it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    return "SLURM_PROCID" not in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


_watch: Watch | None = None


def watch(strategy: Strategy) -> None:
    """Watch this process from now on, if it is one of several; stop any earlier watch."""
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
