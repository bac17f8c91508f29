"""Measure memory and rate of reading stored responses: `python -m benchmarks.rollout_sizes`.

10,000 and 100,000 generated responses are written in the format of `vcppo predict`, eight to a
prompt, and read into the store that critics are fitted from, each count in its own process. The
same process also reads the same lines with only `json.loads`, before and after.

    peak_mb     peak of the resident memory of the complete process while they are read
    rate        responses a second, by `read_responses`, which checks every field
    store_rate  the same with token ids checked and stored, by `TokenStore` and `Importer`
    json_rate   the same by `json.loads`

The last line is JSON: `peak_ratio` (the goal is at most 1.2), `rate_share` (at least 0.5, for the
larger count) and the numbers from which they are computed.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import forget_peak, in_own_process, peak_bytes, print_json, print_table

COUNTS = (10_000, 100_000)
SAMPLES = 8
VOCABULARY = 1000


def lines(count: int) -> Iterator[str]:
    """Yield responses of a hundred tokens on average, as lines of JSON."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    origin = {"tokenizer": "0" * 16, "model": "1" * 16, "temperature": 1.0}
    for number in range(count):
        index, sample = divmod(number, SAMPLES)
        length = rng.randint(50, 150)
        right = rng.random() < 0.5
        row = {
            "index": index,
            "sample": sample,
            "source": "generated",
            "problem": f"Problem {index}: what is {index} + {index % 97}?",
            "answer": index + index % 97,
            "response": " ".join(rng.choices(words, k=length)),
            "prediction": str(index),
            "correct": right,
            "length": length,
            "finished": True,
            "prompt_ids": [rng.randrange(VOCABULARY) for _ in range(40)],
            "response_ids": [rng.randrange(VOCABULARY) for _ in range(length)],
            "reward": 1.0 if right else -1.0,
            "origin": origin,
        }
        yield json.dumps(row) + "\n"


def json_seconds(file: Path) -> float:
    """Return the seconds that `json.loads` takes for all lines of a file."""
    start = time.perf_counter()
    with file.open(encoding="utf-8") as text:
        for line in text:
            json.loads(line)
    return time.perf_counter() - start


def measure(file: Path) -> dict[str, Any]:
    """Read a file into a store, and return memory and rates."""
    from lightning_vcppo.critic_lab.store import TokenStore
    from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
    from lightning_vcppo.interchange import Importer, read_responses

    before = json_seconds(file)
    importer = Importer(default_tokenizer(320))
    forget_peak()
    start = time.perf_counter()
    for _ in read_responses([file]):
        pass
    reading = time.perf_counter() - start
    start = time.perf_counter()
    store = TokenStore(importer.records(read_responses([file])), VOCABULARY)
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    loads = (before + json_seconds(file)) / 2
    return {
        "responses": len(store),
        "prompts": store.prompts,
        "peak_mb": peak / 1e6,
        "rate": len(store) / reading,
        "store_rate": len(store) / seconds,
        "json_rate": len(store) / loads,
    }


def main() -> None:
    """Measure both counts, or read one file."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, help="for the child process: the file to read")
    parser.add_argument("--counts", type=int, nargs=2, default=COUNTS)
    options = parser.parse_args()
    if options.file:
        print_json(measure(options.file))
        return
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for count in options.counts:
            file = Path(directory) / f"{count}.jsonl"
            with file.open("w", encoding="utf-8") as text:
                text.writelines(lines(count))
            found.append(in_own_process("benchmarks.rollout_sizes", "--file", file))
    print_table(
        "Reading stored responses",
        ("responses", "peak MB", "read/s", "stored/s", "json.loads/s"),
        [
            (f"{p['responses']:,}", p["peak_mb"], p["rate"], p["store_rate"], p["json_rate"])
            for p in found
        ],
    )
    small, large = found
    print_json(
        {
            "peak_ratio": large["peak_mb"] / small["peak_mb"],
            "rate_share": large["rate"] / large["json_rate"],
            "store_rate_share": large["store_rate"] / large["json_rate"],
            **{f"{key}_{p['responses']}": p[key] for p in found for key in p if key != "responses"},
        }
    )


if __name__ == "__main__":
    main()
