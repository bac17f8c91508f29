"""Define the LightningCLI of cold start, reward model, VC-PPO and evaluation."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ActionYesNo, ArgumentParser, capture_parser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import StrategyRegistry
from typing_extensions import override

from lightning_vcppo import callbacks
from lightning_vcppo.checkpointing.atomic_io import AtomicCheckpointIO
from lightning_vcppo.checkpointing.format import check_checkpoint
from lightning_vcppo.checkpointing.run_directory import choose_start, choose_weights
from lightning_vcppo.checkpointing.safe_loading import ALLOW_PICKLE
from lightning_vcppo.cli.commands.registry import COMMANDS
from lightning_vcppo.cli.configs import resolve_configs
from lightning_vcppo.cli.parser import VCPPOArgumentParser
from lightning_vcppo.cli.paths import settle_paths
from lightning_vcppo.cli.quiet import quieten
from lightning_vcppo.cli.seeds import default_jobs, parse_seeds, run_seeds
from lightning_vcppo.common.errors import UserError, describe, one_line, require
from lightning_vcppo.common.files import local_path
from lightning_vcppo.common.lists import as_list
from lightning_vcppo.common.places import OUTSIDE
from lightning_vcppo.common.suggestions import did_you_mean, name_flag
from lightning_vcppo.dashboards import loggers
from lightning_vcppo.data.datamodule import AIMEDataModule
from lightning_vcppo.distributed.precision import Float32Matmul, float32_products
from lightning_vcppo.distributed.standstill import in_place, watch
from lightning_vcppo.distributed.strategies import refuse_checkpoint, refuse_strategy
from lightning_vcppo.modules import cold_start, reward_model, vcppo  # noqa: F401 (class names)

MODEL = "lightning_vcppo.VCPPOModule"
"""Class of the model, if none is given."""

FORCED_CALLBACKS = {
    "value_pretraining": callbacks.ValuePretraining,
    "reward_decay_monitor": callbacks.RewardDecayMonitor,
    "critic_calibration": callbacks.CriticCalibration,
    "guard_rails": callbacks.GuardRails,
    "aime_evaluation": callbacks.AIMEEvaluation,
    "learning_curves": callbacks.LearningCurves,
    "model_export": callbacks.ModelExport,
    "response_writer": callbacks.ResponseWriter,
    "progress_bar": callbacks.RolloutProgressBar,
    "rollout_checkpoint": callbacks.RolloutCheckpoint,
}


class VCPPOCLI(LightningCLI):
    """LightningCLI with this package's callbacks always on, and loggers by name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Note the given command, because the flags of the others are not needed.

        Flags before it count as its own. LightningCLI would read them as the program's, which has
        no use for a config of a command, and silently skip them.
        """
        given = kwargs.get("args")
        words = sys.argv[1:] if given is None else given
        self._commands = set(self.subcommands())
        if isinstance(words, list) and (named := self._commands.intersection(words)):
            at = min(map(words.index, named))
            self._commands = {words[at]}
            words = [words[at], *words[:at], *words[at + 1 :]]
        kwargs["args"] = words
        super().__init__(*args, **kwargs)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, each under its own flag group, and flags of the run."""
        for name, callback in FORCED_CALLBACKS.items():
            parser.add_lightning_class_args(callback, name)
        parser.add_argument(
            "--loggers",
            type=list[loggers.Name] | loggers.Name,
            default=["csv", "wandb"],
            help="Loggers that write into trainer.default_root_dir, one or a list; trainer.logger "
            "overrides them.",
        )
        parser.add_argument(
            "--threads",
            type=int | None,
            default=None,
            help="CPU threads of PyTorch; None means its default.",
        )
        parser.add_argument(
            "--float32_matmul_precision",
            type=Float32Matmul,
            default="auto",
            help="Precision of float32 matrix products on CUDA, in torch's terms; auto means high "
            "(TF32) under 32-true.",
        )
        parser.add_argument(
            "--overwrite",
            action=ActionYesNo(no_prefix="keep_"),
            nargs="?",
            default=False,
            help="Replace an earlier run in the same directory.",
        )
        parser.add_argument(
            "--seeds",
            type=str | None,
            default=None,
            help="Train once for each seed, such as 0..4 or 0,2,5, in directories seed_N of "
            "trainer.default_root_dir; {seed} in a flag is the seed. The same command resumes.",
        )
        parser.add_argument(
            "--jobs",
            type=int | None,
            default=None,
            help="Number of seeds at the same time; None means one per core, and on GPUs one.",
        )
        parser.add_argument(
            "--allow_pickle",
            type=bool,
            default=False,
            help="Load models from pytorch_model.bin: a pickle, which can run code of its author.",
        )
        parser.set_defaults({"model": {"class_path": MODEL}})

    @override
    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Read checkpoints without running code in them; add usage and epilog.

        The parsers of other commands stay empty, because each takes a tenth of a second.
        """
        if subcommand not in self._commands:
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults({"weights_only": True})
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # our table has it, with intervals
        parser.description = COMMANDS[subcommand].does
        parser.usage = f"vcppo {subcommand} [--config NAME ...] [--flag=value ...]"
        parser.epilog = (
            f"The model's flags: vcppo {subcommand} --model.help "
            "(VCPPOModule; another class: =CLASS)"
        )
        return parser

    @override
    def _dump_config(self) -> None:
        """Note the config for `save_hyperparameters`, as Lightning does.

        Parsing has checked it; a second check would take a fifth of the time to start a run.
        """
        if hasattr(self, "config_dump"):
            return
        text = self.parser.dump(
            self.config,
            skip_link_targets=False,
            skip_none=False,
            skip_validation=True,
            format="yaml",
        )
        self.config_dump = yaml.safe_load(text)[self.config.subcommand]

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the arguments; configs may be given by their short names."""
        if isinstance(args, list):
            self._arguments = args
            self.config = parser.parse_args(resolve_configs(_name_the_model(args)))
        else:
            super().parse_arguments(parser, args)

    @override
    def before_instantiate_classes(self) -> None:
        """Refuse settings that cannot work or would overwrite a run, before anything runs."""
        if self._get(self.config, "seeds") is not None:
            self._run_seeds()
        strategy = self._get(self.config, "trainer").get("strategy")
        strategy = getattr(strategy, "class_path", strategy)
        refuse_strategy(strategy)
        refuse_checkpoint(self._get(self.config, "ckpt_path"), strategy)
        if self._get(self.config, "allow_pickle"):
            os.environ[ALLOW_PICKLE] = "1"
        if (threads := self._get(self.config, "threads")) is not None:
            require(threads >= 1, f"--threads: expected >= 1, got {threads}")
            torch.set_num_threads(threads)
        given = self.config[str(self.subcommand)]
        settle_paths(given)
        directory, self._start = Path(given.trainer.default_root_dir), given.ckpt_path
        if self.subcommand != "fit":
            self._start = choose_weights(directory, self._start)
        elif not given.trainer.fast_dev_run:
            self._start = choose_start(directory, self._start, overwrite=given.overwrite)
            given.overwrite = False  # config.yaml must not repeat it
        if given.ckpt_path == "last":
            self._check(self._start)

    def _run_seeds(self) -> NoReturn:
        """Train for several seeds in separate processes, and exit with their exit code."""
        given = self.config[str(self.subcommand)]
        seeds, trainer = parse_seeds(given.seeds), given.trainer
        require(self.subcommand == "fit", f"vcppo {self.subcommand}: --seeds is a flag of fit")
        require(not given.ckpt_path, "--seeds resumes each seed by itself; omit --ckpt_path")
        require(
            "LOCAL_RANK" not in os.environ,
            "--seeds starts the runs by itself; run it without a launcher",
        )
        on_cpu = trainer.accelerator == "cpu" or (
            trainer.accelerator == "auto" and not torch.cuda.is_available()
        )
        devices = trainer.devices if isinstance(trainer.devices, int) else 1
        batches = trainer.limit_train_batches
        known = isinstance(batches, int | float) and batches > 1 and trainer.max_epochs
        jobs = default_jobs(len(seeds), on_cpu=on_cpu, devices=devices)
        raise SystemExit(
            run_seeds(
                self._arguments,
                seeds,
                local_path(trainer.default_root_dir, "--trainer.default_root_dir"),
                jobs=jobs if given.jobs is None else given.jobs,
                overwrite=given.overwrite,
                one_thread=on_cpu and given.threads is None,
                total=int(batches) * max(1, trainer.max_epochs) if known else None,
                record=not trainer.fast_dev_run,
            )
        )

    @override
    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint; its hyper-parameters are not read, so they override no flags."""
        self._check(self.config[self.config.subcommand].get("ckpt_path"))

    def _check(self, path: str | None) -> None:
        if path and Path(path).exists():
            check_checkpoint(Path(path), to_train=self.config.subcommand == "fit")

    @override
    def instantiate_classes(self) -> None:
        """Build model, data, callbacks and trainer."""
        with self._naming_flags():
            super().instantiate_classes()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Run fit, validate, test or predict."""
        kind = self._get(self.config, "float32_matmul_precision")
        with self._naming_flags(), in_place(OUTSIDE), float32_products(kind, self.trainer):
            watch(self.trainer.strategy)  # before the processes meet
            super()._run_subcommand(subcommand)

    @contextmanager
    def _naming_flags(self) -> Iterator[None]:
        """Add the flag to errors of settings, and the run's directory to errors of a full disk."""
        given = self.config[str(self.subcommand)]
        try:
            yield
        except Exception as error:  # `describe` returns None for a bug, which is raised again
            line = describe(error, directory=given.trainer.default_root_dir)
            if line is None:
                raise
            values = {
                key.replace(".init_args", ""): value for key, value in vars(given.as_flat()).items()
            }
            if (named := name_flag(one_line(line), values)) == str(error):
                raise
            raise UserError(named) from error

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the loggers given by name."""
        given = self._get(self.config_init, "trainer")
        _check_names(given)
        if given.get("logger") is None and not given.get("fast_dev_run"):
            # Metrics and config of an evaluation must not replace those of the training run.
            part = "" if self.subcommand == "fit" else str(self.subcommand)
            names = as_list(self._get(self.config_init, "loggers"))
            kwargs["logger"] = [
                loggers.build_logger(name, given["default_root_dir"], part) for name in names
            ]
        plugins = given.get("plugins") or []
        kwargs["plugins"] = [*plugins] if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in kwargs["plugins"]):
            kwargs["plugins"].append(AtomicCheckpointIO())
        forced = self._parser(self.subcommand).callback_keys
        if given.get("enable_checkpointing") is False or given.get("fast_dev_run"):
            forced.remove("rollout_checkpoint")
        if given.get("enable_progress_bar") is False:
            forced.remove("progress_bar")
        trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "fit":
            loggers.continue_run(trainer, self._start)
        self.config_init[str(self.subcommand)].ckpt_path = self._start
        return trainer


def main(args: ArgsType = None, cli_class: type[VCPPOCLI] = VCPPOCLI) -> VCPPOCLI:
    """Run the command line.

    Args:
        args: Arguments instead of the process's own.
        cli_class: Class of the command line.

    Returns:
        The command line, after its command has run.
    """
    quieten()
    allowed = os.environ.get(ALLOW_PICKLE)
    try:
        return _run(args, cli_class)
    finally:  # a flag applies to one run, and this process may do several
        if allowed is None:
            os.environ.pop(ALLOW_PICKLE, None)


def _run(args: ArgsType, cli_class: type[VCPPOCLI]) -> VCPPOCLI:
    return cli_class(
        LightningModule,
        AIMEDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        save_config_callback=loggers.ConfigLogger,
        save_config_kwargs={"overwrite": True},
        parser_class=VCPPOArgumentParser,
        parser_kwargs={
            "parser_mode": "omegaconf+",
            "prog": "vcppo",
        },
        seed_everything_default=0,
        trainer_defaults={
            "default_root_dir": "runs/default",
            "num_sanity_val_steps": 0,  # it would generate with an untrained model
            "log_every_n_steps": 1,  # every rollout
            "use_distributed_sampler": False,  # the data module splits by rank itself
            "max_epochs": 1,
        },
        args=args,
    )


def parser() -> ArgumentParser:
    """Return the parser of the command line, which runs nothing."""
    return capture_parser(main)


def _name_the_model(arguments: list[str]) -> list[str]:
    """Let `--model.help` without a class describe the default model."""
    if arguments[-1:] == ["--model.help"]:
        return [*arguments[:-1], f"--model.help={MODEL}"]
    return arguments


def _check_names(trainer: Any) -> None:
    """Refuse a strategy or accelerator that Lightning does not know, and suggest a name.

    Raises:
        ValueError: If Lightning does not know the name.
    """
    for kind, registry in (
        ("strategy", StrategyRegistry.available_strategies()),
        ("accelerator", [*AcceleratorRegistry.available_accelerators(), "auto", "gpu"]),
    ):
        name = trainer.get(kind)
        if isinstance(name, str) and name != "auto" and name not in registry:
            refuse_strategy(name)
            hint = did_you_mean(name, registry) or f"; expected one of {', '.join(registry)}"
            raise ValueError(f"--trainer.{kind}={name}: no such {kind}{hint}")
