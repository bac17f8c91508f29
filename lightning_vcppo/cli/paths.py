"""Find the paths among the flags of a run, and read `file:` URLs as paths."""

from __future__ import annotations

import re
from typing import Any

from lightning_vcppo.common.files import local_path

_PATH = re.compile(
    r"(?:^|[._])(?:path|dirpath|default_root_dir|save_dir|actor|critic|reference|tokenizer)$"
    r"|\.evaluation_sets$"
)
"""Flags that hold a path, or several."""


def settle_paths(given: Any) -> None:
    """Replace `file:` URLs by paths, and refuse other URLs, in every flag of a run."""
    for key, value in vars(given.as_flat()).items():
        if not _PATH.search(key):
            continue
        given[key] = _settled(value, f"--{key.replace('.init_args', '')}")


def _settled(value: Any, flag: str) -> Any:
    if isinstance(value, list):
        return [_settled(each, flag) for each in value]
    if isinstance(value, dict):
        return {name: _settled(each, f"{flag}.{name}") for name, each in value.items()}
    return str(local_path(value, flag)) if isinstance(value, str) and ":" in value else value
