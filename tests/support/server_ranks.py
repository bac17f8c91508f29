"""A rank of a run that samples on servers; importing this file does not import vLLM."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_vcppo.rollouts.rollout import Rollout, join
from lightning_vcppo.settings import EngineSettings
from tests.support.training import Recorder, fit, make_module

ROLLOUTS = 4


def train(actor: Path, engine: EngineSettings, **flags: object) -> Recorder:
    """Learn from some rollouts that an engine samples."""
    torch.set_num_threads(1)
    return fit(make_module(actor, engine=engine), ROLLOUTS, **flags)


def as_rank(actor: Path, directory: Path, engine: EngineSettings) -> None:
    """Do the same as one of two processes, and write what this one had to `RANK.pt`."""
    run = train(actor, engine, devices=2, strategy="ddp")
    rollouts = [rollout.to_plain() for rollout in run.rollouts]
    rank = run.trainer.global_rank
    torch.save((rollouts, run.actors, run.metrics), directory / f"{rank}.pt")


def joined(directory: Path) -> tuple[list[Rollout], list[list[torch.Tensor]], list[dict]]:
    """Return the rollouts of both processes together, and the weights and metrics of each."""
    read = [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(2)]
    parts, actors, metrics = zip(*read, strict=True)
    rollouts = [join([Rollout.from_plain(part[k]) for part in parts]) for k in range(ROLLOUTS)]
    return rollouts, list(actors), [row for rows in metrics for row in rows]
