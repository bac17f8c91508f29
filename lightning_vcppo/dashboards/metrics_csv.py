"""Write `metrics.csv`: one row for each call; a resumed run appends to it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override

from lightning_vcppo.common.files import complete_file, whole_rows

Row = dict[str, Any]


class MetricsFile(ExperimentWriter):
    """Writer of a CSV logger that keeps existing rows, where Lightning's deletes them.

    A kill costs at most the row that is being written.

    Attributes:
        rows: Number of rows in the file.
    """

    def __init__(self, log_dir: str) -> None:
        """Read the existing rows.

        Raises:
            ValueError: If the existing file is not CSV.
        """
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        kept = self._read()
        self.rows = len(kept)
        self.metrics_keys = sorted(kept[0]) if kept else []
        if kept or self._path.exists():
            self._rewrite(kept)  # drop half a row, to which the next one would be appended

    @override
    def save(self) -> None:
        """Write the rows that were logged since the last call."""
        if not self.metrics:
            return
        if new := {key for row in self.metrics for key in row}.difference(self.metrics_keys):
            self.metrics_keys = sorted([*self.metrics_keys, *new])
            self._rewrite([*self._read(), *self.metrics])
        else:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._lines(self.metrics))
        self.rows += len(self.metrics)
        self.metrics = []

    def rewind(self, rows: int) -> None:
        """Keep only the first rows and the columns that they fill; remove a file without rows."""
        kept = self._read()[:rows]
        self.rows = len(kept)
        self.metrics_keys = sorted({key for row in kept for key, cell in row.items() if cell})
        if kept:
            self._rewrite(kept)
        else:
            self._path.unlink(missing_ok=True)

    @override
    def _check_log_dir_exists(self) -> None:
        """Neither warn nor delete."""

    def _read(self) -> list[Row]:
        return list(whole_rows(self._path))

    def _rewrite(self, rows: Iterable[Row]) -> None:
        header = dict(zip(self.metrics_keys, self.metrics_keys, strict=True))
        with complete_file(self._path) as file:
            file.write(self._lines([header, *rows]))

    def _lines(self, rows: Iterable[Row]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.metrics_keys, extrasaction="ignore").writerows(rows)
        return text.getvalue()
