"""Keep the checkpoint from which a run goes on as if it had not died."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich import get_console
from typing_extensions import override

from lightning_vcppo.checkpointing.interruptions import Interruptions, exit_code
from lightning_vcppo.checkpointing.run_directory import CHECKPOINTS, LAST, find_last
from lightning_vcppo.common.files import UNFINISHED, is_trial, put_in_place, remove
from lightning_vcppo.distributed.standstill import FILES_S, in_place

if TYPE_CHECKING:
    from lightning_vcppo.modules.vcppo import VCPPOModule


class RolloutCheckpoint(ModelCheckpoint):
    """Save `checkpoints/last.ckpt` between two rollouts, and leave there when a signal asks for it.

    Between two rollouts everything about the first is done: its updates, its row in metrics.csv,
    its evaluation. Lightning's other moments are in the middle: a run that is resumed from the end
    of a batch has lost that batch's row and evaluation.

    SIGTERM and Ctrl-C let the rollout (and an evaluation after it) end, save, and end the run with
    exit code 143 or 130. A second Ctrl-C ends it at once, with what was saved last. SLURM's signal
    to requeue the job waits for the same moment. Where there are no rollouts, a training step is
    meant.
    """

    def __init__(
        self,
        every_n_rollouts: int = 1,
        max_time_share: float | None = 0.05,
    ) -> None:
        """Set how often.

        Args:
            every_n_rollouts: Rollouts (training steps) from one checkpoint to the next, at least.
            max_time_share: Share of the time that saving may take; if a checkpoint takes long,
                more rollouts are between two. None sets no limit.

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
        self._interruptions = Interruptions()
        self._saved_after = 0  # training steps
        self._saving_began_at = 0.0
        self._saving_s = 0.0

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return nothing: which checkpoint is the last is told by its name."""
        return {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the folder: the run's own, whatever the loggers."""
        self.dirpath = str(Path(trainer.default_root_dir, CHECKPOINTS))
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals, and remove what an interrupted run has left half written."""
        super().on_train_start(trainer, pl_module)
        if is_trial(trainer):
            return
        self._interruptions.listen()
        self._saving_began_at = time.monotonic()
        if Path(trainer.ckpt_path or "").absolute() == self._path.absolute():
            self._saved_after = _steps_done(trainer)
        if trainer.is_global_zero:
            for path in self._path.parent.glob(f"*.ckpt{UNFINISHED}*"):
                remove(path)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time to; leave if a signal has asked for it."""
        if is_trial(trainer):
            return
        done = _steps_done(trainer)
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
        """Save when all is done; a run that was stopped early can go on from there."""
        if is_trial(trainer):
            return
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save(trainer)
        else:
            with between_steps(trainer):
                self._save(trainer)

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Return what `Trainer.fit(ckpt_path="last")` goes on from."""
        path = find_last(Path(trainer.default_root_dir))
        return {str(path)} if path else set()

    @property
    def _path(self) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath, LAST)

    def _has_time(self) -> bool:
        share, began_at = self._max_time_share, self._saving_began_at
        return share is None or self._saving_s <= share * (time.monotonic() - began_at)

    def _save(self, trainer: Trainer) -> None:
        """Write beside the last checkpoint and then replace it: some strategies write folders."""
        self._saving_began_at = time.monotonic()
        self.last_model_path = str(self._path)
        unfinished = self._path.with_name(f"{LAST}{UNFINISHED}")
        with in_place("checkpoint", FILES_S):
            trainer.save_checkpoint(unfinished, weights_only=False)
            if trainer.is_global_zero:
                put_in_place(unfinished, self._path)
            trainer.strategy.barrier("last checkpoint")
        self._saved_after = _steps_done(trainer)
        self._saving_s = time.monotonic() - self._saving_began_at

    def _leave(self, trainer: Trainer, pl_module: LightningModule, number: int) -> None:
        """End the run; other ranks end without an error, which would end the first one early."""
        if not trainer.is_global_zero:
            raise SystemExit(0)
        rollouts = hasattr(pl_module, "rollout")
        done = cast("VCPPOModule", pl_module).rollouts_done if rollouts else _steps_done(trainer)
        get_console().print(
            f"{signal.Signals(number).name}: saved after {'rollout' if rollouts else 'update'} "
            f"{done}; the same command with --ckpt_path=last goes on.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise SystemExit(exit_code(number))


def _steps_done(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop.batch_progress.total.completed


@contextmanager
def between_steps(trainer: Trainer) -> Iterator[None]:
    """Set Lightning's counters to the moment between two training steps while the body saves them.

    In `on_train_batch_start` Lightning counts a batch as ready that has not begun, and at the end
    of a run that was stopped it counts the epoch as over.
    """
    loop, epoch = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress
    batches = loop.batch_progress
    kept = batches.state_dict(), epoch.state_dict(), loop._batches_that_stepped
    should_stop, trainer.should_stop = trainer.should_stop, False
    for count in (batches.total, batches.current):
        vars(count).update(dict.fromkeys(("ready", "started", "processed"), count.completed))
    for count in (epoch.total, epoch.current):
        vars(count).update(dict.fromkeys(("processed", "completed"), count.ready - 1))
    batches.is_last_batch = False
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    if loop._should_check_val_fx(fetcher):
        # A resumed run passes over this evaluation, and counts the step before it once more.
        loop._batches_that_stepped -= 1
    try:
        yield
    finally:
        batches.load_state_dict(kept[0])
        epoch.load_state_dict(kept[1])
        loop._batches_that_stepped = kept[2]
        trainer.should_stop = should_stop
