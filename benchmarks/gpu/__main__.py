"""Run the parts of the check, and write what they find as it comes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import ALONE, TOGETHER, Part, Plan

SPARE = 12
"""Seconds; a part does not begin if fewer are left."""


class Check:
    """The whole: its parts, results and time."""

    def __init__(self, a: argparse.Namespace) -> None:
        """Begin to count the time."""
        self.a, self.began = a, time.perf_counter()
        self.until = self.began + a.budget
        self.results: dict[str, Any] = {}
        self.parts: list[Part] = []

    def run(self) -> bool:
        """Run the parts that were asked for and tell whether all have come to their end."""
        cpus = os.cpu_count() or 1
        self._together(self._chosen(TOGETHER), self.a.jobs or max(1, cpus // 2), cpus)
        self._alone(self._chosen(ALONE), max(1, cpus // 2))
        print((self.a.out / "summary.txt").read_text()[-11_000:])
        return all(found["state"] == "ended" for found in self.results.values())

    def _chosen(self, plans: dict[str, Plan]) -> dict[str, Plan]:
        wanted = self.a.only.split(",") if self.a.only else [""]
        return {name: plan for name, plan in plans.items() if any(w in name for w in wanted)}

    def _together(self, plans: dict[str, Plan], at_once: int, cpus: int) -> None:
        waiting, running = list(plans.items()), list[Part]()
        while waiting or running:
            while waiting and len(running) < at_once:
                part = Part(*waiting.pop(0), self.a, 2 if cpus > 2 else 1)
                self.parts.append(part)
                part.start()
                running.append(part)
            for part in [part for part in running if part.is_over(self.until)]:
                part.finish(self.until)
                running.remove(part)
                self._note(part)
            time.sleep(0.2)

    def _alone(self, plans: dict[str, Plan], threads: int) -> None:
        queue = list(plans.items())
        following = Part(*queue.pop(0), self.a, threads) if queue else None
        while following is not None:
            part = following
            self.parts.append(part)
            following = Part(*queue.pop(0), self.a, threads) if queue else None
            if self.until - time.perf_counter() < SPARE:
                part.state = "no time left"
                part.stop()
            else:
                part.start()
                part.finish(self.until)
            self._note(part)

    def _note(self, part: Part) -> None:
        """Write everything found so far."""
        self.results[part.name] = part.result()
        print(f"{time.perf_counter() - self.began:6.1f} s  {part.name}: {part.state}", flush=True)
        out: Path = self.a.out
        (out / "results.json").write_text(json.dumps(self.results, indent=1))
        lines = []
        for name, found in self.results.items():
            lines.append(f"== {name}: {found['state']}, {found['seconds']} s")
            shown = {k: v for k, v in found.items() if k not in ("state", "seconds", "doctor")}
            lines += [f"   {key}: {json.dumps(value)[:600]}" for key, value in shown.items()]
        (out / "summary.txt").write_text("\n".join(lines) + "\n")
        with (out / "log.txt").open("w") as log:
            for each in self.parts:
                text = each.log.read_text(errors="replace") if each.log.exists() else ""
                log.write(f"==== {each.name}\n{text[-150_000:]}\n")
        profiles = sorted(self.a.work.glob("profile_*.txt"))
        if profiles:
            (out / "profile.txt").write_text("\n".join(p.read_text() for p in profiles))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    default = Path(os.environ.get("OUT", "gpu_out"))
    parser.add_argument("--out", type=Path, default=default, help="directory of results")
    parser.add_argument("--work", type=Path, help="scratch; a temporary directory by default")
    parser.add_argument("--budget", type=float, default=420.0, help="seconds of it all")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes of a rehearsal")
    parser.add_argument("--only", help="parts whose names contain one of these, by comma")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of all limits")
    parser.add_argument("--jobs", type=int, help="parts at once of those that run together")
    for name in ("part", "argument", "found", "go"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_part(a: argparse.Namespace) -> None:
    """Import what a part needs, wait for the word, and run it."""
    import lightning.pytorch  # noqa: F401  (before transformers, as the project's tests do)

    from benchmarks.gpu.findings import Findings

    module = importlib.import_module(f"benchmarks.gpu.{a.part}")
    while not Path(a.go).exists():
        time.sleep(0.02)
    module.run(Findings(Path(a.found)), a)


def main() -> int:
    """Run a part, or all."""
    a = parse(sys.argv[1:])
    a.out = a.out.resolve()
    if a.part is not None:
        run_part(a)
        return 0
    a.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        a.work = Path(directory) if a.work is None else a.work.resolve()
        a.work.mkdir(parents=True, exist_ok=True)
        return 0 if Check(a).run() else 1


if __name__ == "__main__":
    sys.exit(main())
