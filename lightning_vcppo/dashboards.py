"""What goes to a dashboard beside scalars: tables, figures, the config and a run's identity.

With `workspace.py` the only file that names Weights & Biases. Each function serves every logger of
the trainer that can show the thing, online or offline, on the first rank alone, and passes over the
others (CSV).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from typing_extensions import override

from lightning_vcppo.accounts import has_account
from lightning_vcppo.files import complete_file
from lightning_vcppo.metrics_file import MetricsFile
from lightning_vcppo.plotting import open_figure, stages
from lightning_vcppo.settings import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | bool | None

RUN_ID = Path("wandb", "run_id")
"""Where a run's folder holds the id of its training's run on Weights & Biases."""


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


def log_positions(trainer: Trainer, rows: Sequence[Mapping[str, Any]], *, step: int) -> None:
    """Send each quantity by position in the response: a heat map over rollouts, lines of stages.

    Every logger that shows pictures gets the heat map `decay/{quantity}_heat_map`; Weights & Biases
    draws the lines `decay/{quantity}_lines` itself.

    Args:
        trainer: Whose loggers.
        rows: A rollout each: `{"rollout": 7, "deciles": {"value": {"all": [ten means], ...}}}`. An
            empty decile is NaN or None. Only the split "all" is drawn.
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


class ConfigLogger(SaveConfigCallback):
    """Sends the resolved config, which it also writes into the run's folder, to the dashboard.

    It also keeps metrics.csv in step with the checkpoints: a run that goes on from one drops the
    rows that were written after it, a new run drops all. It waits until the first step can begin:
    a run that fails before leaves nothing behind.
    """

    _rows = 0

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the number of rows."""
        checkpoint["metrics_rows"] = sum(file.rows for file in _metrics_files(trainer))

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the number of rows."""
        self._rows = checkpoint.get("metrics_rows", 0)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config; drop the rows that are still to come."""
        super().setup(trainer, pl_module, "fit")
        for file in _metrics_files(trainer):
            file.rewind(self._rows)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet."""

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config, unless training has."""
        super().setup(trainer, pl_module, "validate")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config."""
        super().setup(trainer, pl_module, "test")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config."""
        super().setup(trainer, pl_module, "predict")

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the config, and note which run of the dashboard is this training."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(config)
                if stage == "fit":
                    path = Path(trainer.default_root_dir, RUN_ID)
                    with complete_file(path) as file:
                        file.write(str(logger.version))


def continue_run(trainer: Trainer, ckpt_path: str | None) -> None:
    """Let a resumed training go on in its own run of Weights & Biases.

    Must be called before the loggers start. A logger with an id of its own keeps that.

    Args:
        trainer: Whose loggers.
        ckpt_path: The checkpoint to resume from, whose run's folder holds the id; a word such as
            "last" looks into the trainer's.
    """
    if ckpt_path is None:
        return
    checkpoint = Path(ckpt_path).absolute()
    folders = checkpoint.parents if checkpoint.exists() else [Path(trainer.default_root_dir)]
    ids = [folder / RUN_ID for folder in folders if (folder / RUN_ID).is_file()]
    for logger in trainer.loggers:
        if ids and isinstance(logger, WandbLogger) and logger.version is None:
            logger._id = logger._wandb_init["id"] = ids[0].read_text(encoding="utf-8")


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Write a table in markdown, which TensorBoard renders."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, cells)) + " |" for cells in lines)


def _markdown_cell(cell: Cell) -> str:
    """Show a text as it is: what a model writes must neither load a picture nor be a link."""
    shown = re.sub(r"([\\`*_{}\[\]#!|~])", r"\\\1", escape(str(cell), quote=False))
    return shown.replace("\n", "<br>")


def build_logger(name: str, run_dir: str, part: str = "") -> Logger:
    """Build a logger by its short name, writing into the run's folder.

    Weights & Biases runs offline, ready for `wandb sync`, unless there is an account (WANDB_API_KEY
    or `wandb login`) or WANDB_MODE says otherwise.

    Args:
        name: csv, wandb or tensorboard.
        run_dir: The run's folder.
        part: Of the run, for its own folder in there: "" is the training.

    Raises:
        ValueError: If WANDB_MODE asks for an account that is not here.
    """
    if name == "csv":
        return RunCSVLogger(run_dir, name="", version=part, flush_logs_every_n_steps=1)
    if name == "tensorboard":
        return TensorBoardLogger(run_dir, name=part, version="tensorboard")
    mode = os.environ.get("WANDB_MODE")
    require(
        mode != "online" or has_account() or "WANDB_IDENTITY_TOKEN_FILE" in os.environ,
        "--loggers=[wandb]: WANDB_MODE=online, but there is no account here; run `wandb login`, or "
        "set WANDB_MODE=offline",
    )
    offline = mode == "offline" or (mode is None and not has_account())
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        project="lightning-vcppo", name=Path(run_dir, part).name, save_dir=run_dir, offline=offline
    )
    logger._wandb_init.pop("anonymous", None)  # W&B warns of it whatever its value
    return logger


class RunCSVLogger(CSVLogger):
    """Goes on with the `metrics.csv` that is there."""

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        """Return the writer."""
        if self._experiment is None:
            self._experiment = MetricsFile(self.log_dir)
        assert isinstance(self._experiment, MetricsFile)
        return self._experiment


def _metrics_files(trainer: Trainer) -> list[MetricsFile]:
    """Return the metrics.csv that this process writes: one on the first rank, if any."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, RunCSVLogger)]
