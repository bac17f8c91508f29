"""Kill runs at random moments, resume them, and compare them with a run that was never killed.

    python -m benchmarks.resume --kills 25 --seed 0

Two tiny runs are killed in turn, VC-PPO with all features that keep state and the cold start, while
they sample, update, pretrain the critic, evaluate, write a checkpoint, write logs, or export. Each
run has its own process, which is forked so that libraries are imported once.

The comparison covers the weights, byte by byte; the complete last checkpoint with optimizers and
callbacks; the columns of metrics.csv that do not depend on time; all other files (responses,
diagnostics, plots), byte by byte; and the names of files, so that no temporary file remains.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.measure import write_actor
from lightning_vcppo.cli import main as program

TIMES = ("time/", "rollout/tokens_per_second")
"""Prefixes of metrics that depend on time, which differ between any two runs."""

NEVER_COMPARED = ("config.yaml", "stages.json")
"""Files that contain the name of the run's directory or that this file writes itself."""

TINY = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
COMMON = [
    "--loggers=[csv]",
    "--progress_bar.refresh_rate=0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
    "--trainer.callbacks+=benchmarks.resume.Saboteur",
    "--data.train_size=64",
    "--data.val_size=4",
    "--data.val_batch_size=2",
    "--model.evaluation.max_response_length=12",
    "--rollout_checkpoint.max_time_share=null",
]
RUNS = {
    "vcppo": [
        *COMMON,
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=7",
        "--trainer.val_check_interval=2",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.monitor=eval/accuracy",
        "--trainer.callbacks.mode=max",
        "--trainer.callbacks.enable_version_counter=false",
        "--data.prompts_per_rollout=8",
        "--model.reward=benchmarks.resume.coin",
        "--model.sampling={num_generations: 2, max_response_length: 12, dynamic_sampling: true}",
        "--model.update={ppo_epochs: 2, ppo_mini_batch_size: 8}",
        "--model.policy.kl_coef=0.01",
        "--model.actor_optimizer={lr: 1e-3, warmup_updates: 5}",
        "--model.critic_optimizer={lr: 1e-3, warmup_updates: 5}",
        "--value_pretraining={max_rollouts: 3, min_rollouts: 3, replays: 2, held_out_share: 0.5}",
        "--critic_calibration.audit_every=3",
        "--critic_calibration.audit_prefixes=4",
        "--critic_calibration.audit_continuations=2",
    ],
    "cold_start": [
        *COMMON,
        "--model=ColdStartModule",
        "--model.optimizer={lr: 1e-3, warmup_updates: 5}",
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=6",
        "--trainer.val_check_interval=3",
        "--data.prompts_per_rollout=8",
        "--rollout_checkpoint.every_n_rollouts=2",
    ],
}
IN_TURN = ("vcppo", "vcppo", "vcppo", "cold_start")


def coin(response: str, answer: int) -> float:
    """Reward about half of all random responses."""
    return 1.0 if hashlib.md5(response.encode()).digest()[0] % 2 else -1.0


class Saboteur(Callback):
    """Send this process a signal within a stage of the run; without one, count the stages.

    Args:
        stage: Stage in which the signal is sent.
        occurrence: Number of the occurrence of the stage in the run, from 0.
        delay: Seconds after the beginning of the stage.
        number: Number of the signal.
    """

    def __init__(
        self, stage: str = "", occurrence: int = 0, delay: float = 0.0, number: int = 9
    ) -> None:
        """Store the plan."""
        self._plan = (stage, occurrence)
        self._delay, self._number = delay, number
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._open: dict[str, float] = {}

    def _enter(self, stage: str) -> None:
        if (stage, len(self._seconds[stage])) == self._plan:
            timer = threading.Timer(self._delay, os.kill, (os.getpid(), self._number))
            timer.daemon = True
            timer.start()
        self._open[stage] = time.perf_counter()

    def _leave(self, stage: str) -> None:
        if stage in self._open:
            self._seconds[stage].append(time.perf_counter() - self._open.pop(stage))

    def _watch(self, owner: Any, name: str, stage: Callable[[], str]) -> None:
        """Make calls of a method a stage."""
        method = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self._stage(stage()):
                return method(*args, **kwargs)

        setattr(owner, name, watched)

    @contextmanager
    def _stage(self, stage: str) -> Iterator[None]:
        self._enter(stage)
        yield
        self._leave(stage)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch sampling, updates and checkpoints."""
        self._enter("start")

        def phase(other: str) -> Callable[[], str]:
            fits = "value_pretraining"
            return lambda: fits if getattr(pl_module, "phase", other) == fits else other

        if hasattr(pl_module, "update_network"):
            self._watch(pl_module, "sample_rollout", phase("generate"))
            self._watch(pl_module, "update_network", phase("update"))
        else:
            self._watch(pl_module, "training_step", phase("update"))
        self._watch(trainer, "save_checkpoint", lambda: "save")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the start."""
        self._leave("start")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Begin the stage between two training steps, in which logs and files are written."""
        self._enter("log")

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """End the stage between two training steps."""
        self._leave("log")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an evaluation."""
        self._enter("evaluate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End an evaluation."""
        self._leave("evaluate")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the export."""
        self._enter("export")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the durations of all stages."""
        self._leave("export")
        Path(trainer.default_root_dir, "stages.json").write_text(json.dumps(self._seconds))


def run(arguments: list[str], log: Path) -> int:
    """Run `vcppo` in its own process; return its exit code, or minus the number of a signal."""
    sys.stdout.flush()
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        with log.open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.argv = ["vcppo", *arguments]
        program.run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def differences(directory: Path, reference: Path) -> list[str]:
    """Return the names of the files in which two runs differ."""
    files, expected = _files(directory), _files(reference)
    found = [f"{name}: only in one" for name in sorted(files ^ expected)]
    for name in sorted(files & expected):
        mine, theirs = directory / name, reference / name
        if name == "metrics.csv":
            same = _rows(mine) == _rows(theirs)
        elif name.endswith(".ckpt"):
            same = _equal(_state(mine), _state(theirs))
        else:
            same = mine.read_bytes() == theirs.read_bytes()
        if not same:
            found.append(name)
    return found


def _files(directory: Path) -> set[str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)) for path in paths}.difference(NEVER_COMPARED)


