"""Write the page of `vcppo report`: one HTML file about one or more runs, readable offline.

reading.py reads directories, summary.py computes, drawing.py and positions.py draw, figures.py
explains, page.py writes. None of them needs torch or a Trainer, so the command starts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_vcppo.common.files import complete_file
from lightning_vcppo.report.page import render
from lightning_vcppo.report.reading import Run, read_runs


def write_report(
    directories: Sequence[Path],
    output: Path | None = None,
    read: Callable[[Path, str], Run] | None = None,
) -> Path:
    """Write the report of runs.

    Args:
        directories: Directories of the runs; several are drawn into the same axes.
        output: Path of the page; None means `report.html` in the first directory.
        read: Function that reads a run, given its directory and name; None reads runs of
            `vcppo fit`.

    Returns:
        The path of the page.

    Raises:
        ValueError: If a directory is not the directory of a run, or a file in it cannot be read.
        ImportError: If the extra `report` is not installed.
    """
    page = render(read_runs(directories, read))
    first = directories[0]
    output = output or (first.parent if first.is_file() else first) / "report.html"
    # A run may have logged half a surrogate pair, which UTF-8 cannot write.
    text = page.encode("utf-8", errors="replace")
    with complete_file(output, "wb") as file:
        file.write(text)
    return output
