"""Report an ablation: `python -m experiments.ablation_report CSV --output DIRECTORY`.

The table has, for each arm, the mean over seeds with its 95 % interval (Student's t), and the
difference from VC-PPO on the same seeds with the interval and p value of a paired t test, the p
after Holm's correction for all arms of the table, and the exact p of a sign-flip test. Seeds are
few, so intervals are wide; arms with one seed have none. `vcppo compare CSV` has more statistics.

The figures are `curves.png` (accuracy and length over rollouts, each seed and
their mean), `arms.png` (each arm's accuracy at the end), `initial_advantage.png` (values and
advantages by position before any update of the policy, for the runs given by `--initial`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from experiments.ablation import MAIN_ARMS, read_arms
from experiments.runs import curves_of, read_rows
from lightning_vcppo.comparison import statistics
from lightning_vcppo.report.plotting import tidy

REFERENCE = "vcppo"
COLORS = ("#BBBBBB", "#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7")
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with a 95 % interval; p tests the hypothesis that the mean is 0."""

    mean: float
    half_width: float = math.nan
    p: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate the mean from one value for each seed."""
        found = statistics.t_estimate(values)
        low, high = found.interval
        return cls(found.mean, (high - low) / 2, found.p)

    def percent(self, sign: str = "") -> str:
        """Return the estimate in percent, as "68.4 (65.0 to 71.8)"."""
        text = f"{100 * self.mean:{sign}.1f}"
        if math.isnan(self.half_width):
            return text
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{text} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def by_arm(rows: Sequence[Mapping[str, str]], column: str) -> dict[str, dict[int, float]]:
    """Return the values of a column by arm and seed, with arms in the order of their first row."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        values[row["arm"]][int(row["seed"])] = float(row[column])
    return dict(values)


def differences(values: BySeed, reference: BySeed) -> list[float]:
    """Return the differences from the reference, on the seeds that both have.

    Raises:
        ValueError: If they have no seed in common.
    """
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        raise ValueError("no seed in common")
    return [values[seed] - reference[seed] for seed in seeds]


