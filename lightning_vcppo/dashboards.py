"""What goes to a dashboard beside scalars: tables and figures.

The only file that names Weights & Biases. Each function serves every logger of the trainer that can
show the thing, online or offline, on the first rank alone, and passes over the others (CSV).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | bool | None


def log_table(
    trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, step: int
) -> None:
    """Send a table to the trainer's loggers.

    Args:
        trainer: Whose loggers.
        key: `group/name`.
        columns: Titles.
        rows: Cells in the order of the columns.
        step: Position on the loggers' x axis.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(key, columns=list(columns), data=[list(r) for r in rows], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(key, _markdown(columns, rows), step)


def log_figure(trainer: Trainer, key: str, figure: Figure, *, step: int) -> None:
    """Send a matplotlib figure to the trainer's loggers; arguments as for `log_table`."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [figure], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(key, figure, step)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Write a table in markdown, which TensorBoard renders."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, cells)) + " |" for cells in lines)


def _markdown_cell(cell: Cell) -> str:
    return str(cell).replace("|", "\\|").replace("\n", "<br>")
