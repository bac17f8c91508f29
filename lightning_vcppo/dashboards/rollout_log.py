"""What looks at each rollout, and files with a JSON object on each, which a report can read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning_vcppo.common.files import complete_file, whole_lines

FOLDER = "diagnostics"
"""Of these files, in a run's folder."""
DIGITS = 6
"""Of the numbers in them: measurements, not state."""


class RolloutLog:
    """A JSON Lines file that a resumed run goes on with.

    Only the first rank may use it. What is not finite is written as null, which JSON has.
    """

    def __init__(self, path: Path) -> None:
        """Keep the path; nothing is written yet."""
        self.path = path

    def rewind(self, rollouts_done: int) -> None:
        """Drop the lines of later rollouts: the run goes on from a checkpoint, or starts anew."""
        if self.path.exists():
            kept = [line for line in whole_lines(self.path) if _rollout(line) <= rollouts_done]
            with complete_file(self.path) as file:
                file.writelines(kept)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line.

        Args:
            entry: Of plain types, with the key "rollout".
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
