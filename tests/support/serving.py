"""Sampling servers as processes: `vcppo serve`, or the same routes without vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.forks import free_port
from tests.support.tiny_runs import ROOT

SMALL = {"kv_cache_memory_bytes": 67108864}


class ServerProcess:
    """A server in a process group of its own, which can be killed, stopped and started again.

    Args:
        actor: Directory of the actor.
        directory: For its log and its token.
        vllm: Whether it is `vcppo serve`; otherwise `tests.support.sampling_server` samples.
        init_args: Other arguments of vLLM.
    """

    def __init__(
        self, actor: Path, directory: Path, *, vllm: bool = True, **init_args: object
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log, self.token_file = directory / f"server_{self.port}.log", directory / "token"
        if vllm:
            self.command = [
                *(sys.executable, "-m", "lightning_vcppo", "serve", f"--model.actor={actor}"),
                *(f"--port={self.port}", f"--token_file={self.token_file}"),
                *("--model.engine.max_num_seqs=16", "--model.engine.max_model_len=256"),
                f"--model.engine.init_args={json.dumps(SMALL | init_args)}",
            ]
        else:
            module = "tests.support.sampling_server"
            self.command = [sys.executable, "-m", module, str(actor), str(self.port)]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it; it does not answer yet."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def wait(self, seconds: float = 240.0) -> None:
        """Wait until it answers."""
        assert self.process is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.25)
        raise TimeoutError(self.log.read_text()[-3000:])

    def status(self, path: str, token: str | None = None) -> int:
        """Return the status with which it answers a question."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    def signal_all(self, number: int) -> None:
        """Send a signal to its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End its first process at once, as a machine that runs out of memory does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def others(self) -> list[int]:
        """Return the processes of its group that still run."""
        assert self.process is not None
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                state, _, group = (directory / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:  # it has just ended
                continue
            if int(group) == self.process.pid and state != "Z":
                found.append(int(directory.name))
        return found

    def end(self) -> None:
        """End all of its processes."""
        if self.process is not None:
            for pid in (*self.others(), self.process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.wait()
