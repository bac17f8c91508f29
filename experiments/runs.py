"""Run `vcppo` commands for experiments, and read and write rows of CSV files."""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_vcppo.common.processes import ONE_THREAD

CONFIGS = Path(__file__).parents[1] / "configs"


def vcppo(arguments: Sequence[str], run_dir: Path) -> None:
    """Run a `vcppo` command with one thread, in a directory that is emptied first.

    Its output is written to `log.txt` in that directory.

    Raises:
        RuntimeError: If the command fails.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [*arguments, f"--trainer.default_root_dir={run_dir}", "--loggers=[csv]"]
    vcppo_plain(command, run_dir / "log.txt")


def vcppo_plain(command: Sequence[str], log: Path) -> None:
    """Run a `vcppo` command with one thread, without adding flags; its output goes to a file.

    Raises:
        RuntimeError: If the command fails.
    """
    print(f"$ vcppo {shlex.join(command)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "lightning_vcppo", *command],
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(done.stdout)
    if done.returncode:
        last = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(
            f"{log.parent}: {''.join(last)} (exit code {done.returncode}; see {log.name} there)"
        )


def holds_model(directory: Path) -> bool:
    """Return whether a directory has a model, which a run writes at its end."""
    return (directory / "model.safetensors").is_file()


def metric_rows(run_dir: Path, must: str, *more: str) -> Iterator[dict[str, str]]:
    """Yield metrics from those rows of a run's `metrics.csv` that have the first metric."""
    for row in read_rows(run_dir / "metrics.csv"):
        if row.get(must):
            yield {key: row.get(key) or "" for key in (must, *more)}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; an empty list if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file, which is created if needed; an existing one keeps its columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = None
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), None)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header or columns, extrasaction="ignore")
        if header is None:
            writer.writeheader()
        writer.writerows(rows)


def curves_of(results: Path) -> Path:
    """Return the file of training curves, which is next to the file of results."""
    return results.with_name(f"{results.stem}_curves.csv")


def holds_run(results: Path, which: Mapping[str, str]) -> bool:
    """Return whether a file of results has the run that these columns identify."""
    return any(which.items() <= row.items() for row in read_rows(results))


def write_report(
    results: Path,
    table: Callable[[Sequence[Mapping[str, str]]], str],
    draw: Callable[[Sequence[Mapping[str, str]], Path], None],
) -> None:
    """Write the rows of a file of results as a table and as a figure next to it.

    Args:
        results: File of results.
        table: Returns rows as a table in Markdown.
        draw: Draws rows into a file.
    """
    rows = read_rows(results)
    results.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    draw(rows, results.with_suffix(".png"))


def rounded(number: str) -> str:
    """Format a number for a CSV file with four digits; an empty text stays empty."""
    return f"{float(number):.4g}" if number else ""
