"""Log tables and figures to every logger that can display them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lightning_vcppo.dashboards.trackio_logger import RunTrackioLogger
from lightning_vcppo.report import pictures
from lightning_vcppo.report.plotting import POSITION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | bool | None


def log_table(
    trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, step: int
) -> None:
    """Send a table to the trainer's loggers.

    Args:
        trainer: The trainer whose loggers get the table.
        key: Name of the table, as `group/name`.
        columns: Titles of the columns.
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
        elif isinstance(logger, RunTrackioLogger):
            logger.log_table(key, columns, rows, step)


def log_figure(trainer: Trainer, key: str, figure: Figure, *, step: int) -> None:
    """Send a matplotlib figure to the trainer's loggers; for the arguments see `log_table`."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [figure], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(key, figure, step)
        elif isinstance(logger, RunTrackioLogger):
            logger.log_figure(key, figure, step)


def log_positions(trainer: Trainer, rows: Sequence[Mapping[str, Any]], *, step: int) -> None:
    """Log each quantity by position in the response: a heat map over rollouts, lines of stages.

    Every logger that shows pictures gets the heat map `decay/{quantity}_heat_map`; Weights & Biases
    draws the lines `decay/{quantity}_lines` itself.

    Args:
        trainer: The trainer whose loggers get the figures.
        rows: For each rollout `{"rollout": 7, "deciles": {"value": {"all": [ten means], ...}}}`.
            An empty decile is NaN or None. Only the split "all" is drawn.
        step: Position on the loggers' x axis.
    """
    if not trainer.is_global_zero or not rows:
        return
    for quantity in rows[-1]["deciles"]:
        with_it = [row for row in rows if quantity in row["deciles"]]
        rollouts = [int(row["rollout"]) for row in with_it]
        means_RD = np.array([row["deciles"][quantity]["all"] for row in with_it], dtype=float)
        if np.isnan(means_RD).all():
            continue
        figure = pictures.heat_map(quantity, rollouts, means_RD)
        log_figure(trainer, f"decay/{quantity}_heat_map", figure, step=step)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                chart: Any = _stage_lines(quantity, rollouts, means_RD)
                logger.log_metrics({f"decay/{quantity}_lines": chart}, step)


def _stage_lines(quantity: str, rollouts: Sequence[int], means_RD: np.ndarray) -> Any:
    """Return a chart of Weights & Biases: the mean profile of each stage of the run."""
    import wandb

    deciles = means_RD.shape[1]
    lines = pictures.stage_means(rollouts, means_RD)
    return wandb.plot.line_series(
        xs=[100 * (i + 0.5) / deciles for i in range(deciles)],
        ys=[mean for _, mean in lines],
        keys=[f"rollouts {span}" for span, _ in lines],
        title=f"{quantity.capitalize()} by position",
        xname=POSITION,
    )


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table as Markdown, which TensorBoard renders."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, cells)) + " |" for cells in lines)


def _markdown_cell(cell: Cell) -> str:
    """Escape a text: what a model writes must neither load a picture nor become a link."""
    shown = re.sub(r"([\\`*_{}\[\]#!|~])", r"\\\1", escape(str(cell), quote=False))
    return shown.replace("\n", "<br>")
