"""Run `vcppo report`: write one HTML page about one or more runs, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_vcppo.common.errors import OneLineArguments
from lightning_vcppo.common.terminal import waiting_for
from lightning_vcppo.report import write_report


def main(args: Sequence[str]) -> None:
    """Run `vcppo report`.

    Args:
        args: Arguments after the command's name.

    Raises:
        ValueError: As `write_report`.
        ImportError: As `write_report`.
    """
    parser = OneLineArguments(
        "vcppo report", description="Write one HTML page about one or more runs."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--output", type=Path, help="HTML file; default: report.html in the first run"
    )
    arguments = parser.parse_args(args)
    with waiting_for("Drawing the report"):
        page = write_report(arguments.runs, arguments.output)
    print(f"The report is in {page}")
