"""Draw a run with matplotlib, for files and loggers: the figures of the page, from plain numbers.

A missing number is NaN. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_vcppo.report.plotting import (
    DECAY_LAMBDAS,
    LOSS,
    POSITION,
    R2,
    Curve,
    open_figure,
    smooth,
    stages,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, SHADE = "#0072B2", "#D55E00", "#666666", "#F1E4C3"
BESIDE: dict[str, Any] = {"frameon": False, "loc": "center left", "bbox_to_anchor": (1, 0.5)}
"""Options of a legend next to the axes, where it hides no line."""


def learning_curve(
    curve: Curve,
    rollouts: Sequence[int],
    values: Sequence[float],
    *,
    pretraining: Sequence[bool],
    evaluations: Sequence[Sequence[float]] = (),
) -> Figure:
    """Draw a metric over the rollouts: faint lines for its values, strong ones for their average.

    Args:
        curve: Metric to draw.
        rollouts: Numbers of the rollouts.
        values: Value of the metric for each rollout.
        pretraining: Whether each rollout belongs to value pretraining; these are shaded.
        evaluations: (rollout, accuracy) on held-out problems.
    """
    figure, ax = open_figure(curve.title, "rollouts", curve.label)
    _shade(ax, rollouts, pretraining)
    average, window = smooth(values)
    label = "training"
    if window > 1:
        ax.plot(rollouts, values, color=BLUE, alpha=0.25, linewidth=1)
        label += f" (mean of last {window} rollouts)"
    marker = "." if len(rollouts) < 3 else None
    ax.plot(rollouts, average, color=BLUE, linewidth=2, label=label, marker=marker)
    if evaluations:
        ax.plot(*zip(*evaluations, strict=True), "o-", color=ORANGE, label="evaluation (avg@k)")
    if curve.key.startswith("critic/"):  # 1 is perfect, and the first values may be far below 0
        ax.set_ylim(bottom=max(ax.get_ylim()[0], -1.0), top=1.02)
    if curve.key == "rollout/accuracy":
        ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return figure


def _shade(ax: Axes, rollouts: Sequence[int], pretraining: Sequence[bool]) -> None:
    """Mark the rollouts in which only the critic learned."""
    label: str | None = "value pretraining"
    for shaded, run in groupby(zip(pretraining, rollouts, strict=True), lambda pair: pair[0]):
        span = [rollout for _, rollout in run]
        if shaded:
            ax.axvspan(span[0] - 0.5, span[-1] + 0.5, color=SHADE, lw=0, label=label)
            label = None


def value_pretraining(
    rollouts: Sequence[int], curves: dict[str, list[float]], aligned: int | None
) -> Figure:
    """Draw loss and R^2 of value pretraining, with the range alignment shaded.

    Args:
        rollouts: Numbers of the rollouts of value pretraining.
        curves: `loss`, `r2` and `explained_variance` on held-out responses, `train_loss` and
            `train_r2` on the responses that were fitted on; one number for each rollout.
        aligned: Index of the rollout in which V reached the range of the returns; None if it did
            not.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    figure.suptitle("Value pretraining: range alignment, then learning the values")
    end = rollouts[-1] if aligned is None else rollouts[aligned]
    for ax, name, label in ((axes[0], "loss", LOSS), (axes[1], "r2", R2)):
        tidy(ax, ylabel=label)
        ax.axvspan(rollouts[0] - 0.5, end, color=SHADE, lw=0, label="range alignment")
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


def profiles(
    quantity: str,
    rollouts: Sequence[int],
    means_RP: np.ndarray,
    *,
    bin_width: float,
    title: str,
    xlabel: str = POSITION,
) -> Figure:
    """Draw the mean profiles of the run's stages, from light (early) to dark (late).

    Args:
        quantity: Name of the quantity, for the y axis.
        rollouts: Numbers of the R rollouts.
        means_RP: Mean at each of P positions.
        bin_width: Distance of the positions on the x axis.
        title: Title of the figure.
        xlabel: Label of the x axis.
    """
    figure, ax = open_figure(title, xlabel, f"mean {quantity}")
    ax.axhline(0, color=GREY, linewidth=0.8)
    centers = bin_width * (np.arange(means_RP.shape[1]) + 0.5)
    lines = stage_means(rollouts, means_RP)
    for place, (span, mean_P) in enumerate(lines):
        color = _shade_of(place, len(lines))
        ax.plot(centers, mean_P, ".-", color=color, linewidth=1.8, label=f"rollouts {span}")
    ax.set_xlim(0, bin_width * len(centers))
    ax.legend(**BESIDE)
    return figure


def stage_means(rollouts: Sequence[int], means_RP: np.ndarray) -> list[tuple[str, list[float]]]:
    """Return the label and the mean profile of each stage of a run, NaN without values."""
    found = []
    for span, part in stages(rollouts):
        known_RP = ~np.isnan(means_RP[part])
        count_P = known_RP.sum(0)
        sum_P = np.where(known_RP, means_RP[part], 0.0).sum(0)
        found.append((span, np.where(count_P, sum_P / np.maximum(count_P, 1), math.nan).tolist()))
    return found


def heat_map(quantity: str, rollouts: Sequence[int], means_RP: np.ndarray) -> Figure:
    """Draw a heat map: R rollouts from left to right, P parts of the response upwards."""
    figure, ax = open_figure(f"{quantity.capitalize()} by position", "rollouts", POSITION)
    largest = float(np.nan_to_num(np.abs(means_RP)).max()) or 1.0
    signed = bool((means_RP < 0).any())
    mesh = ax.pcolormesh(
        [*(rollout - 0.5 for rollout in rollouts), rollouts[-1] + 0.5],
        np.linspace(0, 100, means_RP.shape[1] + 1),
        means_RP.T,
        cmap="RdBu" if signed else "viridis",
        vmin=-largest if signed else 0.0,
        vmax=largest,
    )
    figure.colorbar(mesh, label=f"mean {quantity}")
    return figure


def reward_decay(length: int, *, gamma: float, lambda_actor: float) -> Figure:
    """Draw the weight of the terminal reward along a response of `length` tokens."""
    figure, ax = open_figure(
        f"Reach of the terminal reward over {length} tokens",
        "position in the response (tokens)",
        "weight of the reward, (γλ)$^{T-t}$",
    )
    position = np.arange(1, max(1, length) + 1)
    lambdas = (*DECAY_LAMBDAS, 1.0)
    for place, lam in enumerate(lambdas):
        weight = (gamma * lam) ** (position[-1] - position)
        color = _shade_of(place, len(lambdas))
        ax.plot(position, weight, color=color, linewidth=1.5, label=f"λ = {lam:g}")
    weight = (gamma * lambda_actor) ** (position[-1] - position)
    label = f"this actor: λ = {lambda_actor:.4g}"
    ax.plot(position, weight, "--", color=ORANGE, linewidth=2.5, label=label)
    ax.set_ylim(-0.02, 1.05)
    ax.legend(**BESIDE)
    return figure


def _shade_of(place: int, count: int) -> Any:
    """Return the colour of a line, light for the first of `count` lines and dark for the last."""
    from matplotlib import colormaps

    return colormaps["viridis_r"](0.15 + 0.85 * place / max(1, count - 1))
