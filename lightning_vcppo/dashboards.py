"""What goes to a dashboard beside scalars: tables and figures.

The only file that names Weights & Biases. Each function serves every logger of the trainer that can
show the thing, online or offline, on the first rank alone, and passes over the others (CSV).
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

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


def build_logger(name: str, run_dir: str, part: str = "") -> Logger:
    """Build a logger by its short name, writing into the run's folder.

    Weights & Biases runs offline, ready for `wandb sync`, unless there is an account (WANDB_API_KEY
    or `wandb login`) or WANDB_MODE says otherwise.

    Args:
        name: csv, wandb or tensorboard.
        run_dir: The run's folder.
        part: Of the run, for its own folder in there: "" is the training.
    """
    if name == "csv":
        return RunCSVLogger(run_dir, name="", version=part, flush_logs_every_n_steps=1)
    if name == "tensorboard":
        return TensorBoardLogger(run_dir, name=part, version="tensorboard")
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE")
    offline = mode == "offline" or (mode is None and not has_wandb_account())
    logger = WandbLogger(
        project="lightning-vcppo", name=Path(run_dir, part).name, save_dir=run_dir, offline=offline
    )
    logger._wandb_init.pop("anonymous", None)  # W&B warns of it whatever its value
    return logger


class RunCSVLogger(CSVLogger):
    """Keeps the metrics that are there already, for Lightning would delete them.

    A resumed run, say, goes on in a new `metrics.csv` beside its first `metrics.1.csv`.
    """

    @property
    @override
    def experiment(self) -> Any:
        """Return the writer, once earlier metrics have another name."""
        if self._experiment is None:
            keep_earlier(Path(self.log_dir, "metrics.csv"))
        return super().experiment


@rank_zero_only
def keep_earlier(path: Path) -> None:
    """Rename a file to the first free of `name.1.suffix`, `name.2.suffix`, ..."""
    if path.exists():
        names = (path.with_suffix(f".{n}{path.suffix}") for n in count(1))
        path.rename(next(name for name in names if not name.exists()))


def has_wandb_account() -> bool:
    """Tell whether `wandb login` or the environment has left an API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
