"""Assemble the numbers of a comparison: arms, and their contrasts with a reference."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from lightning_vcppo.comparison import statistics
from lightning_vcppo.comparison.arms import (
    Arm,
    check_problems,
    differences,
    group,
    pair,
    started_later,
)
from lightning_vcppo.comparison.measurements import Measurement, bootstrap
from lightning_vcppo.comparison.runs import (
    ACCURACY,
    AXES,
    TRAINING_ACCURACY,
    RunData,
    expand,
    read_directory,
)
from lightning_vcppo.comparison.statistics import Interval
from lightning_vcppo.comparison.tables import read_table
from lightning_vcppo.metrics.guard_rules import Limits

POWER = 0.8
CURVE_POINTS = 3
"""Fewest points of a metric for its area; with fewer, the area is of the training accuracy."""


@dataclass(frozen=True)
class ArmResult:
    """The results of an arm.

    Attributes:
        name: Name of the arm.
        runs: The runs, by seed.
        values: Value of each run, by seed.
        mean: Mean over seeds with its t interval.
        bootstrap: Interval of the mean over seeds and problems.
        iqm: Interquartile mean.
        iqm_bootstrap: Interval of the interquartile mean over seeds and problems.
        collapsed: Whether each run collapsed, by seed; runs without curves are left out.
        areas: Mean height of each run's curve, by seed.
    """

    name: str
    runs: dict[int, RunData]
    values: dict[int, float]
    mean: statistics.TEstimate
    bootstrap: Interval
    iqm: float
    iqm_bootstrap: Interval
    collapsed: dict[int, bool]
    areas: dict[int, float]


@dataclass(frozen=True)
class Contrast:
    """The paired difference of an arm from the reference.

    Attributes:
        arm: The arm.
        reference: The reference.
        seeds: Seeds of the pairs.
        difference: Mean difference with its t interval and p value.
        bootstrap: Interval of the mean difference over seeds and problems.
        p_holm: The p value, corrected for all contrasts of the comparison.
        sign_flip: The p value of the sign-flip test.
        improvement: Probability that a run of the arm is better than one of the reference.
        detectable: Difference that this number of pairs with this spread detects with 80 % power.
        area: Mean difference of the areas with its t interval; None without curves.
        spread: Standard deviation of the differences over seeds.
        problem_noise: Standard deviation of a difference that is due to the choice of problems.
    """

    arm: str
    reference: str
    seeds: list[int]
    difference: statistics.TEstimate
    bootstrap: Interval
    p_holm: float
    sign_flip: statistics.SignFlip
    improvement: float
    detectable: float
    area: statistics.TEstimate | None
    spread: float
    problem_noise: float


@dataclass(frozen=True)
class Comparison:
    """The results of `vcppo compare`.

    Attributes:
        metric: Metric to compare.
        curve_metric: Metric of the curves and of the area.
        axis: Axis on which the arms are compared at the same place.
        end: The last place on the axis that every run has reached; infinite for rows without one.
        reference: Name of the reference.
        arms: All arms.
        contrasts: Contrasts of the other arms with the reference.
        settings: Settings in which arms differ, with the value of each arm.
        problem_level: What the bootstrap resamples, in words.
        late: Seeds of arms that were run after other arms were complete.
        searched: Compared seeds on which settings were chosen, too.
    """

    metric: str
    curve_metric: str
    axis: str
    end: float
    reference: str
    arms: list[ArmResult]
    contrasts: list[Contrast]
    settings: dict[str, list[str]]
    problem_level: str
    late: dict[str, list[int]]
    searched: list[int]

    @property
    def is_share(self) -> bool:
        """Whether values are shares, which tables show in percent."""
        return self.metric.endswith(("accuracy", "rate", "at_k", "exact"))


@dataclass(frozen=True)
class Options:
    """The options of a comparison.

    Attributes:
        metric: Metric to compare.
        axis: Axis on which runs are compared, at the last place that all have reached.
        reference: Name of the arm that others are compared with; None means the first.
        names: Names of the arms, in the order of their first runs.
        by: Columns of a CSV file that name the arm of a row.
        problems: Number of held-out problems of the rows of a CSV file.
        search_seeds: Seeds on which settings were chosen.
    """

    metric: str = ACCURACY
    axis: str = "rollouts"
    reference: str | None = None
    names: Sequence[str] = ()
    by: Sequence[str] = ("arm",)
    problems: int | None = None
    search_seeds: Collection[int] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown axis."""
        if self.axis not in AXES:
            raise ValueError(f"--axis: expected one of {', '.join(AXES)}, got {self.axis}")


def read(paths: Sequence[Path], options: Options) -> list[RunData]:
    """Read runs from directories and CSV files.

    Raises:
        ValueError: If a path is neither, or its files cannot be read.
    """
    runs: list[RunData] = []
    for path in expand(paths):
        if path.is_dir():
            runs.append(read_directory(path))
        else:
            runs += read_table(path, options.by, options.problems)
    return runs