def _rows(path: Path) -> list[list[tuple[str, str]]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [[(k, v) for k, v in row.items() if not k.startswith(TIMES)] for row in rows]


def _state(path: Path) -> dict[str, Any]:
    """Read a checkpoint without the paths that Lightning's own callback keeps in it."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    state["callbacks"] = {
        key: value for key, value in state["callbacks"].items() if "ModelCheckpoint" not in key
    }
    return state


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b or (a != a and b != b))  # NaN equals NaN here


class Ring:
    """The runs that are never killed, and those that are."""

    def __init__(self, directory: Path, batches: int | None = None) -> None:
        """Write the model with which all runs start.

        Args:
            directory: Directory of all runs.
            batches: Number of batches of an epoch; None takes that of `RUNS`.
        """
        self._directory = directory
        self._shorter = [f"--trainer.limit_train_batches={batches}"] if batches else []
        torch.manual_seed(0)
        write_actor(directory / "actor", TINY)
        self._stages: dict[str, dict[str, list[float]]] = {}

    def _arguments(self, name: str, root: Path, *more: str) -> list[str]:
        actor = f"--model.actor={self._directory / 'actor'}"
        place = f"--trainer.default_root_dir={root}"
        return ["fit", *RUNS[name], *self._shorter, actor, place, *more]

    def _stages_of(self, name: str) -> dict[str, list[float]]:
        """Return the durations of stages in the run that is never killed; do it the first time."""
        if name not in self._stages:
            root = self._directory / f"{name}_never_killed"
            code = run(self._arguments(name, root), log := root.with_suffix(".log"))
            if code:
                raise RuntimeError(f"the reference run failed:\n{log.read_text()[-3000:]}")
            self._stages[name] = json.loads((root / "stages.json").read_text())
        return self._stages[name]

    def kill(self, index: int, name: str, rng: random.Random, number: int) -> tuple[str, list[str]]:
        """Kill a run and resume it; return the stage of the kill and the differences."""
        stages = {stage: times for stage, times in self._stages_of(name).items() if times}
        stage = rng.choice(sorted(stages))
        occurrence = rng.randrange(len(stages[stage]))
        delay = rng.uniform(0, stages[stage][occurrence])
        root = self._directory / f"{name}_{index}"
        log = root.with_suffix(".log")
        plan = {"stage": stage, "occurrence": occurrence, "delay": delay, "number": number}
        command = self._arguments(name, root)
        at = command.index("--trainer.callbacks+=benchmarks.resume.Saboteur") + 1
        command[at:at] = [f"--trainer.callbacks.{key}={value}" for key, value in plan.items()]
        code = run(command, log)
        if code == 0:  # it ended before the signal was sent
            shutil.rmtree(root)
            return self.kill(index, name, rng, number)
        found = [] if code in {-number, 128 + number} else [f"killed: exit code {code}"]
        if code := run(self._arguments(name, root, "--ckpt_path=last"), log):
            found.append(f"resumed: exit code {code}")
        found += differences(root, self._directory / f"{name}_never_killed")
        if not found:
            shutil.rmtree(root)
        return f"{name}: {stage}", found


def main() -> None:
    """Kill, resume, compare, and print a line of JSON at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--signal", default="KILL", choices=["KILL", "TERM", "INT"])
    parser.add_argument("--batches", type=int, help="batches of an epoch, for shorter runs")
    parser.add_argument("--output", type=Path, help="directory to keep; by default a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    number = int(getattr(signal, f"SIG{args.signal}"))
    directory = args.output or Path(tempfile.mkdtemp(prefix="vcppo_resume_"))
    directory.mkdir(parents=True, exist_ok=True)
    began_at = time.perf_counter()
    rng, ring = random.Random(args.seed), Ring(directory, args.batches)
    hit: Counter[str] = Counter()
    identical = 0
    for index in range(args.kills):
        stage, found = ring.kill(index, IN_TURN[index % len(IN_TURN)], rng, number)
        hit[stage] += 1
        identical += not found
        print(f"{index:3d}  {stage:30}", "identical" if not found else f"differs: {found}")
    if identical == args.kills and args.output is None:
        shutil.rmtree(directory)
    seconds = round(time.perf_counter() - began_at)
    summary = {"kills": args.kills, "identical": identical, "signal": args.signal}
    print(json.dumps({**summary, "seed": args.seed, "hit": dict(hit), "seconds": seconds}))
    sys.exit(identical < args.kills)


if __name__ == "__main__":
    main()
