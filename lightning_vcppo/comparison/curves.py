"""Draw arms over the axis of a comparison, and their contrasts, as plotly specifications."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_vcppo.comparison.contrasts import Comparison
from lightning_vcppo.comparison.runs import AXES, LENGTH, RunData
from lightning_vcppo.comparison.statistics import Array, interquartile_mean
from lightning_vcppo.report.drawing import GREY, Spec, Trace, color, plain, spec

GRID = 60
"""Number of places at which the curves of an arm are summarized."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Band:
    """The curve of an arm: interquartile mean over seeds, and its 95 % bootstrap interval.

    Attributes:
        places: Places on the axis.
        middle: Interquartile mean at each of them.
        low: Lower end of the band.
        high: Upper end of the band.
    """

    places: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


def band(curves: list[list[tuple[float, float]]], end: float) -> Band | None:
    """Summarize the curves of an arm's seeds over the range that all of them cover.

    The bootstrap draws seeds with replacement; the noise of single points is already in the curves.

    Args:
        curves: Points of each seed by their place; empty curves are ignored.
        end: Last place.

    Returns:
        The band; None if the curves have no range in common.
    """
    found = [sorted(dict(curve).items()) for curve in curves if curve]
    if not found:
        return None
    begin = max(curve[0][0] for curve in found)
    end = min(end, *(curve[-1][0] for curve in found))
    if begin > end:
        return None
    own = sorted({place for curve in found for place, _ in curve if begin <= place <= end})
    places = np.asarray(own) if len(own) <= GRID else np.linspace(begin, end, GRID)
    heights_SG = np.stack([np.interp(places, *np.asarray(curve).T) for curve in found])
    chosen_BS = np.random.default_rng(0).integers(len(found), size=(RESAMPLES, len(found)))
    resampled: Array = interquartile_mean(np.moveaxis(heights_SG[chosen_BS], 1, -1))
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    middle = interquartile_mean(heights_SG.T)
    return Band(*(array.tolist() for array in (places, middle, low, high)))


def draw_curves(comparison: Comparison) -> Spec | None:
    """Draw the metric of the curves over the axis: seeds faint, arms with bands."""
    metric = comparison.curve_metric
    return _draw(comparison, metric, ".0%" if metric.endswith("accuracy") else ".3g")


def draw_lengths(comparison: Comparison) -> Spec | None:
    """Draw the response length over the axis."""
    return _draw(comparison, LENGTH, ".0f")


def _draw(comparison: Comparison, metric: str, form: str) -> Spec | None:
    traces: list[Trace] = []
    for place, arm in enumerate(comparison.arms):
        runs = list(arm.runs.values())
        traces += _of_arm(runs, arm.name, place, metric, comparison.axis, comparison.end)
    if not traces:
        return None
    tick = form if form.endswith("%") else ""
    return spec(
        traces,
        x=AXES[comparison.axis],
        y=metric,
        yaxis={"hoverformat": form, "tickformat": tick},
        hovermode="closest",
    )


def _of_arm(
    runs: list[RunData], name: str, place: int, metric: str, axis: str, end: float
) -> Iterator[Trace]:
    curves = [run.curve(metric, axis) for run in runs]
    summary = band(curves, end)
    if summary is None:
        return
    legend = {"name": plain(name), "legendgroup": name}
    quiet = {**legend, "showlegend": False, "hoverinfo": "skip", "mode": "lines"}
    line = {"color": color(place)}
    for curve in curves:
        inside = [point for point in curve if point[0] <= end]
        x, y = [p for p, _ in inside], [v for _, v in inside]
        yield {**quiet, "x": x, "y": y, "line": {**line, "width": 0.8}, "opacity": 0.3}
    edge = {**quiet, "x": summary.places, "line": {**line, "width": 0}}
    yield {**edge, "y": summary.low}
    yield {**edge, "y": summary.high, "fill": "tonexty", "opacity": 0.2}
    mode = "lines" if len(summary.places) > 2 else "lines+markers"
    middle = {"x": summary.places, "y": summary.middle, "mode": mode}
    yield {**legend, **middle, "line": {**line, "width": 2.4}}


def draw_values(comparison: Comparison) -> Spec:
    """Draw the value of each run as a point, with each arm's mean and t interval."""
    traces: list[Trace] = []
    names = [plain(arm.name) for arm in comparison.arms]
    for place, arm in enumerate(comparison.arms):
        values = list(arm.values.values())
        marker = {"color": color(place), "size": 7, "opacity": 0.45}
        where = [names[place]] * len(values)
        seeds = [f"seed {seed}" for seed in arm.values]
        traces.append({"x": values, "y": where, "mode": "markers", "marker": marker, "text": seeds})
        middle = {"color": color(place), "size": 11, "symbol": "line-ns-open", "line": {"width": 3}}
        error = _error(arm.mean.mean, arm.mean.interval.low, arm.mean.interval.high)
        point = {"x": [arm.mean.mean], "y": [names[place]], "mode": "markers", "marker": middle}
        traces.append({**point, "error_x": {**error, "color": color(place)}})
    return _rows(comparison, traces, comparison.metric)


def draw_contrasts(comparison: Comparison) -> Spec | None:
    """Draw the paired differences with their t intervals."""
    places = {arm.name: place for place, arm in enumerate(comparison.arms)}
    traces: list[Trace] = []
    for contrast in comparison.contrasts:
        found = contrast.difference
        shade = color(places[contrast.arm])
        point = {"x": [found.mean], "y": [plain(contrast.arm)], "mode": "markers"}
        error = {**_error(found.mean, found.interval.low, found.interval.high), "color": shade}
        traces.append({**point, "marker": {"color": shade, "size": 10}, "error_x": error})
    if not traces:
        return None
    label = f"{comparison.metric}, minus {comparison.reference}"
    zero = {"type": "line", "xref": "x", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1}
    shapes = [{**zero, "line": {"color": GREY, "width": 1, "dash": "dash"}}]
    return _rows(comparison, traces, plain(label), shapes=shapes)


def _error(middle: float, low: float, high: float) -> Trace:
    if math.isnan(low):
        return {"array": [0], "arrayminus": [0]}
    return {"array": [high - middle], "arrayminus": [middle - low], "thickness": 1.6, "width": 5}


def _rows(comparison: Comparison, traces: list[Trace], label: str, **layout: object) -> Spec:
    """Put one arm into each row, the first at the top."""
    form = ".1%" if comparison.is_share else ".3g"
    yaxis = {"autorange": "reversed", "type": "category"}
    xaxis = {"tickformat": ".0%" if comparison.is_share else "", "hoverformat": form}
    layout |= {"showlegend": False, "hovermode": "closest"}
    return spec(traces, x=label, y="", xaxis=xaxis, yaxis=yaxis, **layout)
