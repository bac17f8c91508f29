"""Draw profiles by position in the response, and the reach of the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_vcppo.report.drawing import GREY, Spec, Trace, color, plain, spec
from lightning_vcppo.report.plotting import DECAY_LAMBDAS, POSITION
from lightning_vcppo.report.reading import DECILES, Run
from lightning_vcppo.report.summary import (
    LAST_PART,
    last_length,
    mean_profile,
    profiles,
    reach,
    stages,
)

CENTERS = [100 * (i + 0.5) / DECILES for i in range(DECILES)]
LENGTHS = "responses from the shortest to the longest (%)"
PERCENT: Spec = {"range": [0, 100], "dtick": 20}


def by_position(
    runs: Sequence[Run], quantity: str, label: str, x: str = POSITION
) -> list[tuple[int, Spec]]:
    """Draw a quantity along the response, early to late: one panel a run, with the same y range.

    Returns:
        Position and panel of each run that has the quantity.
    """
    cut = [(place, stages(run, quantity)) for place, run in enumerate(runs)]
    cut = [(place, found) for place, found in cut if found]
    means = [m for _, found in cut for _, stage in found for m in stage if not math.isnan(m)]
    if not means:
        return []
    margin = 0.06 * (max(means) - min(means)) or 0.1
    limits = [min(*means, 0.0) - margin, max(*means, 0.0) + margin]
    panels = []
    for place, found in cut:
        traces = [
            {
                "x": CENTERS,
                "y": profile,
                "mode": "lines+markers",
                "marker": {"size": 5},
                "line": {"color": color(place), "width": 2.2},
                "opacity": 0.25 + 0.75 * (number + 1) / len(found),
                "name": span,
            }
            for number, (span, profile) in enumerate(found)
        ]
        layout: Spec = {
            "xaxis": PERCENT,
            "yaxis": {"range": limits, "hoverformat": ".3f", "zeroline": True},
            "legend": {"title": {"text": "rollouts", "side": "left"}},
        }
        panels.append((place, spec(traces, x=x, y=label, **layout)))
    return panels


def right_and_wrong(runs: Sequence[Run]) -> Spec | None:
    """Draw V along right and wrong responses, over the last quarter of each run."""
    traces = []
    for place, run in enumerate(runs):
        for split, dash in (("correct", "solid"), ("incorrect", "dot")):
            found = profiles(run, "value", split)
            last = found[-max(1, len(found) // LAST_PART) :]
            if last:
                traces.append(
                    {
                        "x": CENTERS,
                        "y": mean_profile(profile for _, profile in last),
                        "mode": "lines",
                        "line": {"color": color(place), "width": 2.2, "dash": dash},
                        "name": plain(f"{run.name}: {split}"),
                    }
                )
    if not traces:
        return None
    return spec(traces, x=POSITION, y="mean V", yaxis={"hoverformat": ".3f"}, xaxis=PERCENT)


# Reach of the reward


def reward_decay(runs: Sequence[Run]) -> Spec | None:
    """Draw the weight of the terminal reward by distance from the end.

    Grey lines are lambdas for comparison; each run has the lines of its actor (solid) and critic
    (dashed), and a mark at the mean length of its responses. Dumps do not record their lambdas, so
    only the length is drawn for them.
    """
    found = [(place, run, reach(run)) for place, run in enumerate(runs)]
    known = [(place, run, its) for place, run, its in found if its]
    lengths = {place: its.length for place, _, its in known}
    lengths |= {
        n: length for n, run in enumerate(runs) if run.trainer and (length := last_length(run))
    }
    if not lengths:
        return None
    longest = math.ceil(1.15 * max(lengths.values()))
    traces: list[Trace] = [
        {
            **_decay(lam, longest),
            "line": {"color": GREY, "width": 1},
            "opacity": 0.6,
            "name": f"λ = {lam:g}",
            "showlegend": False,
        }
        for lam in DECAY_LAMBDAS
    ]
    for place, run, its in known:
        for who, lam, share, line in (
            ("actor", its.actor, its.shares[0], {"width": 3}),
            ("critic", its.critic, its.shares[1], {"width": 2, "dash": "dash"}),
        ):
            name = plain(f"{run.name}: {who}, λ = {lam:.4g}")
            line = {"color": color(place), **line}
            traces.append({**_decay(lam, longest), "line": line, "name": name})
            dot = {"x": [its.length - 1], "y": [share], "mode": "markers", "showlegend": False}
            traces.append({**dot, "marker": {"color": color(place), "size": 9}, "name": name})
    shapes = [
        {
            "type": "line",
            **{"x0": length - 1, "x1": length - 1, "yref": "paper", "y0": 0, "y1": 1},
            "line": {"color": color(place), "width": 1, "dash": "dot"},
        }
        for place, length in lengths.items()
    ]
    return spec(
        traces,
        x="tokens before the end of the response",
        y="weight of the reward, (γλ)<sup>T-t</sup>",
        yaxis={"range": [-0.03, 1.06], "hoverformat": ".2%", "tickformat": ".0%"},
        annotations=[_lambda_label(lam, longest) for lam in DECAY_LAMBDAS],
        shapes=shapes,
    )


def _decay(lam: float, longest: int) -> Trace:
    distance = [round(i * longest / 100) for i in range(101)]
    return {"x": distance, "y": [lam**d for d in distance], "mode": "lines"}


def _lambda_label(lam: float, longest: int) -> Spec:
    """Label a grey line where half of the reward is left, or at its end."""
    x = min(longest, math.log(0.5) / math.log(lam))
    return {
        "x": x,
        "y": lam**x,
        "text": f"{lam:g}",
        "showarrow": False,
        "font": {"size": 10, "color": GREY},
        "xshift": 14 if x < longest else -14,
        "yshift": 8,
    }
