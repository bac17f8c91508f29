"""`vcppo report`: write one HTML page about one or more runs. It starts without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_vcppo.common.errors import OneLineArguments
from lightning_vcppo.common.terminal import waiting_for
from lightning_vcppo.report import write_report


def main(args: Sequence[str]) -> None:
    """Run `vcppo report`.

    Args:
        args: What follows the command.

    Raises:
        ValueError: As `write_report`.
        ImportError: As `write_report`.
    """
    parser = OneLineArguments(
        "vcppo report", description="Write one HTML page about one or more runs."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--output", type=Path, help="the page; default: report.html in the first")
    arguments = parser.parse_args(args)
    with waiting_for("Drawing the report"):
        page = write_report(arguments.runs, arguments.output)
    print(f"The report is in {page}")
