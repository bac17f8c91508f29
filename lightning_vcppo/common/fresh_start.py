"""Recognise the start of a new run, for objects that several runs may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def is_new_run(trainer: Trainer) -> bool:
    """Return whether a Trainer in the setup of `fit` has not trained yet.

    A checkpoint, if there is one, is restored later. A Trainer whose `fit` is called again
    continues its own run, as Lightning does.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.completed == 0
