"""Build the loggers, send the config to them, and let a resumed run continue its own run there.

With `workspace.py` and `media.py`, the files that name Weights & Biases. Everything is done on the
first rank only, online or offline.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from typing_extensions import override

from lightning_vcppo.checkpointing.format import Keys
from lightning_vcppo.common.errors import require
from lightning_vcppo.common.files import check_place, complete_file, may_write, run_path
from lightning_vcppo.common.fresh_start import is_new_run
from lightning_vcppo.common.starts import START, start_fingerprints
from lightning_vcppo.dashboards.late_opening import OpensLate
from lightning_vcppo.dashboards.metrics_csv import MetricsFile
from lightning_vcppo.dashboards.tracking import has_account
from lightning_vcppo.dashboards.trackio_logger import RunTrackioLogger

Name: TypeAlias = Literal["csv", "wandb", "tensorboard", "trackio"]
"""Short names of loggers."""
RUN_ID = Path("wandb", "run_id")
"""File in a run's directory with the id that the training has on Weights & Biases."""


class ConfigLogger(SaveConfigCallback):
    """Send the resolved config to the dashboard, and write it into the run's directory.

    Beside it, `start.json` has the fingerprints of the weights that the run started from, by which
    `vcppo compare` recognises an equal start.

    It also keeps metrics.csv in step with the checkpoints: a resumed run drops the rows that were
    written after its checkpoint, a new run drops all rows. It waits until the first step can begin,
    so a run that fails before that leaves nothing behind.
    """

    _rows = 0

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the number of rows."""
        checkpoint[Keys.METRICS_ROWS] = sum(file.rows for file in _metrics_files(trainer))

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the number of rows."""
        self._rows = checkpoint.get(Keys.METRICS_ROWS, 0)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config and start; drop the rows that the resumed run will write again."""
        self._save(trainer, pl_module, "fit")
        if may_write(trainer) and is_new_run(trainer):  # a resumed run keeps its first start
            settings = vars(self.config.model.get("init_args", argparse.Namespace()))
            with complete_file(run_path(trainer, START)) as output:
                json.dump(start_fingerprints(settings), output, indent=2)
        for file in _metrics_files(trainer):
            file.rewind(self._rows)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run, and let loggers open from now on; write nothing yet."""
        for logger in trainer.loggers:
            if isinstance(logger, OpensLate):
                logger.may_open = True
        if stage == "fit" and is_new_run(trainer):
            self._rows = 0

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config, unless training has."""
        self._save(trainer, pl_module, "validate")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config."""
        self._save(trainer, pl_module, "test")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config."""
        self._save(trainer, pl_module, "predict")

    def _save(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the config once; call it on all ranks, because `log_dir` is broadcast."""
        self.save_to_log_dir = trainer.log_dir is not None  # None: a logger with a database
        super().setup(trainer, pl_module, stage)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the config, and note which run of the dashboard is this training."""
        text = self.parser.dump(self.config, skip_none=False)
        if not self.save_to_log_dir:
            part = "" if stage == "fit" else stage
            path = run_path(trainer, part, self.config_filename)
            with complete_file(path) as file:
                file.write(text)
        config = yaml.safe_load(text)
        for logger in trainer.loggers:
            if isinstance(logger, (WandbLogger, RunTrackioLogger)):
                logger.log_hyperparams(config)
            if isinstance(logger, WandbLogger) and stage == "fit":
                with complete_file(run_path(trainer, RUN_ID)) as file:
                    file.write(str(logger.version))


def continue_run(trainer: Trainer, ckpt_path: str | None) -> None:
    """Let a resumed training continue its own run on Weights & Biases and Trackio.

    Call this before the loggers start. A logger that has an id already keeps it.

    Args:
        trainer: Whose loggers.
        ckpt_path: The checkpoint to resume from; the directory of its run has the id. For a word
            such as "last" it is the trainer's directory.
    """
    if ckpt_path is None:
        return
    checkpoint = Path(ckpt_path).absolute()
    directories = checkpoint.parents if checkpoint.exists() else [run_path(trainer)]
    ids = [directory / RUN_ID for directory in directories if (directory / RUN_ID).is_file()]
    for logger in trainer.loggers:
        if ids and isinstance(logger, WandbLogger) and logger.version is None:
            logger._id = logger._wandb_init["id"] = ids[0].read_text(encoding="utf-8")
        if isinstance(logger, RunTrackioLogger):
            logger.resumes = True


def build_logger(name: Name, run_dir: str, part: str = "") -> Logger:
    """Build a logger by its short name; it writes into the run's directory.

    Weights & Biases runs offline, ready for `wandb sync`, unless there is an account (WANDB_API_KEY
    or `wandb login`) or WANDB_MODE is set otherwise.

    Args:
        name: Short name.
        run_dir: The run's directory.
        part: Part of the run, which gets a directory of its own there: "" is the training.

    Raises:
        ValueError: If WANDB_MODE needs an account and there is none, or Trackio is not installed.
        OSError: If the run's directory cannot be made.
    """
    check_place(Path(run_dir))  # now: the files are opened when the networks are loaded
    if name == "csv":
        return RunCSVLogger(run_dir, name="", version=part, flush_logs_every_n_steps=1)
    if name == "tensorboard":
        return RunTensorBoardLogger(run_dir, name=part, version="tensorboard")
    if name == "trackio":
        return RunTrackioLogger(run_dir, part)
    mode = os.environ.get("WANDB_MODE")
    require(
        mode != "online" or has_account() or "WANDB_IDENTITY_TOKEN_FILE" in os.environ,
        "--loggers=[wandb]: WANDB_MODE=online, but there is no account here; run `wandb login`, or "
        "set WANDB_MODE=offline",
    )
    offline = mode == "offline" or (mode is None and not has_account())
    logger = RunWandbLogger(
        project="lightning-vcppo", name=Path(run_dir, part).name, save_dir=run_dir, offline=offline
    )
    logger._wandb_init.pop("anonymous", None)  # W&B warns about it, whatever its value is
    return logger


class RunWandbLogger(OpensLate, WandbLogger):
    """A Weights & Biases logger that creates its run when something is logged."""

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the run."""
        if self.may_open:
            Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)  # W&B would go to /tmp
        return super().experiment


class RunTensorBoardLogger(OpensLate, TensorBoardLogger):
    """A TensorBoard logger that creates its file when something is logged."""


class RunCSVLogger(OpensLate, CSVLogger):
    """A CSV logger that appends to an existing `metrics.csv`."""

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> MetricsFile | None:
        """Return the writer."""
        if self._experiment is None and self.may_open:
            self._experiment = MetricsFile(self.log_dir)
        return cast("MetricsFile | None", self._experiment)


def _metrics_files(trainer: Trainer) -> list[MetricsFile]:
    """Return the writer of metrics.csv in this process; only the first rank may have one."""
    if not trainer.is_global_zero:
        return []
    loggers = [logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger)]
    return [file for logger in loggers if (file := logger.experiment) is not None]
