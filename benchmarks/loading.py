"""Measure time and memory of reading a large set of problems: `python -m benchmarks.loading`.

A set of `--rows` rows in the schema of NuminaMath (problem, solution, answer, source), about 1.4 kB
each, is written in four formats. Each is read by `load_problems` in its own process, and in another
by `datasets.load_dataset` only, with an empty cache.

    mb          size of the file
    seconds     of reading, without imports and the start of the process
    peak        growth of the resident set while reading, as a multiple of the file's size
    of text     the same as a multiple of the set's size as JSON Lines, to which formats unpack

The last line is JSON: `jsonl_seconds`, `jsonl_peak`, `jsonl_datasets_seconds`, ...
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import forget_peak, in_own_process, peak_bytes, print_json, print_table

FORMATS = ("jsonl", "json", "parquet", "jsonl.gz")
READERS = {"json": "json", "parquet": "parquet"}
"""Builders of `datasets` by a part of the name."""


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield rows whose answers are integers, fractions and expressions, as in MATH."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    for number in range(count):
        a, b = rng.randrange(1, 10**4), rng.randrange(2, 10**4)
        answer = (str(a), rf"\frac{{{a}}}{{{b}}}", rf"{a}\sqrt{{{b}}}", f"{a},{b:03d}")[number % 4]
        yield {
            "problem": f"Problem {number}: "
            + " ".join(rng.choices(words, k=40))
            + f" ${a} + {b}$?",
            "solution": " ".join(rng.choices(words, k=110)) + rf" so it is $\boxed{{{answer}}}$.",
            "answer": answer,
            "source": rng.choice(("olympiads", "cn_k12", "aops_forum")),
        }


def write(directory: Path, kind: str, count: int) -> Path:
    """Write the set in a format and return its file."""
    file = directory / f"set.{kind}"
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows(count)]), file)
    elif kind == "json":
        file.write_text(json.dumps([*rows(count)]))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows(count)).encode()
        file.write_bytes(gzip.compress(text, 3) if kind.endswith(".gz") else text)
    return file


def measure(file: Path, reader: str) -> dict[str, float]:
    """Read a file in this process and return seconds and bytes."""
    import datasets  # both readers import it

    from lightning_vcppo.data.sources import load_problems

    datasets.disable_progress_bars()
    gc.collect()
    forget_peak()
    before, began = peak_bytes(), time.perf_counter()
    if reader == "ours":
        read: Any = load_problems(file)
    else:
        builder = next(name for part, name in READERS.items() if part in file.name)
        cache = tempfile.mkdtemp(dir=file.parent)
        read = datasets.load_dataset(builder, data_files=str(file), split="train", cache_dir=cache)
    seconds = time.perf_counter() - began
    return {"rows": len(read), "seconds": seconds, "bytes": peak_bytes() - before}


def main() -> None:
    """Print a row for each format, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument(
        "--point", nargs=2, metavar=("FILE", "READER"), help="for the child process"
    )
    given = parser.parse_args()
    if given.point:
        print_json(measure(Path(given.point[0]), given.point[1]))
        return

    table, results = [], {"rows": given.rows}
    with tempfile.TemporaryDirectory() as directory:
        text = write(Path(directory), "jsonl", given.rows).stat().st_size
        for kind in FORMATS:
            file = write(Path(directory), kind, given.rows)
            size = file.stat().st_size
            ours, theirs = (
                in_own_process("benchmarks.loading", "--point", file, reader)
                for reader in ("ours", "datasets")
            )
            assert ours["rows"] == theirs["rows"] == given.rows
            peak, of_text = ours["bytes"] / size, ours["bytes"] / text
            table.append([kind, size / 1e6, ours["seconds"], peak, of_text, theirs["seconds"]])
            name = kind.replace(".", "_")
            results |= {f"{name}_seconds": ours["seconds"], f"{name}_peak": peak}
            results[f"{name}_peak_of_text"] = of_text
            results[f"{name}_datasets_seconds"] = theirs["seconds"]
            file.unlink()
    header = ["", "mb", "seconds", "peak", "of text", "datasets seconds"]
    print_table(f"{given.rows:,} rows", header, table)
    print_json(results)


if __name__ == "__main__":
    main()
