"""Write the findings of a part, and go on after a failure."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BEGAN = time.perf_counter()


class Findings:
    """A JSON file that is complete after every entry.

    After an error in a kernel nothing else runs on the device in that process. Then the process
    replaces itself by a new one, which skips what has been attempted.
    """

    def __init__(self, path: Path) -> None:
        """Continue a file, if there is one."""
        self._path = path
        self._values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def put(self, **values: Any) -> None:
        """Note findings."""
        self._values |= {key: plain(value) for key, value in values.items()}
        unfinished = self._path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self._values, indent=1))
        unfinished.replace(self._path)
        for key, value in values.items():
            if not key.startswith("_"):
                print(f"[{time.perf_counter() - BEGAN:6.1f} s] {key}: {plain(value)}", flush=True)

    def attempt(self, name: str, run: Callable[[], object]) -> None:
        """Run something once, and note its error under its name or what it returns, if anything."""
        done = self._values.get("_attempted", [])
        if name in done:
            return
        self.put(_attempted=[*done, name])
        try:
            found = run()
        except (Exception, SystemExit) as error:  # whatever it is, the other attempts go on
            traceback.print_exc()
            lines = [line for line in str(error).splitlines() if line.strip()]
            text = f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
            self.put(**{f"{name} FAILED": text})
            if is_poisoned():
                self.put(**{f"{name} broke the context": True})
                sys.stdout.flush()
                os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]])
        else:
            if found is not None:
                self.put(**{name: found})


def is_poisoned() -> bool:
    """Return whether the device no longer answers this process."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        return float(torch.ones(4, device="cuda").sum()) != 4
    except RuntimeError:
        return True


def plain(value: Any) -> Any:
    """Return a value as JSON has it, numbers to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if isinstance(value, int | str | bool | type(None)) else str(value)