def compare(runs: Sequence[RunData], options: Options) -> Comparison:
    """Group runs into arms, and compare the arms with the reference.

    Raises:
        ValueError: If runs cannot be grouped, paired, or measured, or the reference is unknown.
        ImportError: If scipy is not installed.
    """
    arms = group(runs, options.names)
    by_name = {arm.name: arm for arm in arms}
    name = options.reference or arms[0].name
    if name not in by_name:
        raise ValueError(f"--reference: {name!r} is not one of {', '.join(by_name)}")
    reference = by_name[name]
    metric = ACCURACY if options.metric == "accuracy" else options.metric  # a column of rows
    axis = options.axis
    end = _common_end(runs, axis)
    pairs = {arm.name: pair(arm, reference) for arm in arms if arm is not reference}
    found = [(run, run.problems_at(metric, axis, end)) for run in runs]
    check_problems(metric, [(run, frozenset(p.rates if p else ())) for run, p in found])
    curve_metric = _curve_metric(runs, metric, axis)
    results = [_arm(arm, metric, curve_metric, axis, end) for arm in arms]
    areas = {result.name: result.areas for result in results}
    contrasts = [
        _contrast(by_name[arm], reference, of_arm, areas, (metric, axis, end))
        for arm, of_arm in pairs.items()
    ]
    corrected = statistics.holm([contrast.difference.p for contrast in contrasts])
    contrasts = [replace(c, p_holm=p) for c, p in zip(contrasts, corrected, strict=True)]
    return Comparison(
        metric=metric,
        curve_metric=curve_metric,
        axis=axis,
        end=end,
        reference=name,
        arms=results,
        contrasts=contrasts,
        settings=differences([arm.settings for arm in arms]),
        problem_level=_problem_level(runs, metric, axis, end),
        late=started_later(arms),
        searched=sorted({run.seed for run in runs} & set(options.search_seeds)),
    )


def _common_end(runs: Sequence[RunData], axis: str) -> float:
    """Return the last place that every run has reached; rows of a table end where they end."""
    ends = {run.where: run.reach(axis) for run in runs if not run.final}
    for where, end in ends.items():
        if end is None:
            raise ValueError(
                f"{where}: has no {axis.replace('_', ' ')}; choose another --axis: "
                f"{', '.join(AXES)}"
            )
    with_curves = [run.reach(axis) for run in runs]
    return min((end for end in with_curves if end is not None), default=math.inf)


def _curve_metric(runs: Sequence[RunData], metric: str, axis: str) -> str:
    if all(len(run.curve(metric, axis)) >= CURVE_POINTS for run in runs):
        return metric
    return TRAINING_ACCURACY


def _arm(arm: Arm, metric: str, curve_metric: str, axis: str, end: float) -> ArmResult:
    measured = {seed: run.measure(metric, axis, end) for seed, run in arm.runs.items()}
    values = {seed: measurement.value for seed, measurement in measured.items()}
    runs = list(measured.values())
    collapsed = {s: run.collapsed(axis, end, Limits()) for s, run in arm.runs.items()}
    return ArmResult(
        name=arm.name,
        runs=dict(arm.runs),
        values=values,
        mean=statistics.t_estimate(list(values.values())),
        bootstrap=bootstrap(runs),
        iqm=float(statistics.interquartile_mean(_array(values.values()))),
        iqm_bootstrap=bootstrap(runs, statistics.interquartile_mean),
        collapsed={seed: fell for seed, fell in collapsed.items() if fell is not None},
        areas=dict(_areas(arm, curve_metric, axis, end)),
    )


def _areas(arm: Arm, metric: str, axis: str, end: float) -> Iterator[tuple[int, float]]:
    for seed, run in arm.runs.items():
        curve = run.curve(metric, axis)
        if curve and curve[0][0] <= end <= curve[-1][0]:
            places, heights = zip(*_increasing(curve), strict=True)
            yield seed, statistics.area(places, heights, end)


def _increasing(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Sort points; of several at one place, as in value pretraining, keep the last."""
    return sorted(dict(curve).items())


def _contrast(
    arm: Arm,
    reference: Arm,
    pairs: Sequence[tuple[RunData, RunData]],
    areas: dict[str, dict[int, float]],
    where: tuple[str, str, float],
) -> Contrast:
    seeds = [run.seed for run, _ in pairs]
    measured = [(run.measure(*where), other.measure(*where)) for run, other in pairs]
    raw = [run.value - other.value for run, other in measured]
    both = [_difference(run, other, where) for run, other in pairs]
    ours, theirs = areas[arm.name], areas[reference.name]
    area = [ours[seed] - theirs[seed] for seed in seeds if seed in ours and seed in theirs]
    spread = stdev(raw) if len(raw) > 1 else math.nan
    return Contrast(
        arm=arm.name,
        reference=reference.name,
        seeds=seeds,
        difference=statistics.t_estimate(raw),
        bootstrap=bootstrap(both),
        p_holm=math.nan,
        sign_flip=statistics.sign_flip(raw),
        improvement=statistics.probability_of_improvement(
            [run.value for run, _ in measured], [other.value for _, other in measured]
        ),
        detectable=statistics.detectable_difference(spread, len(raw), POWER),
        area=statistics.t_estimate(area) if len(area) == len(seeds) else None,
        spread=spread,
        problem_noise=math.sqrt(fmean(run.deviation**2 for run in both)),
    )


def _difference(run: RunData, other: RunData, where: tuple[str, str, float]) -> Measurement:
    """Subtract problem by problem if both have results of problems, otherwise as independent."""
    ours, theirs = run.problems_at(*where), other.problems_at(*where)
    if ours and theirs and ours.rates and theirs.rates:
        return Measurement.of_problems([rate - theirs.rates[p] for p, rate in ours.rates.items()])
    return run.measure(*where).minus(other.measure(*where))


def _problem_level(runs: Sequence[RunData], metric: str, axis: str, end: float) -> str:
    """Describe what the bootstrap resamples."""
    exact = [p for run in runs if (p := run.problems_at(metric, axis, end)) and p.rates]
    if len(exact) == len(runs):
        return "seeds and, within them, problems with their results"
    if all(run.measure(metric, axis, end).varies for run in runs):
        return (
            "seeds and, because results of single problems are missing, binomial counts of right "
            "problems, independently in both runs of a pair"
        )
    return "only seeds: the number of problems is unknown, or the metric has none"


def _array(values: Collection[float]) -> statistics.Array:
    import numpy as np

    return np.asarray(list(values), dtype=np.float64)
