"""Run the arms of an experiment from shared starts, and store a row for each run.

An arm is an algorithm of `configs/`, a setting (a directory with `cold_start.yaml`,
`reward_model.yaml` and `rl.yaml`) and learning rates. For each seed a policy is cold-started and a
reward model is trained on it, once; then every arm starts from these two. Each run is the command
that is printed, in its own process with one thread. Its result is added to a CSV file when it ends,
and runs that are in the file are skipped, so an interrupted call can be repeated.

Columns of the results:

    arm, seed             the run
    actor_lr, critic_lr   learning rates; the critic's is empty if there is no critic
    correct, problems     right responses of the last policy to held-out problems, one to each
    accuracy              their share
    cold_start_accuracy   accuracy of the policy it started from, on the same problems
    response_length       mean tokens, in the same evaluation
    rollouts              training steps, including value pretraining
    policy_rollouts       training steps from which the policy learned
    seconds               time of the run, on one core that other processes may have used
    processor, threads, versions, commit, finished    conditions and time of the measurement

`NAME_curves.csv` next to `NAME.csv` has the training curve of each run, one line for each rollout:
`policy_rollout` counts those from which the policy learned, and is empty in value pretraining.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from experiments.runs import (
    CONFIGS,
    append_rows,
    curves_of,
    holds_model,
    metric_rows,
    read_rows,
    rounded,
    vcppo,
)

COLUMNS = (
    *("arm", "seed", "actor_lr", "critic_lr"),
    *("correct", "problems", "accuracy", "cold_start_accuracy", "response_length"),
    *("rollouts", "policy_rollouts", "seconds"),
    *("processor", "threads", "versions", "commit", "finished"),
)
CURVES = {
    "accuracy": "rollout/accuracy",
    "response_length": "rollout/response_length",
    "entropy": "policy/entropy",
    "r2": "critic/r2",
    "explained_variance": "critic/explained_variance",
    "value_mean": "critic/value_mean",
    "bias": "critic/bias",
    "held_out_r2": "value_pretraining/r2",
}
"""Columns of the curves after those that identify the rollout, and their metrics."""
POLICY = "policy/entropy"
"""A metric that is logged only if the policy learns."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to train, from the same start as the others.

    Attributes:
        name: Name in the results.
        algorithm: Name of its file in `configs/`.
        actor_lr: Learning rate of the actor.
        critic_lr: Learning rate of the critic; None without a critic.
        flags: More flags of `vcppo fit`.
        setting: Directory with `rl.yaml`, and with the configs of the start.
    """

    name: str
    algorithm: str
    actor_lr: float
    critic_lr: float | None = None
    flags: Sequence[str] = field(default_factory=tuple)
    setting: Path = CONFIGS / "demo"

    def at(self, actor_lr: float) -> Arm:
        """Return the arm with another learning rate of the actor and the same ratio of rates."""
        ratio = actor_lr / self.actor_lr
        critic_lr = None if self.critic_lr is None else float(f"{self.critic_lr * ratio:.3g}")
        return replace(self, actor_lr=actor_lr, critic_lr=critic_lr)

    def shorter(self, fewer: int) -> Arm:
        """Return the arm with that many rollouts fewer, all of them rollouts of the policy."""
        flag = "--trainer.limit_train_batches="
        given = [text.removeprefix(flag) for text in self.flags if text.startswith(flag)]
        settings = yaml.safe_load((self.setting / "rl.yaml").read_text(encoding="utf-8"))
        total = int(given[-1] if given else settings["trainer"]["limit_train_batches"]) - fewer
        flags = [
            f"--trainer.{name}={total}" for name in ("limit_train_batches", "val_check_interval")
        ]
        return replace(self, flags=(*self.flags, *flags))

    def command(self, seed: int, seed_dir: Path) -> list[str]:
        """Return the `vcppo` command that runs the arm, without the directory of the run."""
        flags = [f"--model.actor_optimizer.lr={self.actor_lr:g}", *self.flags]
        if self.critic_lr is not None:
            flags.append(f"--model.critic_optimizer.lr={self.critic_lr:g}")
        return [
            "fit",
            f"--config={CONFIGS / self.algorithm}",
            f"--config={self.setting / 'rl.yaml'}",
            f"--seed_everything={seed}",
            f"--model.actor={seed_dir / 'cold_start' / 'actor'}",
            f"--model.critic={seed_dir / 'reward_model' / 'reward_model'}",
            *flags,
        ]


@dataclass
class Results:
    """The CSV files to which each finished run is added."""

    path: Path
    lock: Lock = field(default_factory=Lock)

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of finished runs."""
        return read_rows(self.path)

    def holds(self, arm: Arm, seed: int) -> bool:
        """Return whether a run is in the file, so that it has finished."""
        return any(
            (row["arm"], int(row["seed"]), float(row["actor_lr"])) == (arm.name, seed, arm.actor_lr)
            for row in self.rows()
        )

    def add(self, row: Row, curve: Sequence[Row]) -> None:
        """Add a finished run, first its curve, because the row marks the run as finished."""
        with self.lock:
            columns = ("arm", "seed", "actor_lr", "rollout", "policy_rollout", *CURVES)
            append_rows(curves_of(self.path), columns, curve)
            append_rows(self.path, COLUMNS, [row])

    def check_machine(self, seed: int) -> None:
        """Check that the arms of a seed are compared on one kind of processor.

        Raises:
            ValueError: If some of them were measured on another processor.
        """
        here = origin()["processor"]
        for row in self.rows():
            there = row.get("processor")
            if int(row["seed"]) == seed and there and there != here:
                raise ValueError(
                    f"{self.path}: arm {row['arm']} of seed {seed} was measured on {there!r}, and "
                    f"this is {here!r}; finish the seed there, or remove its rows"
                )


