"""Run the complete demo: plain PPO and VC-PPO from the same start, and a report of both.

    vcppo demo --seed 0 --output runs/demo

It only runs the commands that it prints, so each can be repeated and changed by hand. Each uses one
thread, so that results do not depend on the number of cores; both algorithms run at the same time
if there are two cores.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_vcppo.common.errors import OneLineArguments, require_seed
from lightning_vcppo.common.processes import cores

SAVING_S = 30
"""Seconds that an interrupted run has to save its state."""
QUICK = {
    "cold_start": ["--trainer.limit_train_batches=30", "--data.val_size=16"],
    "reward_model": ["--trainer.limit_train_batches=2", "--data.prompts_per_rollout=16"],
    "rl": [
        "--trainer.limit_train_batches=4",
        "--trainer.val_check_interval=4",
        "--data.val_size=16",
        "--data.prompts_per_rollout=16",
        "--value_pretraining.max_rollouts=2",
        "--value_pretraining.min_rollouts=1",
    ],
}


def demo(seed: int = 0, output: str = "runs/demo", quick: bool = False) -> None:
    """Cold-start a tiny policy, train a reward model, and run VC-PPO and plain PPO from both.

    Args:
        seed: Seed of all runs.
        output: Directory of the VC-PPO run; that of plain PPO is next to it, with suffix `_ppo`.
        quick: Do only a few steps of each part, to check that everything runs.
    """
    console = Console()
    start = time.perf_counter()
    run_dir = Path(output)
    cold_start_dir, reward_model_dir = run_dir / "cold_start", run_dir / "reward_model"
    actor = f"--model.actor={cold_start_dir / 'actor'}"
    common = [f"--seed_everything={seed}", "--threads=1"]
    extra: dict[str, list[str]] = QUICK if quick else {part: [] for part in QUICK}

    console.rule("Cold start: a policy that can count but answers too early")
    _fit(["demo/cold_start"], [*common, *extra["cold_start"]], cold_start_dir)
    console.rule("Reward model: the usual start of a critic")
    _fit(["demo/reward_model"], [actor, *common, *extra["reward_model"]], reward_model_dir)
    runs = {
        "plain PPO": ("ppo", run_dir.with_name(f"{run_dir.name}_ppo")),
        "VC-PPO": ("vcppo", run_dir),
    }
    critic = f"--model.critic={reward_model_dir / 'reward_model'}"
    arms = {
        name: _fit_command(
            [algorithm, "demo/rl"], [actor, critic, *common, *extra["rl"]], directory
        )
        for name, (algorithm, directory) in runs.items()
    }
    console.rule("Plain PPO; value pretraining, then VC-PPO")
    if cores() > 1:
        _vcppo_together(arms)
    else:
        for command in arms.values():
            _vcppo(command)

    before = _last_evaluation(cold_start_dir)
    afters = {name: _last_evaluation(directory) for name, (_, directory) in runs.items()}
    for after in afters.values():
        same_problems = [r["problem"] for r in before] == [r["problem"] for r in after]
        assert same_problems, "all evaluations are on the same held-out problems"
    console.print(_table(before, afters))
    minutes = (time.perf_counter() - start) / 60
    console.print(
        f"{minutes:.1f} minutes; figures, metrics, checkpoints and models are in {run_dir}/"
    )
    if find_spec("plotly"):
        _vcppo(["report", str(run_dir), str(runs["plain PPO"][1])])
    else:
        console.print("pip install 'lightning-vcppo[report]' for a report", markup=False)


def _fit(configs: list[str], flags: list[str], run_dir: Path) -> None:
    _vcppo(_fit_command(configs, flags, run_dir))


def _fit_command(configs: list[str], flags: list[str], run_dir: Path) -> list[str]:
    files = [f"--config={name}" for name in configs]
    return ["fit", *files, *flags, f"--trainer.default_root_dir={run_dir}", "--overwrite"]


def _vcppo(command: list[str]) -> None:
    """Run one `vcppo` command and show its output; exit if it fails."""
    print(f"$ vcppo {shlex.join(command)}", flush=True)
    done = subprocess.run(_program(command), env=_environment(), check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _vcppo_together(commands: Mapping[str, list[str]]) -> None:
    """Run `vcppo` commands at the same time; each printed line begins with a name."""
    for command in commands.values():
        print(f"$ vcppo {shlex.join(command)}", flush=True)
    width = max(map(len, commands))
    run_together({name.ljust(width): _program(each) for name, each in commands.items()})


def _program(command: list[str]) -> list[str]:
    return [sys.executable, "-m", "lightning_vcppo", *command]


def _environment() -> dict[str, str]:
    # Threads that spin for long while they wait make a busy machine ten times slower; without any
    # spinning a small model on an idle machine is half as fast.
    return {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000", **os.environ}


def run_together(programs: Mapping[str, Sequence[str]]) -> None:
    """Run programs at the same time, and prefix their output with their names.

    If one fails or this process is interrupted, the others are also interrupted, with half a minute
    to save their state.

    Args:
        programs: Programs with arguments, by name.

    Raises:
        SystemExit: If a program has failed, with its exit code.
    """
    running: dict[str, subprocess.Popen[str]] = {}
    readers: list[threading.Thread] = []
    with _signals_as_exit():
        try:
            for name, program in programs.items():
                process = subprocess.Popen(
                    program,
                    env=_environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,  # Ctrl-C reaches them once, through this process
                )
                running[name] = process
                readers.append(threading.Thread(target=_repeat, args=(name, process), daemon=True))
                readers[-1].start()
            _wait(list(running.values()))
        finally:
            _stop(list(running.values()))
            for reader in readers:
                reader.join(1)


def _repeat(name: str, process: subprocess.Popen[str]) -> None:
    """Print each line of a program with its name in front."""
    for line in process.stdout or ():
        if line.strip():
            print(f"{name} | {line.rstrip()}", flush=True)


def _wait(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Return when all have succeeded; exit with the code of the first that fails."""
    while True:
        codes = [process.poll() for process in processes]
        if failed := [code for code in codes if code]:
            sys.exit(failed[0] if failed[0] > 0 else 128 - failed[0])
        if None not in codes:
            return
        time.sleep(0.1)


