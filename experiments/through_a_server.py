"""Train the demo's task with vLLM in the trainer's process and on a server, and compare the curves.

    .venv-vllm/bin/python -m experiments.through_a_server

The demo's model has heads of 16, and vLLM's build for the CPU needs 32 or more. So the model here
is the demo's with half as many heads, twice as wide. It is cold-started as in `configs/demo/`; then
VC-PPO trains it several times from this start, with the same seed and the demo's setting, but with
a critic that starts from the policy, and fewer rollouts. Only the engine differs: see `WAYS`. Runs
that are in the results are skipped, so an interrupted call can be repeated.

Columns of the results, which are written as CSV, as a table and as a figure:

    way, seed          the run
    rollout            number of the training step
    accuracy           share of right answers in the rollout
    response_length    mean tokens of its responses
    kl_k3              estimated distance of the policy from its sampler (`mismatch/kl_k3`)
    age                mean age of its tokens, in updates
    final_accuracy, final_length    of the last policy on 128 held-out problems; in the last row

In the model other responses are drawn from the same policy than by vLLM, so the curves differ as
between two seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.runs import (
    CONFIGS,
    append_rows,
    holds_model,
    holds_run,
    metric_rows,
    read_rows,
    rounded,
    vcppo,
    write_report,
)
from lightning_vcppo.common.processes import ONE_THREAD
from lightning_vcppo.report.plotting import tidy

SETTING = CONFIGS / "demo"
HEADS = 2
ROLLOUTS, PRETRAINING, HELD_OUT = 20, 5, 128
MEMORY = {"kv_cache_memory_bytes": 2**27, "max_num_seqs": 128, "max_model_len": 512}
"""vLLM's arguments: room for one rollout at once."""
WAYS: dict[str, list[str]] = {
    "in the model": [],
    "vLLM in the process": ["--model.engine.name=vllm"],
    "server": ["--model.engine.name=vllm_server"],
    "server, one ahead": ["--model.engine.name=vllm_server", "--model.engine.rollouts_ahead=1"],
    "server, in parts": ["--model.engine.name=vllm_server", "--model.engine.partial_length=80"],
}
"""Flags of the engine, by the name of the way in the results."""
METRICS = {
    "accuracy": "rollout/accuracy",
    "response_length": "rollout/response_length",
    "kl_k3": "mismatch/kl_k3",
    "age": "rollout/age",
}
STYLES = {"server": ":"}
"""Lines other than solid; this one may lie on that of vLLM in the process."""
COLUMNS = ("way", "seed", "rollout", *METRICS, "final_accuracy", "final_length")
STARTING_S = 1800.0
"""Seconds that a server may take to start on a busy machine."""


def prepare(seed: int, seed_dir: Path) -> None:
    """Cold-start the policy, unless it exists."""
    setting = SETTING / "cold_start.yaml"
    shape = yaml.safe_load(setting.read_text(encoding="utf-8"))["model"]["init_args"]["actor"]
    shape |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    run_dir = seed_dir / "cold_start"
    if not holds_model(run_dir / "actor"):
        flags = [f"--seed_everything={seed}", f"--model.actor={json.dumps(shape)}"]
        vcppo(["fit", f"--config={setting}", *flags], run_dir)


def command(way: str, seed: int, seed_dir: Path, rollouts: int, server: Sequence[str]) -> list[str]:
    """Return the `vcppo` command of a run, without its directory.

    Args:
        way: One of `WAYS`.
        seed: Seed of the run.
        seed_dir: Directory of the start.
        rollouts: Number of training steps.
        server: Flags that name the server.
    """
    flags = WAYS[way]
    memory = [f"--model.engine.init_args={json.dumps(MEMORY)}"]
    engine = "vllm_server" if any("vllm_server" in flag for flag in flags) else "".join(flags)
    more = {"vllm_server": [*server], "": []}.get(engine, memory)
    return [
        *("fit", f"--config={CONFIGS / 'vcppo.yaml'}", f"--config={SETTING / 'rl.yaml'}"),
        *(f"--seed_everything={seed}", f"--model.actor={seed_dir / 'cold_start' / 'actor'}"),
        *(
            "--model.critic=null",
            f"--data.val_size={HELD_OUT}",
            f"--data.val_batch_size={HELD_OUT}",
        ),
        f"--value_pretraining.max_rollouts={PRETRAINING}",
        f"--value_pretraining.min_rollouts={PRETRAINING}",
        f"--trainer.limit_train_batches={rollouts}",
        f"--trainer.val_check_interval={rollouts}",
        *flags,
        *more,
    ]


