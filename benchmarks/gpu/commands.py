"""Every preset, every switch and the critic lab on the device: real commands on a small model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.fits import PRESET, SMALL, Rows, largest_gap, metrics, not_finite
from benchmarks.gpu.tools import accelerator, small_actor
from experiments.preset_table import presets

MIXED = "--trainer.precision=bf16-mixed"
TRUE = "--trainer.precision=bf16-true"
SWITCHES: dict[str, list[str]] = {
    "offload": [MIXED, "--model.offload=[reference,idle_optimizer,idle_network]"],
    "rollouts ahead": [
        *(MIXED, "--model.engine.name=transformers_copy", "--model.engine.rollouts_ahead=1"),
        "--model.policy.importance_correction=truncate",
    ],
    "float32 products in TF32": ["--float32_matmul_precision=high"],
    "no kernels": [MIXED, "--model.kernels=none"],
    "float32 master weights": [TRUE, "--model.master_weights=float32"],
    "Kahan": [TRUE, "--model.master_weights=kahan"],
    "stochastic rounding": [TRUE, "--model.master_weights=stochastic"],
    "top-p": [MIXED, "--model.sampling.top_p=0.9"],
    "ddp": [MIXED, "--trainer.strategy=ddp"],
    "fsdp2 with offload": ["--trainer.strategy=fsdp2_offload"],
}
"""Flags that are added to `vcppo.yaml`'s, by what they switch on."""
CHOICES = ("attention of", "decoding:", "kernels of", "log-probabilities:", "sampling:")
"""What lines that name a chosen kernel begin with."""
SAME = ("plain, again", "offload")
"""What changes no digit of `vcppo` under bf16-mixed."""


def run(f: Findings, a: Namespace) -> None:
    """Run the commands, some at the same time."""
    at_once = max(1, (os.cpu_count() or 1) // 4)
    actor = small_actor(a.work / f"actor_of_{a.argument}")
    if a.argument == "critic lab":
        f.attempt("critic lab", partial(critic_lab, f, a, actor))
        return
    cases: dict[str, tuple[str, list[str]]] = {
        name: (f"--config={path}", [MIXED]) for name, path in presets().items()
    }
    if a.argument == "switches":
        switches = {"plain": [MIXED], "plain, again": [MIXED]} | SWITCHES
        cases = {name: (PRESET, flags) for name, flags in switches.items()}
    with ThreadPoolExecutor(at_once) as pool:
        found = {name: pool.submit(fit, a, actor, name, *case) for name, case in cases.items()}
        for name, each in found.items():
            f.attempt(name, each.result)
    if a.argument == "switches":
        for name in SAME:
            f.attempt(f"{name}: largest gap to plain", partial(gap_to_plain, a, name))


def slug(name: str) -> str:
    """Return a name for files."""
    return name.replace(" ", "_").replace(",", "")


def gap_to_plain(a: Namespace, name: str) -> tuple[str, float]:
    """Return what differs most between a run and the plain one."""
    return largest_gap(rows(a, "plain"), rows(a, name))


def fit(a: Namespace, actor: Path, name: str, preset: str, flags: list[str]) -> dict[str, Any]:
    """Train for some rollouts, and return what came of it."""
    command = ["fit", preset, *SMALL, "--trainer.limit_train_batches=4", *flags]
    if name == "pippo":
        command.append("--model.value.privileged_max_length=128")
    command += [f"--model.actor={actor}", f"--trainer.accelerator={accelerator(a)}"]
    found = vcppo(a, name, [*command, f"--trainer.default_root_dir={a.work / slug(name)}"])
    if found["rc"] != 0:
        return found
    measured = rows(a, name)
    learned = [key for key in ("critic/loss", "policy/loss") if any(key in row for row in measured)]
    lines = (a.work / f"{slug(name)}.log").read_text(errors="replace").splitlines()
    told = [line[:60] for line in lines if line.startswith(CHOICES)]
    return found | {"not finite": not_finite(measured), "learned": learned, "told": told}


def rows(a: Namespace, name: str) -> Rows:
    """Return what a run has logged, except for times; empty if it has logged nothing."""
    [*tables] = (a.work / slug(name)).rglob("metrics.csv")
    return metrics(tables[0]) if tables else []


def vcppo(a: Namespace, name: str, arguments: list[str]) -> dict[str, Any]:
    """Run a command; return its exit code, its seconds and its last line if it failed."""
    log = a.work / f"{slug(name)}.log"
    began = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "lightning_vcppo", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    found: dict[str, Any] = {"rc": done.returncode, "seconds": time.perf_counter() - began}
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        print(f"---- {name}", *lines[-40:], sep="\n", flush=True)
        found["last line"] = lines[-1][-300:] if lines else ""
    return found


def critic_lab(f: Findings, a: Namespace, actor: Path) -> None:
    """Store rollouts; fit, evaluate and compare critics on them."""
    directory: Path = a.work / "lab"
    rollouts, critic = directory / "rollouts.jsonl", directory / "critic"
    commands = {
        "store": [
            *("predict", PRESET, *SMALL, MIXED, f"--model.actor={actor}"),
            *("--model.evaluation.num_generations=4", f"--response_writer.path={rollouts}"),
            *("--model.evaluation.temperature=1", f"--trainer.accelerator={accelerator(a)}"),
            f"--trainer.default_root_dir={directory / 'store'}",
        ],
        "fit": [
            *("critic", "fit", str(rollouts), f"--model={actor}", f"--output={critic}"),
            *(f"--accelerator={accelerator(a)}", "--precision=bf16-mixed", "--max_epochs=2"),
        ],
        "evaluate": ["critic", "evaluate", str(critic / "critic"), str(rollouts)],
        "compare": [
            *("critic", "compare", str(rollouts), f"--model={actor}", f"--actor={actor}"),
            *("--critics", "mse", "hl_gauss", "side", f"--output={directory / 'compared'}"),
            *("--prefixes=32", "--continuations=4", "--jobs=3"),
            "--reward=tests.support.tiny_runs.parity",
        ],
    }
    for name, command in commands.items():
        f.put(**{f"critic lab, {name}": vcppo(a, f"lab {name}", command)})
