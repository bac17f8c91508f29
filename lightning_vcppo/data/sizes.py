"""Bound the sizes of a data module, and choose those that a user has not set."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_info

LEAST = {
    "train_size": 1,
    "val_size": 0,
    "prompts_per_rollout": 1,
    "val_batch_size": 1,
    "max_prompt_length": 1,
}
"""Smallest values of settings."""
TRIAL_PROMPTS = 16
"""Number of prompts that are evaluated with `--trainer.fast_dev_run`."""
VAL_SIZE = 64
"""Held-out problems where there are enough: of 640 problems a tenth."""
PROMPTS_PER_ROLLOUT = 64
"""Prompts of a rollout where there are enough problems."""


def or_defaults(val_size: int | None, prompts_per_rollout: int | None) -> tuple[int, int]:
    """Return both sizes, or their defaults where there are enough problems."""
    return (
        VAL_SIZE if val_size is None else val_size,
        PROMPTS_PER_ROLLOUT if prompts_per_rollout is None else prompts_per_rollout,
    )


def held_out_size(problems: int) -> int:
    """Return how many of the problems of a file `fit` sets aside: at most a tenth.

    Args:
        problems: Number of all problems.
    """
    size = _tenth(problems)
    if size < VAL_SIZE:
        rank_zero_info(
            f"data: {size} of {problems} problems are held out, a tenth (--data.val_size, by "
            f"default up to {VAL_SIZE}, or --data.val_path)"
        )
    return size


def rollout_size(problems: int, processes: int) -> int:
    """Return how many prompts a rollout has: at most all, and as many for each process.

    Args:
        problems: Number of training problems.
        processes: Number of processes.
    """
    size = min(PROMPTS_PER_ROLLOUT, max(1, problems // processes) * processes)
    if size < PROMPTS_PER_ROLLOUT:
        rank_zero_info(
            f"data: a rollout has {size} prompts, for there are {problems} training problems "
            f"(--data.prompts_per_rollout, by default up to {PROMPTS_PER_ROLLOUT})"
        )
    return size


def note_complete_use(problems: int) -> None:
    """Say that an evaluation uses all problems of a file, those of a training on it included."""
    rank_zero_info(
        f"data: all {problems} problems; of this file `fit` holds {_tenth(problems)} out, which "
        f"--data.val_size={_tenth(problems)} evaluates"
    )


def _tenth(problems: int) -> int:
    return min(VAL_SIZE, max(1, problems // 10))
