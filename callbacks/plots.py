"""Draw a run: its learning curves, the profiles by position and the decay of the reward."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

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
    reward_weights,
)
from lightning_vcppo.metrics.rollout import range_alignment_end
from lightning_vcppo.report.plotting import open_figure, stages, tidy

from .base import RolloutCallback

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_vcppo.modules.vcppo import VCPPOModule
    from lightning_vcppo.rollouts.rollout import Rollout
    from lightning_vcppo.settings import AdvantageSettings

BLUE, ORANGE, GREY, SHADE = "#0072B2", "#D55E00", "#666666", "#F1E4C3"
DECAY_LAMBDAS = (0.9, 0.95, 0.99, 0.999, 1.0)
DRAWING_SHARE = 0.005
"""Share of the time of a run that may be spent on drawing before its end."""
MAX_BINS = 50
"""Maximum number of points of a line over tokens."""
PROFILED = ("value", "advantage")
BESIDE: dict[str, Any] = {"frameon": False, "loc": "center left", "bbox_to_anchor": (1, 0.5)}
"""Options of a legend next to the axes, where it hides no line."""

LEARNING_CURVES = {
    "reward": ("rollout/reward_mean", "Reward", "mean reward of a rollout"),
    "accuracy": ("rollout/accuracy", "Accuracy", "share of right responses"),
    "response_length": ("rollout/response_length", "Response length", "mean length (tokens)"),
    "explained_variance": (
        "critic/explained_variance",
        "Critic: explained variance of the returns",
        "explained variance (1 is perfect)",
    ),
    "r2": ("critic/r2", "Critic: R² of the returns", "R² (1 is perfect)"),
}
"""File name -> metric key, title and label."""

PRETRAINING = ("loss", "train_loss", "r2", "train_r2", "explained_variance", "bias")
"""The metrics of value pretraining that are drawn, without their group."""


@dataclass
class _History:
    """Data of the figures in plain types: one entry for each rollout, except `evaluations`."""

    rollouts: list[int] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    scalars: dict[str, list[float]] = field(
        default_factory=lambda: {key: [] for key, _, _ in LEARNING_CURVES.values()}
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
        folder = run_path(trainer, "plots", given=self._dirpath)
        settings = cast("VCPPOModule", pl_module).advantage
        figures = dict(_draw(self._history, settings))
        for name, figure in figures.items():
            with complete_file(folder / f"{name}.png", "wb") as file:
                figure.savefig(file, dpi=150)
        self._drawn_at = time.monotonic()
        self._drawing_s = self._drawn_at - start
        return figures


def _draw(history: _History, settings: AdvantageSettings) -> Iterator[tuple[str, Figure]]:
    """Draw the figures for which the history has data."""
    for name, (key, title, label) in LEARNING_CURVES.items():
        if not all(map(math.isnan, history.scalars[key])):
            figure, ax = open_figure(title, "rollouts", label)
            _shade_value_pretraining(ax, history)
            _curve(ax, history.rollouts, history.scalars[key], label="training")
            if name == "accuracy" and history.evaluations:
                rollouts, accuracies = zip(*history.evaluations, strict=True)
                ax.plot(rollouts, accuracies, "o-", color=ORANGE, label="evaluation (avg@k)")
            if name in ("explained_variance", "r2"):
                ax.set_ylim(bottom=max(ax.get_ylim()[0], -1.0), top=1.02)
            if name == "accuracy":
                ax.set_ylim(bottom=0)
            ax.legend(frameon=False)
            yield name, figure
    if not all(map(math.isnan, history.pretraining["loss"])):
        yield "value_pretraining", _draw_value_pretraining(history)
    for place, kept, width, unit in (
        ("position", history.by_decile, 100 / NUM_DECILES, "% of its length"),
        ("token", history.by_token, history.bins[0], "tokens"),
    ):
        for name, profiles in kept.items():
            if any(mean is not None for profile in profiles for mean in profile):
                figure, ax = open_figure(
                    f"{name.capitalize()} by {place}",
                    f"position in the response ({unit})",
                    f"mean {name}",
                )
                _draw_profiles(ax, history.rollouts, profiles, width)
                yield f"{name}_by_{place}", figure
    lengths = [x for x in history.scalars["rollout/response_length"] if not math.isnan(x)]
    if lengths and settings.needs_critic:
        yield "reward_decay", _draw_reward_decay(round(lengths[-1]), settings)


def _curve(ax: Axes, x: Sequence[int], y: Sequence[float], *, label: str) -> None:
    """Draw the curve faintly, and its moving average over 5 % of the run."""
    window = max(1, len(y) // 20)
    smooth = [fmean(y[max(0, i + 1 - window) : i + 1]) for i in range(len(y))]
    if window > 1:
        ax.plot(x, y, color=BLUE, alpha=0.25, linewidth=1)
        label = f"{label} (mean of last {window} rollouts)"
    ax.plot(x, smooth, color=BLUE, linewidth=2, label=label, marker="." if len(x) < 3 else None)


def _shade_value_pretraining(ax: Axes, history: _History) -> None:
    """Mark the rollouts in which only the critic learned."""
    label: str | None = "value pretraining"
    for phase, run in groupby(zip(history.phases, history.rollouts, strict=True), lambda r: r[0]):
        rollouts = [rollout for _, rollout in run]
        if phase == Phase.VALUE_PRETRAINING:
            ax.axvspan(rollouts[0] - 0.5, rollouts[-1] + 0.5, color=SHADE, lw=0, label=label)
            label = None


def _draw_value_pretraining(history: _History) -> Figure:
    """Draw loss and R^2 on both parts, with the range alignment shaded."""
    from matplotlib.figure import Figure

    curves = history.pretraining
    rollouts = [
        rollout
        for rollout, phase in zip(history.rollouts, history.phases, strict=True)
        if phase == Phase.VALUE_PRETRAINING
    ]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    figure.suptitle("Value pretraining: first the range, then the knowledge")
    end = range_alignment_end(curves["loss"], curves["bias"])
    aligned = rollouts[-1] if end is None else rollouts[end]
    for ax, name, label in (
        (axes[0], "loss", "½ (V - R)²"),
        (axes[1], "r2", "R²"),
    ):
        tidy(ax, ylabel=label)
        ax.axvspan(rollouts[0] - 0.5, aligned, color=SHADE, lw=0, label="range alignment")
        ax.plot(rollouts, curves[f"train_{name}"], ".-", color=ORANGE, label="fitted on")
        ax.plot(rollouts, curves[name], ".-", color=BLUE, linewidth=2, label="held out")
    explained = curves["explained_variance"]
    axes[1].plot(rollouts, explained, ":", color=BLUE, label="explained variance, held out")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(**BESIDE)
    axes[1].set_xlim(rollouts[0] - 0.5, rollouts[-1] + 0.5)
    axes[1].locator_params(axis="x", integer=True)
    axes[1].set_xlabel("rollouts")
    return figure


def _draw_profiles(
    ax: Axes, rollouts: Sequence[int], profiles: Sequence[Sequence[float | None]], width: float
) -> None:
    """Draw mean profiles of the run's stages, from light (early) to dark (late)."""
    from matplotlib import colormaps

    ax.axhline(0, color=GREY, linewidth=0.8)
    numbers = [[math.nan if mean is None else mean for mean in profile] for profile in profiles]
    centers = [width * (i + 0.5) for i in range(len(profiles[0]))]
    cut = stages(rollouts)
    for stage, (span, part) in enumerate(cut):
        mean = torch.tensor(numbers[part]).nanmean(0).tolist()
        color = colormaps["viridis_r"](0.15 + 0.85 * stage / max(1, len(cut) - 1))
        ax.plot(centers, mean, ".-", color=color, linewidth=1.8, label=f"rollouts {span}")
    ax.set_xlim(0, width * len(centers))
    ax.legend(**BESIDE)