@cache
def origin() -> Mapping[str, str]:
    """Return the conditions on which a number may depend, for the columns of the same names."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "transformers", "lightning")
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=CONFIGS,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": "1",
        "versions": " ".join(
            [f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]
        ),
        "commit": described.stdout.strip(),
    }


def prepare(setting: Path, seed: int, seed_dir: Path) -> None:
    """Cold-start a policy and train a reward model on it, unless both exist."""
    common = f"--seed_everything={seed}"
    actor = seed_dir / "cold_start" / "actor"
    reward_model = seed_dir / "reward_model" / "reward_model"
    for model, flags in ((actor, [common]), (reward_model, [common, f"--model.actor={actor}"])):
        if not holds_model(model):
            run_dir = model.parent
            vcppo(["fit", f"--config={setting / run_dir.name}.yaml", *flags], run_dir)


def run_arm(arm: Arm, seed: int, seed_dir: Path, results: Results) -> None:
    """Run an arm and add it to the results."""
    results.check_machine(seed)
    run_dir = seed_dir / f"{arm.name}_{arm.actor_lr:g}"
    start = time.perf_counter()
    vcppo(arm.command(seed, seed_dir), run_dir)
    seconds = time.perf_counter() - start
    which: Row = {"arm": arm.name, "seed": seed, "actor_lr": f"{arm.actor_lr:g}"}
    curve = [which | point for point in read_curve(run_dir)]
    of_evaluation = ("eval/problems", "eval/response_length")
    [*_, evaluation] = metric_rows(run_dir, "eval/accuracy", *of_evaluation)
    [*_, cold_start] = metric_rows(seed_dir / "cold_start", "eval/accuracy")
    problems = int(float(evaluation["eval/problems"]))
    row = which | {
        "critic_lr": "" if arm.critic_lr is None else f"{arm.critic_lr:g}",
        "correct": round(float(evaluation["eval/accuracy"]) * problems),
        "problems": problems,
        "accuracy": rounded(evaluation["eval/accuracy"]),
        "cold_start_accuracy": rounded(cold_start["eval/accuracy"]),
        "response_length": rounded(evaluation["eval/response_length"]),
        "rollouts": len(curve),
        "policy_rollouts": sum(point["policy_rollout"] != "" for point in curve),
        "seconds": round(seconds),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **origin(),
    }
    results.add(row, curve)
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def read_curve(run_dir: Path) -> list[Row]:
    """Return the training curve of a run, one row for each rollout."""
    curve: list[Row] = []
    learned = 0
    for rollout in metric_rows(run_dir, "rollout/accuracy", "step", POLICY, *CURVES.values()):
        learned += bool(rollout[POLICY])
        curve.append(
            {
                "rollout": int(float(rollout["step"])),
                "policy_rollout": learned if rollout[POLICY] else "",
                **{name: rounded(rollout[key]) for name, key in CURVES.items()},
            }
        )
    return curve


def run(
    arms: Sequence[Arm], seeds: Sequence[int], results: Results, runs: Path, processes: int
) -> None:
    """Do the missing runs, with all arms of a seed before those of the next seed.

    Args:
        arms: Arms to compare; all have the setting of the first.
        seeds: Seeds of starts and runs.
        results: Results to which each run is added.
        runs: Directory of the runs.
        processes: Number of runs at a time.
    """
    futures: list[Future[None]] = []
    with ThreadPoolExecutor(processes) as pool:

        def after_start(arm: Arm, seed: int, start: Future[None]) -> None:
            start.result()
            run_arm(arm, seed, runs / f"seed_{seed}", results)

        for seed in seeds:
            todo = [arm for arm in arms if not results.holds(arm, seed)]
            if todo:
                start = pool.submit(prepare, todo[0].setting, seed, runs / f"seed_{seed}")
                futures += [pool.submit(after_start, arm, seed, start) for arm in todo]
        for future in futures:
            try:
                future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
