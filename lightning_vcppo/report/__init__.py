"""`vcppo report`: one HTML page about one or more runs, to be opened offline and passed on.

reading.py reads folders, summary.py computes, drawing.py and positions.py draw, figures.py
explains, page.py writes. It needs neither torch nor a Trainer, and so starts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_vcppo.messages import OneLineArguments
from lightning_vcppo.report.page import render
from lightning_vcppo.report.reading import read_runs
from lightning_vcppo.waiting import waiting_for


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of runs.

    Args:
        folders: Of the runs; several are drawn into the same axes.
        output: The page; None means `report.html` in the first folder.

    Returns:
        Where it is.

    Raises:
        ValueError: If a folder is no run's or a file in it cannot be read.
        ImportError: Without the extra `report`.
    """
    page = render(read_runs(folders))
    output = output or folders[0] / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return output


def main(args: Sequence[str]) -> None:
    """Run `vcppo report`.

    Args:
        args: What follows the subcommand.

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
