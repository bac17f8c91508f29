"""Draw runs as plotly specifications: plain dictionaries, so plotly itself is not needed.

Plotly interprets some HTML in names and hover texts, so texts of a run are escaped (`plain`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from lightning_vcppo.report.plotting import smooth
from lightning_vcppo.report.reading import Run
from lightning_vcppo.report.summary import reliability

Spec = dict[str, Any]
Trace = dict[str, Any]

COLORS = ("#3274c8", "#d9692a", "#2b9a72", "#a860c4", "#b8930f", "#cf4558", "#3a9fb5", "#8a8178")
"""Colours of the runs, in order; legible on white and black, also for the colour-blind."""
GREY = "#8c8c8c"


def color(place: int) -> str:
    """Return the colour of the run at that position."""
    return COLORS[place % len(COLORS)]


def plain(text: str) -> str:
    """Escape a text, so that plotly displays it literally."""
    return escape(text, quote=False)


def spec(traces: Sequence[Trace], *, x: str, y: str, **layout: Any) -> Spec:
    """Put traces into axes in the style of the report.

    Args:
        traces: Traces to draw.
        x: Label of the x axis.
        y: Label of the y axis.
        layout: Other parts; those in `xaxis`, `yaxis` and `legend` are merged.
    """
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    legend |= layout.pop("legend", {})
    axes = {
        "xaxis": {"title": {"text": x}, "zeroline": False, **layout.pop("xaxis", {})},
        "yaxis": {"title": {"text": y}, "zeroline": False, **layout.pop("yaxis", {})},
    }
    names = {trace.get("name") for trace in traces if trace.get("showlegend", True)}
    return {
        "data": [jsonable(trace) for trace in traces],
        "layout": {
            "margin": {"l": 56, "r": 16, "t": 12, "b": 44},
            "hovermode": "x unified",
            "showlegend": len(names) > 1,
            "legend": legend,
            **axes,
            **layout,
        },
    }


def jsonable(node: Any) -> Any:
    """Return a copy with None, a gap in a line, for numbers that JSON lacks (NaN, infinity)."""
    if isinstance(node, dict):
        return {key: jsonable(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [jsonable(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def has(runs: Sequence[Run], *keys: str) -> bool:
    """Return whether any run has logged any of the metrics."""
    return any(run.curve(key)[0] for run in runs for key in keys)


# Over the run


def curves(
    runs: Sequence[Run], key: str, label: str, form: str = ".3g", evaluations: bool = False
) -> Spec:
    """Draw a metric over the rollouts, all runs in the same axes.

    Points are faint, their moving average is strong.

    Args:
        runs: The runs.
        key: Metric.
        label: Label of the y axis.
        form: Number format of d3.
        evaluations: Add the accuracies on held-out problems.
    """
    traces = []
    for place, run in enumerate(runs):
        steps, values = run.curve(key)
        average, window = smooth(values)
        line = {"color": color(place), "width": 2.2}
        legend = {"name": plain(run.name), "legendgroup": run.name}
        if window > 1:
            faint = {"mode": "lines", "opacity": 0.28, "showlegend": False, "hoverinfo": "skip"}
            traces.append(
                {"x": steps, "y": values, "line": {**line, "width": 1}, **legend, **faint}
            )
        mode = "lines" if len(steps) > 2 else "lines+markers"
        traces.append({"x": steps, "y": average, "mode": mode, "line": line, **legend})
        if evaluations:
            traces += _evaluations(run, place)
    unit = "rollouts" if has(runs, "rollout/response_length") else "updates"
    unit = "training steps" if any(run.trainer for run in runs) else unit
    return spec(
        traces,
        x=unit,
        y=label,
        yaxis={"hoverformat": form, "tickformat": form if form.endswith("%") else ""},
        **_pretraining_shade(runs),
    )


def _evaluations(run: Run, place: int) -> Iterator[Trace]:
    """Draw each evaluation set of a run as points with intervals."""
    for number, name in enumerate(dict.fromkeys(e.name for e in run.evaluations)):
        of_set = [e for e in run.evaluations if e.name == name]
        yield {
            "x": [e.step for e in of_set],
            "y": [e.accuracy for e in of_set],
            "error_y": {
                "array": [e.interval[1] - e.accuracy for e in of_set],
                "arrayminus": [e.accuracy - e.interval[0] for e in of_set],
                "thickness": 1.2,
                "width": 3,
            },
            "mode": "lines+markers",
            "line": {"color": color(place), "width": 1.2, "dash": "dot"},
            "marker": {"size": 8, "symbol": ("diamond", "circle", "square", "cross")[number % 4]},
            "name": plain(f"{run.name}: {name.replace('_', '-')}"),
        }


def _pretraining_shade(runs: Sequence[Run]) -> Spec:
    """Mark the rollouts in which only the critic learned, in the colour of the run."""
    shapes = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": min(run.pretraining_steps) - 0.5,
            "x1": run.policy_start + 0.5,
            "y0": 0,
            "y1": 1,
            "fillcolor": color(place),
            "opacity": 0.1,
            "line": {"width": 0},
            "layer": "below",
            "label": {
                "text": "value pretraining",
                "textposition": "top left",
                "font": {"size": 10, "color": GREY},
            },
        }
        for place, run in enumerate(runs)
        if run.pretraining_steps
    ]
    return {"shapes": shapes}


def pretraining(runs: Sequence[Run], ending: str, label: str) -> Spec | None:
    """Draw the metrics of value pretraining with that ending, each run in its colour.

    Args:
        runs: The runs.
        ending: Ending of the metrics: `loss`, `r2` or `explained_variance`.
        label: Label of the y axis.
    """
    traces = []
    for place, run in enumerate(runs):
        keys = sorted(k for k in run.keys if _is_of_pretraining(k, ending))
        for number, key in enumerate(keys):
            steps, values = run.curve(key)
            part = key.removeprefix("value_pretraining/").removesuffix(ending).strip("_")
            traces.append(
                {
                    "x": steps,
                    "y": values,
                    "mode": "lines+markers",
                    "marker": {"size": 5},
                    "line": {
                        "color": color(place),
                        "width": 2,
                        "dash": ("solid", "dash", "dot", "dashdot")[number % 4],
                    },
                    "name": plain(f"{run.name}: {part or 'held-out'} rollouts"),
                }
            )
    drawn = [trace for trace in traces if trace["x"]]
    if not drawn:
        return None
    yaxis = {"hoverformat": ".3f"}
    x = "rollouts of value pretraining"
    return spec(drawn, x=x, y=label, yaxis=yaxis, showlegend=len(runs) > 1 or len(drawn) > 1)


def _is_of_pretraining(key: str, ending: str) -> bool:
    """Return whether a key is a metric of value pretraining with that ending."""
    return key.startswith("value_pretraining/") and key.endswith(ending)


# Calibration


def calibration(runs: Sequence[Run]) -> Spec | None:
    """Draw the observed pass rate against the pass rate that the critic predicted."""
    found = [
        (place, run, moment, bins)
        for place, run in enumerate(runs)
        for moment, bins in reliability(run)
        if bins
    ]
    if not found:
        return None
    traces: list[Trace] = [
        {
            "x": [0, 1],
            "y": [0, 1],
            "mode": "lines",
            "line": {"color": GREY, "width": 1, "dash": "dash"},
            "showlegend": False,
            "hoverinfo": "skip",
        }
    ]
    for place, run, moment, bins in found:
        most = max(count for _, _, count in bins)
        traces.append(
            {
                "x": [predicted for predicted, _, _ in bins],
                "y": [observed for _, observed, _ in bins],
                "mode": "lines+markers",
                "line": {"color": color(place), "width": 1.6},
                "marker": {"size": [6 + 12 * math.sqrt(count / most) for _, _, count in bins]},
                "opacity": 1 if moment == "at the end" else 0.45,
                "text": [f"{count} prompts" for _, _, count in bins],
                "name": plain(f"{run.name}: {moment}"),
            }
        )
    axis = {"range": [-0.04, 1.04], "tickformat": ".0%"}
    layout: Spec = {"hovermode": "closest", "xaxis": axis, "yaxis": dict(axis), "showlegend": True}
    layout["legend"] = {"itemsizing": "constant"}
    return spec(traces, x="pass rate that V predicts", y="pass rate observed", **layout)
