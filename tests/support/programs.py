"""Processes in which the libraries are imported already, and Python programs that run in them.

The start of Python, torch, Lightning and transformers is most of what a tiny run takes. A server,
started once by each test process, imports them and forks when it is asked to. It has no threads,
so a fork cannot wait for their locks, as it could in the process of pytest.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

from tests.support.tiny_runs import ROOT

SERVED = multiprocessing.get_context("forkserver")
SERVED.set_forkserver_preload(["tests.support.libraries"])


def served() -> Any:
    """Return the context of multiprocessing whose processes the server forks; start it first."""
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
        forkserver.ensure_running()
    return SERVED


def begin(environment: Mapping[str, str]) -> None:
    """Take an environment, and a seed of one's own: a fork has those of the server."""
    os.environ.clear()
    os.environ.update(environment)
    random.seed()


def run_python(
    words: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 240.0,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a process of the server; return its exit code and what it printed.

    Args:
        words: `-m MODULE` and its arguments.
        cwd: Folder in which it runs.
        env: Complete environment; by default that of this process.
        timeout: Seconds after which it and all that it started are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("out", "err")]
        process = _program(words, cwd, env, *paths)
        process.join(timeout)
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        out, err = (path.read_text() if path.exists() else "" for path in paths)
    return subprocess.CompletedProcess(words, process.exitcode or 0, out, err)


class ServedProgram:
    """Do what `subprocess.Popen` does with `python -m MODULE`, as far as it is asked to here."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], stdout: TextIO, **_: Any
    ) -> None:
        """Start it; what it prints is added to the file."""
        log = Path(stdout.name).absolute()
        self._process = _program(command[1:], Path.cwd(), env, log, log)

    def poll(self) -> int | None:
        """Return the exit code if it has ended."""
        return self._process.exitcode


def _program(
    words: Sequence[str], cwd: Path, env: Mapping[str, str] | None, out: Path, err: Path
) -> BaseProcess:
    environment = dict(os.environ if env is None else env)
    arguments = ([str(word) for word in words], cwd, environment, out, err)
    process: BaseProcess = served().Process(target=_be_program, args=arguments)
    process.start()
    return process


def _be_program(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str], out: Path, err: Path
) -> None:
    """Be `python -m`, in a process group of its own."""
    begin(environment)
    os.setsid()
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))
    option, module, *rest = words
    assert option == "-m"
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
