"""Processes of the check: which there are, in the order of their value, and how they are run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """A part of the check.

    Attributes:
        module: File of this directory whose function `run` does it.
        argument: What it is told.
        seconds: Its limit.
    """

    module: str
    argument: str
    seconds: int


TOGETHER = {
    "machine": Plan("machine", "", 60),
    "parity lean": Plan("parity", "lean", 85),
    "parity half": Plan("parity", "half", 85),
    "parity others": Plan("parity", "others", 85),
    "numbers": Plan("numbers", "", 85),
    "presets": Plan("commands", "presets", 140),
    "switches": Plan("commands", "switches", 140),
    "critic lab": Plan("commands", "critic lab", 140),
    "fit bf16-mixed": Plan("fits", "bf16-mixed", 85),
    "fit fsdp2": Plan("fits", "fsdp2", 85),
    "fit lora": Plan("fits", "lora", 85),
    "fit 32-true": Plan("fits", "32-true", 85),
    "fit bf16-true": Plan("fits", "bf16-true", 85),
    "fit fsdp2_offload": Plan("fits", "fsdp2_offload", 85),
    "fit deterministic": Plan("fits", "deterministic", 85),
}
"""Parts in which nothing is timed run at the same time."""
ALONE = {
    "decode": Plan("decode", "", 65),
    "update bf16-mixed": Plan("update", "bf16-mixed", 50),
    "update of more tokens": Plan("update", "more tokens", 35),
    "quick start": Plan("update", "quick start", 50),
    "kernels": Plan("kernels", "", 45),
    "update fsdp2": Plan("update", "fsdp2", 35),
    "update bf16-true": Plan("update", "bf16-true", 35),
    "transformers": Plan("others", "", 60),
}
"""Parts that time something run one after the other; the next one imports meanwhile."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "MPLBACKEND": "agg",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


class Part:
    """A process that runs one part; it imports at once and begins when told."""

    def __init__(self, name: str, plan: Plan, a: Namespace, threads: int) -> None:
        """Start it."""
        slug = "".join(character if character.isalnum() else "_" for character in name)
        self.name, self.limit = name, plan.seconds * a.patience
        self.state, self.log = "waiting", a.work / f"{slug}.log"
        self._found, self._go = a.work / f"{slug}.json", a.work / f"{slug}.go"
        self._began, self._took = 0.0, 0.0
        places = {"found": self._found, "go": self._go, "work": a.work, "out": a.out}
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", plan.module]
        command += ["--argument", plan.argument, "--device", a.device]
        command += [str(x) for key, path in places.items() for x in (f"--{key}", path)]
        command += ["--tiny"] if a.tiny else []
        variables = OFFLINE | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": str(threads),
        }
        if plan.argument == "deterministic":
            variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | variables,
                cwd=ROOT,
                start_new_session=True,
            )

    def start(self) -> None:
        """Tell it to begin."""
        self._began, self.state = time.perf_counter(), "running"
        self._go.touch()

    def is_over(self, until: float) -> bool:
        """Return whether it has ended or has to."""
        late = time.perf_counter() > min(self._began + self.limit, until)
        return late or self.process.poll() is not None

    def finish(self, until: float) -> None:
        """Wait until it ends, or its limit or that of the check is over."""
        left = min(self._began + self.limit, until) - time.perf_counter()
        try:
            rc = self.process.wait(max(0.1, left))
            self.state = "ended" if rc == 0 else f"ended with {rc}"
        except subprocess.TimeoutExpired:
            self.state = "stopped at its limit"
        self._took = time.perf_counter() - self._began
        self.stop()

    def stop(self) -> None:
        """End its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def result(self) -> dict[str, Any]:
        """Return its state and what it has found."""
        values = json.loads(self._found.read_text()) if self._found.exists() else {}
        values = {key: value for key, value in values.items() if not key.startswith("_")}
        return {"state": self.state, "seconds": round(self._took, 1), **values}
