"""The command line: one LightningCLI for cold start, reward model, VC-PPO, evaluation and prediction."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from typing_extensions import override

from lightning_vcppo import callbacks, dashboards
from lightning_vcppo.cold_start import ColdStartModule, RewardModelModule  # noqa: F401 (class names)
from lightning_vcppo.data import AIMEDataModule
from lightning_vcppo.module import VCPPOModule  # noqa: F401 (class names)

USER_ERROR = 2


class VCPPOCLI(LightningCLI):
    """LightningCLI with our callbacks always on, and loggers by name."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, each under its own flag group, and the loggers' flag."""
        for name, callback in FORCED_CALLBACKS.items():
            parser.add_lightning_class_args(callback, name)
        parser.add_argument(
            "--loggers",
            type=list[Literal["csv", "wandb", "tensorboard"]],
            default=["csv", "wandb"],
            help="Loggers, all writing into trainer.default_root_dir; trainer.logger overrides them.",
        )
        parser.add_argument(
            "--threads",
            type=int | None,
            default=None,
            help="CPU threads of PyTorch; None is its default.",
        )
        parser.set_defaults({"model": {"class_path": "lightning_vcppo.VCPPOModule"}})

    @override
    def before_instantiate_classes(self) -> None:
        """Set the threads before anything runs."""
        if threads := self._get(self.config, "threads"):
            torch.set_num_threads(threads)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the loggers that were asked for by name."""
        given = self._get(self.config_init, "trainer")
        fast_dev_run = bool(given.get("fast_dev_run"))
        if given.get("logger") is None and not fast_dev_run:
            run_dir = given.get("default_root_dir") or "runs/default"
            names = self._get(self.config_init, "loggers")
            kwargs["logger"] = [dashboards.build_logger(name, run_dir) for name in names]
        return super().instantiate_trainer(**kwargs)


FORCED_CALLBACKS = {
    "value_pretraining": callbacks.ValuePretraining,
    "reward_decay_monitor": callbacks.RewardDecayMonitor,
    "aime_evaluation": callbacks.AIMEEvaluation,
    "learning_curves": callbacks.LearningCurves,
    "model_export": callbacks.ModelExport,
    "response_writer": callbacks.ResponseWriter,
    "progress_bar": callbacks.RolloutProgressBar,
}


def main(args: ArgsType = None) -> None:
    """Run the command line.

    Args:
        args: Arguments instead of the process's own.
    """
    _quieten()
    VCPPOCLI(
        LightningModule,
        AIMEDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "omegaconf+", "prog": "vcppo"},
        trainer_defaults={
            "default_root_dir": "runs/default",
            "num_sanity_val_steps": 0,  # it would generate with an untrained model
            "log_every_n_steps": 1,  # every rollout
            "use_distributed_sampler": False,  # the data module splits by rank itself
            "max_epochs": 1,
        },
        args=args,
    )


def run() -> None:
    """Run the command line as a program: a user's mistake ends in one line and exit code 2."""
    try:
        main()
    except ValueError as error:
        if os.environ.get("VCPPO_DEBUG"):
            raise
        message = " ".join(str(error).split())
        print(f"vcppo: error: {message}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


def _quieten() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
