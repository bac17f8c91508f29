"""Show a run live: phase, progress, time left, and its main metrics.

In a terminal the metrics are shown below Lightning's bar, each with a sparkline of the last
rollouts. In a log file or a pipe, plain lines are printed at intervals, without control codes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    CustomTimeColumn,
    ProcessingSpeedColumn,
)
from lightning.pytorch.trainer.states import TrainerFn
from rich import get_console
from rich.console import Group, RenderableType
from rich.progress import ProgressColumn
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from .base import LearnsFromRollouts, RunCallback

SHOWN = {
    "cold_start/loss": ("loss", "{:.3f}"),
    "rollout/reward_mean": ("reward", "{:+.2f}"),
    "rollout/accuracy": ("acc", "{:.0%}"),
    "rollout/response_length": ("len", "{:.0f}"),
    "critic/explained_variance": ("EV", "{:.2f}"),
    "rollout/tokens_per_second": ("tok/s", "{:.0f}"),
    "eval/accuracy": ("eval", "{:.1%}"),
}
"""Metric key -> its short name and format; a metric that was never logged is not shown."""

SPARK_WIDTH = 32
"""Rollouts that a sparkline shows."""
PACE_ROLLOUTS = 20
"""Rollouts from whose pace the time left is computed, including the evaluations between them."""
BARS = "▁▂▃▄▅▆▇█"


class RolloutProgressBar(RunCallback, RichProgressBar):
    """Show phase, progress, reward, accuracy, length, explained variance, speed and time left.

    Args:
        refresh_rate: Redraws a second; 0 shows nothing. Lightning's 100 takes processor time from
            generation without showing more.
        leave: Keep the finished bar of each epoch.
        line_every_s: Seconds between two lines if there is no terminal.
    """

    def __init__(
        self, refresh_rate: int = 4, leave: bool = False, line_every_s: float = 30.0
    ) -> None:
        """Keep the settings."""
        super().__init__(refresh_rate, leave)
        self._line_every_s = line_every_s
        self.begin_run()

    @override
    def begin_run(self) -> None:
        """Start without a history."""
        self._line_at = -math.inf
        self._line = ""
        self._phase = ""
        self._history: dict[str, deque[float]] = {}
        self._ended_at: deque[float] = deque(maxlen=PACE_ROLLOUTS + 1)
        self._view: RenderableType = ""

    @property
    @override
    def is_enabled(self) -> bool:
        """Return whether there is a bar, which needs a terminal."""
        console = get_console()
        return super().is_enabled and (console.is_terminal or console.is_jupyter)

    @property
    def _prints_lines(self) -> bool:
        return super().is_enabled and not self.is_enabled

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._ended_at.clear()  # the time between two calls of `fit` is not the run's
        self._ended_at.append(time.monotonic())
        self._put_view_below()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the metrics below the bar of a new epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        self._put_view_below()

    def _put_view_below(self) -> None:
        """Show the metrics below the bar; next to it, as Lightning does, they are truncated."""
        progress, beside = self.progress, self._metric_component
        if progress is None or beside not in progress.columns:
            return
        progress.columns = tuple(column for column in progress.columns if column is not beside)
        bars: Callable[[], Iterable[RenderableType]] = progress.get_renderables
        progress.get_renderables = lambda: [*bars(), self._view]  # type: ignore[method-assign]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the metrics of a rollout, and show them."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not (self.is_enabled or self._prints_lines):
            return
        self._ended_at.append(time.monotonic())
        for key in SHOWN:
            if key in trainer.callback_metrics:
                history = self._history.setdefault(key, deque(maxlen=SPARK_WIDTH))
                history.append(float(trainer.callback_metrics[key]))
        metrics = self.get_metrics(trainer, pl_module)
        phase = str(metrics.pop("phase", ""))
        headline = " · ".join(filter(None, [self._progress_text(trainer, pl_module), phase]))
        if self.is_enabled:
            self._view = self._draw(headline, metrics)
            return
        self._line = " · ".join([headline, *(f"{name} {value}" for name, value in metrics.items())])
        due = self._ended_at[-1] - self._line_at >= self._line_every_s
        if due or phase != self._phase:
            self._print_line()
        self._phase = phase

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last rollout, if it has not been printed yet."""
        super().on_train_end(trainer, pl_module)
        if self._prints_lines and self._line:
            self._print_line()

    @override
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return short names and formatted values, the phase first."""
        metrics = trainer.callback_metrics
        shown: dict[str, int | str | float | dict[str, float]] = {}
        if isinstance(pl_module, LearnsFromRollouts):
            shown["phase"] = pl_module.phase.value.replace("_", " ")
        for key, (name, form) in SHOWN.items():
            if key in metrics:
                shown[name] = form.format(metrics[key].item())
        return shown

    @override
    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Omit batches per second and, in `fit`, the time, which is shown for the complete run."""
        out: tuple[type[ProgressColumn], ...] = (ProcessingSpeedColumn,)
        if trainer.state.fn == TrainerFn.FITTING:
            out += (CustomTimeColumn,)
        columns: list[ProgressColumn] = super().configure_columns(trainer)
        return [column for column in columns if not isinstance(column, out)]

    def _progress_text(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Return the progress of the complete run, over all epochs, and the time left."""
        unit = "rollout" if isinstance(pl_module, LearnsFromRollouts) else "update"
        done = trainer.fit_loop.total_batch_idx + 1
        epochs = trainer.max_epochs
        total = trainer.num_training_batches * (math.inf if epochs in (None, -1) else epochs)
        if not math.isfinite(total):
            return f"{unit} {done}"
        pace = (self._ended_at[-1] - self._ended_at[0]) / (len(self._ended_at) - 1)
        left = timedelta(seconds=round(pace * (total - done)))
        return f"{unit} {done}/{total:.0f}" + (f" · {left} left" if total > done else "")

    def _print_line(self) -> None:
        get_console().print(self._line, markup=False, highlight=False, soft_wrap=True)
        self._line, self._line_at = "", time.monotonic()

    def _draw(self, headline: str, metrics: dict[str, Any]) -> RenderableType:
        """Lay out what is shown below the bar; the thread that refreshes the bar shows it."""
        rows = Table.grid(padding=(0, 2))
        ascii_only = get_console().options.ascii_only
        for key, (name, _) in SHOWN.items():
            if name in metrics:
                # A metric of evaluations does not change between them.
                bare = ascii_only or key.startswith("eval/")
                spark = "" if bare else sparkline(self._history[key])
                rows.add_row(Text(f"  {name:<6} {metrics[name]:>7}"), Text(spark, "cyan"))
        return Group(Text(headline, "bold"), rows)


def sparkline(values: Sequence[float] | deque[float]) -> str:
    """Draw numbers as bars between their minimum and maximum, with a gap for NaN."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(
        BARS[round((value - low) / span * (len(BARS) - 1))] if math.isfinite(value) else " "
        for value in values
    )
