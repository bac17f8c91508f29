"""Run processes that are started once and take part in many runs, each as one rank.

The collectives of a run are those of torch's flight recorder: operation, shapes, types.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import omegaconf  # noqa: F401 (by each process otherwise)
import torch
import torch.distributed as dist

from lightning_vcppo.cli import lightning_cli

Collective = tuple[str, str, str]
"""Operation, shapes and types of a collective."""
RECORDED = 200_000
"""Number of collectives that the recorder keeps, more than a run has."""
MARKS = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK"}
MARKS |= {"LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID", "PL_GLOBAL_SEED"}
"""Environment variables that a run reads or sets."""


@dataclass(frozen=True)
class Outcome:
    """The result of a rank.

    Attributes:
        collectives: Its collectives, in order.
        error: Type and first line of the error that it raised; empty without an error.
    """

    collectives: list[Collective]
    error: str


class Workers:
    """A pool of processes, one for each rank of the largest run."""

    def __init__(self, size: int) -> None:
        """Start the processes.

        Args:
            size: Number of processes.
        """
        os.environ["TORCH_FR_BUFFER_SIZE"] = str(RECORDED)  # the processes read it later
        self._fork = multiprocessing.get_context("fork")
        self._size = size
        self._each: list[tuple[BaseProcess, Connection]] = []
        self._start()

    def _start(self) -> None:
        for _ in range(self._size):
            here, there = self._fork.Pipe()
            process = self._fork.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._each.append((process, here))

    def stop(self) -> None:
        """Kill the processes."""
        for process, connection in self._each:
            process.kill()
            process.join()
            connection.close()
        self._each = []

    def run(
        self, words: Sequence[str], ranks: int, directory: Path, limit_s: float
    ) -> list[Outcome] | None:
        """Run `vcppo` in the first `ranks` processes.

        Args:
            words: Arguments of the command.
            ranks: Number of processes.
            directory: Directory to which each process writes its output, as `RANK.log`.
            limit_s: Seconds after which the run counts as stuck.

        Returns:
            The result of each rank; None if the run was stuck, or a process died. In that case all
            processes are replaced.
        """
        port, ends = free_port(), time.monotonic() + limit_s
        chosen = self._each[:ranks]
        for rank, (_, connection) in enumerate(chosen):
            connection.send((tuple(words), rank, ranks, port, str(directory / f"{rank}.log")))
        outcomes = []
        for _, connection in chosen:
            with suppress(EOFError, OSError):
                if connection.poll(max(0.0, ends - time.monotonic())):
                    outcomes.append(Outcome(*connection.recv()))
                    continue
            self.stop()
            self._start()
            return None
        return outcomes


def free_port() -> int:
    """Return an unused port, below those that the system assigns."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def parted(ranks: Sequence[Sequence[Collective]]) -> str:
    """Return the first difference between the collectives of ranks, or an empty text."""
    for number, of_ranks in enumerate(zip(*ranks, strict=False)):
        if len(set(of_ranks)) > 1:
            return f"collective {number}: {' / '.join(map(str, of_ranks))}"
    lengths = [len(of_rank) for of_rank in ranks]
    return "" if len(set(lengths)) == 1 else f"{' / '.join(map(str, lengths))} collectives"


def _serve(connection: Connection) -> None:
    """Do runs until the pipe closes."""
    torch.set_num_threads(1)
    seen = -1
    while True:
        try:
            words, rank, ranks, port, log = connection.recv()
        except EOFError:
            return
        error = _as_rank(words, rank, ranks, port, log)
        entries = [entry for entry in _recorded() if entry["record_id"] > seen]
        seen = max((entry["record_id"] for entry in entries), default=seen)
        connection.send(([_collective(entry) for entry in entries], error))


def _as_rank(words: Sequence[str], rank: int, ranks: int, port: int, log: str) -> str:
    """Run `vcppo` as under torchrun; return the error that it raised, or an empty text."""
    for name in MARKS:
        os.environ.pop(name, None)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "stress",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
    }
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        with mock.patch.object(sys, "argv", ["vcppo"]):
            lightning_cli.main([str(word) for word in words])
        return ""
    except BaseException as error:  # any error is a result of the rank
        traceback.print_exc()
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if dist.is_initialized():
            dist.destroy_process_group()
        gc.collect()


def _recorded() -> list[dict[str, Any]]:
    """Return the entries of torch's flight recorder."""
    recorder: Any = torch._C._distributed_c10d
    trace = pickle.loads(recorder._dump_fr_trace(True, False, False))
    entries: list[dict[str, Any]] = trace.get("entries", [])
    return entries


def _collective(entry: dict[str, Any]) -> Collective:
    """Return the part of an entry that is equal on all ranks: of a scatter, the output."""
    side = "output" if entry["profiling_name"].endswith(":scatter") else "input"
    return entry["profiling_name"], str(entry[f"{side}_sizes"]), str(entry[f"{side}_dtypes"])
