"""Decide whether a run starts, resumes, or replaces another in its directory; never silently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_vcppo.common.files import recover, remove
from lightning_vcppo.common.suggestions import near_file

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
TRACES = ("metrics.csv", f"{CHECKPOINTS}/*.ckpt", "hpc_ckpt_*.ckpt", "diagnostics/*.jsonl")
"""Files that a training run leaves in its directory from its first rollout on."""


def find_last(directory: Path) -> Path | None:
    """Return the checkpoint from which the run of a directory resumes, if there is one."""
    path = directory / CHECKPOINTS / LAST
    recover(path)
    return path if path.exists() else None


def was_requeued(directory: Path) -> bool:
    """Return whether SLURM has restarted this job after Lightning saved it."""
    return SLURMEnvironment.detect() and any(directory.glob("hpc_ckpt_*.ckpt"))


def choose_start(directory: Path, ckpt_path: str | None, *, overwrite: bool) -> str | None:
    """Return the checkpoint that a training run starts from; None to start from scratch.

    Args:
        directory: Directory of the run.
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
        last = find_last(directory)
        if last is None:
            rank_zero_info(f"{directory} has no {CHECKPOINTS}/{LAST} yet: starting from scratch")
        return str(last) if last else None
    require_checkpoint(ckpt_path)  # before anything is overwritten
    if ckpt_path is None and was_requeued(directory):
        return "hpc"
    if ckpt_path is None or directory.absolute() not in Path(ckpt_path).absolute().parents:
        _claim(directory, overwrite=overwrite)
    return ckpt_path


def choose_weights(directory: Path, ckpt_path: str | None) -> str | None:
    """Return the checkpoint to evaluate; "last" is the one from which the run would resume.

    Raises:
        ValueError: If "last" does not exist.
    """
    if ckpt_path != "last":
        require_checkpoint(ckpt_path)
        return ckpt_path
    last = find_last(directory)
    if last is None:
        raise ValueError(f"--ckpt_path=last: {directory} has no {CHECKPOINTS}/{LAST}")
    return str(last)


def require_checkpoint(ckpt_path: str | None) -> None:
    """Refuse a checkpoint that does not exist; URLs and Lightning's own names are its business.

    Raises:
        ValueError: If there is no such file or directory.
    """
    if ckpt_path is None or re.match(r"hpc$|registry(:|$)|\w+://", ckpt_path):
        return
    path = Path(ckpt_path)
    recover(path)
    if not path.exists():
        hint = near_file(path) or "; expected last, or the path of a checkpoint"
        raise ValueError(f"--ckpt_path: no such file {path}{hint}")


@rank_zero_only
def _claim(directory: Path, *, overwrite: bool) -> None:
    """Refuse a directory that contains a run, or remove the checkpoints of that run.

    Its other files are replaced by their writers when training starts.
    """
    traces = list(_traces(directory))
    if traces and not overwrite:
        raise ValueError(
            f"{directory} contains a run ({traces[0].relative_to(directory)}): resume it with "
            "--ckpt_path=last, keep it with another --trainer.default_root_dir, or replace it with "
            "--overwrite"
        )
    for path in traces:
        if path.suffix == ".ckpt":
            remove(path)


def _traces(directory: Path) -> Iterator[Path]:
    for pattern in TRACES:
        yield from sorted(directory.glob(pattern))
