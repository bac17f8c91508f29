"""Rollouts whose responses say with their first character whether they are right."""

from __future__ import annotations

import json
import random
from pathlib import Path


def begins_with_y(response: str, answer: int) -> float:
    """Reward as the rollouts do."""
    return 1.0 if response.startswith("y") else -1.0


def write_rollouts(path: Path, **changes: object) -> Path:
    """Write 12 prompts with 4 responses each, half of them right; return the path."""
    rng = random.Random(0)
    with path.open("w") as file:
        for problem in range(12):
            for sample in range(4):
                good = (problem + sample) % 2 == 0
                text = ("y" if good else "n") * 4 + "x" * rng.randint(2, 6)
                row = {"prompt": f"{problem}?", "response": text, "answer": problem}
                row |= {"reward": begins_with_y(text, problem)} | changes
                file.write(json.dumps(row) + "\n")
    return path
