"""Define curves, stages and averages for both the page of a report and the pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """A metric over the rollouts of a run.

    Attributes:
        key: The metric.
        title: Title of its figure.
        label: Label of the y axis.
    """

    key: str
    title: str
    label: str


CURVES = {
    "reward": Curve("rollout/reward_mean", "Reward", "mean reward of a rollout"),
    "accuracy": Curve("rollout/accuracy", "Accuracy", "share of right answers"),
    "response_length": Curve(
        "rollout/response_length", "Response length", "mean tokens of a response"
    ),
    "explained_variance": Curve(
        "critic/explained_variance", "Explained variance of the critic", "explained variance"
    ),
    "r2": Curve("critic/r2", "R² of the critic", "R²"),
}
"""The most important curves, by the name of their picture."""
LOSS, R2, POSITION = "½ (V - R)²", "R²", "position in the response (% of its length)"
DECAY_LAMBDAS = (0.9, 0.95, 0.99, 0.999)
"""Lambdas that are drawn for comparison with those of a run."""


def smooth(values: Sequence[float]) -> tuple[list[float], int]:
    """Return the moving average of a curve, and its window: a tenth of the number of points."""
    window = max(1, len(values) // 10)
    return [fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))], window


def stages(rollouts: Sequence[int], at_most: int = 5) -> list[tuple[str, slice]]:
    """Cut a run into stages of about equal length, early to late, for the lines of a profile plot.

    Args:
        rollouts: Numbers of the measured rollouts, in order.
        at_most: Number of stages; there are fewer if there are fewer rollouts.

    Returns:
        The label of each stage (its first and last rollout), and its part of the list.
    """
    count = min(at_most, len(rollouts))
    cut = []
    for i in range(count):
        part = slice(i * len(rollouts) // count, (i + 1) * len(rollouts) // count)
        first, last = rollouts[part][0], rollouts[part][-1]
        cut.append((f"{first}" if first == last else f"{first} to {last}", part))
    return cut


def open_figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Open a matplotlib figure with one pair of axes."""
    from matplotlib.figure import Figure  # pyplot has global state

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = figure.subplots()
    tidy(ax, title, xlabel, ylabel)
    return figure, ax


def tidy(ax: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Style axes: a grid in the background, no frame, the title at the left."""
    ax.set_title(title, loc="left", fontweight="bold")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
