"""Save checkpoints from which a run resumes bit for bit."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich import get_console
from typing_extensions import override

from lightning_vcppo.checkpointing.interruptions import Interruptions, exit_code
from lightning_vcppo.checkpointing.run_directory import CHECKPOINTS, LAST, find_last
from lightning_vcppo.common.errors import EngineLostError
from lightning_vcppo.common.files import UNFINISHED, is_trial, put_in_place, remove, run_path
from lightning_vcppo.common.lightning_compat import (
    between_steps,
    epoch_is_over,
    steps_done,
    take_early_sigterm,
)
from lightning_vcppo.distributed.standstill import FILES_S, in_place

from .base import LearnsFromRollouts, RunCallback


class RolloutCheckpoint(RunCallback, ModelCheckpoint):
    """Save `checkpoints/last.ckpt` between two rollouts, and end the run there after a signal.

    Between two rollouts all work on the first is done: its updates, its row in metrics.csv, its
    evaluation. Lightning's own hooks for saving are earlier: a run that is resumed from the end of
    a batch has lost that batch's row and evaluation.

    After SIGTERM or Ctrl-C the rollout (and an evaluation after it) is finished and saved, and the
    run ends with exit code 143 or 130. A second Ctrl-C ends it at once, with the last checkpoint.
    SLURM's signal to requeue the job waits for the same moment. For a module without rollouts, read
    "training step" for "rollout".
    """

    def __init__(
        self,
        every_n_rollouts: int = 1,
        max_time_share: float | None = 0.05,
    ) -> None:
        """Set how often to save.

        Args:
            every_n_rollouts: Minimum number of rollouts (training steps) between two checkpoints.
            max_time_share: Share of the run's time that saving may take; if a checkpoint takes
                long, more rollouts lie between two. None sets no limit.

        Raises:
            ValueError: For a number out of range.
        """
        if every_n_rollouts < 1:
            raise ValueError(f"every_n_rollouts: expected >= 1, got {every_n_rollouts}")
        if max_time_share is not None and not 0 < max_time_share <= 1:
            raise ValueError(f"max_time_share: expected a share in (0, 1], got {max_time_share}")
        super().__init__(save_last=True, save_top_k=0, enable_version_counter=False)
        self._every_n_rollouts = every_n_rollouts
        self._max_time_share = max_time_share
        self.begin_run()

    @override
    def begin_run(self) -> None:
        """Start without a checkpoint and without a signal."""
        self.last_model_path = ""
        self._last_global_step_saved = 0  # Lightning's, which skips a step that it has saved
        self._interruptions = Interruptions()
        self._saved_after = 0  # training steps
        self._saving_began_at = 0.0
        self._saving_s = 0.0

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return nothing, because the last checkpoint is known by its name."""
        return {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save in the run's directory, whatever the loggers."""
        self.dirpath = str(run_path(trainer, CHECKPOINTS))
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals, and remove unfinished files of an interrupted run."""
        super().on_train_start(trainer, pl_module)
        if is_trial(trainer):
            return
        self._interruptions.listen()
        if take_early_sigterm(trainer):
            self._interruptions.pending = signal.SIGTERM
        self._saving_began_at = time.monotonic()
        if Path(trainer.ckpt_path or "").absolute() == self._path.absolute():
            self._saved_after = steps_done(trainer)
        if trainer.is_global_zero:
            for path in self._path.parent.glob(f"*.ckpt{UNFINISHED}*"):
                remove(path)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due; end the run if a signal has come."""
        if is_trial(trainer):
            return
        done = steps_done(trainer)
        due = done - self._saved_after >= self._every_n_rollouts and self._has_time()
        wish = [self._interruptions.pending, int(due and trainer.is_global_zero)]
        on_device = torch.tensor(wish, device=trainer.strategy.root_device)
        agreed = cast(torch.Tensor, trainer.strategy.reduce(on_device, reduce_op="max"))
        number, due_anywhere = agreed.tolist()
        if not number and not due_anywhere:
            return
        with between_steps(trainer):
            if done != self._saved_after:
                self._save(trainer)
            if number and not self._interruptions.requeue(number):
                self._leave(trainer, pl_module, number)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end; a run that was stopped early can be resumed from there."""
        if is_trial(trainer):
            return
        if epoch_is_over(trainer):
            self._save(trainer)
        else:
            with between_steps(trainer):
                self._save(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save if sampling has lost its servers; the rollout that needs them has changed nothing.

        Where an evaluation has lost them, the last checkpoint stays: it has that evaluation before
        it.
        """
        if not isinstance(exception, EngineLostError) or is_trial(trainer):
            return
        if trainer.training and steps_done(trainer) != self._saved_after:
            with between_steps(trainer):
                self._save(trainer)
        if self._path.exists() and trainer.is_global_zero:
            _tell(
                f"{self._path} has all rollouts so far; when the servers are back, the same "
                "command with --ckpt_path=last resumes the run."
            )

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Return the checkpoint from which `Trainer.fit(ckpt_path="last")` resumes."""
        path = find_last(run_path(trainer))
        return {str(path)} if path else set()

    @property
    def _path(self) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath, LAST)

    def _has_time(self) -> bool:
        share, began_at = self._max_time_share, self._saving_began_at
        return share is None or self._saving_s <= share * (time.monotonic() - began_at)

    def _save(self, trainer: Trainer) -> None:
        """Write next to the last checkpoint, then replace it: some strategies write directories."""
        self._saving_began_at = time.monotonic()
        self.last_model_path = str(self._path)
        unfinished = self._path.with_name(f"{LAST}{UNFINISHED}")
        with in_place("checkpoint", FILES_S):
            trainer.save_checkpoint(unfinished, weights_only=False)
            if trainer.is_global_zero:
                put_in_place(unfinished, self._path)
            trainer.strategy.barrier("last checkpoint")
        self._saved_after = steps_done(trainer)
        self._saving_s = time.monotonic() - self._saving_began_at

    def _leave(self, trainer: Trainer, pl_module: LightningModule, number: int) -> None:
        """End the run; an error of another rank would end the first one too early."""
        if not trainer.is_global_zero:
            raise SystemExit(0)
        rollouts = isinstance(pl_module, LearnsFromRollouts)
        done = pl_module.rollouts_done if rollouts else steps_done(trainer)
        if not self._path.exists():
            _tell(f"{signal.Signals(number).name}: nothing was learned yet; start the run again")
            raise SystemExit(exit_code(number))
        _tell(
            f"{signal.Signals(number).name}: saved after {'rollout' if rollouts else 'update'} "
            f"{done}; the same command with --ckpt_path=last resumes the run."
        )
        raise SystemExit(exit_code(number))


def _tell(message: str) -> None:
    get_console().print(message, markup=False, highlight=False, soft_wrap=True)
