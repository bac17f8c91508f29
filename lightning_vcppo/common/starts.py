"""Compute fingerprints of a run's initial weights, without loading them and without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

START = "start.json"
"""File in a run's directory with the fingerprints of its initial weights, by network."""
NETWORKS = ("actor", "critic", "reference")
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
BLOCKS, BLOCK_BYTES = 64, 4096
"""Number and size of the blocks read from each weight file, evenly spaced."""


def start_fingerprints(settings: dict[str, Any]) -> dict[str, str]:
    """Return the fingerprints of a run's networks before training.

    Args:
        settings: The arguments of the module, of which `actor`, `critic` and `reference` are used.
    """
    return {name: fingerprint(settings[name]) for name in NETWORKS if settings.get(name)}


def fingerprint(source: Any) -> str:
    """Return a fingerprint that changes with the weights of a model.

    Args:
        source: A directory with weights gives 16 hex digits. A source that is not on this machine,
            such as a hub id, and a model config are their own fingerprints.
    """
    if not isinstance(source, str):
        return json.dumps(source, sort_keys=True, default=str)
    directory = Path(source).expanduser()
    if not directory.is_dir():
        return source
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for pattern in WEIGHTS for path in directory.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for block in range(BLOCKS):
                file.seek(max(0, size - BLOCK_BYTES) * block // (BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
