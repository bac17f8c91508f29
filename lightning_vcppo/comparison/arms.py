"""Group runs into arms by their settings, name the arms, and pair their runs by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from lightning_vcppo.comparison.runs import RunData

MAX_NAMED = 2
"""Largest number of differing settings by which arms are named; with more, labels name them."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed.

    Attributes:
        name: Name in tables.
        runs: The runs by seed, in the order of the seeds.
    """

    name: str
    runs: Mapping[int, RunData]

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings that all its runs have."""
        return next(iter(self.runs.values())).settings


def group(runs: Sequence[RunData], names: Sequence[str] = ()) -> list[Arm]:
    """Group runs by their settings, in the order of each arm's first run.

    Args:
        runs: The runs.
        names: Names of the arms, in that order; empty to name them by their differences.

    Raises:
        ValueError: If two runs of an arm have the same seed, or the names do not match the arms.
    """
    by_settings: dict[tuple[tuple[str, str], ...], dict[int, RunData]] = defaultdict(dict)
    for run in runs:
        arm = by_settings[tuple(sorted(run.settings.items()))]
        if run.seed in arm:
            raise ValueError(
                f"{arm[run.seed].where} and {run.where} have the same settings and seed "
                f"{run.seed}; expected runs of an arm to differ in their seed"
            )
        arm[run.seed] = run
    arms = [dict(sorted(arm.items())) for arm in by_settings.values()]
    found = names or _names(arms)
    if len(found) != len(arms):
        labels = ", ".join(_names(arms))
        raise ValueError(f"--names: expected {len(arms)} names, for {labels}; got {len(found)}")
    if len(set(found)) < len(found):
        raise ValueError(f"--names: expected different names, got {', '.join(found)}")
    return [Arm(name, arm) for name, arm in zip(found, arms, strict=True)]


def differences(arms: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the settings in which arms differ, each with its value in every arm."""
    keys = dict.fromkeys(key for settings in arms for key in settings)
    values = {key: [settings.get(key, "") for settings in arms] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def _names(arms: Sequence[Mapping[int, RunData]]) -> list[str]:
    """Name arms by the settings that differ if these are few, else by labels, else by numbers."""
    settings = [next(iter(arm.values())).settings for arm in arms]
    labels = [dict.fromkeys(run.label for run in arm.values()) for arm in arms]
    differ = differences(settings)
    if 0 < len(differ) <= MAX_NAMED and "arm" not in differ:
        short = {key: _shortest(key, list(differ)) for key in differ}
        return [
            ", ".join(f"{short[key]}={values[place]}" for key, values in differ.items())
            for place in range(len(arms))
        ]
    names = ["/".join(found) for found in labels]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({place})" for place, name in enumerate(names, 1)]


def _shortest(key: str, others: Sequence[str]) -> str:
    """Return the shortest suffix of a dotted name that no other name has."""
    parts = key.split(".")
    for size in range(1, len(parts)):
        ending = ".".join(parts[-size:])
        if sum(f".{other}".endswith(f".{ending}") for other in others) == 1:
            return ending
    return key


# Pairs


def pair(arm: Arm, reference: Arm) -> list[tuple[RunData, RunData]]:
    """Pair the runs of two arms by their seed.

    Raises:
        ValueError: If they have no seed in common, or a pair did not start from the same weights.
    """
    seeds = [seed for seed in arm.runs if seed in reference.runs]
    if not seeds:
        raise ValueError(
            f"{arm.name} and {reference.name} have no seed in common: "
            f"{_listed(arm.runs)} and {_listed(reference.runs)}"
        )
    pairs = [(arm.runs[seed], reference.runs[seed]) for seed in seeds]
    for run, other in pairs:
        _check_start(run, other)
    return pairs


def _check_start(run: RunData, other: RunData) -> None:
    """Refuse different starts of the policy, and of other networks that the arms do not vary."""
    for name in run.starts:
        if run.starts[name] == other.starts.get(name, run.starts[name]):
            continue
        setting = f"model.{name}"
        treated = run.settings.get(setting) != other.settings.get(setting)
        if name != "actor" and treated:  # the arms differ in this setting
            continue
        raise ValueError(
            f"{run.where} and {other.where} cannot be paired: {name} is {run.starts[name]} and "
            f"{other.starts[name]}; expected the same start for each seed"
        )


def check_problems(metric: str, runs: Sequence[tuple[RunData, frozenset[str]]]) -> None:
    """Refuse runs of one seed that were evaluated on different problems.

    Raises:
        ValueError: If two runs of a seed have different problems.
    """
    for (run, problems), (other, others) in combinations(runs, 2):
        if run.seed == other.seed and problems and others and problems != others:
            common = len(problems & others)
            raise ValueError(
                f"{run.where} and {other.where} cannot be paired: {metric} is measured on "
                f"{len(problems)} and {len(others)} held-out problems with {common} in common; "
                "expected the same problems"
            )


def _listed(seeds: Mapping[int, RunData]) -> str:
    return f"seeds {', '.join(map(str, seeds))}"


def started_later(arms: Sequence[Arm]) -> dict[str, list[int]]:
    """Return the arms to which runs were added after other arms were complete, with these seeds.

    A run is late if its arm already had results, and another arm had finished a higher seed before
    the run began, or had finished all its seeds without this one: the arm was then extended when
    results were known.
    """
    late: dict[str, list[int]] = {}
    for arm in arms:
        first = min(run.ended for run in arm.runs.values())
        for seed, run in arm.runs.items():
            if any(_before(run, rival, first) for rival in arms if rival is not arm):
                late.setdefault(arm.name, []).append(seed)
    return late


def _before(run: RunData, rival: Arm, first: float) -> bool:
    """Return whether a rival arm was ahead of a run's seed before the run began."""
    ended = {seed: other.ended for seed, other in rival.runs.items()}
    further = [end for seed, end in ended.items() if seed > run.seed and end <= run.began]
    if run.seed not in ended and max(ended.values()) <= run.began:
        further.append(max(ended.values()))
    return bool(further) and first < max(further)
