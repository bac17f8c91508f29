"""A process that compares answers, run by `pool` as `python -m lightning_vcppo.rewards.worker`.

It reads one JSON line `[number, candidate, accepted answers, kind]` a comparison, writes one line
`[number, verdict]` each, and ends with its input. The system ends it when one comparison takes more
CPU seconds than allowed: no signal handler of Python's could, in the middle of C code.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable

from lightning_vcppo.rewards.equality import answers_equal

OUT_OF_MEMORY = "memory"
"""Verdict of a comparison that has run out of memory."""


def main(limit_s: float, memory_mb: int) -> None:
    """Compare what comes in until the input ends.

    Args:
        limit_s: CPU seconds of one comparison.
        memory_mb: Address space of this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends the input
    allow = _limits(limit_s, memory_mb)
    answers_equal("x", "2x-x")  # the first evaluation imports and fills tables
    print(json.dumps([-1, True]), flush=True)
    for line in sys.stdin:
        number, candidate, accepted, kind = json.loads(line)
        allow()
        try:
            verdict: bool | str = answers_equal(candidate, tuple(accepted), kind)
        except MemoryError:
            verdict = OUT_OF_MEMORY
        print(json.dumps([number, verdict]), flush=True)


def _limits(limit_s: float, memory_mb: int) -> Callable[[], None]:
    """Limit memory now, and return the function that allows CPU seconds for one comparison."""
    try:
        import resource
    except ImportError:  # Windows has neither; the static limits hold there as well
        return lambda: None
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere address space is no measure of memory
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = memory_mb * 2**20
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))

    def allow() -> None:
        until = int(time.process_time() + limit_s) + 1  # the system counts whole seconds
        soft = until if hard == resource.RLIM_INFINITY else min(until, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))

    return allow


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
