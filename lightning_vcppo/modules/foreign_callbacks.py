"""Check Lightning's own callbacks before a run: some cannot work here, some watch a metric."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.suggestions import did_you_mean
from lightning_vcppo.metrics.glossary import definitions

FREEZING = "no layer is called backbone; set --model.value.freeze for the critic"
UNSUITABLE: dict[type[Callback], str] = {
    BackboneFinetuning: FREEZING,
    BaseFinetuning: FREEZING,
    BatchSizeFinder: "no batch size is searched; see `vcppo plan`",
    LearningRateFinder: "each network has its own rate; set the lr of its optimizer",
    ModelPruning: "it looks for weights before the networks are loaded",
}
"""Callbacks of Lightning that work with none of our modules, and what to do instead."""
NEEDS_ONE_LOSS: dict[type[Callback], str] = {
    GradientAccumulationScheduler: (
        "gradients are always accumulated; set --model.update.ppo_mini_batch_size"
    ),
    SpikeDetection: "a rollout has many losses; see --guard_rails and max_skipped_updates",
    StochasticWeightAveraging: "actor and critic have their own optimizers",
}
"""The same, for manual optimization."""


def check_callbacks(trainer: Trainer, *, automatic_optimization: bool) -> None:
    """Refuse callbacks that cannot work; before training, warn of metrics that nobody logs.

    Args:
        trainer: The Trainer, before any of its callbacks has run.
        automatic_optimization: Whether the module leaves its updates to Lightning.

    Raises:
        ValueError: If a callback cannot work with the module.
    """
    callbacks: list[Callback] = vars(trainer)["callbacks"]  # set by a connector
    refuse_unsuitable(callbacks, automatic_optimization=automatic_optimization)
    if trainer.state.fn == TrainerFn.FITTING:
        warn_of_unknown_metrics(callbacks)


def refuse_unsuitable(callbacks: Iterable[Callback], *, automatic_optimization: bool) -> None:
    """Refuse callbacks of Lightning that would fail in the middle of a run.

    Their subclasses may work, so only the classes themselves are refused.

    Args:
        callbacks: The Trainer's.
        automatic_optimization: Whether the module leaves its updates to Lightning.

    Raises:
        ValueError: If a callback cannot work with the module.
    """
    refused = UNSUITABLE if automatic_optimization else UNSUITABLE | NEEDS_ONE_LOSS
    for callback in callbacks:
        kind = type(callback)
        require(kind not in refused, f"{kind.__name__} does not work here: {refused.get(kind)}")


def warn_of_unknown_metrics(callbacks: Iterable[Callback]) -> None:
    """Warn of a monitored metric that we do not log, because Lightning notices it hours later.

    A subclass or another callback may log it, so it is no error.
    """
    known = definitions()
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or callback.monitor is None:
            continue
        key = callback.monitor
        unnamed = re.sub(r"^eval/\w+/(?=\w+$)", "eval/", key)  # of a named evaluation set
        if any(definition.covers(each) for definition in known for each in (key, unnamed)):
            continue
        hint = did_you_mean(key, (definition.key for definition in known)) or "."
        rank_zero_warn(
            f"{type(callback).__name__}: monitor={key} is no metric of this package{hint} Unless "
            "something else logs it, the run ends with an error at the first evaluation."
        )
