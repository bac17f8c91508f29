"""`vcppo report`: one HTML page about one or more runs, to be opened offline and passed on.

reading.py reads folders, summary.py computes, drawing.py and positions.py draw, figures.py
explains, page.py writes. It needs neither torch nor a Trainer, and so starts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_vcppo.report.page import render
from lightning_vcppo.report.reading import read_runs


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
