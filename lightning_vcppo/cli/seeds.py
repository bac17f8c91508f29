"""Run one training for several seeds: `vcppo fit --seeds 0..4`, as input of `vcppo compare`.

    OUTPUT/seed_N/            the run of a seed, as `vcppo fit --seed_everything=N` writes it
    OUTPUT/seed_N/log.txt     its output
    OUTPUT/seed_N/seed.json   its flags, and whether it has finished

Each run is a separate process. The same command can be given again: a finished seed is skipped, an
interrupted one is resumed from its checkpoint. Ctrl-C is passed on, so that every run finishes its
rollout and saves.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lightning_vcppo.common.errors import require, require_seed
from lightning_vcppo.common.files import complete_file, remove, whole_rows
from lightning_vcppo.common.processes import ONE_THREAD, cores
from lightning_vcppo.common.terminal import printable

RECORD, LOG = "seed.json", "log.txt"
PLACEHOLDER = "{seed}"
"""Text replaced by the seed in flags, as in `--model.actor=runs/start/seed_{seed}/actor`."""
POLL_S = 0.2
MAX_SEEDS = 10_000
"""Largest number of seeds of a set, far more than anybody trains."""


def parse_seeds(text: str) -> list[int]:
    """Read seeds, as `0..4`, `0,2,5` or `0..2,7`.

    Raises:
        ValueError: If the text is not such a list, a range is descending, a seed occurs twice or
            is too large, or there are more than `MAX_SEEDS`.
    """
    seeds: list[int] = []
    for part in text.replace(" ", "").strip("[]").split(","):
        match = re.fullmatch(r"(\d{1,20})(?:\.\.(\d{1,20}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(f"--seeds: expected seeds such as 0..4 or 0,2,5, got {text[:60]}")
        require_seed("--seeds", last)
        require(
            len(seeds) + last - first < MAX_SEEDS,
            f"--seeds: expected at most {MAX_SEEDS} seeds, got {text[:60]}",
        )
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: expected each seed once, got {text}")
    return seeds


def default_jobs(count: int, *, on_cpu: bool, devices: int = 1) -> int:
    """Return the number of runs at the same time: one per core, and one on GPUs.

    Args:
        count: Number of seeds.
        on_cpu: Whether the runs compute on the CPU.
        devices: Number of processes of each run.
    """
    return max(1, min(count, cores() // max(1, devices))) if on_cpu else 1


@dataclass
class SeedRun:
    """The run of one seed.

    Attributes:
        seed: The seed.
        directory: Directory of the run.
        arguments: Arguments of `vcppo`, without those that resume an earlier run.
        total: Number of rollouts (or updates) of the run, if it is known.
        state: waiting, running, finished, skipped, interrupted or failed.
        reason: The last line of a run that failed.
    """

    seed: int
    directory: Path
    arguments: list[str]
    total: int | None = None
    state: str = "waiting"
    reason: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    began: float = 0.0
    seconds: float = 0.0

    def prepare(self, *, overwrite: bool) -> None:
        """Skip a finished run; refuse a directory with a run of other flags.

        Raises:
            ValueError: If the directory has a run of other flags, or its record cannot be read.
        """
        path = self.directory / RECORD
        if overwrite:
            remove(path)
        if not path.exists():
            return
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            before, finished = record["arguments"], record["finished"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: expected a record of `vcppo fit --seeds`") from None
        if before != self.arguments:
            either = dict.fromkeys((*before, *self.arguments))
            changed = [a for a in either if a not in before or a not in self.arguments]
            which = ", ".join(changed) or "in another order"
            raise ValueError(
                f"{self.directory} holds a run of other flags ({which}); "
                "choose another --trainer.default_root_dir, or replace it with --overwrite"
            )
        self.state = "skipped" if finished else self.state

    def start(self, environment: dict[str, str], *, overwrite: bool, record: bool) -> None:
        """Start the process; an interrupted run is resumed from its last checkpoint."""
        resumes = (self.directory / RECORD).exists()
        self.directory.mkdir(parents=True, exist_ok=True)
        if record:
            self._record(finished=False)
        command = [sys.executable, "-m", "lightning_vcppo", *self.arguments]
        if resumes:
            command.append("--ckpt_path=last")
        elif overwrite:
            command.append("--overwrite")
        with (self.directory / LOG).open("ab" if resumes else "wb") as log:
            # In a new session, Ctrl-C in the terminal reaches it once, through this process.
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.state, self.began = "running", time.monotonic()

    def finish(self, code: int, *, record: bool, interrupted: bool) -> None:
        """Record how the process has ended."""
        self.seconds = time.monotonic() - self.began
        if code == 0:
            self.state = "interrupted" if interrupted and not self._is_complete() else "finished"
            if record and self.state == "finished":
                self._record(finished=True)
        elif interrupted:
            self.state = "interrupted"
        else:
            self.state = "failed"
            lines = (self.directory / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
            self.reason = printable(next((x.strip() for x in reversed(lines) if x.strip()), ""))

    def line(self) -> str:
        """Describe the run in one line."""
        place = f"seed {self.seed:<4} {self.state:<11}"
        if self.state in ("waiting", "skipped"):
            return place
        try:
            done, accuracy = self._progress()
        except ValueError as error:  # the other runs continue
            return f"{place} {printable(str(error))}" + (f": {self.reason}" if self.reason else "")
        of_total = f" of {self.total}" if self.total else ""
        text = f"{place} {done}{of_total} done" + (f", accuracy {accuracy}" if accuracy else "")
        seconds = self.seconds or time.monotonic() - self.began
        return f"{text}, {seconds:.0f} s" + (f": {self.reason}" if self.reason else "")

    def _is_complete(self) -> bool:
        try:
            return self.total is not None and self._progress()[0] >= self.total
        except ValueError:
            return False

    def _progress(self) -> tuple[int, str]:
        """Return the last step of metrics.csv and its accuracy.

        Raises:
            ValueError: If the file is not CSV, or one of them is not a number.
        """
        step, accuracy = 0, ""
        path = self.directory / "metrics.csv"
        for number, row in enumerate(whole_rows(path), start=2):
            try:
                step = max(step, int(float(row.get("step") or 0)))
                found = row.get("rollout/accuracy")
                accuracy = f"{100 * float(found):.1f} %" if found else accuracy
            except (ValueError, OverflowError):
                raise ValueError(f"{path}:{number}: expected numbers") from None
        return step, accuracy

    def _record(self, *, finished: bool) -> None:
        with complete_file(self.directory / RECORD) as file:
            json.dump({"arguments": self.arguments, "finished": finished}, file, indent=2)


def run_seeds(
    arguments: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    *,
    jobs: int,
    overwrite: bool = False,
    one_thread: bool = True,
    total: int | None = None,
    record: bool = True,
) -> int:
    """Run a training for several seeds, and print a line for each.

    Args:
        arguments: Arguments of `vcppo`, beginning with "fit"; "{seed}" is replaced by the seed.
        seeds: The seeds.
        output: Directory that contains the runs.
        jobs: Number of runs at the same time.
        overwrite: Whether existing runs are replaced.
        one_thread: Whether each run gets one thread.
        total: Number of rollouts of each run, if it is known.
        record: Whether runs write the record that is needed to resume them.

    Returns:
        Exit code: 0 if all have finished, 1 if one has failed, that of the signal after Ctrl-C.

    Raises:
        ValueError: If `jobs` is below 1, or a directory has a run of other flags.
    """
    require(jobs >= 1, f"--jobs: expected >= 1, got {jobs}")
    runs = [_run_of(seed, arguments, output, total) for seed in seeds]
    for run in runs:
        run.prepare(overwrite=overwrite)
    environment = {**os.environ, **(ONE_THREAD if one_thread else {})}
    with _passing_on(runs) as signals, _shown(runs) as show:
        waiting = [run for run in runs if run.state == "waiting"]
        running: list[SeedRun] = []
        while running or (waiting and not signals):
            while waiting and len(running) < jobs and not signals:
                running.append(waiting.pop(0))
                running[-1].start(environment, overwrite=overwrite, record=record)
                show(running[-1])
            time.sleep(POLL_S)
            for run in list(running):
                code = run.process.poll() if run.process else 0
                if code is not None:
                    running.remove(run)
                    run.finish(code, record=record, interrupted=bool(signals))
                    show(run)
            show(None)
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        print(f"seed {run.seed} failed: {run.reason} (see {run.directory / LOG})", file=sys.stderr)
    if signals:
        print("interrupted; the same command resumes the seeds", file=sys.stderr)
        return 128 + signals[0]
    if not failed:
        print(f"To compare the seeds: vcppo compare {shlex.quote(str(output))}")
    return 1 if failed else 0


def _run_of(seed: int, arguments: Sequence[str], output: Path, total: int | None) -> SeedRun:
    directory = output / f"seed_{seed}"
    own = [
        f"--seed_everything={seed}",
        f"--trainer.default_root_dir={directory}",
        "--seeds=null",
        "--jobs=null",
    ]
    filled = [argument.replace(PLACEHOLDER, str(seed)) for argument in _of_one_run(arguments)]
    return SeedRun(seed, directory, [*filled, *own], total)


def _of_one_run(arguments: Sequence[str]) -> Iterator[str]:
    """Drop the flags that concern the set of runs."""
    waiting = [*arguments]
    while waiting:
        flag, equals, _ = (argument := waiting.pop(0)).partition("=")
        if flag not in ("--seeds", "--jobs", "--overwrite", "--keep_overwrite"):
            yield argument
        elif not equals and waiting and not waiting[0].startswith("-"):
            waiting.pop(0)


@contextmanager
def _passing_on(runs: Sequence[SeedRun]) -> Iterator[list[int]]:
    """Pass Ctrl-C and SIGTERM on to the processes; at the end, kill those that still run.

    Yields:
        The received signals, in their order.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for run in runs:
            if run.process and run.process.poll() is None:
                run.process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for run in runs:
            if run.process and run.process.poll() is None:
                os.killpg(run.process.pid, signal.SIGKILL)
                run.process.wait()


@contextmanager
def _shown(runs: Sequence[SeedRun]) -> Iterator[Any]:
    """Show a line for each run: live in a terminal, otherwise when a run begins or ends.

    Yields:
        A function to call with a run whose state has changed, or with None.
    """
    console = Console()
    if not console.is_terminal:
        for run in runs:
            if run.state == "skipped":
                print(run.line(), flush=True)
        yield lambda run: run and print(run.line(), flush=True)
        return

    def lines() -> Group:
        return Group(*(Text(run.line(), no_wrap=True, overflow="ellipsis") for run in runs))

    with Live(lines(), console=console, auto_refresh=False) as live:
        shown = [0.0]

        def show(run: SeedRun | None) -> None:
            if run or time.monotonic() - shown[0] > 1:
                shown[0] = time.monotonic()
                live.update(lines(), refresh=True)

        yield show
