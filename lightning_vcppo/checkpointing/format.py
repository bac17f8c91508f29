"""What is a checkpoint, and can a run go on from it? Asked before anything else is loaded."""

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
"""Of what this package adds to a checkpoint; raised when an older one cannot be read any more."""
PARTS = "meta.pt"
"""Lightning's name for the file of a checkpoint in parts (a folder of `fsdp2`) with all that is not
sharded; it is written last, so a folder without it is no checkpoint."""
ALWAYS = {"state_dict", "rollouts_done", "run_seed", "pytorch-lightning_version"}
TO_TRAIN = {"loops", "optimizer_states", "lr_schedulers"}


def check_checkpoint(path: Path, *, to_train: bool) -> None:
    """Refuse a file that is no checkpoint of this package, or not a whole one.

    Args:
        path: The file; a folder with the shards of a checkpoint is taken as it is.
        to_train: Whether training is to go on from it.

    Raises:
        ValueError: One line that says what it is instead.
    """
    if path.is_dir():
        require(
            in_parts(path), f"{path}: a folder; expected a checkpoint, such as {path}/last.ckpt"
        )
        return
    checkpoint = read_file(path)
    _check_keys(checkpoint, path, ALWAYS)
    version = checkpoint.get("vcppo_format", FORMAT)
    require(
        version <= FORMAT,
        f"{path}: written by a newer lightning-vcppo (format {version}, this one knows {FORMAT}); "
        "pip install -U lightning-vcppo",
    )
    if to_train:
        require(
            "optimizer_states" in checkpoint,
            f"{path}: holds weights alone, from which training cannot go on; save checkpoints "
            "without save_weights_only, or start anew from an exported folder with --model.actor",
        )
        _check_keys(checkpoint, path, TO_TRAIN)


def in_parts(path: Path) -> bool:
    """Tell whether a path is that of a checkpoint in parts."""
    return (path / PARTS).is_file()


@contextmanager
def reading_parts(path: Path) -> Iterator[None]:
    """Turn what torch raises on parts that are cut off, or of another model, into one line.

    Raises:
        ValueError: In its place, which is no `Exception`.
    """
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise ValueError(
            f"{path}: cannot be loaded, a part is cut off or of another model; "
            f"{type(cause).__name__}: {cause}"
        ) from error


def read_file(path: Path) -> Any:
    """Read a checkpoint's file; tensors stay in it until they are used.

    Raises:
        ValueError: One line that says what it is instead.
    """
    require(
        zipfile.is_zipfile(path),
        f"{path}: not a whole checkpoint (cut off while it was written or copied, or another kind "
        "of file); take an earlier one",
    )
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds Python objects, which could run code when loaded; expected numbers, "
            "texts and tensors alone"
        ) from error
    except (RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path}: not a checkpoint ({type(error).__name__})") from error


def _check_keys(checkpoint: Any, path: Path, expected: Collection[str]) -> None:
    found = checkpoint if isinstance(checkpoint, dict) else {}
    missing = sorted(set(expected) - set(found))
    require(
        not missing,
        f"{path}: no checkpoint of this package, it lacks {', '.join(missing)}; expected one that "
        "`vcppo fit` has written",
    )