def _draw_reward_decay(length: int, settings: AdvantageSettings) -> Figure:
    """Draw the weight of the terminal reward along a response of the run's mean length."""
    from matplotlib import colormaps

    figure, ax = open_figure(
        f"Reach of the terminal reward over {length} tokens",
        "position in the response (tokens)",
        "weight of the reward, (γλ)$^{T-t}$",
    )
    mask_BT = torch.ones(1, max(1, length), dtype=torch.bool)
    position = range(1, mask_BT.shape[1] + 1)
    for i, lam in enumerate(DECAY_LAMBDAS):
        weights = reward_weights(mask_BT, lam, gamma=settings.gamma)[0].tolist()
        color = colormaps["viridis_r"](0.15 + 0.85 * i / (len(DECAY_LAMBDAS) - 1))
        ax.plot(position, weights, color=color, linewidth=1.5, label=f"λ = {lam:g}")
    ours = actor_lambda(torch.tensor([length]), settings)
    weights = reward_weights(mask_BT, ours, gamma=settings.gamma)[0].tolist()
    ax.plot(
        position,
        weights,
        "--",
        color=ORANGE,
        linewidth=2.5,
        label=f"this actor: λ = {ours.item():.4g}",
    )
    ax.set_ylim(-0.02, 1.05)
    ax.legend(**BESIDE)
    return figure
