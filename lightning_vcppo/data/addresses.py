"""Read a source that is written as one string: `math-ai/aime25@main:default[test]`.

    data/aime24.jsonl           .jsonl .json .txt (JSON Lines too) .csv .tsv .parquet,
                                each also behind .gz, .xz or .zst
    data/part-*.parquet         the files of a pattern, in the order of their names
    data/aime                   a directory of `datasets.load_dataset` or `save_to_disk`
    math-ai/aime25              a data set of the hub
    reasoning_gym:chain_sum     a task of reasoning-gym, generated from `size` and `seed`

A directory or hub id may be followed by `:config` and `[split]`, an id by `@revision`. A file or
directory that exists under the complete text has precedence.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from lightning_vcppo.common.suggestions import near_file
from lightning_vcppo.data.files import is_data_file

REASONING_GYM = "reasoning_gym"

_GYM_TASK = re.compile(rf"{REASONING_GYM}[:/](\w+)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ADDRESS = re.compile(
    r"(?P<path>.+?)(?:@(?P<revision>[^@:\[\]]+)|:(?P<config>[^@:\[\]]+))*(?:\[(?P<split>.+)\])?"
)
_PATTERN = re.compile(r"[*?]")


class HubAddress(NamedTuple):
    """A data set of the hub, or a directory that `datasets` reads.

    Attributes:
        path: Hub id or directory.
        revision: Branch, tag or commit of an id.
        config: Configuration (subset).
        split: Split, such as "train" or "train[:100]".
    """

    path: str | Path
    revision: str | None = None
    config: str | None = None
    split: str | None = None


def gym_task(address: str) -> str | None:
    """Return the task of reasoning-gym that an address names, or None."""
    task = _GYM_TASK.fullmatch(address)
    return task[1] if task else None


def find_source(address: str) -> list[Path] | HubAddress:
    """Return the files of an address, or the data set that `datasets` reads.

    Args:
        address: See the head of this file; not a task of reasoning-gym.

    Raises:
        ValueError: If there is no such file, pattern or directory, and it is not a hub id.
    """
    if not address or "\0" in address:
        raise ValueError(
            f"path: expected a file, a directory or a data set of the hub, got {address!r}"
        )
    file = Path(address).expanduser()
    if file.is_dir():
        return HubAddress(file)
    if file.exists():
        return [file]
    if file.is_symlink():
        raise ValueError(f"{address}: a symbolic link to {os.readlink(file)}, which does not exist")
    if _PATTERN.search(file.name) and file.parent.is_dir():
        return _matching(file)
    parts = _ADDRESS.fullmatch(address)
    assert parts is not None
    revision, config, split = parts["revision"], parts["config"], parts["split"]
    directory = Path(parts["path"]).expanduser()
    if directory.is_dir():
        if revision:
            raise ValueError(f"{address}: a directory has no revision; omit @{revision}")
        return HubAddress(directory, None, config, split)
    is_id = _HUB_ID.fullmatch(parts["path"]) and not is_data_file(directory.name)
    if is_id and not directory.parent.exists():
        return HubAddress(parts["path"], revision, config, split)
    if not file.parent.is_dir():
        raise ValueError(f"{address}: no such file, the directory {file.parent} does not exist")
    raise ValueError(f"{address}: no such file{near_file(file)}")


def _matching(pattern: Path) -> list[Path]:
    """Return the files that a pattern matches, in the order of their names."""
    files = sorted(file for file in pattern.parent.glob(pattern.name) if file.is_file())
    if not files:
        raise ValueError(f"{pattern}: no file matches this pattern")
    return files
