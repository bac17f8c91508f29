"""Write files with one JSON object for each rollout, which a report can read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning_vcppo.common.files import complete_file, whole_lines

DIRECTORY = "diagnostics"
"""Directory of these files, in a run's directory."""
DIGITS = 6
"""Significant digits of the numbers in them, which are measurements and not state."""


class RolloutLog:
    """A JSON Lines file to which a resumed run appends.

    Only the first rank may use it. Numbers that are not finite are written as null, because JSON
    has no others.
    """

    def __init__(self, path: Path) -> None:
        """Keep the path without writing."""
        self.path = path

    def rewind(self, rollouts_done: int) -> None:
        """Drop the lines of later rollouts when the run resumes or starts from the beginning."""
        if self.path.exists():
            kept = [line for line in whole_lines(self.path) if _rollout(line) <= rollouts_done]
            with complete_file(self.path) as file:
                file.writelines(kept)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line.

        Args:
            entry: A mapping of plain types, with the key "rollout".
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(entry), allow_nan=False) + "\n")


def _rollout(line: str) -> int:
    return int(json.loads(line)["rollout"])


def _plain(value: Any) -> Any:
    """Shorten numbers to `DIGITS`, and replace those that are not finite by None."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
