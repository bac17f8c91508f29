"""Both phases by the command line; a stopped and resumed run against a whole one."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.tools import accelerator, small_actor

FITS = {
    "32-true": ["--trainer.precision=32-true"],
    "bf16-mixed": ["--trainer.precision=bf16-mixed"],
    "bf16-true": ["--trainer.precision=bf16-true"],
    "fsdp2": ["--trainer.precision=bf16-mixed", "--trainer.strategy=fsdp2"],
    "fsdp2_offload": ["--trainer.precision=32-true", "--trainer.strategy=fsdp2_offload"],
    "lora": ["--trainer.precision=bf16-true", "--model.lora.rank=4"],
    "deterministic": ["--trainer.precision=bf16-mixed", "--trainer.deterministic=true"],
}
PRESET = "--config=vcppo"
SMALL = [
    "--model.reward=tests.support.tiny_runs.parity",
    "--model.sampling.max_response_length=48",
    "--model.sampling.num_generations=2",
    "--model.evaluation.max_response_length=16",
    "--data.train_size=64",
    "--data.val_size=4",
    "--data.val_batch_size=4",
    "--data.prompts_per_rollout=8",
    "--trainer.limit_train_batches=5",
    "--trainer.devices=1",
    "--trainer.enable_model_summary=false",
    "--value_pretraining.max_rollouts=2",
    "--value_pretraining.min_rollouts=2",
    "--value_pretraining.held_out_share=0.5",
    "--model.update.ppo_mini_batch_size=8",
    "--model.update.ppo_max_token_len_per_gpu=512",
    "--model.policy.kl_coef=0.01",
    "--model.actor_optimizer.lr=1e-3",
    "--critic_calibration.audit_every=2",
    "--critic_calibration.audit_prefixes=4",
    "--critic_calibration.audit_continuations=2",
    "--loggers=[csv]",
    "--progress_bar.refresh_rate=0",
]
STOP = [
    "--trainer.callbacks+=tests.integration.test_resume.Signal",
    "--trainer.callbacks.rollout=3",
    f"--trainer.callbacks.number={int(signal.SIGTERM)}",
    "--rollout_checkpoint.every_n_rollouts=9",
]
Rows: TypeAlias = list[dict[str, float]]
SHOWN = (
    "rollout/reward_mean",
    "policy/grad_norm",
    "critic/loss",
    "mismatch/kl_k3",
    "policy/approx_kl",
    "policy/clip_fraction",
)


def run(f: Findings, a: Namespace) -> None:
    """Run the whole and the halves, and compare their metrics."""
    directory: Path = a.work / f"fit_{a.argument}"
    directory.mkdir(parents=True, exist_ok=True)
    whole, stopped = start(a, directory, "whole"), start(a, directory, "halves", *STOP)
    f.put(stopped_rc=stopped.wait())
    resumed = start(a, directory, "halves", "--ckpt_path=last")
    f.put(whole_rc=whole.wait(), resumed_rc=resumed.wait())
    for name in ("whole", "halves"):
        lines = [x for x in (directory / f"{name}.log").read_text().splitlines() if x.strip()]
        print(*lines[-60:], sep="\n")
        told = [line for line in lines if line.startswith(("attention", "decoding"))]
        f.put(**{f"{name}_last_line": lines[-1][:200] if lines else "", f"{name}_told": told[:4]})
    f.attempt("metrics", partial(compare, directory))


def start(a: Namespace, directory: Path, name: str, *more: str) -> subprocess.Popen[bytes]:
    """Start `vcppo fit`."""
    actor = small_actor(a.work / f"actor_{a.argument}")
    port = str(20_000 + 2 * (os.getpid() % 10_000) + (name == "whole"))
    command = [sys.executable, "-m", "lightning_vcppo", "fit", PRESET, *SMALL, *FITS[a.argument]]
    command += [f"--model.actor={actor}", f"--trainer.accelerator={accelerator(a)}"]
    command += [f"--trainer.default_root_dir={directory / name}", *more]
    with (directory / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"MASTER_PORT": port}
        )


def compare(directory: Path) -> dict[str, Any]:
    """Return whether the resumed run is the whole one, and what it measured last."""
    one, two = (metrics(directory / name / "metrics.csv") for name in ("whole", "halves"))
    worst = largest_gap(one, two)
    return {
        "rows": len(one),
        "not finite": not_finite(one),
        "resumed equals whole": not worst[1],
        "largest gap": worst,
        "last": {key: value for row in one for key, value in row.items() if key in SHOWN},
    }


def largest_gap(one: Rows, two: Rows) -> tuple[str, float]:
    """Return the metric that differs most between two runs, and by what share of itself.

    Raises:
        ValueError: If one has more rows than the other.
    """
    gaps = {
        key: abs(x[key] - y[key]) / (abs(x[key]) + 1e-9)
        for x, y in zip(one, two, strict=True)
        for key in x.keys() & y.keys()
        if x[key] != y[key] and math.isfinite(x[key])
    }
    return max(gaps.items(), key=lambda gap: gap[1], default=("", 0.0))


def not_finite(rows: Rows) -> list[str]:
    """Return the names of metrics that were NaN or infinite, where they must not be."""
    odd = {key for row in rows for key, value in row.items() if not math.isfinite(value)}
    return sorted(key for key in odd if "horizon" not in key)


def metrics(path: Path) -> Rows:
    """Read a table of metrics, except for times."""
    with path.open() as file:
        return [
            {
                key: float(value)
                for key, value in row.items()
                if value and not key.startswith(("time/", "rollout/tokens_"))
            }
            for row in csv.DictReader(file)
        ]
