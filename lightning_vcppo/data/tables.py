"""Read rows of parquet files and of Arrow tables, a few hundred at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from lightning_vcppo.data.compressed import seekable
from lightning_vcppo.data.files import Row, check_columns

BATCH_ROWS = 256


def parquet_rows(file: Path, needs: Callable[[str], bool]) -> Iterator[Row]:
    """Yield the rows of a parquet file.

    Args:
        file: Parquet file.
        needs: Whether a column is read; the others are None in each row.

    Raises:
        ValueError: If it is not a complete parquet file, has a column twice, or text not in UTF-8.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with (
            seekable(file) as source,
            # A row group may be the entire file: read it page by page
            pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=2**20) as parquet,
        ):
            names = parquet.schema_arrow.names
            check_columns(file.name, names)
            read = [name for name in names if needs(name)]
            if not read:
                yield from (dict.fromkeys(names) for _ in range(parquet.metadata.num_rows))
                return
            for batch in parquet.iter_batches(BATCH_ROWS, columns=read, use_threads=False):
                yield from batch_rows(batch, names)
    except UnicodeDecodeError:
        raise ValueError(f"{file.name}: expected text in UTF-8, but a cell is not") from None
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file.name}: not a complete parquet file, {reason}") from error


def batch_rows(batch: Any, names: list[str]) -> Iterator[Row]:
    """Yield the rows of an Arrow batch or table.

    Args:
        batch: Arrow batch or table.
        names: Names of all columns; those that the batch lacks are None.
    """
    there = {name: place for place, name in enumerate(batch.schema.names)}
    columns = [
        batch.column(there[name]).to_pylist() if name in there else repeat(None, batch.num_rows)
        for name in names
    ]
    for cells in zip(*columns, strict=True):
        yield dict(zip(names, cells, strict=True))
