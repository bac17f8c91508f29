"""Open plain and compressed files as a stream of unpacked bytes."""

from __future__ import annotations

import gzip
import io
import lzma
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "Zstandard"}
MAX_UNPACKED = 2**35
"""Largest unpacked size of a compressed parquet file, which is unpacked to the disk: 32 GiB."""


def format_of(file: Path) -> tuple[str, str]:
    """Return the suffixes of a file's format and of its compression ("" for none)."""
    suffix = file.suffix.lower()
    if suffix in COMPRESSIONS:
        return Path(file.stem).suffix.lower(), suffix
    return suffix, ""


def open_bytes(file: Path) -> IO[bytes]:
    """Open a file for reading its unpacked content.

    Raises:
        OSError: If it cannot be opened.
    """
    _, compression = format_of(file)
    if compression == ".gz":
        return cast(IO[bytes], gzip.open(file))
    if compression == ".xz":
        return lzma.open(file)
    if compression == ".zst":
        import pyarrow  # it comes with `datasets`, and its wheels with Zstandard

        if not pyarrow.Codec.is_available("zstd"):
            raise ValueError(f"{file.name}: this pyarrow cannot unpack Zstandard; unpack it first")
        with file.open("rb"):  # check permissions, because Arrow's message is unclear
            pass
        return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))
    return file.open("rb")


@contextmanager
def unpacking(file: Path) -> Iterator[None]:
    """Raise one line if the body finds that a compressed file is broken.

    Raises:
        ValueError: If the file is broken.
    """
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        _, compression = format_of(file)
        if not compression or (isinstance(error, OSError) and error.errno):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        name = COMPRESSIONS[compression]
        raise ValueError(f"{file.name}: not a complete {name} file, {reason}") from error


@contextmanager
def seekable(file: Path) -> Iterator[Path | IO[bytes]]:
    """Yield a file for random access: itself, or a temporary unpacked copy.

    Raises:
        ValueError: If it is compressed and broken, or too large.
    """
    if not format_of(file)[1]:
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        with unpacking(file), open_bytes(file) as packed:
            while chunk := packed.read(2**22):
                copy.write(chunk)
                if copy.tell() > MAX_UNPACKED:
                    raise ValueError(f"{file.name}: its unpacked size is more than 32 GiB")
        copy.seek(0)
        yield copy