def paired(values: BySeed, reference: BySeed) -> Estimate:
    """Estimate the mean difference from the reference; for errors see `differences`."""
    return Estimate.of(differences(values, reference))


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the results as a Markdown table, in percent and tokens."""
    accuracy, length = by_arm(rows, "accuracy"), by_arm(rows, "response_length")
    start, rates = by_arm(rows, "cold_start_accuracy"), by_arm(rows, "actor_lr")
    lines = [
        "| Arm | actor lr | seeds | cold start | accuracy | length | minus VC-PPO | p | p (Holm) "
        "| p (sign flip) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    reference = accuracy.get(REFERENCE, {})
    compared = {
        arm: differences(values, reference)
        for arm, values in accuracy.items()
        if arm != REFERENCE and values.keys() & reference.keys()
    }
    estimates = {arm: Estimate.of(found) for arm, found in compared.items()}
    corrected = statistics.holm([estimate.p for estimate in estimates.values()])
    holm = dict(zip(estimates, corrected, strict=True))
    for arm, values in accuracy.items():
        contrast = ("", "", "", "")
        if arm in compared:
            flips = f"{statistics.sign_flip(compared[arm]).p:.2g}"
            p, p_holm = ("" if math.isnan(p) else f"{p:.2g}" for p in (estimates[arm].p, holm[arm]))
            contrast = (estimates[arm].percent("+"), p, p_holm, flips)
        cells = (
            f"`{arm}`",
            f"{fmean(rates[arm].values()):g}",
            len(values),
            f"{100 * fmean(start[arm].values()):.1f}",
            Estimate.of(list(values.values())).percent(),
            f"{fmean(length[arm].values()):.0f}",
            *contrast,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


# Figures -----------------------------------------------------------------------------------------


AXES = {
    "rollout": "rollouts, including value pretraining",
    "policy_rollout": "rollouts from which the policy learned",
}


def draw_curves(
    curves: Sequence[Mapping[str, str]], arms: Sequence[str], path: Path, over: str = "rollout"
) -> None:
    """Draw accuracy and length: each seed faint, their mean bold.

    Args:
        curves: Rows of the training curves.
        arms: Arms to draw.
        path: The image.
        over: Column of the x axis, one of `AXES`; rows that have none there are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for ax, column, title, scale in (
        (panels[0], "accuracy", "Accuracy of rollouts (%)", 100),
        (panels[1], "response_length", "Response length (tokens)", 1),
    ):
        tidy(ax, title, AXES[over])
        for place, arm in enumerate(arms):
            seeds: dict[str, list[tuple[int, float]]] = defaultdict(list)
            for row in curves:
                if row["arm"] == arm and row[over]:
                    seeds[row["seed"]].append((int(row[over]), scale * float(row[column])))
            if not seeds:
                continue
            color = COLORS[(place + 1) % len(COLORS)]
            for points in seeds.values():
                ax.plot(*zip(*points, strict=True), color=color, alpha=0.2, linewidth=0.8)
            means: dict[int, list[float]] = defaultdict(list)
            for points in seeds.values():
                for rollout, value in points:
                    means[rollout].append(value)
            mean = [(rollout, fmean(values)) for rollout, values in sorted(means.items())]
            ax.plot(*zip(*mean, strict=True), color=color, linewidth=2.2, label=arm)
        ax.set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def draw_arms(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw each arm's accuracy at the end: seeds as dots, the mean with its interval."""
    from matplotlib.figure import Figure

    accuracy = by_arm(rows, "accuracy")
    figure = Figure(figsize=(8, 0.42 * len(accuracy) + 1.2), layout="constrained")
    ax = figure.subplots()
    tidy(ax, "Held-out accuracy after the same number of rollouts (%)", "")
    for place, values in enumerate(accuracy.values()):
        estimate = Estimate.of(list(values.values()))
        half = 0.0 if math.isnan(estimate.half_width) else 100 * estimate.half_width
        ax.barh(place, 100 * estimate.mean, color="#9DC3E6", height=0.6)
        ax.errorbar(100 * estimate.mean, place, xerr=half, color="#333333", capsize=3)
        points = [100 * value for value in values.values()]
        ax.plot(points, [place] * len(points), ".", color="#0072B2", markersize=5)
    start = fmean(float(row["cold_start_accuracy"]) for row in rows)
    ax.axvline(100 * start, color="#D55E00", linewidth=1.2, label="cold start")
    ax.set_yticks(range(len(accuracy)), list(accuracy))
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


def draw_initial(runs: Mapping[str, Path], path: Path) -> None:
    """Draw values and advantages by position at the first rollout that moves the policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for ax, name in zip(panels, ("value", "advantage"), strict=True):
        tidy(ax, f"Mean {name} before the first policy update", "token of the response")
        ax.axhline(0, color="#888888", linewidth=0.8)
        for place, (label, run) in enumerate(runs.items()):
            positions = _first_of_policy(run)["absolute"]
            width = positions["bin_width"]
            points = [
                (width * (i + 0.5), mean)
                for i, (mean, count) in enumerate(
                    zip(positions[name]["all"], positions["count"], strict=True)
                )
                if mean is not None and count >= 20 * width
            ]
            color = COLORS[(place + 1) % len(COLORS)]
            ax.plot(*zip(*points, strict=True), color=color, linewidth=2, label=label)
    panels[1].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=120)


def _first_of_policy(run: Path) -> dict[str, Any]:
    with (run / "diagnostics" / "positions.jsonl").open(encoding="utf-8") as lines:
        records = (json.loads(line) for line in lines)
        found: dict[str, Any] = next(r for r in records if r["phase"] == "policy_optimization")
    return found


def main() -> None:
    """Read the command line, print the table and write the figures."""
    parser = argparse.ArgumentParser(
        "python -m experiments.ablation_report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("results", type=Path, help="CSV file of experiments.ablation")
    parser.add_argument("--output", type=Path, required=True, help="directory of the figures")
    parser.add_argument("--curves", nargs="+", default=MAIN_ARMS, help="arms in curves.png")
    parser.add_argument(
        "--initial", nargs="+", default=(), metavar="LABEL=RUN", help="in initial_advantage.png"
    )
    arguments = parser.parse_args()
    rows = read_rows(arguments.results)
    if not rows:
        parser.error(f"{arguments.results}: no results in this file")
    places = {arm.name: place for place, arm in enumerate(read_arms(["all"]))}
    rows.sort(key=lambda row: places.get(row["arm"], len(places)))
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = table(rows)
    console = Console()
    console.print(Markdown(text) if console.is_terminal else text, soft_wrap=True)
    curves = read_rows(curves_of(arguments.results))
    draw_curves(curves, arguments.curves, arguments.output / "curves.png")
    draw_arms(rows, arguments.output / "arms.png")
    if arguments.initial:
        runs = dict(part.split("=", 1) for part in arguments.initial)
        named = {label: Path(run) for label, run in runs.items()}
        draw_initial(named, arguments.output / "initial_advantage.png")


if __name__ == "__main__":
    main()
