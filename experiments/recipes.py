"""Train every recipe on the demo's task and compare them: `python -m experiments.recipes`.

A recipe is a preset of `configs/`, in the setting `configs/demo/`. All start from the same policy
and reward model, with one seed and one thread, and have rollouts of 128 responses. The setting
determines lengths, the actor's learning rate, 16 updates a rollout and the rollouts of value
pretraining; the recipe determines everything else, including the ratios of the critic's learning
rate and mini-batch size to the actor's. Finished runs are skipped, so an interrupted call can be
repeated.

Columns of the results, which are written as CSV, as a table and as a figure:

    recipe, seed             the run
    accuracy                 of the last policy on 512 held-out problems, one response each
    cold_start_accuracy      of the policy it started from, on the same problems
    response_length          mean tokens, in the same evaluation
    explained_variance, r2   of the critic on its last rollout, before it is fitted on it
    rollouts                 training steps, including value pretraining; with dynamic sampling a
                             rollout takes several batches, so there are fewer
    tokens                   response tokens of all rollouts
    seconds                  of the run, on one core that other processes may have used

One seed shows how a recipe behaves here, not which recipe is better.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.preset_table import presets, settings
from experiments.runner import prepare
from experiments.runs import (
    CONFIGS,
    append_rows,
    holds_run,
    metric_rows,
    read_rows,
    rounded,
    vcppo,
    write_report,
)
from lightning_vcppo.report.plotting import tidy

SETTING = CONFIGS / "demo"
RESPONSES = 128
ACTOR_LR = 3e-5
MINI_BATCH = 8  # of the setting
ROLLOUTS, PRETRAINING = 30, 8
COLUMNS = (
    "recipe",
    "seed",
    "accuracy",
    "cold_start_accuracy",
    "response_length",
    "explained_variance",
    "r2",
    "rollouts",
    "tokens",
    "seconds",
)
CRITIC = {"explained_variance": "critic/explained_variance", "r2": "critic/r2"}
"""Columns of the critic, with the metric of each."""


def command(recipe: str, seed: int, seed_dir: Path, rollouts: int) -> list[str]:
    """Return the `vcppo` command that trains a recipe, without the directory of the run."""
    path = presets()[recipe]
    own = settings(path)
    update = own["update"]
    pretraining = max(1, round(rollouts * PRETRAINING / ROLLOUTS))
    flags = {
        "seed_everything": seed,
        "model.actor": seed_dir / "cold_start" / "actor",
        "model.critic": seed_dir / "reward_model" / "reward_model",
        "model.actor_optimizer.lr": f"{ACTOR_LR:g}",
        "model.critic_optimizer.lr": f"{ACTOR_LR * _ratio_of_rates(own):g}",
        "data.prompts_per_rollout": RESPONSES // own["sampling"]["num_generations"],
        "value_pretraining.max_rollouts": pretraining,
        "value_pretraining.min_rollouts": pretraining,
        "trainer.limit_train_batches": rollouts,
        "trainer.val_check_interval": rollouts,
    }
    if own["value"]["architecture"] == "side":
        flags["model.critic"] = "null"  # a side critic reads the actor's activations
    if update["critic_mini_batch_size"] is not None:
        share = update["critic_mini_batch_size"] / update["ppo_mini_batch_size"]
        flags["model.update.critic_mini_batch_size"] = max(1, round(MINI_BATCH * share))
    configs = [f"--config={path}", f"--config={SETTING / 'rl.yaml'}"]
    return ["fit", *configs, *(f"--{name}={value}" for name, value in flags.items())]


def _ratio_of_rates(own: Mapping[str, Mapping[str, Any]]) -> float:
    return float(own["critic_optimizer"]["lr"] / own["actor_optimizer"]["lr"])


def outcome(run_dir: Path, cold_start_dir: Path) -> dict[str, Any]:
    """Return the results of a finished run by column."""
    rollouts = [*metric_rows(run_dir, "rollout/accuracy", "rollout/response_length")]
    [*_, evaluation] = metric_rows(run_dir, "eval/accuracy", "eval/response_length")
    [*_, cold_start] = metric_rows(cold_start_dir, "eval/accuracy")
    tokens = sum(float(row["rollout/response_length"]) * RESPONSES for row in rollouts)
    row: dict[str, Any] = {
        "accuracy": rounded(evaluation["eval/accuracy"]),
        "cold_start_accuracy": rounded(cold_start["eval/accuracy"]),
        "response_length": rounded(evaluation["eval/response_length"]),
        "rollouts": len(rollouts),
        "tokens": round(tokens),
    }
    for column, key in CRITIC.items():
        values = [found[key] for found in metric_rows(run_dir, key)]
        row[column] = rounded(values[-1]) if values else ""
    return row


# Report ------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| Recipe | accuracy, % | tokens each | EV | R^2 | rollouts | tokens | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            f"`{row['recipe']}`",
            f"{100 * float(row['accuracy']):.1f}",
            f"{float(row['response_length']):.0f}",
            *(f"{float(row[name]):.2f}" if row[name] else "-" for name in CRITIC),
            row["rollouts"],
            f"{int(row['tokens']):,}",
            row["seconds"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    if rows:
        start = 100 * float(rows[0]["cold_start_accuracy"])
        lines.append(f"\nOne seed. All start from a policy with an accuracy of {start:.1f} %.")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw accuracy, the critic's explained variance and R^2, and seconds, as bars by recipe."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.5 + 0.3 * len(rows)), layout="constrained")
    names = [row["recipe"] for row in rows]
    panels = figure.subplots(1, 3, sharey=True)
    bars: tuple[tuple[str, dict[str, float]], ...] = (
        ("Accuracy (%), one seed", {"accuracy": 100.0}),
        ("Critic on its last rollout", {"explained_variance": 1.0, "r2": 1.0}),
        ("Seconds", {"seconds": 1.0}),
    )
    for ax, (title, columns) in zip(panels, bars, strict=True):
        tidy(ax, title, "")
        height = 0.8 / len(columns)
        for place, (column, scale) in enumerate(columns.items()):
            lengths = [scale * float(row[column]) if row[column] else 0.0 for row in rows]
            at = [i + height * (place - (len(columns) - 1) / 2) for i in range(len(rows))]
            label = column.replace("_", " ").replace("r2", "R^2")
            ax.barh(at, lengths, height, color=("#0072B2", "#E69F00")[place], label=label)
        if len(columns) > 1:
            ax.legend(frameon=False, fontsize="small")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    if rows:
        start = 100 * float(rows[0]["cold_start_accuracy"])
        panels[0].axvline(start, color="#555555", linestyle=":", linewidth=1)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read the command line and train the missing recipes."""
    parser = argparse.ArgumentParser(
        "python -m experiments.recipes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--recipes", nargs="+", help="presets; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help="rollouts of each run")
    parser.add_argument("--results", type=Path, default=Path("runs/recipes/recipes.csv"))
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    arguments = parser.parse_args()
    try:
        for recipe in arguments.recipes or presets():
            if recipe not in presets():
                raise ValueError(f"--recipes: {recipe!r} is not one of {', '.join(presets())}")
            which = {"recipe": recipe, "seed": str(arguments.seed)}
            if not holds_run(arguments.results, which):
                seed_dir = arguments.runs / f"seed_{arguments.seed}"
                prepare(SETTING, arguments.seed, seed_dir)
                run_dir, start = seed_dir / recipe, time.perf_counter()
                vcppo(command(recipe, arguments.seed, seed_dir, arguments.rollouts), run_dir)
                seconds = round(time.perf_counter() - start)
                row = which | outcome(run_dir, seed_dir / "cold_start") | {"seconds": seconds}
                append_rows(arguments.results, COLUMNS, [row])
            write_report(arguments.results, table, draw)
        print(table(read_rows(arguments.results)))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
