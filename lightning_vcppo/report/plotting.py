"""Style figures, and cut a run into stages for them; matplotlib is imported when needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def open_figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Open a figure with one pair of axes."""
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
