"""Files and folders that are complete or absent, whenever a run is killed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

UNFINISHED = ".tmp"
"""Behind the name of what is being written. What a killed run has left of it is written anew."""
REPLACED = ".old"
"""Behind the name of a folder (or file) for the moment in which another takes its place."""


def is_trial(trainer: Trainer) -> bool:
    """Return whether a run is only tried out, by `fast_dev_run`, and leaves nothing."""
    return bool(vars(trainer)["fast_dev_run"])


def may_write(trainer: Trainer) -> bool:
    """Return whether this process writes a run's files: the first rank, but not in a trial."""
    return trainer.is_global_zero and not is_trial(trainer)


def local_path(path: str | Path, name: str) -> Path:
    """Return the path that a `file:` URL stands for, and any other path as it is.

    Lightning takes URLs for directories where we take paths: results would go to two places.

    Args:
        path: A path or a URL.
        name: The flag or argument that it comes from.

    Raises:
        ValueError: If it is a URL of another place than this machine.
    """
    text = str(path)
    if text.startswith("file:"):
        # Lightning's own normalisation leaves one slash of three.
        bare = re.sub(r"^file:(?://(?:localhost)?(?=/))?", "", text)
        if not bare.startswith("//"):
            return Path(re.sub(r"^/+", "/", unquote(bare)))
    elif not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return Path(path)
    raise ValueError(
        f"{name}: {text} is a URL; expected a path of this machine (mount the place, or copy from "
        "and to it)"
    )


def run_path(trainer: Trainer, *parts: str | Path, given: str | None = None) -> Path:
    """Return a path in a run's folder, or the one that was given instead.

    Raises:
        ValueError: If it is a URL of another place than this machine.
    """
    if given is not None:
        return local_path(given, "dirpath")
    return Path(local_path(trainer.default_root_dir, "--trainer.default_root_dir"), *parts)


def check_place(folder: Path) -> None:
    """Check that a directory can be made, or is there and can be written to; make nothing.

    Raises:
        OSError: As making it would, and if it cannot be written to.
    """
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    effective = os.access in os.supports_effective_ids
    if not nearest.is_dir():
        code = errno.EEXIST if nearest == folder else errno.ENOTDIR
    elif not os.access(nearest, os.W_OK | os.X_OK, effective_ids=effective):
        code = errno.EACCES
    else:
        return
    raise OSError(code, os.strerror(code), str(folder))


@contextlib.contextmanager
def complete_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes its name when all of it is on the disk.

    Args:
        path: The file; its folder is made if need be.
        mode: "w" for text in UTF-8, "wb" for bytes.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    if path.is_symlink() or (path.exists() and not path.is_file()):
        # What is no ordinary file, such as /dev/stdout, is written to as it is.
        try:
            with path.open(mode, **text) as file:
                yield file
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk does not know whose
            raise
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    try:
        with unfinished.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    put_in_place(unfinished, path)


def put_in_place(finished: Path, path: Path) -> None:
    """Give a finished file or folder the name of the one that it replaces.

    With folders there is a moment without either; `recover` ends it after a kill.
    """
    replaced = path.with_name(f"{path.name}{REPLACED}")
    if path.exists() and (path.is_dir() or finished.is_dir()):
        remove(replaced)
        path.rename(replaced)
    os.replace(finished, path)
    remove(replaced)
    _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def recover(path: Path) -> None:
    """Bring back what was about to be replaced when the run was killed."""
    replaced = path.with_name(f"{path.name}{REPLACED}")
    if replaced.exists() and not path.exists():
        replaced.rename(path)


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file with their ends, without a last one that is half written."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [line for line in file if line.endswith("\n")]


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power failure, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
