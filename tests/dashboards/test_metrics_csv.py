"""metrics.csv: a file that is not one is refused by name, before a run appends to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_vcppo.dashboards.metrics_csv import MetricsFile


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"step,a\n1,{'1' * 140_000}\n", "metrics.csv: expected CSV as CSVLogger writes it"),
        ("step,a\n1,2,3\n", "metrics.csv:2: expected no more cells than the header names"),
        ("step,a\n1,\x80\n", "metrics.csv: expected UTF-8 text"),
    ],
)
def test_a_file_that_is_no_table_is_refused_and_kept(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        MetricsFile(str(tmp_path))
    assert path.read_bytes() == text.encode("latin-1")
