"""List reasons to doubt a difference, one line for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_vcppo.comparison.contrasts import POWER, Comparison
from lightning_vcppo.comparison.runs import RunData

FEW = 5
"""Number of seeds below which intervals are not reliable."""
AGREEMENT = 0.3
"""Spread over seeds, as a share of the noise of problems, below which a t test is not reliable."""


def warnings(comparison: Comparison) -> list[str]:
    """Return the reasons to doubt a difference, one line for each."""
    return list(_warnings(comparison))


def _warnings(comparison: Comparison) -> Iterator[str]:
    runs = [run for arm in comparison.arms for run in arm.runs.values()]
    counts = {arm.name: len(arm.runs) for arm in comparison.arms}
    few = [f"{name} {count}" for name, count in counts.items() if count < FEW]
    if few:
        yield f"fewer than {FEW} seeds ({', '.join(few)}): intervals are not reliable"
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield f"arms have different numbers of seeds ({listed}); differences use common seeds"
    for name, seeds in comparison.late.items():
        yield (
            f"{name}: seed {', '.join(map(str, seeds))} was run after other arms were complete; "
            "the p value of an arm that is extended when results are known is not valid"
        )
    if comparison.searched:
        yield f"seed {', '.join(map(str, comparison.searched))} was used to choose settings, too"
    yield from _of_places(comparison, runs)
    equal = [a.name for a in comparison.arms if len(a.values) > 1 == len({*a.values.values()})]
    if equal:
        yield (
            f"{', '.join(equal)}: all seeds have the same {comparison.metric}, so their spread is "
            "unknown and there is no t interval"
        )
    for run in runs:
        yield from (f"{run.where}: {note.removesuffix('.')}" for note in run.notes)
    unknown = [run.where for run in runs if not run.starts]
    if unknown and comparison.contrasts:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        yield f"{unknown[0]}{more}: the start is unknown, so equal starts were not checked"
    for contrast in comparison.contrasts:
        if contrast.spread < AGREEMENT * contrast.problem_noise:
            yield (
                f"{contrast.arm} - {contrast.reference}: the differences vary less over seeds "
                f"({contrast.spread:.2g}) than by the choice of problems alone "
                f"({contrast.problem_noise:.2g}), so the t interval is too narrow and p too small"
            )
    yield from _detectable(comparison)


def _detectable(comparison: Comparison) -> Iterator[str]:
    """Yield, for each number of pairs, the differences that are detected in four of five cases."""
    size, unit = (100, " points") if comparison.is_share else (1, "")
    by_count: dict[int, list[float]] = {}
    for contrast in comparison.contrasts:
        if contrast.detectable > 0:  # neither unknown nor without any spread
            by_count.setdefault(len(contrast.seeds), []).append(size * contrast.detectable)
    for count, found in sorted(by_count.items()):
        least, most = (f"{end:.2g}" for end in (min(found), max(found)))
        span = least if least == most else f"{least} to {most}"
        yield f"n = {count} detects a difference of {span}{unit} with {100 * POWER:.0f} % power"


def _of_places(comparison: Comparison, runs: Sequence[RunData]) -> Iterator[str]:
    """Yield warnings about runs that are longer than the comparison, or were evaluated before."""
    axis, end = comparison.axis, comparison.end
    unit = axis.replace("_", " ")
    reaches = {run.where: reach for run in runs if (reach := run.reach(axis)) is not None}
    longest = max(reaches, key=lambda where: reaches[where], default=None)
    shortest = min(reaches, key=lambda where: reaches[where], default=None)
    if longest and shortest and reaches[longest] > 1.001 * end:
        yield (
            f"runs are compared at {end:g} {unit}, where {shortest} ends; {longest} continues to "
            f"{reaches[longest]:g}"
        )
    early = {}
    for run in runs:
        step = None if run.final else run.last_step(comparison.metric, axis, end)
        if step is not None and run.places[axis][step] < 0.95 * end:
            early[run.where] = run.places[axis][step]
    for where, place in list(early.items())[:1]:
        more = f" (and {len(early) - 1} more runs)" if len(early) > 1 else ""
        yield f"{where}{more}: {comparison.metric} was last measured at {place:g} of {end:g} {unit}"
    ends = {f"{run.final[axis]:g}" for run in runs if axis in run.final}
    if len(ends) > 1 and axis != comparison.metric:
        yield f"rows end at different {unit}: {', '.join(sorted(ends, key=float))}"
