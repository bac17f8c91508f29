"""Distribute jobs over several servers, some of which may fail for a while.

1. Jobs wait in one queue. Each server has several jobs at a time, and takes the next one when one
   is done, so a faster server does more.
2. One thread for each server prepares it before its first job, checks at intervals that it still
   answers, and retries after a fault at growing intervals. Its jobs return to the queue.
3. A server that fails for longer than `patience_s` without a good answer in between is given up.
   If all servers are given up, the work ends with an error.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lightning_vcppo.common import places
from lightning_vcppo.common.errors import EngineLostError, UserError
from lightning_vcppo.common.ranks import own_rank
from lightning_vcppo.common.terminal import printable
from lightning_vcppo.generation.server_client import ServerClient, ServerFault, ServerRefusal

Job = TypeVar("Job")
Result = TypeVar("Result")
LONGEST_WAIT_S = 30.0
"""Longest wait between two attempts, in seconds; waits double from `retry_s`."""


@dataclass
class Member:
    """A server and its state, which is kept between calls of `run`.

    Attributes:
        client: Client of the server.
        up: Whether it is prepared and takes jobs.
        attempts: Number of faults since its last good answer.
        failing_since: Time of the first of these faults, by the monotonic clock.
        fault: Message of the last fault.
        lives: Number of times it was prepared or failed, so that a fault that hits several jobs
            counts once.
        given_up: Whether the current call continues without it.
    """

    client: ServerClient
    up: bool = False
    attempts: int = 0
    failing_since: float = 0.0
    fault: str = ""
    lives: int = 0
    given_up: bool = False


class Fleet:
    """Distributes jobs over servers.

    Args:
        clients: One client for each server.
        at_once: Number of jobs that a server may have at the same time.
        retry_s: Seconds before the second attempt.
        patience_s: Seconds of faults without a good answer after which a server is given up.
        pulse_s: Seconds between two checks that a server still answers.
    """

    def __init__(
        self,
        clients: Sequence[ServerClient],
        *,
        at_once: int,
        retry_s: float,
        patience_s: float,
        pulse_s: float,
    ) -> None:
        """Collect the settings; nothing is sent yet."""
        self.members = [Member(client) for client in clients]
        self._at_once, self._pulse_s = at_once, pulse_s
        self._retry_s, self._patience_s = retry_s, patience_s

    def prepare_again(self) -> None:
        """Make `run` prepare every server again before its next job."""
        for member in self.members:
            member.up = False

    def run(
        self,
        jobs: Sequence[Job],
        do: Callable[[ServerClient, Job], Result],
        prepare: Callable[[ServerClient, Callable[[], bool]], None],
    ) -> list[Result]:
        """Do all jobs, and return their results in order.

        Args:
            jobs: Jobs in the order in which they are started.
            do: Function that does a job on a server.
            prepare: Function that prepares a server; its second argument is a function that
                returns whether the work is over.

        Raises:
            EngineLostError: If every server was given up.
            UserError: If a server refuses what it is asked.
        """
        for member in self.members:
            member.given_up = False
        return _Work(self, jobs, do, prepare).finish()

    def wait_s(self, attempts: int) -> float:
        """Return the seconds to wait after that number of faults."""
        if attempts == 0:
            return 0.0
        return float(min(LONGEST_WAIT_S, self._retry_s * 2.0 ** min(attempts - 1, 30)))

    def is_lost(self, member: Member) -> bool:
        """Return whether a server has failed for too long; never at the first fault."""
        since = time.monotonic() - member.failing_since
        return member.attempts > 1 and since > self._patience_s

    def failure_summary(self) -> str:
        """Return one line with the fault, the attempts and the time of each server."""
        lines = [
            f"{member.client.url}: {member.fault}; tried {member.attempts} times in "
            f"{time.monotonic() - member.failing_since:.0f} s"
            for member in self.members
        ]
        return f"{'; '.join(lines)} (--model.engine.patience_s={self._patience_s:g})"


class _Work(Generic[Job, Result]):
    """The jobs of one call, their results, and the threads that do them."""

    def __init__(
        self,
        fleet: Fleet,
        jobs: Sequence[Job],
        do: Callable[[ServerClient, Job], Result],
        prepare: Callable[[ServerClient, Callable[[], bool]], None],
    ) -> None:
        self._fleet, self._jobs, self._do, self._prepare = fleet, jobs, do, prepare
        self._queue = deque(range(len(jobs)))
        self._results: dict[int, Result] = {}
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def finish(self) -> list[Result]:
        """Do all jobs and return their results in order."""
        members = self._fleet.members
        share = min(self._fleet._at_once, -(-len(self._jobs) // len(members)))
        threads = [
            threading.Thread(target=self._guarded, args=(task, member), daemon=True)
            for member in members
            for task in (self._supervise, *[self._do_jobs] * share)
        ]
        for thread in threads:
            thread.start()
        seen = 0
        try:
            with self._changed:
                while not self._over():
                    self._changed.wait(1.0)
                    if seen < len(self._results) and _in_main_thread():
                        places.move_on()
                    seen = len(self._results)
        finally:  # Ctrl-C, too
            with self._changed:
                self._error = self._error or (None if self._done() else KeyboardInterrupt())
                self._changed.notify_all()
            for thread in threads:
                while thread.is_alive():  # it may have just begun a request
                    for member in members:
                        member.client.abort()
                    thread.join(0.1)
        if self._error is not None:
            raise self._error
        return [self._results[job] for job in range(len(self._jobs))]

    def _done(self) -> bool:
        return len(self._results) == len(self._jobs)

    def _over(self) -> bool:
        return self._error is not None or self._done()

    def _guarded(self, task: Callable[[Member], None], member: Member) -> None:
        """Run a thread's task; an unexpected error ends the work."""
        try:
            task(member)
        except BaseException as error:  # `finish` raises it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _do_jobs(self, member: Member) -> None:
        """Do one job after the other on a server."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over() or (member.up and bool(self._queue)))
                if self._over():
                    return
                job, life = self._queue.popleft(), member.lives
            try:
                result = self._do(member.client, self._jobs[job])
            except ServerFault as fault:
                with self._changed:
                    self._queue.appendleft(job)
                    self._record_fault(member, life, fault)
                continue
            with self._changed:
                self._results[job] = result
                if life == member.lives:  # otherwise it has failed since the request
                    member.attempts, member.fault = 0, ""
                if self._done():
                    self._changed.notify_all()

    def _supervise(self, member: Member) -> None:
        """Prepare a server, check that it still answers, and retry after faults."""
        while True:
            with self._changed:
                self._wait_before_check(member, member.up)
                if self._over() or member.given_up:
                    return
                up, life = member.up, member.lives
            try:
                if up:
                    member.client.version()
                else:
                    self._prepare(member.client, self._over)
            except ServerFault as fault:
                with self._changed:
                    self._record_fault(member, life, fault)
                continue
            if not up:
                with self._changed:
                    member.up, member.lives = True, member.lives + 1
                    if member.attempts:
                        _print(f"{member.client.url} answers again")
                    self._changed.notify_all()

    def _wait_before_check(self, member: Member, up: bool) -> None:
        """Wait before a server is checked or prepared again; the caller holds the lock."""
        fleet = self._fleet
        while not (self._over() or member.given_up):
            wait_s = fleet._pulse_s if up else fleet.wait_s(member.attempts)
            changed = self._changed.wait_for(self._is_new(member, up), wait_s)
            if not changed or member.up == up:
                return
            up = member.up

    def _is_new(self, member: Member, up: bool) -> Callable[[], bool]:
        return lambda: self._over() or member.given_up or member.up != up

    def _record_fault(self, member: Member, life: int, fault: ServerFault) -> None:
        """Record a fault of a server, unless it is already recorded; the caller holds the lock."""
        if self._over():
            return
        url = member.client.url
        if isinstance(fault, ServerRefusal):
            self._error = UserError(f"--model.engine.urls: {url}: {fault}")
        elif life == member.lives:
            if member.attempts == 0:
                member.failing_since = time.monotonic()
                _print(f"{url}: {fault}; trying again")
            member.attempts, member.fault = member.attempts + 1, str(fault)
            if member.up:
                member.up, member.lives = False, member.lives + 1
                member.client.abort()
            if self._fleet.is_lost(member):
                self._give_up(member)
        self._changed.notify_all()

    def _give_up(self, member: Member) -> None:
        member.given_up = True
        if all(other.given_up for other in self._fleet.members):
            self._error = EngineLostError(self._fleet.failure_summary())
        else:
            _print(f"{member.client.url}: {member.fault}; this rollout continues without it")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _print(message: str) -> None:
    """Print a message about a server, with the rank."""
    rank = own_rank()
    print(f"vcppo: {f'[rank {rank}] ' if rank else ''}{printable(message)}", file=sys.stderr)
