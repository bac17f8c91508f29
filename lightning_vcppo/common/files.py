"""Write files and directories that are complete or absent, even if the run is killed."""

from __future__ import annotations

import contextlib
import csv
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
"""Suffix of a file or directory while it is written; one left by a killed run is replaced."""
REPLACED = ".old"
"""Suffix of a directory (or file) while another one takes its name."""


def is_trial(trainer: Trainer) -> bool:
    """Return whether a run is a trial by `fast_dev_run`, which writes nothing."""
    return bool(vars(trainer)["fast_dev_run"])


def may_write(trainer: Trainer) -> bool:
    """Return whether this process writes a run's files: the first rank, but not in a trial."""
    return trainer.is_global_zero and not is_trial(trainer)


def local_path(path: str | Path, name: str) -> Path:
    """Return the path of a `file:` URL, and any other path unchanged.

    Lightning accepts URLs for directories where we accept paths: results would go to two places.

    Args:
        path: A path or a URL.
        name: The flag or argument that gave it.

    Raises:
        ValueError: If it is a URL of another machine.
    """
    text = str(path)
    if text.startswith("file:"):
        # Lightning's own normalization keeps one slash of three.
        bare = re.sub(r"^file:(?://(?:localhost)?(?=/))?", "", text)
        if not bare.startswith("//"):
            return Path(re.sub(r"^/+", "/", unquote(bare)))
    elif not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return Path(path)
    raise ValueError(
        f"{name}: {text} is a URL; expected a path on this machine (mount the storage, or copy "
        "from and to it)"
    )


def run_path(trainer: Trainer, *parts: str | Path, given: str | None = None) -> Path:
    """Return a path in a run's directory, or `given` if it is not None.

    Raises:
        ValueError: If it is a URL of another machine.
    """
    if given is not None:
        return local_path(given, "dirpath")
    return Path(local_path(trainer.default_root_dir, "--trainer.default_root_dir"), *parts)


def check_place(directory: Path) -> None:
    """Check that a directory exists and is writable, or can be created; create nothing.

    Raises:
        OSError: If it could not be created, or is not writable.
    """
    directory = directory.absolute()
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    effective = os.access in os.supports_effective_ids
    if not nearest.is_dir():
        code = errno.EEXIST if nearest == directory else errno.ENOTDIR
    elif not os.access(nearest, os.W_OK | os.X_OK, effective_ids=effective):
        code = errno.EACCES
    else:
        return
    raise OSError(code, os.strerror(code), str(directory))


@contextlib.contextmanager
def complete_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that gets its name only when it is completely on the disk.

    Args:
        path: The file; its directory is created if necessary.
        mode: "w" for text in UTF-8, "wb" for bytes.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    if path.is_symlink() or (path.exists() and not path.is_file()):
        # A path that is not a regular file, such as /dev/stdout, is written directly.
        try:
            with path.open(mode, **text) as file:
                yield file
        except OSError as error:
            error.filename = error.filename or str(path)  # an error of a full disk names no file
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
    """Rename a finished file or directory to the one that it replaces.

    With directories there is a moment in which neither exists; `recover` repairs it after a kill.
    """
    replaced = path.with_name(f"{path.name}{REPLACED}")
    if path.exists() and (path.is_dir() or finished.is_dir()):
        remove(replaced)
        path.rename(replaced)
    os.replace(finished, path)
    remove(replaced)
    _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def recover(path: Path) -> None:
    """Restore a file or directory that was being replaced when the run was killed."""
    replaced = path.with_name(f"{path.name}{REPLACED}")
    if replaced.exists() and not path.exists():
        replaced.rename(path)


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file with their line ends, without an incomplete last line."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [line for line in file if line.endswith("\n")]


def whole_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv, without an incomplete last one.

    Raises:
        ValueError: If it is not a CSV file in UTF-8; the message names the file.
    """
    try:
        rows = list(csv.DictReader(whole_lines(path)))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8 text") from None
    except csv.Error as error:  # a cell beyond csv's limit, or a line break inside one
        raise ValueError(f"{path}: expected CSV as CSVLogger writes it: {error}") from None
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise ValueError(f"{path}:{number}: expected no more cells than the header names")
    return rows


def _sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power failure, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
