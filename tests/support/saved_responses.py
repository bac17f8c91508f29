"""Small records of stored rollouts."""

from __future__ import annotations

from lightning_vcppo.rollouts.records import SavedResponse


def saved_response(index: int, sample: int = 0, **changes: object) -> SavedResponse:
    fields: dict[str, object] = {
        "index": index,
        "sample": sample,
        "source": f"dump:{index}",
        "problem": "p",
        "answer": 1,
        "response": "r",
        "prediction": None,
        "correct": True,
        "length": 3,
        "finished": True,
        "prompt_ids": [1] * (index + 1),
        "response_ids": [2, 3, sample],
        "reward": float(sample),
        "origin": {},
    }
    return SavedResponse(**(fields | changes))
