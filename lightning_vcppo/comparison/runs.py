"""Read the data of a run for a comparison: metrics over four axes, problems, start, and seed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_vcppo.common.starts import START, start_fingerprints
from lightning_vcppo.comparison.measurements import Measurement
from lightning_vcppo.metrics.guard_rules import Limits
from lightning_vcppo.report.logs import find_metrics
from lightning_vcppo.report.page import flatten
from lightning_vcppo.report.reading import Evaluation, Run, read_run

AXES = {
    "rollouts": "rollouts, including value pretraining",
    "policy_rollouts": "rollouts from which the policy learned",
    "tokens": "response tokens that the run learned from",
    "seconds": "seconds of rollouts, without evaluations",
}
ACCURACY = "eval/accuracy"
TRAINING_ACCURACY, LENGTH = "rollout/accuracy", "rollout/response_length"
WINDOW = Limits().window
"""Number of last rollouts whose mean is the end of a training curve, as in the guard rails."""

Curve = Sequence[tuple[int, float]]
"""Pairs of the rollouts done and the value after them."""

_SKIPPED = re.compile(
    r"(?:seed_everything|seeds|jobs|ckpt_path|overwrite|loggers|threads|allow_pickle|weights_only"
    r"|verbose|(?:progress_bar|response_writer|learning_curves|model_export)\..*"
    r"|trainer\.(?:logger|enable_progress_bar|enable_model_summary)(?:\..*)?"
    r"|data\.(?:init_args\.)?seed|.*\b(?:dirpath|default_root_dir|save_dir))"
)
"""Settings of directories, seeds and logging, which do not change the training."""
_PATH = re.compile(r"(?:.*\.)?(?:path|actor|critic|reference|tokenizer)|.*evaluation_sets\b.*")
"""Settings that hold a path; only its last part is compared, not its directory."""


@dataclass(frozen=True)
class Problems:
    """The held-out problems of an evaluation.

    Attributes:
        rates: Share of right responses of each problem; empty if only their number is known.
        count: Number of problems.
    """

    rates: Mapping[str, float]
    count: int


@dataclass(frozen=True)
class RunData:
    """The data of one run for a comparison.

    Attributes:
        where: Directory of the run, or file and line.
        seed: Seed of the run.
        label: Name of its arm, from a table or a directory.
        settings: Settings of the training by dotted names, without seeds and directories.
        starts: Fingerprint of the start of each network.
        curves: Curve of each metric.
        places: For each axis, the place of each number of rollouts.
        problems: Held-out problems, by metric of an evaluation and rollouts done.
        began: Time at which it began, in seconds; for a table its line number.
        ended: Time at which it ended, likewise.
        final: Values at the end that have no curve, by metric.
        notes: Sentences about what was read.
    """

    where: str
    seed: int
    label: str
    settings: Mapping[str, str]
    starts: Mapping[str, str]
    curves: Mapping[str, Curve]
    places: Mapping[str, Mapping[int, float]]
    problems: Mapping[tuple[str, int], Problems] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0
    final: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def curve(self, metric: str, axis: str) -> list[tuple[float, float]]:
        """Return the points of a metric, by their place on an axis."""
        places = self.places.get(axis, {})
        points = self.curves.get(metric, ())
        return [(places[step], value) for step, value in points if step in places]

    def reach(self, axis: str) -> float | None:
        """Return the last place of the run on an axis; None if it lacks the axis."""
        return max(self.places.get(axis, {}).values(), default=None)

    def last_step(self, metric: str, axis: str, end: float) -> int | None:
        """Return the rollouts done at the last value of a metric up to an end."""
        places = self.places.get(axis, {})
        steps = [
            step
            for step, _ in self.curves.get(metric, ())
            if step in places and places[step] <= end * (1 + 1e-9)
        ]
        return steps[-1] if steps else None

    def problems_at(self, metric: str, axis: str, end: float) -> Problems | None:
        """Return the problems of the evaluation that `measure` uses."""
        step = self.last_step(metric, axis, end)
        return None if step is None else self.problems.get((metric, step))

    def measure(self, metric: str, axis: str, end: float) -> Measurement:
        """Return the value of a metric at a place of an axis.

        For an evaluation it is the last value up to that place, for a metric of training the mean
        over the last rollouts before it.

        Raises:
            ValueError: If the run has no such metric up to that place.
        """
        if metric in self.final:
            return self._with_problems(self.final[metric], self.problems.get((metric, -1)))
        step = self.last_step(metric, axis, end)
        if not step:  # 0 is the start, which all arms share
            raise ValueError(
                f"{self.where}: no {metric} up to {end:g} {axis.replace('_', ' ')}; {self._known()}"
            )
        values = [value for at, value in self.curves[metric] if at <= step]
        if not metric.startswith("eval/"):
            return Measurement(fmean(values[-WINDOW:]))
        return self._with_problems(values[-1], self.problems.get((metric, step)))

    def _with_problems(self, value: float, problems: Problems | None) -> Measurement:
        if problems is None:
            return Measurement(value)
        if problems.rates:
            return Measurement.of_problems(list(problems.rates.values()))
        return Measurement.of_share(value, problems.count)

    def _known(self) -> str:
        names = ", ".join(sorted(n for n in {*self.curves, *self.final} if "accuracy" in n))
        return f"its accuracies are {names}" if names else "it has no accuracy"

    def collapsed(self, axis: str, end: float, limits: Limits) -> bool | None:
        """Return whether accuracy and length have fallen far below those of the first policy.

        The first policy sampled the rollouts of value pretraining and the next rollout. At the end,
        means are over the window of last rollouts that the guard rails use.

        Returns:
            Whether it collapsed; None if the run lacks one of the two curves.
        """
        both = [self.curves.get(key, ()) for key in (TRAINING_ACCURACY, LENGTH)]
        if not all(both):
            return None
        policy, places = self.places.get("policy_rollouts", {}), self.places.get(axis, {})
        for points in both:
            inside = [(s, v) for s, v in points if places.get(s, end) <= end * (1 + 1e-9)]
            first = [v for s, v in inside if policy.get(s, s) <= 1] or [inside[0][1]]
            if fmean(v for _, v in inside[-limits.window :]) >= limits.length_ratio * fmean(first):
                return False
        return True


def read_directory(directory: Path) -> RunData:
    """Read the directory of a run.

    Raises:
        ValueError: If it is not the directory of a run, a file cannot be read, or the config or
            its seed is missing.
    """
    run = read_run(directory, str(directory))
    seed = run.config.get("seed_everything")
    if not isinstance(seed, int) or isinstance(seed, bool):
        lacks = "a seed (seed_everything)" if run.config else "config.yaml"
        raise ValueError(
            f"{directory}: no {lacks}; expected the directory of a run of `vcppo fit`, or a CSV "
            "file with a row for each run, as for scripts"
        )
    curves = {key: list(zip(*run.curve(key), strict=True)) for key in run.keys if "/" in key}
    problems = dict(_problems(run))
    for evaluation, metric in _named(run):
        curve = dict(curves.get(metric, ()))
        curve.setdefault(evaluation.step, evaluation.accuracy)
        curves[metric] = sorted(curve.items())
    name = re.sub(r"[-_.]?seed[-_]?\d+$", "", directory.resolve().name)
    return RunData(
        where=str(directory),
        seed=seed,
        label=name or directory.resolve().parent.name,
        settings=_settings(run.config),
        starts=_starts(run),
        curves=curves,
        places=_places(run),
        problems=problems,
        began=_changed(directory / START, directory / "config.yaml"),
        ended=_changed(find_metrics(directory)),
        notes=run.notes,
    )


def expand(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield directories of runs and CSV files; directories of `seed_N` are replaced by their runs.

    Raises:
        ValueError: If a path does not exist.
    """
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such run; expected the directory of a run or a CSV file")
        seeds = sorted(path.glob("seed_*"), key=lambda p: (len(p.name), p.name))
        of_runs = [p for p in seeds if p.is_dir()]
        if of_runs and not (path / "metrics.csv").exists():
            yield from of_runs
        else:
            yield path


