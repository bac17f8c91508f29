"""Format of a checkpoint: its keys, and the checks that precede loading."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from lightning_vcppo.common.errors import require

FORMAT = 1
"""Version of what this package adds to a checkpoint; raised when older ones become unreadable."""
META_FILE = "meta.pt"
"""Lightning's name for the file with the unsharded parts of a sharded checkpoint (a directory of
`fsdp2`). It is written last, so a directory without it is not a checkpoint."""


class Keys:
    """Keys of a checkpoint, which is a dict.

    Callbacks and collaborators choose the keys within their own state.
    """

    WEIGHTS = "state_dict"
    """Lightning: all weights of the module."""
    OPTIMIZERS = "optimizer_states"
    """Lightning: one state for each optimizer; absent with `save_weights_only`."""
    SCHEDULERS = "lr_schedulers"
    """Lightning: learning-rate schedules."""
    LOOPS = "loops"
    """Lightning: progress within epochs."""
    LIGHTNING_VERSION = "pytorch-lightning_version"
    """Lightning: version that wrote the checkpoint."""

    VERSION = "vcppo_format"
    """`FORMAT` at the time of writing."""
    ROLLOUTS_DONE = "rollouts_done"
    """Number of training steps."""
    RUN_SEED = "run_seed"
    """Seed of all random streams."""
    RANKS = "ranks"
    """Number of processes."""
    SKIPPED_IN_A_ROW = "skipped_in_a_row"
    """Number of latest updates that were skipped because they were not finite, by network."""
    FOLDERS = "folders"
    """Files of each network's Hugging Face directory, without weights, by the directory's name."""
    TOKENIZER = "tokenizer"
    """Files of the tokenizer."""
    ADAPTERS = "lora"
    """Settings and bases of the adapters; None without LoRA."""
    CRITIC = "value"
    """Settings of the critic that must not change when a run resumes."""
    MASTER_WEIGHTS = "master_weights"
    """What keeps small updates of bfloat16 weights."""
    PHASE = "phase"
    """Value of the enum `Phase`."""
    UPDATES_DONE = "updates_done"
    """Number of optimizer steps, by network."""
    WAITING_GROUPS = "waiting_groups"
    """Groups that are kept for the next rollout."""
    ROLLOUTS_AHEAD = "rollouts_ahead"
    """Rollouts that were sampled ahead and are not learned from yet."""
    UNFINISHED = "unfinished"
    """Responses that were sampled in part."""
    METRICS_ROWS = "metrics_rows"
    """Number of rows in metrics.csv at the time of writing."""


ALWAYS = {Keys.WEIGHTS, Keys.ROLLOUTS_DONE, Keys.RUN_SEED, Keys.LIGHTNING_VERSION}
TO_TRAIN = {Keys.LOOPS, Keys.OPTIMIZERS, Keys.SCHEDULERS}


def check_checkpoint(path: Path, *, to_train: bool) -> None:
    """Refuse a file that is not a checkpoint of this package, or not a complete one.

    Args:
        path: The file; a directory with a sharded checkpoint is checked when it is loaded.
        to_train: Whether training is to be resumed from it.

    Raises:
        ValueError: If the file is anything else; the line explains what it is.
    """
    if path.is_dir():
        found = next(iter(sorted(path.glob("**/*.ckpt"))), path / "checkpoints" / "last.ckpt")
        require(
            is_sharded_checkpoint(path),
            f"{path}: a directory; expected a checkpoint, such as {found}",
        )
        return
    checkpoint = read_file(path)
    _check_keys(checkpoint, path, ALWAYS)
    version = checkpoint.get(Keys.VERSION, FORMAT)
    require(
        version <= FORMAT,
        f"{path}: written by a newer lightning-vcppo (format {version}, this one knows {FORMAT}); "
        "pip install -U lightning-vcppo",
    )
    if to_train:
        require(
            Keys.OPTIMIZERS in checkpoint,
            f"{path}: contains only weights, so training cannot be resumed from it; save "
            "checkpoints without save_weights_only, or start a new run from an exported directory "
            "with --model.actor",
        )
        _check_keys(checkpoint, path, TO_TRAIN)


def is_sharded_checkpoint(path: Path) -> bool:
    """Return whether a path is the directory of a sharded checkpoint."""
    return (path / META_FILE).is_file()


@contextmanager
def reading_shards(path: Path) -> Iterator[None]:
    """Turn what torch raises for shards that are truncated or of another model into one line.

    Raises:
        ValueError: In place of torch's error, which is not an `Exception`.
    """
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise ValueError(
            f"{path}: cannot be loaded, a shard is truncated or of another model; "
            f"{type(cause).__name__}: {cause}"
        ) from error


def read_file(path: Path) -> Any:
    """Read the file of a checkpoint; tensors stay on the disk until they are used.

    Raises:
        ValueError: If the file is not a checkpoint; the line explains what it is.
    """
    require(
        zipfile.is_zipfile(path),
        f"{path}: not a complete checkpoint (truncated while it was written or copied, or another "
        "kind of file); use an earlier one",
    )
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: contains Python objects, which could run code when loaded; expected only "
            "numbers, texts and tensors"
        ) from error
    except (RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path}: not a checkpoint ({type(error).__name__})") from error


def _check_keys(checkpoint: Any, path: Path, expected: Collection[str]) -> None:
    found = checkpoint if isinstance(checkpoint, dict) else {}
    missing = sorted(set(expected) - set(found))
    require(
        not missing,
        f"{path}: not a checkpoint of this package, {', '.join(missing)} missing; expected one "
        "that `vcppo fit` has written",
    )
