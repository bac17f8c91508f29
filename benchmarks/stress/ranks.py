"""Run random settings on several ranks, and check that all end with the same collectives.

    python -m benchmarks.stress.ranks --runs 200 --seed 0
    python -m benchmarks.stress.ranks --runs 1 --start 17 --seed 0 --directory DIRECTORY    # run 17

Run i of a seed is always the same: a preset with tiny sizes, ddp, fsdp2 or two copies of shards
(hsdp), 2 or 4 ranks, and settings under which ranks may diverge: token budgets, prompts and
evaluation sets that do not divide, ranks without rows, dynamic sampling, KL, bootstrap, audit,
adapters, checkpoints. Some runs are resumed, some evaluated. Each has a time limit, after which it
is killed as stuck. The collectives of all ranks (operation, shapes, types) are compared at its end.

The last line is JSON: runs, stuck, mismatched (ranks differ in collectives or in how they ended),
failed (an error on every rank), refused (settings that contradict each other), seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from lightning.pytorch.strategies import StrategyRegistry
from transformers.utils import logging as transformers_logging

from benchmarks.stress.rank_settings import Stage, invent
from benchmarks.stress.rank_workers import Outcome, Workers, parted
from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.distributed.fsdp2 import FSDP2Strategy
from lightning_vcppo.models import loading
from lightning_vcppo.models.hf_folders import write_folder

TINY = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
REFUSED = ("UserError", "ValueError", "SystemExit")


def main() -> None:
    """Do the runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--start", type=int, default=0, help="number of the first run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, choices=(2, 4), default=4, help="most of a run")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one command")
    parser.add_argument(
        "--directory", type=Path, help="directory of the runs; default: a temporary one"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.directory or Path(scratch)
        runs = range(args.start, args.start + args.runs)
        print(json.dumps(stress(runs, args.seed, directory, args.limit, args.ranks)))


def stress(
    runs: range, seed: int, directory: Path, limit_s: float, most_ranks: int = 4
) -> dict[str, float]:
    """Do runs, print their faults, and count them.

    Args:
        runs: Numbers of the runs.
        seed: Seed of all runs.
        directory: Directory to write to.
        limit_s: Time limit of one command in seconds.
        most_ranks: Largest number of processes of a run, 2 or 4.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    StrategyRegistry.register("hsdp", FSDP2Strategy, shards=2, override=True)
    actor, sets = prepare(directory)
    counts: Counter[str] = Counter(dict.fromkeys(("stuck", "mismatched", "failed", "refused"), 0))
    began = time.monotonic()
    workers = Workers(most_ranks)
    try:
        for number in runs:
            started = time.monotonic()
            place = directory / f"run_{seed * 100_000 + number}"
            stages = invent(seed * 100_000 + number, actor, sets, most_ranks)
            verdict, why = one_run(workers, stages, place, limit_s)
            counts[verdict] += 1
            took = time.monotonic() - started
            first = stages[0]
            print(f"{number}: {verdict}, {took:.1f} s, {first.strategy} x {first.ranks} {why}")
            if verdict in ("stuck", "mismatched", "failed"):
                for stage in stages:
                    print("    vcppo", " ".join(stage.words))
    finally:
        workers.stop()
    del counts["well"]
    return {"runs": len(runs), **counts, "seconds": round(time.monotonic() - began, 1)}


def prepare(directory: Path) -> tuple[Path, Path]:
    """Write a tiny actor and two evaluation sets that no number of ranks divides."""
    tokenizer = default_tokenizer(320)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = loading.build_actor(TINY, tokenizer)
    actor, sets = directory / "actor", directory / "sets"
    write_folder(actor, model, tokenizer)
    sets.mkdir(parents=True, exist_ok=True)
    for name, size in (("three", 3), ("five", 5)):
        rows = [{"problem": f"What is {i} + {size}?", "answer": i + size} for i in range(size)]
        (sets / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return actor, sets


def one_run(workers: Workers, stages: list[Stage], place: Path, limit_s: float) -> tuple[str, str]:
    """Do the commands of a run and compare their ranks.

    Returns:
        "well", "stuck", "mismatched", "failed" or "refused"; the reason.
    """
    place.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        words = [
            *stage.words,
            f"--trainer.strategy={stage.strategy}",
            f"--trainer.devices={stage.ranks}",
            f"--trainer.default_root_dir={place}",
            "--learning_curves.enabled=false",  # slow, and only on one rank
        ]
        outcomes = workers.run(words, stage.ranks, place, limit_s)
        verdict, why = judge(outcomes)
        if verdict != "well":
            return verdict, f"{stage.words[0]}: {why}"
    return "well", ""


def judge(outcomes: list[Outcome] | None) -> tuple[str, str]:
    """Return the verdict on a command, and the reason."""
    if outcomes is None:
        return "stuck", ""
    errors = {outcome.error for outcome in outcomes}
    difference = parted([outcome.collectives for outcome in outcomes])
    if difference or len(errors) > 1:
        return "mismatched", " ".join([difference, *errors])
    (error,) = errors
    if not error:
        return "well", ""
    return ("refused" if error.startswith(REFUSED) else "failed"), error


if __name__ == "__main__":
    main()
