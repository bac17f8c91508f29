"""Isolate reward-signal decay: `python -m experiments.delayed_choice --lengths 64 128 256 512`.

The first token of a response chooses a method, exact or rough. The rest is the same for both, and
after T tokens the method is rewarded: +1 for exact, -1 for rough and for responses that do not
reach their end. A policy that chooses rough in six of ten responses has to learn this decision.
Two ways to train the critic are compared by the number of rollouts until eight in ten responses are
rewarded:

    lambda_critic 0.95    PPO: at a distance of T the reward reaches the target with weight 0.95^T
    lambda_critic 1       decoupled GAE: the complete reward reaches the target at any distance

lambda_actor is 0.95 for both, and neither pretrains the critic. There are two critics:

    full      the actor's weights; every token sees the first one at any distance
    window    random weights, attention to the last 16 tokens in each of 2 layers: far from the
              choice, values cannot distinguish the methods

Results are added to a CSV file, run by run: critic, lambda_critic, length (tokens), seed, rollouts
(empty if the limit was reached first), exact (share in the last five rollouts), response_length
(in the last rollout), seconds. The figure next to it has the same name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.runs import (
    CONFIGS,
    append_rows,
    holds_model,
    holds_run,
    metric_rows,
    read_rows,
    rounded,
    vcppo,
)
from lightning_vcppo.data.problem import THINK_OPEN
from lightning_vcppo.report.plotting import open_figure

RUN = ("critic", "lambda_critic", "length", "seed")
COLUMNS = (*RUN, "rollouts", "exact", "response_length", "seconds")
TOKENS_PER_LINE = 8
ROUGH_RATE, ENOUGH, LIMIT = 0.6, 0.8, 60
CRITICS = ("window", "full")
WINDOW_CRITIC = {
    "model_type": "qwen2",
    "vocab_size": 512,
    "initializer_range": 0.05,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "use_sliding_window": True,
    "sliding_window": 16,
    "max_window_layers": 0,
    "layer_types": ["sliding_attention", "sliding_attention"],
}
ALGORITHMS = {"0.95": "ppo.yaml", "1": "vcppo_no_pretraining.yaml"}
LINES = {
    ("window", "0.95"): ("#D55E00", "-"),
    ("full", "0.95"): ("#D55E00", "--"),
    ("window", "1"): ("#0072B2", "-"),
    ("full", "1"): ("#0072B2", "--"),
}
"""Colour and style of the lines in the figure."""


def chose_exact(response: str, answer: int) -> float:
    """Reward the method that a response has chosen, if it counts to its end, even with slips."""
    words = response.removeprefix(THINK_OPEN).split()
    at_end = any(word.startswith("000:") for word in words)
    return 1.0 if words[:1] == ["exact"] and at_end else -1.0


def problems(length: int, rough_rate: float = 0.0) -> str:
    """Return the flag for problems whose responses have about `length` tokens."""
    steps = length // TOKENS_PER_LINE
    generated = {
        "families": ["count"],
        "min_steps": steps,
        "max_steps": steps,
        "rough_rate": rough_rate,
    }
    return f"--data.generated={json.dumps(generated)}"


def cold_start(seed: int, length: int, run: Path) -> None:
    """Train a policy to count that far with both methods, unless it exists."""
    if holds_model(run / "actor"):
        return
    flags = (
        f"--config={CONFIGS / 'demo' / 'cold_start.yaml'}",
        f"--seed_everything={seed}",
        problems(length, ROUGH_RATE),
        "--trainer.limit_val_batches=0",
    )
    vcppo(["fit", *flags], run)


def training(
    critic: str, lambda_critic: str, length: int, seed: int, actor: str | Path
) -> list[str]:
    """Return the command that trains until the choice is learned; an epoch is a rollout."""
    stop = {"monitor": "rollout/accuracy", "stopping_threshold": ENOUGH, "mode": "max"}
    early_stopping = {"class_path": "EarlyStopping", "init_args": {**stop, "patience": LIMIT}}
    return [
        "fit",
        f"--config={CONFIGS / ALGORITHMS[lambda_critic]}",
        f"--config={CONFIGS / 'demo' / 'rl.yaml'}",
        f"--seed_everything={seed}",
        "--model.reward=experiments.delayed_choice.chose_exact",
        f"--model.actor={actor}",
        f"--model.critic={actor if critic == 'full' else json.dumps(WINDOW_CRITIC)}",
        "--model.advantage.lambda_actor=0.95",
        "--model.actor_optimizer.lr=1e-4",
        "--model.critic_optimizer.lr=1e-3",
        f"--model.sampling.max_response_length={length + 64}",
        problems(length),
        "--data.train_size=1000",
        "--data.val_size=0",
        "--data.prompts_per_rollout=64",
        f"--trainer.max_epochs={LIMIT}",
        "--trainer.limit_train_batches=1",
        "--trainer.val_check_interval=1",
        "--trainer.enable_checkpointing=false",
        f"--trainer.callbacks={json.dumps([early_stopping])}",
    ]


def outcome(run: Path) -> dict[str, Any]:
    """Return the results of a run for its row, except the time."""
    keys = ("rollout/accuracy", "rollout/response_length")
    rollouts = [[float(row[key]) for key in keys] for row in metric_rows(run, *keys)]
    exact, tokens = zip(*rollouts, strict=True)
    return {
        "rollouts": len(exact) if exact[-1] >= ENOUGH else "",
        "exact": rounded(str(fmean(exact[-5:]))),
        "response_length": rounded(str(tokens[-1])),
    }


def draw(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw the rollouts until the choice is learned, by length; open marks did not learn it."""
    figure, ax = open_figure("Rollouts until the choice is learned", "tokens to the reward", "")
    for (critic, lambda_critic), (color, style) in LINES.items():
        mine = [r for r in rows if (r["critic"], r["lambda_critic"]) == (critic, lambda_critic)]
        means = {
            length: fmean(int(r["rollouts"] or LIMIT) for r in mine if int(r["length"]) == length)
            for length in sorted({int(r["length"]) for r in mine})
        }
        label = f"{critic} critic, lambda_critic {lambda_critic}"
        ax.plot(list(means), list(means.values()), style, color=color, label=label)
        for row in mine:
            face = color if row["rollouts"] else "none"
            place = int(row["length"]), int(row["rollouts"] or LIMIT)
            ax.plot(*place, "o", color=color, markerfacecolor=face, markersize=5)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.set_ylim(0, LIMIT + 3)
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read the command line and do the missing runs."""
    parser = argparse.ArgumentParser(
        "python -m experiments.delayed_choice", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--critics", nargs="+", choices=CRITICS, default=CRITICS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=Path("docs/experiments/delayed_choice.csv"))
    parser.add_argument("--runs", type=Path, default=Path("runs/delayed_choice"))
    arguments = parser.parse_args()
    try:
        for seed, length, critic, lambda_critic in itertools.product(
            arguments.seeds, arguments.lengths, arguments.critics, ALGORITHMS
        ):
            which = dict(zip(RUN, (critic, lambda_critic, str(length), str(seed)), strict=True))
            if holds_run(arguments.results, which):
                continue
            start_dir = arguments.runs / f"seed_{seed}" / f"cold_start_{length}"
            cold_start(seed, length, start_dir)
            run = start_dir.with_name(f"{critic}_{lambda_critic}_{length}")
            start = time.perf_counter()
            vcppo(training(critic, lambda_critic, length, seed, start_dir / "actor"), run)
            seconds = round(time.perf_counter() - start)
            row = {**which, **outcome(run), "seconds": seconds}
            append_rows(arguments.results, COLUMNS, [row])
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        draw(read_rows(arguments.results), arguments.results.with_suffix(".png"))
    except RuntimeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
