"""A progress bar that speaks of rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    ProcessingSpeedColumn,
    RichProgressBarTheme,
)
from rich.progress import ProgressColumn
from typing_extensions import override

if TYPE_CHECKING:
    from lightning_vcppo.module import VCPPOModule

SHOWN = {
    "rollout/reward_mean": ("reward", "{:+.2f}"),
    "rollout/accuracy": ("acc", "{:.0%}"),
    "rollout/response_length": ("len", "{:.0f}"),
    "critic/explained_variance": ("EV", "{:.2f}"),
    "rollout/tokens_per_second": ("tok/s", "{:.0f}"),
    "eval/accuracy": ("eval", "{:.1%}"),
}
"""Metric key -> its short name and format; a metric that was never logged is left out."""


class RolloutProgressBar(RichProgressBar):
    """Show phase, reward, accuracy, length, explained variance and speed beside the bar.

    Args:
        refresh_rate: Redraws a second; 0 hides the bar. Lightning's 100 takes processor time from
            generation and shows nothing more.
        leave: Keep the finished bar of each epoch.
    """

    def __init__(self, refresh_rate: int = 4, leave: bool = False) -> None:
        """Pass the settings on."""
        super().__init__(refresh_rate, leave, RichProgressBarTheme(metrics_text_delimiter=" · "))

    @override
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return short names and formatted values, the phase first."""
        metrics = trainer.callback_metrics
        shown: dict[str, int | str | float | dict[str, float]] = {}
        if hasattr(pl_module, "phase"):
            shown["phase"] = cast("VCPPOModule", pl_module).phase.value.replace("_", " ")
        for key, (name, form) in SHOWN.items():
            if key in metrics:
                shown[name] = form.format(metrics[key].item())
        return shown

    @override
    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Leave the batches a second out: a rollout takes longer than that."""
        columns: list[ProgressColumn] = super().configure_columns(trainer)
        return [column for column in columns if not isinstance(column, ProcessingSpeedColumn)]
