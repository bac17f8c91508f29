"""Compare answers in a process that `pool` runs as `python -m lightning_vcppo.rewards.worker`.

It reads one JSON line `[number, candidate, accepted answers, kind]` per comparison, writes one line
`[number, verdict]` for each, and ends with its input. The system ends it when a comparison takes
more CPU seconds than allowed, because a Python signal handler cannot interrupt C code.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable

from lightning_vcppo.rewards.equality import answers_equal

OUT_OF_MEMORY = "memory"
"""Verdict of a comparison that ran out of memory."""


def main(limit_s: float, memory_mb: int) -> None:
    """Do the comparisons of the input until it ends.

    Args:
        limit_s: CPU seconds of one comparison.
        memory_mb: Limit of the address space of this process, in MiB.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the run, which closes the input
    allow = _limits(limit_s, memory_mb)
    answers_equal("x", "2x-x")  # the first evaluation imports modules and fills tables
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
    """Limit memory now, and return a function that sets the CPU seconds of a comparison."""
    try:
        import resource
    except ImportError:  # Windows has neither; only the static bounds hold there
        return lambda: None
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere address space does not measure memory
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
