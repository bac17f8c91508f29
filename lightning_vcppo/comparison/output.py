"""Write a comparison as JSON, CSV and Markdown, and as a table in the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_vcppo.comparison.cautions import warnings
from lightning_vcppo.comparison.contrasts import ArmResult, Comparison, Contrast
from lightning_vcppo.comparison.statistics import Interval, share_interval
from lightning_vcppo.report.drawing import jsonable

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1
"""Version of the JSON file."""
ARM_COLUMNS = (
    "arm",
    "n",
    "mean",
    "t interval",
    "IQM",
    "bootstrap of the IQM",
    "min to max",
    "area",
    "collapsed",
)
CONTRAST_COLUMNS = (
    "arm",
    "n",
    "difference",
    "t interval",
    "bootstrap",
    "p",
    "Holm p",
    "sign-flip p",
    "P(better)",
    "area",
)


def to_json(comparison: Comparison) -> str:
    """Return the comparison as a JSON object; unknown numbers are null."""
    whole = {
        "format": FORMAT,
        "metric": comparison.metric,
        "curve_metric": comparison.curve_metric,
        "axis": comparison.axis,
        "end": comparison.end,
        "reference": comparison.reference,
        "problem_level": comparison.problem_level,
        "settings": comparison.settings,
        "arms": [_arm(arm) for arm in comparison.arms],
        "contrasts": [_contrast(contrast) for contrast in comparison.contrasts],
        "warnings": warnings(comparison),
    }
    return json.dumps(jsonable(whole), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _arm(arm: ArmResult) -> dict[str, Any]:
    share = _collapsed(arm)
    return {
        "arm": arm.name,
        "n": len(arm.values),
        "seeds": list(arm.values),
        "runs": [run.where for run in arm.runs.values()],
        "values": list(arm.values.values()),
        "mean": arm.mean.mean,
        "ci_low": arm.mean.interval.low,
        "ci_high": arm.mean.interval.high,
        "bootstrap_low": arm.bootstrap.low,
        "bootstrap_high": arm.bootstrap.high,
        "iqm": arm.iqm,
        "iqm_bootstrap_low": arm.iqm_bootstrap.low,
        "iqm_bootstrap_high": arm.iqm_bootstrap.high,
        "min": min(arm.values.values()),
        "max": max(arm.values.values()),
        "collapsed": sum(arm.collapsed.values()) if arm.collapsed else None,
        "collapsed_of": len(arm.collapsed),
        "collapsed_low": share.low if share else None,
        "collapsed_high": share.high if share else None,
        "area": _mean(list(arm.areas.values())),
        "areas": list(arm.areas.values()),
    }


def _contrast(contrast: Contrast) -> dict[str, Any]:
    area = contrast.area
    interval, bootstrap = contrast.difference.interval, contrast.bootstrap
    return {
        "arm": contrast.arm,
        "reference": contrast.reference,
        "n": len(contrast.seeds),
        "seeds": contrast.seeds,
        "mean": contrast.difference.mean,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "p": contrast.difference.p,
        "p_holm": contrast.p_holm,
        "p_sign_flip": contrast.sign_flip.p,
        "sign_flip_exact": contrast.sign_flip.exact,
        "bootstrap_low": bootstrap.low,
        "bootstrap_high": bootstrap.high,
        "probability_of_improvement": contrast.improvement,
        "detectable": contrast.detectable,
        "area_mean": area.mean if area else None,
        "area_ci_low": area.interval.low if area else None,
        "area_ci_high": area.interval.high if area else None,
    }


def to_csv(comparison: Comparison) -> str:
    """Return one CSV row for each run, which `vcppo compare` can read."""
    metric = comparison.metric.rpartition("/")[2]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", metric, "problems", "area", "collapsed", "start", "run"])
    for arm in comparison.arms:
        for seed, value in arm.values.items():
            run = arm.runs[seed]
            found = run.problems_at(comparison.metric, comparison.axis, comparison.end)
            found = found or run.problems.get((comparison.metric, -1))
            writer.writerow(
                [
                    arm.name,
                    seed,
                    f"{value:.6g}",
                    found.count if found else "",
                    f"{arm.areas[seed]:.6g}" if seed in arm.areas else "",
                    int(arm.collapsed[seed]) if seed in arm.collapsed else "",
                    run.starts.get("actor", run.starts.get("start", "")),
                    run.where,
                ]
            )
    return text.getvalue()


# Tables


def arm_rows(comparison: Comparison) -> list[list[str]]:
    """Return the cells of the table of arms, in the order of `ARM_COLUMNS`."""
    number = _Format(comparison)
    return [
        [
            arm.name,
            str(len(arm.values)),
            number(arm.mean.mean),
            number.interval(arm.mean.interval),
            number(arm.iqm),
            number.interval(arm.iqm_bootstrap),
            number.interval(Interval(min(arm.values.values()), max(arm.values.values()))),
            number.area(_mean(list(arm.areas.values()))),
            _collapsed_cell(arm),
        ]
        for arm in comparison.arms
    ]


def contrast_rows(comparison: Comparison) -> list[list[str]]:
    """Return the cells of the table of contrasts, in the order of `CONTRAST_COLUMNS`."""
    number = _Format(comparison)
    return [
        [
            contrast.arm,
            str(len(contrast.seeds)),
            number(contrast.difference.mean, "+"),
            number.interval(contrast.difference.interval, "+"),
            number.interval(contrast.bootstrap, "+"),
            _p(contrast.difference.p),
            _p(contrast.p_holm),
            _p(contrast.sign_flip.p) + ("" if contrast.sign_flip.exact else " (drawn)"),
            f"{contrast.improvement:.2f}",
            number.area(contrast.area.mean, "+") if contrast.area else "",
        ]
        for contrast in comparison.contrasts
    ]


def title(comparison: Comparison) -> str:
    """Return a line that names the metric and the place of the comparison."""
    unit = " (%)" if comparison.is_share else ""
    if math.isinf(comparison.end):
        return f"{comparison.metric}{unit} at the end of each run"
    axis = comparison.axis.replace("_", " ")
    return f"{comparison.metric}{unit} at {comparison.end:,.6g} {axis}"


def notes(comparison: Comparison) -> list[str]:
    """Return explanations of the numbers, one line for each."""
    found = [
        "Intervals are 95 %. The t interval is over seeds; the bootstrap draws "
        f"{comparison.problem_level}. With few seeds the bootstrap interval is too narrow."
    ]
    if any(arm.areas for arm in comparison.arms):
        axis = comparison.axis.replace("_", " ")
        found.append(f"Area is the mean of {comparison.curve_metric} over the {axis}.")
    if any(arm.collapsed for arm in comparison.arms):
        found.append(
            "A run has collapsed if the accuracy and the length of its last rollouts are both "
            "below half of those of the policy it started with; the interval is exact."
        )
    if comparison.contrasts:
        found.append(
            f"Differences from {comparison.reference} are paired by seed. Holm's p is corrected "
            f"for {_count(comparison.contrasts)}; with 5 seeds no sign-flip p is below 0.0625."
        )
    return found


def _count(contrasts: Sequence[Contrast]) -> str:
    return f"{len(contrasts)} contrast{'s' if len(contrasts) > 1 else ''}"


def to_markdown(comparison: Comparison) -> str:
    """Return the tables, notes and warnings as Markdown."""
    parts = [f"**{title(comparison)}**", "", *_table(ARM_COLUMNS, arm_rows(comparison)), ""]
    if comparison.contrasts:
        parts += [f"Paired difference from `{comparison.reference}`:", ""]
        parts += [*_table(CONTRAST_COLUMNS, contrast_rows(comparison)), ""]
    parts += [f"{note}\n" for note in notes(comparison)]
    parts += [f"- Warning: {warning}" for warning in warnings(comparison)]
    return "\n".join(parts).rstrip() + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines]


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print tables, notes and warnings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    heads: list[tuple[str, Sequence[str], list[list[str]]]] = [
        (title(comparison), ARM_COLUMNS, arm_rows(comparison))
    ]
    if comparison.contrasts:
        head = f"paired difference from {comparison.reference}"
        heads.append((head, CONTRAST_COLUMNS, contrast_rows(comparison)))
    for head, columns, rows in heads:
        table = Table(box=SIMPLE_HEAD, title=head, title_justify="left", pad_edge=False)
        for place, column in enumerate(columns):
            table.add_column(column, justify="right" if place else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table, markup=False)
    for note in notes(comparison):
        console.print(note, markup=False, highlight=False)
    for warning in warnings(comparison):
        console.print(f"warning: {warning}", markup=False, highlight=False)


class _Format:
    """Formats values of a comparison's metric: shares in percent, others with four digits."""

    def __init__(self, comparison: Comparison) -> None:
        self._percent = comparison.is_share
        self._area_percent = comparison.curve_metric.endswith("accuracy")

    def __call__(self, value: float, sign: str = "") -> str:
        return _number(value, sign, self._percent)

    def area(self, value: float, sign: str = "") -> str:
        return _number(value, sign, self._area_percent)

    def interval(self, interval: Interval, sign: str = "") -> str:
        if math.isnan(interval.low):
            return ""
        return f"{self(interval.low, sign)} to {self(interval.high, sign)}"


def _number(value: float, sign: str, percent: bool) -> str:
    if math.isnan(value):
        return ""
    if not percent:
        return f"{value:{sign}.4g}"
    text = f"{100 * value:{sign}.1f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if float(text) == 0 else text


def _p(p: float) -> str:
    return "" if math.isnan(p) else f"{p:.2g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _collapsed(arm: ArmResult) -> Interval | None:
    if not arm.collapsed:
        return None
    return share_interval(sum(arm.collapsed.values()), len(arm.collapsed))


def _collapsed_cell(arm: ArmResult) -> str:
    interval = _collapsed(arm)
    if interval is None:
        return ""
    count = f"{sum(arm.collapsed.values())} of {len(arm.collapsed)}"
    return f"{count} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"