@contextlib.contextmanager
def serving(actor: Path, directory: Path, port: int) -> Iterator[list[str]]:
    """Run a server, and yield the flags that name it to a trainer.

    Raises:
        RuntimeError: If it ends, or does not answer in time.
    """
    directory.mkdir(parents=True, exist_ok=True)
    token_file, log = directory / "token", directory / "log.txt"
    arguments = {name: value for name, value in MEMORY.items() if name == "kv_cache_memory_bytes"}
    words = [
        *("serve", f"--model.actor={actor}", f"--port={port}", f"--token_file={token_file}"),
        *(f"--model.engine.{name}={MEMORY[name]}" for name in ("max_num_seqs", "max_model_len")),
        f"--model.engine.init_args={json.dumps(arguments)}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_vcppo", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ONE_THREAD},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + STARTING_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server does not answer (see {log})")
            time.sleep(0.5)
        yield [
            *("--model.engine.urls", f"[{url}]"),
            f"--model.engine.token_file={token_file}",
            f"--model.engine.max_num_seqs={MEMORY['max_num_seqs']}",
        ]
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def curve(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run, without the columns that identify it.

    The last row of a run that has not finished has no evaluation.
    """
    rows: list[dict[str, Any]] = [
        {"rollout": int(float(found["step"]))}
        | {name: rounded(found[key]) for name, key in METRICS.items()}
        for found in metric_rows(run_dir, "rollout/accuracy", "step", *METRICS.values())
    ]
    for final in metric_rows(run_dir, "eval/accuracy", "eval/response_length"):
        rows[-1]["final_accuracy"] = rounded(final["eval/accuracy"])
        rows[-1]["final_length"] = rounded(final["eval/response_length"])
    return rows


# Report ------------------------------------------------------------------------------------------


def by_way(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """Return the rows of each run, in the order of their first rows."""
    runs: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        runs.setdefault(row["way"], []).append(row)
    return runs


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table: every fifth rollout, and the last policy on held-out problems."""
    runs = by_way(rows)
    last = max(int(row["rollout"]) for row in rows)
    columns = [*range(5, last + 1, 5)]
    lines = [
        f"| | {' | '.join(f'rollout {n}' for n in columns)} | held out |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for way, own in runs.items():
        at = {int(row["rollout"]): row for row in own}
        pairs = [
            (at[n]["accuracy"], at[n]["response_length"]) if n in at else None for n in columns
        ]
        pairs.append((own[-1]["final_accuracy"], own[-1]["final_length"]))
        cells = [
            "-"
            if pair is None or not pair[0]
            else f"{100 * float(pair[0]):.0f} % ({float(pair[1]):.0f})"
            for pair in pairs
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw accuracy and response length over rollouts, one line for each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    of_colors = ("#000000", "#999999", "#0072B2", "#E69F00", "#009E73")
    colors = dict(zip(WAYS, of_colors, strict=True))
    for ax, (name, title) in zip(
        panels,
        {"accuracy": "Accuracy of rollouts (%)", "response_length": "Tokens of a response"}.items(),
        strict=True,
    ):
        tidy(ax, title, "")
        scale = 100.0 if name == "accuracy" else 1.0
        for way, own in by_way(rows).items():
            x = [int(row["rollout"]) for row in own]
            y = [scale * float(row[name]) for row in own]
            ax.plot(x, y, STYLES.get(way, "-"), color=colors[way], label=way)
        ax.set_xlabel("rollout")
        ax.xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read the command line and do the missing runs."""
    parser = argparse.ArgumentParser(
        "python -m experiments.through_a_server", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help="rollouts of each run")
    parser.add_argument("--port", type=int, default=8123, help="port of the server")
    parser.add_argument("--results", type=Path, default=Path("runs/server/server.csv"))
    parser.add_argument("--runs", type=Path, default=Path("runs/server"))
    arguments = parser.parse_args()
    seed_dir = arguments.runs / f"seed_{arguments.seed}"
    try:
        for way in arguments.ways:
            which = {"way": way, "seed": str(arguments.seed)}
            if holds_run(arguments.results, which):
                continue
            prepare(arguments.seed, seed_dir)
            run_dir = seed_dir / way.replace(", ", "_").replace(" ", "_")
            with contextlib.ExitStack() as stack:
                server: list[str] = []
                if "server" in way:
                    actor = seed_dir / "cold_start" / "actor"
                    running = serving(actor, run_dir.with_suffix(".server"), arguments.port)
                    server = stack.enter_context(running)
                vcppo(command(way, arguments.seed, seed_dir, arguments.rollouts, server), run_dir)
            append_rows(arguments.results, COLUMNS, [which | row for row in curve(run_dir)])
            write_report(arguments.results, table, draw)
        print(table(read_rows(arguments.results)))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
