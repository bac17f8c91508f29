"""Log tables and figures to every logger that can display them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lightning_vcppo.report.plotting import open_figure, stages

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


def log_figure(trainer: Trainer, key: str, figure: Figure, *, step: int) -> None:
    """Send a matplotlib figure to the trainer's loggers; for the arguments see `log_table`."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [figure], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(key, figure, step)


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
        means_RD = torch.tensor(
            [
                [torch.nan if mean is None else mean for mean in row["deciles"][quantity]["all"]]
                for row in with_it
            ]
        )
        if means_RD.isnan().all():
            continue
        figure = _heat_map(quantity, rollouts, means_RD)
        log_figure(trainer, f"decay/{quantity}_heat_map", figure, step=step)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                chart: Any = _stage_lines(quantity, rollouts, means_RD)
                logger.log_metrics({f"decay/{quantity}_lines": chart}, step)


def _heat_map(quantity: str, rollouts: Sequence[int], means_RD: torch.Tensor) -> Figure:
    """Draw R rollouts from left to right, the D deciles of the response from bottom to top."""
    figure, ax = open_figure(
        f"{quantity.capitalize()} by position",
        "rollouts",
        "position in the response (% of its length)",
    )
    largest = float(means_RD.nan_to_num().abs().max()) or 1.0
    signed = bool((means_RD < 0).any())
    mesh = ax.pcolormesh(
        [*(rollout - 0.5 for rollout in rollouts), rollouts[-1] + 0.5],
        [100 * i / means_RD.shape[1] for i in range(means_RD.shape[1] + 1)],
        means_RD.T.numpy(),
        cmap="RdBu" if signed else "viridis",
        vmin=-largest if signed else 0.0,
        vmax=largest,
    )
    figure.colorbar(mesh, label=f"mean {quantity}")
    return figure


def _stage_lines(quantity: str, rollouts: Sequence[int], means_RD: torch.Tensor) -> Any:
    """Return a chart of Weights & Biases: the mean profile of each stage of the run."""
    import wandb

    deciles = means_RD.shape[1]
    cut = stages(rollouts)
    return wandb.plot.line_series(
        xs=[100 * (i + 0.5) / deciles for i in range(deciles)],
        ys=[means_RD[part].nanmean(0).tolist() for _, part in cut],
        keys=[f"rollouts {span}" for span, _ in cut],
        title=f"{quantity.capitalize()} by position",
        xname="position in the response (% of its length)",
    )


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table as Markdown, which TensorBoard renders."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, cells)) + " |" for cells in lines)


def _markdown_cell(cell: Cell) -> str:
    """Escape a text: what a model writes must neither load a picture nor become a link."""
    shown = re.sub(r"([\\`*_{}\[\]#!|~])", r"\\\1", escape(str(cell), quote=False))
    return shown.replace("\n", "<br>")
