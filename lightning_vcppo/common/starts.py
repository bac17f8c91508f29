"""Name the weights that a run starts from, without loading them and without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

START = "start.json"
"""File in a run's directory with the names of the weights it started from, by network."""
NETWORKS = ("actor", "critic", "reference")
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
BLOCKS, BLOCK_BYTES = 64, 4096
"""Parts of each file of weights that are read, evenly spaced: an update changes all of them."""


def start_fingerprints(settings: dict[str, Any]) -> dict[str, str]:
    """Return the names of a run's networks before training.

    Args:
        settings: The arguments of the module; `actor`, `critic` and `reference` are looked at.
    """
    return {name: fingerprint(settings[name]) for name in NETWORKS if settings.get(name)}


def fingerprint(source: Any) -> str:
    """Return a name that changes with the weights of a model.

    Args:
        source: A folder with weights gives 16 hex digits of them. What is not on this machine, such
            as a name on a hub, and the settings of a fresh model name themselves.
    """
    if not isinstance(source, str):
        return json.dumps(source, sort_keys=True, default=str)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return source
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for block in range(BLOCKS):
                file.seek(max(0, size - BLOCK_BYTES) * block // (BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
