"""Runs of the command line on the tiny actor: arguments, a reward that varies, what they leave."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import struct
import sys
from pathlib import Path
from unittest import mock

import lightning.pytorch  # noqa: F401
import torch
from lightning.pytorch import Callback

from lightning_vcppo.cli import lightning_cli, main

TINY_QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"

LAUNCHED = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"}
"""Variables that Lightning leaves in a process in which it has launched ranks."""

TINY = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
    "--progress_bar.refresh_rate=0",
    "--learning_curves.enabled=false",
    "--model.evaluation.max_response_length=12",
    "--data.train_size=40",
    "--data.val_size=2",
    "--data.val_batch_size=2",
]
"""Of every module. Drawing would take half the time of such a run."""

ROLLOUTS = [
    *TINY,
    "--model.reward=tests.support.tiny_runs.parity",
    "--model.sampling.max_response_length=12",
    "--data.prompts_per_rollout=12",
    "--trainer.limit_train_batches=3",
    "--value_pretraining.max_rollouts=1",
    "--value_pretraining.min_rollouts=1",
    "--value_pretraining.held_out_share=0.5",
]
"""Of VC-PPO: a rollout of value pretraining, if it is on, and two more."""


def vcppo(*arguments: object) -> lightning_cli.VCPPOCLI:
    """Run `vcppo` in this process."""
    with mock.patch.object(sys, "argv", ["vcppo"]):
        return lightning_cli.main([str(argument) for argument in arguments])


def run_program(*arguments: object) -> None:
    """Run `vcppo` in this process as a shell would: a mistake ends in one line and SystemExit."""
    with mock.patch.object(sys, "argv", ["vcppo", *map(str, arguments)]):
        main.run()


def parity(response: str, answer: int) -> float:
    """Reward about half of all random responses."""
    return 1.0 if hashlib.md5(response.encode()).digest()[0] % 2 else -1.0


def logged(directory: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.csv, without their empty cells."""
    with (directory / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def logged_keys(directory: Path) -> set[str]:
    """Return all columns of a run's metrics.csv."""
    return set().union(*logged(directory))


def assert_finite(directory: Path) -> None:
    """Check every number of a run's metrics.csv; only the horizon of lambda = 1 is infinite."""
    rows = logged(directory)
    assert rows
    for row in rows:
        row.pop("decay/actor_horizon", None)
        row.pop("decay/critic_horizon", None)
        assert all(map(math.isfinite, row.values())), row


class WeightsWatcher(Callback):
    """Write, after each rollout, what this rank's networks are."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        line = {"phase": pl_module.phase.value}
        for name in ("actor", "critic"):
            weights = torch.cat([p.flatten() for p in getattr(pl_module, name).parameters()])
            line[name] = hashlib.md5(weights.detach().numpy().tobytes()).hexdigest()
        path = Path(trainer.default_root_dir, f"weights_{trainer.global_rank}.jsonl")
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def offline_run(directory: Path) -> tuple[dict[str, object], set[str]]:
    """Return the config and the logged keys of an offline run of Weights & Biases.

    Its file is a LevelDB log (blocks of 32 KiB, 7 bytes in front of each fragment) of protocol
    buffers.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = directory.glob("run-*.wandb")
    data, at, message = path.read_bytes(), 7, b""
    config: dict[str, object] = {}
    keys: set[str] = set()
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            record = Record.FromString(message)
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
            keys |= {item.key or item.nested_key[0] for item in record.history.item}
            message = b""
    return config, keys