def _stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Interrupt running processes, and kill those that do not end within `SAVING_S`."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.send_signal(signal.SIGTERM)
    until = time.monotonic() + SAVING_S
    for process in left:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Raise SystemExit at SIGTERM and SIGHUP, so that the programs are ended, too."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _last_evaluation(run_dir: Path) -> list[dict[str, Any]]:
    """Read the records of a run's last evaluation."""
    last = max((run_dir / "evaluation").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    with last.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _table(before: list[dict[str, Any]], afters: dict[str, list[dict[str, Any]]]) -> Table:
    """Compare the evaluations after each algorithm with the one before."""
    table = Table("", title=f"Held-out problems: {len(before)}")
    table.add_column("cold start", justify="right")
    for name in afters:
        table.add_column(name, justify="right")
        table.add_column("change", justify="right")
    for title, key, scale, form in (
        ("accuracy (%)", "correct", 100, "{:.1f}"),
        ("length (tokens)", "length", 1, "{:.0f}"),
        ("finished (%)", "finished", 100, "{:.1f}"),
    ):
        was = scale * fmean(record[key] for record in before)
        cells = [form.format(was)]
        for after in afters.values():
            now = scale * fmean(record[key] for record in after)
            change = form.format(now - was)
            cells += [form.format(now), change if now < was else f"+{change}"]
        table.add_row(title, *cells)
    return table


def main(args: Sequence[str]) -> None:
    """Run `vcppo demo`.

    Args:
        args: Arguments after the command's name.
    """
    parser = OneLineArguments("vcppo demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of all runs")
    parser.add_argument("--output", default="runs/demo", help="directory of the run")
    parser.add_argument("--quick", action="store_true", help="only a few steps of each part")
    arguments = parser.parse_args(args)
    require_seed("--seed", arguments.seed)
    demo(arguments.seed, arguments.output, arguments.quick)
