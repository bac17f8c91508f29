"""Silence messages of libraries that do not help users, and print our warnings in one line."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings

from lightning_vcppo.cli.configs import PACKAGE, shipped_directory
from lightning_vcppo.common.terminal import printable

_OURS = (f"{PACKAGE}{os.sep}", f"{shipped_directory('callbacks')}{os.sep}")
_of_libraries = warnings.formatwarning
_WARNINGS = (
    "does not have many workers",  # prompts are in memory
    "isinstance.treespec, LeafSpec",  # deprecated within torch
)


def quieten() -> None:
    """Silence messages that do not help users; other warnings are shown, ours without their place.

    Nothing is imported, so commands without torch start as fast as before.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}")
    warnings.formatwarning = _format_warning
    # Advertisements, and messages about TPUs, of either logger.
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(f"{package}.utilities.rank_zero").addFilter(_helps)
    # A line for each text in a font that is missing, and for the cache of fonts of a new home.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Warnings about layers outside a tensor-parallel plan.
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)
    _disable_progress_bars()


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    if filename.startswith(_OURS):
        return f"vcppo: warning: {printable(str(message))}\n"
    if "lightning" in filename:  # as Lightning's own format, which this one replaces
        return f"{filename}:{lineno}: {message}\n"
    return _of_libraries(message, category, filename, lineno, line)


def _helps(record: logging.LogRecord) -> bool:
    return not re.match(".*Tip:|TPU", record.getMessage())


def _disable_progress_bars() -> None:
    """Disable the progress bars of single files, unless the environment asks for them."""
    if os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1").upper() not in ("1", "TRUE"):
        return
    if "transformers" in sys.modules:  # it has read the variable when it was imported
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
