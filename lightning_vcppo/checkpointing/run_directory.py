"""Whose folder is this? A run begins, goes on, or takes the place of another, never silently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_vcppo.common.files import recover, remove

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
TRACES = ("metrics.csv", f"{CHECKPOINTS}/*.ckpt", "hpc_ckpt_*.ckpt", "diagnostics/*.jsonl")
"""What a training leaves in its folder from its first rollout on."""


def find_last(folder: Path) -> Path | None:
    """Return the checkpoint from which the run of a folder goes on, if there is one."""
    path = folder / CHECKPOINTS / LAST
    recover(path)
    return path if path.exists() else None


def was_requeued(folder: Path) -> bool:
    """Tell whether SLURM has started this job again, after Lightning has saved it."""
    return SLURMEnvironment.detect() and any(folder.glob("hpc_ckpt_*.ckpt"))


def choose_start(folder: Path, ckpt_path: str | None, *, overwrite: bool) -> str | None:
    """Return the checkpoint that a training starts from, None to start from scratch.

    Args:
        folder: The run's.
        ckpt_path: What was asked for: a checkpoint, "last", or None for a new run (or for one that
            SLURM has requeued: Lightning's word for its checkpoint is "hpc").
        overwrite: Whether a new run may take the place of the one in the folder.

    Raises:
        ValueError: If a run would be overwritten that nobody has said may be.
    """
    if ckpt_path == "last":
        if overwrite:
            raise ValueError("--overwrite begins a run anew, --ckpt_path=last goes on with it")
        last = find_last(folder)
        if last is None:
            rank_zero_info(f"{folder} has no {CHECKPOINTS}/{LAST} yet: starting from scratch")
        return str(last) if last else None
    if ckpt_path is None and was_requeued(folder):
        return "hpc"
    if ckpt_path is None or folder.absolute() not in Path(ckpt_path).absolute().parents:
        _claim(folder, overwrite=overwrite)
    return ckpt_path


def choose_weights(folder: Path, ckpt_path: str | None) -> str | None:
    """Return the checkpoint to evaluate: "last" is the one that the run of the folder goes on from.

    Raises:
        ValueError: If there is none.
    """
    if ckpt_path != "last":
        return ckpt_path
    last = find_last(folder)
    if last is None:
        raise ValueError(f"--ckpt_path=last: {folder} has no {CHECKPOINTS}/{LAST}")
    return str(last)


@rank_zero_only
def _claim(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a run, or remove what that run could be resumed from.

    Its other files are for their writers to replace, once training starts.
    """
    traces = list(_traces(folder))
    if traces and not overwrite:
        raise ValueError(
            f"{folder} holds a run ({traces[0].relative_to(folder)}): go on with it by "
            "--ckpt_path=last, keep it by another --trainer.default_root_dir, or replace it by "
            "--overwrite"
        )
    for path in traces:
        if path.suffix == ".ckpt":
            remove(path)


def _traces(folder: Path) -> Iterator[Path]:
    for pattern in TRACES:
        yield from sorted(folder.glob(pattern))
