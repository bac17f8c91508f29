"""Report the rows of an experiment: a table of its arms, and the contrasts of its protocol.

Contrasts are paired by seed. They are reported only when every arm has every seed, because looking
at differences between runs invites stopping at a favourable moment. `vcppo compare` has more
statistics of finished runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from experiments.ablation_report import Estimate, by_arm, paired
from lightning_vcppo.comparison.statistics import holm, share_interval, sign_flip

Rows = Sequence[Mapping[str, str]]
LAST = 5
"""Number of rollouts at the end of a run over which accuracy and length are averaged."""


def report(
    rows: Rows,
    curves: Rows,
    arms: Sequence[str],
    seeds: Sequence[int],
    contrasts: Sequence[tuple[str, str, bool]],
) -> str:
    """Return the table and, if all runs are complete, the contrasts, as Markdown.

    Args:
        rows: Rows of the results; those of other seeds and arms are ignored.
        curves: Rows of the training curves; the same are ignored.
        arms: Arms of the protocol, in its order.
        seeds: Seeds of the protocol.
        contrasts: Arm, reference, and whether the contrast is primary.
    """
    rows, curves = (
        [row for row in given if int(row["seed"]) in seeds and row["arm"] in arms]
        for given in (rows, curves)
    )
    accuracy = by_arm(rows, "accuracy")
    missing = len(arms) * len(seeds) - len(rows)
    lines = [table(rows, curves, arms)]
    if missing:
        lines.append(
            f"Unfinished: {len(rows)} of {len(arms) * len(seeds)} runs. Contrasts are reported "
            "when all of them are complete."
        )
    else:
        area: dict[str, dict[int, float]] = defaultdict(dict)
        for (arm, seed), value in areas(curves).items():
            area[arm][seed] = value
        lines.append(contrast_table(accuracy, area, contrasts))
    return "\n\n".join(lines)


def table(rows: Rows, curves: Rows, arms: Sequence[str]) -> str:
    """Return a table with a line for each arm: accuracy in percent, length, collapsed runs."""
    accuracy, length = by_arm(rows, "accuracy"), by_arm(rows, "response_length")
    collapses, area = collapsed(curves), areas(curves)
    lines = [
        "| Arm | seeds | accuracy | min to max | tokens | policy rollouts | collapsed |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in (arm for arm in arms if arm in accuracy):
        values = list(accuracy[arm].values())
        count = sum(collapses.get((arm, seed), False) for seed in accuracy[arm])
        exact = share_interval(count, len(values))
        cells = (
            f"`{arm}`",
            len(values),
            Estimate.of(values).percent(),
            f"{100 * min(values):.1f} to {100 * max(values):.1f}",
            f"{fmean(length[arm].values()):.0f}",
            f"{100 * fmean(area[arm, seed] for seed in accuracy[arm]):.1f}",
            f"{count} of {len(values)} ({100 * exact.low:.0f} to {100 * exact.high:.0f} %)",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def contrast_table(
    accuracy: Mapping[str, Mapping[int, float]],
    area: Mapping[str, Mapping[int, float]],
    contrasts: Sequence[tuple[str, str, bool]],
) -> str:
    """Return a table with a line for each contrast, in points.

    The p values are of the accuracy at the end. Exploratory contrasts have none, and the area, a
    secondary outcome, has none either.
    """
    estimates = [paired(accuracy[arm], accuracy[reference]) for arm, reference, _ in contrasts]
    primary = [i for i, (_, _, is_primary) in enumerate(contrasts) if is_primary]
    corrected = dict(zip(primary, holm([estimates[i].p for i in primary]), strict=True))
    lines = [
        "| Contrast | difference | p | p (Holm) | p (sign flip) | in policy rollouts |",
        "|---|---|---|---|---|---|",
    ]
    for i, (arm, reference, is_primary) in enumerate(contrasts):
        differences = [accuracy[arm][seed] - accuracy[reference][seed] for seed in accuracy[arm]]
        p = (f"{estimates[i].p:.2g}", f"{corrected[i]:.2g}") if is_primary else ("", "")
        flips = f"{sign_flip(differences).p:.3g}" if is_primary else ""
        over_time = paired(area[arm], area[reference]).percent("+")
        cells = (f"`{arm}` - `{reference}`", estimates[i].percent("+"), *p, flips, over_time)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def collapsed(curves: Rows) -> dict[tuple[str, int], bool]:
    """Return for each run whether it has collapsed.

    It has if the means of both accuracy and length over the last five rollouts are below half of
    those of the first rollout from which the policy learned.
    """
    return {
        run: all(
            fmean(float(row[name]) for row in rows[-LAST:]) < 0.5 * float(rows[0][name])
            for name in ("accuracy", "response_length")
        )
        for run, rows in _of_policy(curves).items()
    }


def areas(curves: Rows) -> dict[tuple[str, int], float]:
    """Return the mean accuracy over the policy's rollouts, as many as every run has."""
    runs = _of_policy(curves)
    shortest = min(map(len, runs.values()), default=0)
    return {
        run: fmean(float(row["accuracy"]) for row in rows[:shortest]) for run, rows in runs.items()
    }


def _of_policy(curves: Rows) -> dict[tuple[str, int], list[Mapping[str, str]]]:
    runs: dict[tuple[str, int], list[Mapping[str, str]]] = defaultdict(list)
    for row in curves:
        if row["policy_rollout"]:
            runs[row["arm"], int(row["seed"])].append(row)
    return runs
