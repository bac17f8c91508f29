"""Check the gates and draw the figure: `python -m experiments.dose_response.results`.

The figure is `dose_response.png` next to the rows: accuracy by the ratio of the critic's learning
rate to the actor's, one point for each run, and the bias of each critic when the policy starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from experiments.protocol import read_protocol
from experiments.runs import curves_of, read_rows
from lightning_vcppo.report.plotting import tidy

RESULTS = Path(__file__).parents[2] / "docs/experiments/dose_response.csv"
RATIOS = ("0.2", "0.5", "2")
FAMILIES = {
    "vcppo": ("VC-PPO", "#0072B2"),
    "no_pretraining_99": ("no value pretraining, lambdas 0.99 and 1", "#D55E00"),
    "no_pretraining_95": ("no value pretraining, lambdas 0.95 and 1", "#E69F00"),
}
"""Label and colour of arms that differ only in the ratio."""
Rows = Sequence[Mapping[str, str]]


def first_biases(curves: Rows) -> dict[tuple[str, int], float]:
    """Return mean R - V in the first rollout of the policy, by arm and seed."""
    return {
        (row["arm"], int(row["seed"])): float(row["bias"])
        for row in curves
        if row["policy_rollout"] == "1"
    }


def gates(rows: Rows, curves: Rows) -> str:
    """Return a line for each gate of the protocol: the number of runs that pass, and the range."""
    starts = {int(row["seed"]): float(row["cold_start_accuracy"]) for row in rows}
    biases = {run: abs(bias) for run, bias in first_biases(curves).items()}
    pretrained = {run: bias for run, bias in biases.items() if run[0].startswith("vcppo")}
    others = [bias for run, bias in biases.items() if run not in pretrained]
    lines = [
        _line("start: cold start 0.02 to 0.12 right", list(starts.values()), 0.02, 0.12),
        _line("bias: above 0.4 without value pretraining", others, 0.4, float("inf")),
    ]
    for arm in sorted({arm for arm, _ in pretrained}):
        of_arm = [bias for run, bias in pretrained.items() if run[0] == arm]
        lines.append(_line(f"pretraining: below 0.2 in {arm}", of_arm, 0.0, 0.2))
    return "\n".join(lines)


def _line(gate: str, values: Sequence[float], low: float, high: float) -> str:
    passed = sum(low <= value <= high for value in values)
    return f"{gate}: {passed} of {len(values)} pass ({min(values):.3f} to {max(values):.3f})"


def draw(rows: Rows, curves: Rows, path: Path) -> None:
    """Draw accuracy, and the bias at the start of the policy, by the ratio of the rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2)
    accuracies = {(r["arm"], int(r["seed"])): 100 * float(r["accuracy"]) for r in rows}
    biases = {run: -bias for run, bias in first_biases(curves).items()}
    for ax, values, title in (
        (panels[0], accuracies, "Held-out accuracy at the end (%)"),
        (panels[1], biases, "Mean V - R as the policy starts"),
    ):
        tidy(ax, title, "critic's learning rate / actor's")
        for shift, (family, (label, color)) in enumerate(FAMILIES.items()):
            means = []
            for place, ratio in enumerate(RATIOS):
                found = [v for (arm, _), v in values.items() if arm == f"{family}_ratio_{ratio}"]
                at = place + 0.08 * (shift - 1)
                ax.plot([at] * len(found), found, "o", color=color, alpha=0.45, markersize=5)
                means += [(at, fmean(found))] if found else []
            ax.plot(*zip(*means, strict=True), "-", color=color, linewidth=2, label=label)
        ax.set_xticks(range(len(RATIOS)), RATIOS)
    start = 100 * fmean({r["seed"]: float(r["cold_start_accuracy"]) for r in rows}.values())
    panels[0].axhline(start, color="#666666", linestyle=":", linewidth=1, label="cold start")
    panels[1].axhline(0, color="#666666", linewidth=0.8)
    panels[0].legend(frameon=False, fontsize="small", loc="center left")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read the rows, print the gates and draw the figure."""
    parser = argparse.ArgumentParser(
        "python -m experiments.dose_response.results", description="Check the gates, and draw."
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    results = parser.parse_args().results
    seeds = read_protocol("dose_response").seeds
    rows = [row for row in read_rows(results) if int(row["seed"]) in seeds]
    curves = read_rows(curves_of(results))
    print(gates(rows, curves))
    draw(rows, curves, results.with_suffix(".png"))


if __name__ == "__main__":
    main()
