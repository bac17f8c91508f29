"""Use private attributes of Lightning, each with its reason. Tried with lightning 2.6.6."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy


def forget_logged(trainer: Trainer) -> None:
    """Drop the values that the last batch has logged.

    Lightning logs the last value of a key again until the epoch ends; a run that is resumed before
    that does not have it.
    """
    trainer.fit_loop.epoch_loop._results.reset()


def lift_step_limit(trainer: Trainer) -> None:
    """Make `fast_dev_run=N` mean N batches, because Lightning counts all optimizers' steps."""
    trainer.fit_loop.epoch_loop.max_steps = -1


def is_attached(module: LightningModule) -> bool:
    """Return whether a module has a Trainer; `module.trainer` raises if there is none."""
    return module._trainer is not None


def look_for_unused_parameters(strategy: DDPStrategy) -> None:
    """Make DDP look for parameters that are not in a backward pass.

    The argument is set when the strategy is built, and read when it wraps the model.
    """
    strategy._ddp_kwargs["find_unused_parameters"] = True


def epoch_is_over(trainer: Trainer) -> bool:
    """Return whether the epoch has ended, and not because the run was stopped."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def steps_done(trainer: Trainer) -> int:
    """Return the number of finished training batches, which no public attribute has."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.completed


@contextmanager
def between_steps(trainer: Trainer) -> Iterator[None]:
    """Set Lightning's counters to those between two training steps while the body saves them.

    In `on_train_batch_start` Lightning already counts the next batch as ready, and at the end of a
    stopped run it counts the epoch as completed.
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
        # A resumed run skips this evaluation, and counts the step before it again.
        loop._batches_that_stepped -= 1
    try:
        yield
    finally:
        batches.load_state_dict(kept[0])
        epoch.load_state_dict(kept[1])
        loop._batches_that_stepped = kept[2]
        trainer.should_stop = should_stop


def take_early_sigterm(trainer: Trainer) -> bool:
    """Return whether SIGTERM came while the run was loading, and let Lightning forget it.

    Lightning would end the run after its first rollout, without a checkpoint.
    """
    came: bool = trainer.received_sigterm
    trainer._signal_connector.received_sigterm = False
    return came
