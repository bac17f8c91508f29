"""Draw a run: its learning curves, the profiles by position and the decay of the reward."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.common.files import complete_file, may_write, run_path
from lightning_vcppo.dashboards.media import log_figure, log_positions
from lightning_vcppo.metrics.positions import (
    NUM_DECILES,
    absolute_bins,
    actor_lambda,
    profile_rollout,
)
from lightning_vcppo.metrics.rollout import range_alignment_end
from lightning_vcppo.report import pictures
from lightning_vcppo.report.plotting import CURVES

from .base import RolloutCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_vcppo.modules.vcppo import VCPPOModule
    from lightning_vcppo.rollouts.rollout import Rollout
    from lightning_vcppo.settings import AdvantageSettings

DRAWING_SHARE = 0.005
"""Share of the time of a run that may be spent on drawing before its end."""
MAX_BINS = 50
"""Maximum number of points of a line over tokens."""
PROFILED = ("value", "advantage")

PRETRAINING = ("loss", "train_loss", "r2", "train_r2", "explained_variance", "bias")
"""The metrics of value pretraining that are drawn, without their group."""


@dataclass
class _History:
    """Data of the figures in plain types: one entry for each rollout, except `evaluations`."""

    rollouts: list[int] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    scalars: dict[str, list[float]] = field(
        default_factory=lambda: {curve.key: [] for curve in CURVES.values()}
    )
    pretraining: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in PRETRAINING}
    )
    by_decile: dict[str, list[list[float | None]]] = field(
        default_factory=lambda: {name: [] for name in PROFILED}
    )
    by_token: dict[str, list[list[float | None]]] = field(
        default_factory=lambda: {name: [] for name in PROFILED}
    )
    bins: list[int] = field(default_factory=list)  # of `by_token`: width in tokens, and number
    evaluations: list[list[float]] = field(default_factory=list)  # [rollouts done, accuracy]

    def position_rows(self) -> list[dict[str, Any]]:
        """Return the profiles in the format of `log_positions`."""
        return [
            {"rollout": rollout, "deciles": {n: {"all": self.by_decile[n][i]} for n in PROFILED}}
            for i, rollout in enumerate(self.rollouts)
        ]


class LearningCurves(RolloutCallback):
    """Write PNG plots at the end of `fit`, and send them to the loggers.

    During the run it also draws, and sends profiles by position, after evaluations, as long as this
    takes at most half a percent of the time. The history is part of the checkpoint, so a resumed
    run draws the complete curve. Profiles are means over all ranks. With a module without rollouts
    the callback does nothing.

    Args:
        dirpath: Directory of the plots; None means `plots/` in the run's directory.
        enabled: Whether to draw. Without it the history alone is kept, from which a resumed run can
            draw.
    """

    def __init__(self, dirpath: str | None = None, enabled: bool = True) -> None:
        """Keep the settings."""
        self._dirpath, self._enabled = dirpath, enabled
        self.begin_run()

    @override
    def begin_run(self) -> None:
        """Start with an empty history."""
        super().begin_run()
        self._history = _History()
        self._drawn_at = time.monotonic()
        self._drawing_s = 2.0  # a guess, until the first drawing is timed

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the history."""
        return asdict(self._history)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history of a checkpoint."""
        history = self._history = _History(**state_dict)
        for kept, of in ((history.scalars, "scalars"), (history.pretraining, "pretraining")):
            unseen = [math.nan] * max(map(len, kept.values()), default=0)
            for key in getattr(_History(), of):  # a metric that an older version did not draw
                kept.setdefault(key, list(unseen))

    @override
    def on_rollout(self, trainer: Trainer, module: VCPPOModule, rollout: Rollout) -> None:
        """Remember the rollout that was just learned from."""
        history = self._history
        history.rollouts.append(module.rollouts_done)
        history.phases.append(self._phase.value)
        metrics = trainer.callback_metrics  # computed at each access
        for key, curve in history.scalars.items():
            curve.append(float(metrics.get(key, math.nan)))
        if self._phase == Phase.VALUE_PRETRAINING:
            for name, curve in history.pretraining.items():
                curve.append(float(metrics.get(f"value_pretraining/{name}", math.nan)))
        self._remember_profiles(module, rollout, trainer.world_size)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the accuracy of an evaluation during training, and draw."""
        history = self._history
        if trainer.state.fn != TrainerFn.FITTING or not history.rollouts:
            return
        if (accuracy := trainer.callback_metrics.get("eval/accuracy")) is not None:
            history.evaluations.append([float(history.rollouts[-1]), float(accuracy)])
        if (time.monotonic() - self._drawn_at) * DRAWING_SHARE >= self._drawing_s:
            self._save(trainer, pl_module)
            log_positions(trainer, history.position_rows(), step=history.rollouts[-1])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, and send the figures to the loggers."""
        history = self._history
        for name, figure in self._save(trainer, pl_module).items():
            log_figure(trainer, f"plots/{name}", figure, step=history.rollouts[-1])
        if history.rollouts:
            log_positions(trainer, history.position_rows(), step=history.rollouts[-1])

    def _remember_profiles(self, module: VCPPOModule, rollout: Rollout, ranks: int) -> None:
        history, limit = self._history, module.sampling.max_response_length
        bin_width, num_bins = absolute_bins(limit, None, MAX_BINS)
        if history.bins != [bin_width, num_bins]:  # first rollout, or resumed with another limit
            history.bins = [bin_width, num_bins]
            for name in PROFILED:
                history.by_token[name] = [[None] * num_bins for _ in history.rollouts[1:]]
        found = {"value": rollout.values_BT, "advantage": rollout.advantages_BT}
        profiles = profile_rollout(
            rollout,
            {name: tokens_BT for name, tokens_BT in found.items() if tokens_BT is not None},
            bin_width=bin_width,
            num_bins=num_bins,
            ranks=ranks,
            reduce=module.sum_over_ranks,
        )
        for kept, measured, size in (
            (history.by_decile, profiles.deciles, NUM_DECILES),
            (history.by_token, profiles.absolute, num_bins),
        ):
            for name in PROFILED:
                kept[name].append(measured[name]["all"] if name in measured else [None] * size)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Figure]:
        """Write every figure from the first rank; return them by name."""
        if not self._enabled or not may_write(trainer) or not self._history.rollouts:
            return {}
        start = time.monotonic()
        directory = run_path(trainer, "plots", given=self._dirpath)
        settings = cast("VCPPOModule", pl_module).advantage
        figures = dict(_draw(self._history, settings))
        for name, figure in figures.items():
            with complete_file(directory / f"{name}.png", "wb") as file:
                figure.savefig(file, dpi=150)
        self._drawn_at = time.monotonic()
        self._drawing_s = self._drawn_at - start
        return figures


def _draw(history: _History, settings: AdvantageSettings) -> Iterator[tuple[str, Figure]]:
    """Draw the figures for which the history has data."""
    pretraining = [phase == Phase.VALUE_PRETRAINING for phase in history.phases]
    for name, curve in CURVES.items():
        values = history.scalars[curve.key]
        if not all(map(math.isnan, values)):
            yield (
                name,
                pictures.learning_curve(
                    curve,
                    history.rollouts,
                    values,
                    pretraining=pretraining,
                    evaluations=history.evaluations if name == "accuracy" else (),
                ),
            )
    curves = history.pretraining
    if not all(map(math.isnan, curves["loss"])):
        aligned = range_alignment_end(curves["loss"], curves["bias"])
        rollouts = list(compress(history.rollouts, pretraining))
        yield "value_pretraining", pictures.value_pretraining(rollouts, curves, aligned)
    for place, kept, width, unit in (
        ("position", history.by_decile, 100 / NUM_DECILES, "% of its length"),
        ("token", history.by_token, history.bins[0], "tokens"),
    ):
        for name, rows in kept.items():
            means_RP = np.array(rows, dtype=float)  # None becomes NaN
            if not np.isnan(means_RP).all():
                yield (
                    f"{name}_by_{place}",
                    pictures.profiles(
                        name,
                        history.rollouts,
                        means_RP,
                        bin_width=width,
                        title=f"{name.capitalize()} by {place}",
                        xlabel=f"position in the response ({unit})",
                    ),
                )
    lengths = [x for x in history.scalars[CURVES["response_length"].key] if not math.isnan(x)]
    if lengths and settings.needs_critic:
        length = round(lengths[-1])
        lam = actor_lambda(torch.tensor([length]), settings).item()
        yield (
            "reward_decay",
            pictures.reward_decay(length, gamma=settings.gamma, lambda_actor=lam),
        )
