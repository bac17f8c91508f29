"""Recommend a lambda for each task, run the sweep, and report the test; see `protocol.yaml`.

python -m experiments.lambda_recommendation --recommend   # first, on the pilot's starts
python -m experiments.lambda_recommendation               # missing runs of the sweep
python -m experiments.lambda_recommendation --report
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from experiments.ablation_report import by_arm
from experiments.lambda_recommendation.verdict import verdict
from experiments.protocol import ROOT, Protocol, read_protocol
from experiments.protocol_report import report
from experiments.runner import Arm, Results, prepare, run
from experiments.runs import curves_of, read_rows, vcppo, vcppo_plain

NAME = "lambda_recommendation"


def tasks(protocol: Protocol) -> dict[str, list[Arm]]:
    """Return the arms of each task."""
    return {
        task: [arm for arm in protocol.arms if arm.setting == setting]
        for task, setting in protocol.settings.items()
    }


def lambda_of(arm: Arm) -> float:
    """Return the lambda of an arm, which its name ends with."""
    return float(arm.name.rpartition("_")[2])


def recommend(
    arms: list[Arm], numbers: dict[str, Any], seed: int, directory: Path
) -> dict[str, Any]:
    """Return the recommendation for the start of a task.

    Args:
        arms: Arms of the task.
        numbers: Section `recommendation` of the protocol.
        seed: Seed of the start.
        directory: Directory of start, rollouts and critics.
    """
    setting, algorithm = arms[0].setting, arms[0].algorithm
    prepare(setting, seed, directory)
    actor, reward_model = directory / "cold_start/actor", directory / "reward_model/reward_model"
    rollouts = directory / "rollouts.jsonl"
    configs = [f"--config={ROOT / 'configs' / algorithm}", f"--config={setting / 'rl.yaml'}"]
    networks = [f"--model.actor={actor}", f"--model.critic={reward_model}"]
    size = [
        f"--data.train_size={numbers['problems']}",
        f"--model.evaluation.num_generations={numbers['responses']}",
        f"--response_writer.path={rollouts}",
        f"--seed_everything={seed}",
    ]
    if not rollouts.exists():
        vcppo(["predict", *configs, *networks, *size], directory / "predict")
    compared = directory / "compared"
    lambdas = [f"{lambda_of(arm):g}" for arm in arms]
    critic = f"{numbers['critic']}:lr={arms[0].critic_lr:g}"
    vcppo_plain(
        [
            *("critic", "compare", str(rollouts), f"--model={reward_model}", f"--actor={actor}"),
            *("--critics", critic, "--lambdas", *lambdas, f"--output={compared}"),
            f"--prefixes={numbers['prefixes']}",
            f"--continuations={numbers['continuations']}",
            f"--seed={seed}",
        ],
        compared.with_suffix(".txt"),
    )
    found: dict[str, Any] = json.loads((compared / "compare.json").read_text(encoding="utf-8"))
    return dict(found["lambda_actor"])


def show(protocol: Protocol, results: Path, recommended: dict[str, dict[str, Any]]) -> str:
    """Return the tables and the verdict of each task."""
    rows = read_rows(results)
    curves = read_rows(curves_of(results))
    accuracy = by_arm(rows, "accuracy")
    texts = []
    for task, arms in tasks(protocol).items():
        names = [arm.name for arm in arms]
        pairs = [(c.arm, c.reference, c.primary) for c in protocol.contrasts if c.arm in names]
        texts.append(report(rows, curves, names, protocol.seeds, pairs))
        of_lambda = {lambda_of(arm): accuracy.get(arm.name, {}) for arm in arms}
        lam = recommended.get(task, {}).get("recommended")
        texts.append(verdict(of_lambda, lam, protocol.seeds).line(task, lam))
    return "\n\n".join(texts)


def main() -> None:
    """Read the command line; recommend, run or report."""
    parser = argparse.ArgumentParser(f"python -m experiments.{NAME}", description=__doc__)
    parser.add_argument("--recommend", action="store_true", help="recommend lambdas, before runs")
    parser.add_argument("--report", action="store_true", help="print a report of the results")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: those of the protocol")
    parser.add_argument("--results", type=Path, default=ROOT / f"docs/experiments/{NAME}.csv")
    parser.add_argument("--runs", type=Path, default=Path("runs") / NAME, help="directory of runs")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, one core each")
    arguments = parser.parse_args()
    try:
        protocol = read_protocol(NAME)
        path = arguments.results.with_suffix(".json")
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if arguments.report:
            print(show(protocol, arguments.results, known))
            return
        if arguments.recommend:
            text = yaml.safe_load((Path(__file__).parent / "protocol.yaml").read_text())
            (seed,) = protocol.pilot_seeds
            for task, arms in tasks(protocol).items():
                directory = arguments.runs / task / f"seed_{seed}"
                known[task] = recommend(arms, text["recommendation"], seed, directory)
                path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
                print(f"{task}: {known[task]['recommended']}; {known[task]['reason']}")
            return
        if missing := [task for task in protocol.settings if task not in known]:
            raise ValueError(
                f"{path}: no recommendation for {', '.join(missing)}; --recommend first"
            )
        seeds = arguments.seeds or list(protocol.seeds)
        if set(seeds) & set(protocol.pilot_seeds):
            raise ValueError("--seeds: no arm is run with the pilot's seed")
        protocol.check_seeds(seeds)
        for task, arms in tasks(protocol).items():
            directory = arguments.runs / task
            run(arms, seeds, Results(arguments.results), directory, arguments.processes)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
