"""Tell in one line each what speaks against believing a difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_vcppo.comparison.contrasts import POWER, Comparison
from lightning_vcppo.comparison.runs import RunData

FEW = 5
"""Seeds below which intervals say little."""
AGREEMENT = 0.3
"""Spread over seeds, as a share of the noise of problems, below which a t test is not believed."""


def warnings(comparison: Comparison) -> list[str]:
    """Return what to keep in mind before a difference is believed, a line each."""
    return list(_warnings(comparison))


def _warnings(comparison: Comparison) -> Iterator[str]:
    runs = [run for arm in comparison.arms for run in arm.runs.values()]
    counts = {arm.name: len(arm.runs) for arm in comparison.arms}
    few = [f"{name} {count}" for name, count in counts.items() if count < FEW]
    if few:
        yield f"fewer than {FEW} seeds ({', '.join(few)}): no interval says much"
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield f"arms have different numbers of seeds ({listed}); differences are of common seeds"
    for name, seeds in comparison.late.items():
        yield (
            f"{name}: seed {', '.join(map(str, seeds))} was run after other arms were complete; an "
            "arm that is extended when results are known has no honest p value"
        )
    if comparison.searched:
        yield f"seed {', '.join(map(str, comparison.searched))} was used to choose settings, too"
    yield from _of_places(comparison, runs)
    unknown = [run.where for run in runs if not run.starts]
    if unknown and comparison.contrasts:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        yield f"{unknown[0]}{more}: the start is not known, so equal starts were not checked"
    for contrast in comparison.contrasts:
        if contrast.spread < AGREEMENT * contrast.problem_noise:
            yield (
                f"{contrast.arm} - {contrast.reference}: the differences agree better "
                f"({contrast.spread:.2g}) than the choice of problems allows "
                f"({contrast.problem_noise:.2g}), so t interval and p are too good"
            )
    yield from _detectable(comparison)


def _detectable(comparison: Comparison) -> Iterator[str]:
    """Tell, for each number of pairs, the differences that would be found in four of five cases."""
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
    """Tell where runs are longer than what is compared, or were evaluated before it."""
    axis, end = comparison.axis, comparison.end
    unit = axis.replace("_", " ")
    reaches = {run.where: reach for run in runs if (reach := run.reach(axis)) is not None}
    longest = max(reaches, key=lambda where: reaches[where], default=None)
    shortest = min(reaches, key=lambda where: reaches[where], default=None)
    if longest and shortest and reaches[longest] > 1.001 * end:
        yield (
            f"runs are compared at {end:g} {unit}, where {shortest} ends; {longest} goes on to "
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
        yield f"rows end at different {unit} ({', '.join(sorted(ends, key=float))}), not at one"
