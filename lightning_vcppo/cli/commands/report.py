"""Run `vcppo report`: write one HTML page about one or more runs, without torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lightning_vcppo.common.errors import OneLineArguments, require
from lightning_vcppo.common.terminal import waiting_for
from lightning_vcppo.interchange.schemas import Fields
from lightning_vcppo.interchange.steps import CountTokens, is_dump, read_dumps
from lightning_vcppo.report import write_report
from lightning_vcppo.report.page import render
from lightning_vcppo.report.reading import Run, read_run, read_runs
from lightning_vcppo.report.watching import HOST, WatchedPage, build_server


def main(args: Sequence[str]) -> None:
    """Run `vcppo report`.

    Args:
        args: Arguments after the command's name.

    Raises:
        ValueError: As `write_report`.
        ImportError: As `write_report`.
    """
    arguments = _parser().parse_args(args)
    read = _reader(arguments)
    if arguments.watch:
        _watch(arguments.runs, read, arguments.port)
        return
    notes: list[str] = []

    def read_and_note(directory: Path, name: str) -> Run:
        run = read(directory, name)
        notes.extend(f"{name}: {note}" for note in run.notes if not run.trainer)
        return run

    with waiting_for("Drawing the report"):
        page = write_report(arguments.runs, arguments.output, read_and_note)
    for note in notes:
        print(note)
    print(f"The report is in {page}")


def _watch(directories: Sequence[Path], read: Callable[[Path, str], Run], port: int) -> None:
    """Serve the page until the program is interrupted."""
    for directory in directories:
        require(directory.exists(), f"{directory}: no such directory")
    require(0 <= port < 2**16, f"--port={port}: expected 0..{2**16 - 1}; 0 takes a free port")
    page = WatchedPage(directories, lambda: render(read_runs(directories, read)))
    try:
        server = build_server(page, port)
    except OSError as error:
        raise ValueError(f"--port={port}: expected a free port: {error.strerror}") from error
    with server:
        print(f"The report is at http://{HOST}:{server.server_port}/ (Ctrl+C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _parser() -> argparse.ArgumentParser:
    parser = OneLineArguments(
        "vcppo report", description="Write one HTML page about one or more runs."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="directory of `vcppo fit`, or of rollouts that another trainer dumped over its steps",
    )
    parser.add_argument("--output", type=Path, help="HTML file; default: report.html in the first")
    parser.add_argument(
        "--watch",
        action="store_true",
        help=f"serve the page at {HOST} and follow the runs while they train",
    )
    parser.add_argument("--port", type=int, default=0, help="port of --watch; default: a free one")
    parser.add_argument("--model", help="model whose tokenizer counts tokens of dumps without ids")
    for name in ("prompt", "response", "reward"):
        parser.add_argument(f"--{name}_field", help=f"name of the field with the {name} in dumps")
    return parser


def _reader(arguments: argparse.Namespace) -> Callable[[Path, str], Run]:
    """Return a function that reads a run, or the dumps of another trainer."""
    fields = Fields(arguments.prompt_field, arguments.response_field, arguments.reward_field)
    count = _counter(arguments.model) if arguments.model else None

    def read(directory: Path, name: str) -> Run:
        require(
            not any(directory.glob("seed_*/config.yaml")),
            f"{directory}: holds the runs of several seeds; name them, as in {directory}/seed_*",
        )
        if is_dump(directory):
            return read_dumps(directory, name, fields, count)
        return read_run(directory, name)

    return read


def _counter(model: str) -> CountTokens:
    with waiting_for("Loading"):  # the import includes torch
        from lightning_vcppo.models.loading import load_tokenizer
    tokenizer = load_tokenizer(model)

    def count(texts: list[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    return count
