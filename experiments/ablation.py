"""Run an ablation on a laptop: `python -m experiments.ablation --arms ppo vcppo --seeds 0 1`.

The arms are in `ablation.yaml` next to this file; `runner` describes the runs and the CSV files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from experiments.runner import Arm, Results, run
from experiments.runs import CONFIGS

ARMS = Path(__file__).with_suffix(".yaml")
MAIN_ARMS = ("ppo", "vcppo_no_pretraining", "vcppo_no_decoupling", "vcppo")


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


def main() -> None:
    """Read the command line and run the arms."""
    parser = argparse.ArgumentParser(
        "python -m experiments.ablation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--arms", nargs="+", default=MAIN_ARMS, help="names in ablation.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--actor_lr", nargs="+", type=float, help="rates to use instead of the arm's"
    )
    parser.add_argument(
        "--setting", default="demo", help="directory in configs/ that contains rl.yaml"
    )
    parser.add_argument("--results", default="docs/experiments/ablation.csv", help="CSV file")
    parser.add_argument("--runs", default="runs/ablation", help="directory of the runs")
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
