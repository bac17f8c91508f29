"""Run an ablation on a laptop: `python -m experiments.ablation --arms ppo vcppo --seeds 0 1`.

An arm is an algorithm of `configs/`, a setting (`configs/demo/`, or another one by `--setting`) and
the learning rates in `ablation.yaml` next to this file. For each seed a policy is cold-started and
a reward model is trained on it, once; then every arm starts from these two. Each run is the command
that it prints, in its own process with one thread; its result is added to the CSV file when it
ends. Runs that are in the file are skipped, so an interrupted call resumes where it was.

Columns of the results:

    arm, seed             the run
    actor_lr, critic_lr   learning rates; the critic's is empty if there is no critic
    accuracy              accuracy of the last policy on 512 held-out problems, one response each
    cold_start_accuracy   accuracy of the policy it started from, on the same problems
    response_length       mean tokens, in the same evaluation
    rollouts              training steps, those of value pretraining included
    seconds               time of the run, on one core that other processes may have used

`ablation_curves.csv` next to `ablation.csv` has the training curve of each run, a line a rollout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from experiments.runs import (
    CONFIGS,
    append_rows,
    holds_model,
    metric_rows,
    read_rows,
    rounded,
    vcppo,
)

SETTING = CONFIGS / "demo"
ARMS = Path(__file__).with_suffix(".yaml")
MAIN_ARMS = ("ppo", "vcppo_no_pretraining", "vcppo_no_decoupling", "vcppo")
COLUMNS = (
    "arm",
    "seed",
    "actor_lr",
    "critic_lr",
    "accuracy",
    "cold_start_accuracy",
    "response_length",
    "rollouts",
    "seconds",
)
CURVES = {
    "accuracy": "rollout/accuracy",
    "response_length": "rollout/response_length",
    "entropy": "policy/entropy",
    "explained_variance": "critic/explained_variance",
    "value_mean": "critic/value_mean",
}
"""Columns of the curves after arm, seed, actor_lr and rollout, with the metric of each."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """An entry of `ablation.yaml`."""

    name: str
    algorithm: str
    actor_lr: float
    critic_lr: float | None = None
    flags: Sequence[str] = field(default_factory=tuple)
    setting: Path = SETTING

    def at(self, actor_lr: float) -> Arm:
        """Return the arm with another learning rate of the actor and the same ratio of rates."""
        ratio = actor_lr / self.actor_lr
        critic_lr = None if self.critic_lr is None else float(f"{self.critic_lr * ratio:.3g}")
        return replace(self, actor_lr=actor_lr, critic_lr=critic_lr)

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


def read_arms(names: Sequence[str]) -> list[Arm]:
    """Return the arms of the given names, or all arms of `ablation.yaml` for "all".

    Raises:
        ValueError: If there is no arm of that name.
    """
    arms = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
    names = list(arms) if list(names) == ["all"] else names
    for name in names:
        if name not in arms:
            raise ValueError(f"--arms: {name!r} is not one of {', '.join(arms)}")
    return [Arm(name, **arms[name]) for name in names]


@dataclass
class Results:
    """The CSV files to which each finished run is added."""

    path: Path
    lock: Lock = field(default_factory=Lock)

    def rows(self) -> list[dict[str, str]]:
        """Return what is there."""
        return read_rows(self.path)

    def holds(self, arm: Arm, seed: int) -> bool:
        """Return whether a run has finished before."""
        return any(
            (row["arm"], int(row["seed"]), float(row["actor_lr"])) == (arm.name, seed, arm.actor_lr)
            for row in self.rows()
        )

    def add(self, row: Row, curve: Sequence[Row]) -> None:
        """Add a finished run, first its curve, because the row marks the run as finished."""
        with self.lock:
            curves = self.path.with_name(f"{self.path.stem}_curves.csv")
            append_rows(curves, ("arm", "seed", "actor_lr", "rollout", *CURVES), curve)
            append_rows(self.path, COLUMNS, [row])


# Runs --------------------------------------------------------------------------------------------


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
    run_dir = seed_dir / f"{arm.name}_{arm.actor_lr:g}"
    start = time.perf_counter()
    vcppo(arm.command(seed, seed_dir), run_dir)
    seconds = time.perf_counter() - start
    rollouts = list(metric_rows(run_dir, "rollout/accuracy", "step", *CURVES.values()))
    [*_, evaluation] = metric_rows(run_dir, "eval/accuracy", "eval/response_length")
    [*_, cold_start] = metric_rows(seed_dir / "cold_start", "eval/accuracy")
    which: Row = {"arm": arm.name, "seed": seed, "actor_lr": f"{arm.actor_lr:g}"}
    row = which | {
        "critic_lr": "" if arm.critic_lr is None else f"{arm.critic_lr:g}",
        "accuracy": rounded(evaluation["eval/accuracy"]),
        "cold_start_accuracy": rounded(cold_start["eval/accuracy"]),
        "response_length": rounded(evaluation["eval/response_length"]),
        "rollouts": len(rollouts),
        "seconds": round(seconds),
    }
    curve = [
        which
        | {"rollout": int(float(rollout["step"]))}
        | {name: rounded(rollout[key]) for name, key in CURVES.items()}
        for rollout in rollouts
    ]
    results.add(row, curve)
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def run(
    arms: Sequence[Arm], seeds: Sequence[int], results: Results, runs: Path, processes: int
) -> None:
    """Run what is missing, seed by seed, so that results can be compared at any time."""
    futures: list[Future[None]] = []
    with ThreadPoolExecutor(processes) as pool:
        todo = {s: [arm for arm in arms if not results.holds(arm, s)] for s in seeds}
        folders = {seed: runs / f"seed_{seed}" for seed in seeds}
        starts = {s: pool.submit(prepare, arms[0].setting, s, folders[s]) for s in seeds if todo[s]}

        def after_start(arm: Arm, seed: int) -> None:
            starts[seed].result()
            run_arm(arm, seed, folders[seed], results)

        for seed in starts:
            futures += [pool.submit(after_start, arm, seed) for arm in todo[seed]]
        for future in futures:
            future.result()


def main() -> None:
    """Read the command line and run the arms."""
    parser = argparse.ArgumentParser(
        "python -m experiments.ablation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--arms", nargs="+", default=MAIN_ARMS, help="names in ablation.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--actor_lr", nargs="+", type=float, help="instead of the arm's own")
    parser.add_argument(
        "--setting", default="demo", help="directory in configs/ that contains rl.yaml"
    )
    parser.add_argument("--results", default="docs/experiments/ablation.csv", help="CSV file")
    parser.add_argument("--runs", default="runs/ablation", help="folder of the runs")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one core each")
    arguments = parser.parse_args()
    try:
        setting = CONFIGS / arguments.setting
        arms = [replace(arm, setting=setting) for arm in read_arms(arguments.arms)]
        if arguments.actor_lr:
            arms = [arm.at(lr) for arm in arms for lr in arguments.actor_lr]
        results = Results(Path(arguments.results))
        run(arms, arguments.seeds, results, Path(arguments.runs), arguments.processes)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
