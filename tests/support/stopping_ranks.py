"""Callbacks that make one rank of a run stand still or die."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lightning.pytorch import Callback


class OneRankStops(Callback):
    """In the second rollout one rank sleeps for ever, or dies as if the system had killed it.

    Args:
        rank: Which one.
        how: "sleep", "die" or "raise".
        path: File that appears when it happens.
    """

    def __init__(self, rank: int, how: str, path: str) -> None:
        self.rank, self.how, self.path = rank, how, Path(path)
        self.rollouts = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rollouts += 1
        if self.rollouts < 2 or trainer.global_rank != self.rank:
            return
        self.path.write_text("now")
        if self.how == "sleep":
            time.sleep(10_000)
        if self.how == "raise":
            raise ValueError("this rank alone has met a mistake")
        os._exit(9)
