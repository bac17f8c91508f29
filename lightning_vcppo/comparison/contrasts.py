"""Put the numbers of a comparison together: arms, contrasts with a reference, warnings."""

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
    read_folder,
)
from lightning_vcppo.comparison.statistics import Interval
from lightning_vcppo.comparison.tables import read_table
from lightning_vcppo.metrics.guard_rules import Limits

POWER = 0.8
CURVE_POINTS = 3
"""Fewest points of a metric whose area is told; otherwise it is that of the training accuracy."""


@dataclass(frozen=True)
class ArmResult:
    """The runs of an arm, in numbers.

    Attributes:
        name: Name of the arm.
        runs: The runs, by seed.
        values: Value of each run, by seed.
        mean: Mean over seeds with its t interval.
        bootstrap: Interval of the mean over seeds and problems.
        iqm: Interquartile mean.
        iqm_bootstrap: Its interval over seeds and problems.
        collapsed: Whether each run collapsed, by seed; without those that have no curves.
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
        detectable: Difference that as many pairs with this spread detect with 80 % power.
        area: Mean difference of the areas with its t interval; None without curves.
        spread: Standard deviation of the differences over seeds.
        problem_noise: Standard deviation that the choice of problems alone gives a difference.
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
    """All that `vcppo compare` tells.

    Attributes:
        metric: What is compared.
        curve_metric: Whose curves are drawn, and whose area is told.
        axis: On which the arms are equal.
        end: The place on the axis that every run has reached; infinite for rows without one.
        reference: Name of the reference.
        arms: All arms.
        contrasts: Those of the other arms with the reference.
        settings: Settings in which arms differ, with the value of each arm.
        problem_level: What the bootstrap draws.
        late: Seeds of arms that were run after other arms were complete.
        searched: Seeds on which settings were chosen, too.
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
    """What a user decides about a comparison.

    Attributes:
        metric: What is compared.
        axis: On which runs are compared at the place that all have reached.
        reference: Name of the arm that others are compared with; None is the first.
        names: Names of the arms, in the order of their first runs.
        by: Columns of a CSV file that name the arm of a row.
        problems: Number of held-out problems of the rows of a CSV file.
        search_seeds: Seeds on which settings were searched.
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
        ValueError: If a path is neither, or what is there cannot be read.
    """
    runs: list[RunData] = []
    for path in expand(paths):
        if path.is_dir():
            runs.append(read_folder(path))
        else:
            runs += read_table(path, options.by, options.problems)
    return runs


def compare(runs: Sequence[RunData], options: Options) -> Comparison:
    """Compare the arms that runs make up.

    Raises:
        ValueError: If runs cannot be grouped, paired, or measured, or there is no such reference.
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
                f"{where}: has no {axis.replace('_', ' ')}; choose another --axis of "
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
    """Keep the last of the points with the same place, as those of value pretraining have."""
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
    """Subtract problem by problem where both have their results, otherwise as independent."""
    ours, theirs = run.problems_at(*where), other.problems_at(*where)
    if ours and theirs and ours.rates and theirs.rates:
        return Measurement.of_problems([rate - theirs.rates[p] for p, rate in ours.rates.items()])
    return run.measure(*where).minus(other.measure(*where))


def _problem_level(runs: Sequence[RunData], metric: str, axis: str, end: float) -> str:
    """Say what stands for the second level of the bootstrap."""
    exact = [p for run in runs if (p := run.problems_at(metric, axis, end)) and p.rates]
    if len(exact) == len(runs):
        return "seeds and, within them, the problems with their results"
    if all(run.measure(metric, axis, end).varies for run in runs):
        return (
            "seeds and, as results of single problems are missing, the binomial of their number, "
            "independently in both runs of a pair"
        )
    return "seeds alone: the number of problems is not known, or the metric has none"


def _array(values: Collection[float]) -> statistics.Array:
    import numpy as np

    return np.asarray(list(values), dtype=np.float64)
