"""Ranks as processes of their own: each finds its place in the environment, as under torchrun.

In a fork Python and its libraries have started already, which is most of what a tiny run takes.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.tiny_runs import LAUNCHED

FORK = multiprocessing.get_context("fork")
SPAWN = multiprocessing.get_context("spawn")
"""For callers that may have threads, as pytest may: a fork could wait for their locks for good."""
LIMIT_S = 150


def free_port() -> int:
    """Return a port that nobody listens on.

    It is below those that the system deals out, so nobody is given it before the run begins.
    """
    for port in random.Random(os.urandom(8)).sample(range(20_000, 30_000), 100):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def start_ranks(
    work: Callable[..., object],
    arguments: tuple[Any, ...],
    ranks: int,
    logs: Path,
    nodes: int = 1,
    context: Any = FORK,
) -> list[BaseProcess]:
    """Start `work(*arguments)` on each rank; what it prints is in `logs/RANK.log`.

    Args:
        work: To be done.
        arguments: Of it.
        ranks: How many processes; one alone is told nothing about ranks.
        logs: Directory, made if need be.
        nodes: Machines that the processes believe to be on.
        context: How processes are started; `SPAWN` where this one may have threads.
    """
    logs.mkdir(parents=True, exist_ok=True)
    port = free_port()
    each: list[BaseProcess] = [
        context.Process(target=_be_rank, args=(work, arguments, rank, ranks, nodes, port, logs))
        for rank in range(ranks)
    ]
    for process in each:
        process.start()
    return each


def run_ranks(
    work: Callable[..., object],
    *arguments: Any,
    ranks: int,
    logs: Path,
    nodes: int = 1,
    context: Any = SPAWN,
) -> bool:
    """Do the same, and tell whether all ranks have ended well before the limit."""
    each = start_ranks(work, arguments, ranks, logs, nodes, context)
    for process in each:
        process.join(LIMIT_S)
    for process in each:
        process.kill()  # what hangs
        process.join()
    return all(process.exitcode == 0 for process in each)


def _be_rank(
    work: Callable[..., object],
    arguments: tuple[Any, ...],
    rank: int,
    ranks: int,
    nodes: int,
    port: int,
    logs: Path,
) -> None:
    here = ranks // nodes
    for variable in LAUNCHED:
        os.environ.pop(variable, None)
    if ranks > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": logs.name,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(here),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % here),
            "GROUP_RANK": str(rank // here),
        }
    log = os.open(logs / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _print_here()
    try:
        work(*arguments)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _print_here() -> None:
    """Undo what pytest does to what is printed, logged and warned of."""
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__

    def show(message: Any, category: Any, path: str, line: int, *rest: object) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, path, line))

    warnings.showwarning = show
    for logger in (logging.getLogger(), *logging.Logger.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)


def _leave(code: int) -> None:
    """End without what the parent has registered for its own end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