def _named(run: Run) -> Iterator[tuple[Evaluation, str]]:
    """Yield the evaluations of a run with the metric of their accuracy."""
    for evaluation in run.evaluations:
        is_first = evaluation.name == run.evaluations[0].name
        yield evaluation, ACCURACY if is_first else f"eval/{evaluation.name}/accuracy"


def _problems(run: Run) -> Iterator[tuple[tuple[str, int], Problems]]:
    """Yield the problems of each evaluation; if its file is missing, only the logged number."""
    for step, row in run.rows.items():
        for key, count in row.items():
            if key.startswith("eval/") and key.endswith("/problems") and count >= 1:
                yield (f"{key.removesuffix('problems')}accuracy", step), Problems({}, int(count))
    for evaluation, metric in _named(run):
        yield (metric, evaluation.step), Problems(evaluation.rates, evaluation.problems)


def _starts(run: Run) -> dict[str, str]:
    path = run.directory / START
    if not path.exists():  # a run of an earlier version: take the weights as they are now
        return start_fingerprints(run.setting("model.init_args", {}))
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in starts.items()}
    except (ValueError, AttributeError):
        raise ValueError(f"{path}: expected a JSON object of fingerprints") from None


def _places(run: Run) -> dict[str, dict[int, float]]:
    steps = [0, *run.rows]
    timed = [
        (sum(v for k, v in row.items() if k.startswith("time/") and k.endswith("_s")), row)
        for row in run.rows.values()
    ]
    seconds = [duration for duration, _ in timed]
    tokens = [duration * row.get("rollout/tokens_per_second", 0.0) for duration, row in timed]
    policy = [float(step not in run.pretraining_steps) for step in run.rows]
    found = {
        "rollouts": [float(step) for step in steps],
        "policy_rollouts": [0.0, *accumulate(policy)],
        "tokens": [0.0, *accumulate(tokens)],
        "seconds": [0.0, *accumulate(seconds)],
    }
    return {
        axis: dict(zip(steps, places, strict=True)) for axis, places in found.items() if places[-1]
    }


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a config, without settings that do not change the training."""
    kept = {}
    for key, value in flatten(config):
        if _SKIPPED.fullmatch(key):
            continue
        is_path = _PATH.fullmatch(key) and "/" in value and not value.startswith("{")
        name = re.sub(r"seed[-_]?\d+", "seed", Path(value).name) if is_path else value
        kept[key.replace(".init_args", "")] = name
    return kept


def _changed(*paths: Path) -> float:
    return next((path.stat().st_mtime for path in paths if path.exists()), 0.0)
