"""Run directories as `vcppo fit` leaves them, written by hand for the report's tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

PRETRAINING = 4
ROLLOUTS = 12
LENGTH = 101.0
HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)>"

Row = dict[str, float]


def write_csv(path: Path, rows: list[Row], end: str = "\n") -> None:
    """Write rows as CSVLogger does: all columns, sorted, empty where a row has none."""
    columns = sorted({key for row in rows for key in row})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path.write_text(path.read_text().removesuffix("\n") + end)


def write_jsonl(path: Path, objects: list[dict[str, Any]], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, objects)) + end)


def metrics(rollouts: int = ROLLOUTS, pretraining: int = PRETRAINING) -> list[Row]:
    """Invent a run whose accuracy rises from 0.25, one percent a rollout of the policy."""
    rows = []
    for step in range(1, rollouts + 1):
        row = {
            "step": float(step),
            "rollout/accuracy": 0.25 + 0.01 * max(0, step - pretraining),
            "rollout/reward_mean": -0.5 + 0.02 * max(0, step - pretraining),
            "rollout/response_length": LENGTH,
            "rollout/truncation_rate": 0.0,
            "critic/explained_variance": step / 10,
            "critic/r2": step / 11,
        }
        if pretraining:  # Lightning goes on with the last value of the phase.
            done = min(step, pretraining)
            row |= {
                "value_pretraining/rollouts": float(done),
                "value_pretraining/loss": 1 / (1 + done),
                "value_pretraining/explained_variance": done / 10,
                "value_pretraining/r2": done / 11,
                "value_pretraining/train_loss": 1 / (2 + done),
            }
        if step > pretraining:
            row |= {"policy/entropy": 0.5, "policy/approx_kl": 0.001}
        rows.append(row)
    return rows


def response(problem: str, correct: bool, **others: Any) -> dict[str, Any]:
    return {
        "problem": problem,
        "answer": 7,
        "response": "\\boxed{7}" if correct else "\\boxed{8}",
        "prediction": "7" if correct else "8",
        "correct": correct,
        "length": 10,
        "finished": True,
        **others,
    }


def position(rollout: int) -> dict[str, Any]:
    """Invent profiles that rise along the response; the last decile of one split is empty."""
    rising = [rollout + i / 10 for i in range(10)]
    splits = {"all": rising, "correct": rising, "incorrect": [*rising[:9], None]}
    return {
        "rollout": rollout,
        "phase": "policy_optimization",
        "response_length": LENGTH,
        "lambda_actor": 0.98,
        "lambda_critic": 1.0,
        "gamma": 1.0,
        "deciles": {name: splits for name in ("value", "return", "bias", "advantage")},
        "absolute": {"bin_width": 16, "count": [1], "value": {"all": [0.5]}},
    }


def write_run(directory: Path, pretraining: int = PRETRAINING, hostile: str = "") -> Path:
    """Write a run with everything that a report can show.

    Args:
        directory: Where.
        pretraining: Its rollouts of value pretraining.
        hostile: Text that is put wherever a model or a user can put one.
    """
    directory.mkdir(parents=True)
    write_csv(directory / "metrics.csv", metrics(pretraining=pretraining))
    advantage = {"gamma": 1.0, "lambda_actor": 0.95, "lambda_critic": 1.0, "estimator": "gae"}
    settings = {"advantage": advantage, "actor": "nowhere/actor", "note": hostile or directory.name}
    (directory / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": settings}}))
    for step in (4, 12):
        responses = [
            response(f"1 + {i}? {hostile}", i < step // 4, index=i) for i in range(1, 5)
        ] + [response("last", False, index=9, response=hostile, prediction=hostile or None)]
        write_jsonl(directory / "evaluation" / f"rollouts_{step:06d}.jsonl", responses)
    rollouts = range(1, ROLLOUTS + 1)
    write_jsonl(directory / "diagnostics" / "positions.jsonl", [position(i) for i in rollouts])
    bins = [{"predicted": p, "observed": p / 2, "count": 4} for p in (0.2, 0.8)]
    calibration = {"rollout": 12, "prompts": 8, "ece": 0.25, "brier": 0.2, "bins": bins}
    write_jsonl(directory / "diagnostics" / "calibration.jsonl", [calibration])
    return directory
