"""Decide whether a run starts, resumes, or replaces another in its directory; never silently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_vcppo.common.files import recover, remove

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
TRACES = ("metrics.csv", f"{CHECKPOINTS}/*.ckpt", "hpc_ckpt_*.ckpt", "diagnostics/*.jsonl")
"""Files that a training run leaves in its directory from its first rollout on."""


def find_last(folder: Path) -> Path | None:
    """Return the checkpoint from which the run of a directory resumes, if there is one."""
    path = folder / CHECKPOINTS / LAST
    recover(path)
    return path if path.exists() else None


def was_requeued(folder: Path) -> bool:
    """Return whether SLURM has restarted this job after Lightning saved it."""
    return SLURMEnvironment.detect() and any(folder.glob("hpc_ckpt_*.ckpt"))


def choose_start(folder: Path, ckpt_path: str | None, *, overwrite: bool) -> str | None:
    """Return the checkpoint that a training run starts from; None to start from scratch.

    Args:
        folder: Directory of the run.
        ckpt_path: Value of the flag: a checkpoint, "last", or None for a new run (or for one that
            SLURM has requeued; Lightning's name for its checkpoint is "hpc").
        overwrite: Whether a new run may replace the one in the directory.

    Raises:
        ValueError: If a run would be overwritten without `overwrite`, or the flags contradict each
            other.
    """
    if ckpt_path == "last":
        if overwrite:
            raise ValueError(
                "--overwrite starts a new run, --ckpt_path=last resumes the old one: give only one"
            )
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
    """Return the checkpoint to evaluate; "last" is the one from which the run would resume.

    Raises:
        ValueError: If "last" does not exist.
    """
    if ckpt_path != "last":
        return ckpt_path
    last = find_last(folder)
    if last is None:
        raise ValueError(f"--ckpt_path=last: {folder} has no {CHECKPOINTS}/{LAST}")
    return str(last)


@rank_zero_only
def _claim(folder: Path, *, overwrite: bool) -> None:
    """Refuse a directory that contains a run, or remove the checkpoints of that run.

    Its other files are replaced by their writers when training starts.
    """
    traces = list(_traces(folder))
    if traces and not overwrite:
        raise ValueError(
            f"{folder} contains a run ({traces[0].relative_to(folder)}): resume it with "
            "--ckpt_path=last, keep it with another --trainer.default_root_dir, or replace it with "
            "--overwrite"
        )
    for path in traces:
        if path.suffix == ".ckpt":
            remove(path)


def _traces(folder: Path) -> Iterator[Path]:
    for pattern in TRACES:
        yield from sorted(folder.glob(pattern))
