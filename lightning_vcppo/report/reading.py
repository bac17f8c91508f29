"""Read the files in a run's directory, without torch.

    metrics.csv             one row a rollout
    config.yaml             optional, as are those below
    evaluation/*.jsonl      graded responses, one a line
    diagnostics/*.jsonl     positions and calibration, one rollout a line

A run may still be running: an incomplete last line is skipped.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from lightning_vcppo.common.shares import share_interval
from lightning_vcppo.report.logs import METRICS, find_metrics

Curve = tuple[list[int], list[float]]
"""Steps, and the value at each of them."""

MAX_SAMPLES = 3
"""Number of right and of wrong responses that are kept from each evaluation."""
DECILES = 10


@dataclass(frozen=True)
class Evaluation:
    """Statistics of one file of graded responses.

    Attributes:
        name: Name of the evaluation set.
        step: Rollouts (or updates) done.
        source: The earlier run that measured it, such as "cold_start"; empty if this run did.
        problems: Number of problems.
        k: Mean number of responses a problem.
        accuracy: Share of right responses, mean over problems.
        interval: 95 % interval of the accuracy, as logged, otherwise 1.96 standard errors; exact if
            all problems have the same rate.
        length: Mean tokens of a response.
        truncation_rate: Share of responses cut off.
        samples: The first right and the first wrong responses, as in the file.
        rates: Share of right responses of each problem, by its text without extra blanks.
        problem_texts: All problems, to check whether two evaluations can be compared.
        pass_at_k: Share of problems that one of the k responses solves, if logged.
        maj_at_k: Share of problems that the majority of responses solves, if logged.
        groups: Problems and accuracy of each (grouping, group), such as ("level", "5"), for years,
            levels and subjects, where there are several.
    """

    name: str
    step: int
    source: str
    problems: int
    k: float
    accuracy: float
    interval: tuple[float, float]
    length: float
    truncation_rate: float
    samples: list[dict[str, Any]]
    rates: dict[str, float]
    problem_texts: frozenset[str]
    pass_at_k: float | None = None
    maj_at_k: float | None = None
    groups: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The directory of a run.

    Attributes:
        name: Name of the directory, or its path if two have the same name.
        directory: Path of the directory.
        rows: Metrics by step, in order, without empty cells.
        config: Nested mapping, as in config.yaml.
        evaluations: Evaluations by set, in order of their step. The first may come from the run
            that trained the actor, if the actor was evaluated there on the same problems.
        positions: Rollouts of diagnostics/positions.jsonl.
        calibrations: Rollouts of diagnostics/calibration.jsonl.
        trainer: Trainer that dumped the rollouts; empty for the directory of a run.
        samples: Responses to show for a run without evaluations.
        notes: Sentences about what could not be read.
    """

    name: str
    directory: Path
    rows: dict[int, dict[str, float]]
    config: dict[str, Any] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    positions: list[dict[str, Any]] = field(default_factory=list)
    calibrations: list[dict[str, Any]] = field(default_factory=list)
    trainer: str = ""
    samples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def curve(self, key: str) -> Curve:
        """Return the finite values of a metric with their steps."""
        points = [(step, row[key]) for step, row in self.rows.items() if key in row]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if key.startswith("value_pretraining/"):  # Later rows repeat the last value.
            points = [(step, value) for step, value in points if step in self.pretraining_steps]
        return [step for step, _ in points], [value for _, value in points]

    @cached_property
    def pretraining_steps(self) -> frozenset[int]:
        """Steps at which the critic was pretrained."""
        seen, steps = 0.0, set()
        for step, row in self.rows.items():
            if (count := row.get("value_pretraining/rollouts", seen)) > seen:
                steps.add(step)
                seen = count
        return frozenset(steps)

    @property
    def policy_start(self) -> int:
        """Last step before the policy moves; 0 without value pretraining."""
        return max(self.pretraining_steps, default=0)

    @property
    def keys(self) -> set[str]:
        """All metrics of the run."""
        return set().union(*self.rows.values())

    def setting(self, dotted: str, default: Any = None) -> Any:
        """Return a field of the config, such as `model.init_args.advantage.gamma`."""
        value = _field(self.config, dotted)
        return default if value is None else value


def read_runs(
    directories: Sequence[Path], read: Callable[[Path, str], Run] | None = None
) -> list[Run]:
    """Read several runs.

    Args:
        directories: Directories of the runs; each is a `trainer.default_root_dir`.
        read: Function that reads a run, given its directory and name; None means `read_run`.

    Raises:
        ValueError: If a path is not the directory of a run, is given twice, or has a file that
            cannot be read.
    """
    places = [directory.resolve() for directory in directories]
    for place, directory in zip(places, directories, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{directory}: expected each run once, got it twice")
    names = [place.name for place in places]
    return [
        (read or read_run)(directory, name if names.count(name) == 1 else str(directory))
        for directory, name in zip(directories, names, strict=True)
    ]


def read_run(directory: Path, name: str) -> Run:
    """Read one run; for arguments and errors see `read_runs`."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory; expected the directory of a run")
    config = _read_config(directory / "config.yaml")
    rows = _read_metrics(directory)
    return Run(
        name=name,
        directory=directory,
        rows=rows,
        config=config,
        evaluations=_with_start(_with_logged(read_evaluations(directory), rows), config),
        positions=list(_read_jsonl(directory / "diagnostics" / "positions.jsonl", "deciles")),
        calibrations=list(_read_jsonl(directory / "diagnostics" / "calibration.jsonl", "bins")),
        notes=_notes(directory),
    )


def _notes(directory: Path) -> list[str]:
    """Say which metrics were read if there may be several."""
    found = find_metrics(directory).relative_to(directory)
    return [] if found == Path(METRICS) else [f"The metrics are those of {found}."]


def _with_logged(
    evaluations: list[Evaluation], rows: dict[int, dict[str, float]]
) -> list[Evaluation]:
    """Prefer values that the run logged: `eval/*` for the first set, `eval/NAME/*` for others."""
    first = evaluations[0].name if evaluations else ""
    known = []
    for evaluation in evaluations:
        row = rows.get(evaluation.step, {})
        prefix = "eval/" if evaluation.name == first else f"eval/{evaluation.name}/"
        low, high = row.get(f"{prefix}accuracy_low"), row.get(f"{prefix}accuracy_high")
        interval = evaluation.interval
        if low is not None and high is not None and low < high:  # older versions logged no width
            interval = low, high
        pass_at_k, maj_at_k = row.get(f"{prefix}pass_at_k"), row.get(f"{prefix}maj_at_k")
        known.append(replace(evaluation, interval=interval, pass_at_k=pass_at_k, maj_at_k=maj_at_k))
    return known


def _with_start(evaluations: list[Evaluation], config: dict[str, Any]) -> list[Evaluation]:
    """Prepend the last evaluation of the actor before this run, if both have the same problems."""
    actor = _field(config, "model.init_args.actor")
    if not isinstance(actor, str):
        return evaluations
    directory = Path(actor).parent
    earlier = {e.problem_texts: e for e in read_evaluations(directory)}
    whole: list[Evaluation] = []
    for evaluation in evaluations:
        is_first = evaluation.name not in {e.name for e in whole}
        if is_first and evaluation.step > 0 and evaluation.problem_texts in earlier:
            start = earlier[evaluation.problem_texts]
            whole.append(replace(start, name=evaluation.name, step=0, source=directory.name))
        whole.append(evaluation)
    return whole


# Metrics and config


def _field(config: dict[str, Any], dotted: str) -> Any:
    node: Any = config
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _read_metrics(directory: Path) -> dict[int, dict[str, float]]:
    """Merge the rows of each step; later values replace earlier ones."""
    path = find_metrics(directory)
    rows: dict[int, dict[str, float]] = {}
    for row in _read_csv(path):
        rows.setdefault(int(row["step"]), {}).update(row)
    if not rows:
        raise ValueError(f"{path}: no complete row yet; a run logs its first after a rollout")
    return dict(sorted(rows.items()))


def _read_csv(path: Path) -> Iterator[dict[str, float]]:
    lines = _read_text(path).split("\n")[:-1]  # after the last line break, a row is incomplete
    try:
        table = list(csv.DictReader(lines))
    except csv.Error as error:
        raise ValueError(f"{path}: expected CSV as CSVLogger writes it: {error}") from None
    for number, cells in enumerate(table, start=2):
        try:
            row = {key: float(cell) for key, cell in cells.items() if cell}
            row["step"] = float(int(row["step"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(
                f"{path}:{number}: expected a row of numbers with a step, as CSVLogger writes it"
            ) from None
        yield row


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        what = str(error).splitlines()[0]
        raise ValueError(f"{path}: expected YAML as vcppo saves it; {what}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(config).__name__}")
    return config


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8 text") from None


# JSON Lines


def _read_jsonl(path: Path, *required: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file, if it exists, without an incomplete last line."""
    if not path.exists():
        return
    lines = _read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):  # empty after the last line break, or not complete yet
                return
            raise ValueError(f"{path}:{number}: expected one JSON object a line") from None
        except (ValueError, RecursionError):  # beyond the limits of digits and of nesting
            raise ValueError(
                f"{path}:{number}: expected one JSON object a line, without numbers of thousands "
                "of digits or deep nesting"
            ) from None
        missing = [key for key in required if not isinstance(row, dict) or key not in row]
        if missing:
            raise ValueError(f"{path}:{number}: expected an object with {', '.join(missing)}")
        yield row


EVALUATION_FILE = re.compile(r"(?:rollouts|updates)_(\d+)\.jsonl")
HELD_OUT = "held_out"


def read_evaluations(directory: Path) -> list[Evaluation]:
    """Read the evaluations of a run, by set and in order, except those of `vcppo test`."""
    of_sets: dict[str, list[Evaluation]] = {}
    for path in sorted((directory / "evaluation").glob("*.jsonl")):
        if not (match := EVALUATION_FILE.fullmatch(path.name)):
            continue
        by_set: dict[str, list[dict[str, Any]]] = {}
        for response in _read_jsonl(path, "problem", "correct"):
            by_set.setdefault(str(response.get("evaluation_set") or HELD_OUT), []).append(response)
        for name, responses in by_set.items():
            of_sets.setdefault(name, []).append(evaluate(name, int(match[1]), responses))
    return [evaluation for of_set in of_sets.values() for evaluation in of_set]


def evaluate(name: str, step: int, responses: list[dict[str, Any]]) -> Evaluation:
    """Compute the statistics of one file of graded responses.

    Args:
        name: Name of the evaluation set.
        step: Rollouts (or updates) done.
        responses: Responses, each with its problem, and whether it is correct.
    """
    by_problem: dict[str, list[bool]] = {}
    for response in responses:
        by_problem.setdefault(_problem_key(response), []).append(bool(response["correct"]))
    rates = {key: fmean(graded) for key, graded in by_problem.items()}
    accuracy = fmean(rates.values())
    samples = [
        response
        for verdict in (True, False)
        for response in [r for r in responses if bool(r["correct"]) == verdict][:MAX_SAMPLES]
    ]
    return Evaluation(
        name=name,
        step=step,
        source="",
        problems=len(rates),
        k=len(responses) / len(rates),
        accuracy=accuracy,
        interval=_interval(list(rates.values())),
        length=fmean(float(r.get("length", math.nan)) for r in responses),
        truncation_rate=fmean(not r.get("finished", True) for r in responses),
        samples=samples,
        rates=rates,
        problem_texts=frozenset(str(r["problem"]) for r in responses),
        groups=dict(_groups(responses)),
    )


def _interval(rates: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of the problems' rates."""
    middle = fmean(rates)
    if min(rates) == max(rates):  # no spread to estimate a standard error from
        return share_interval(middle * len(rates), len(rates))
    spread = 1.96 * stdev(rates) / math.sqrt(len(rates))
    return max(0.0, middle - spread), min(1.0, middle + spread)


GROUPINGS = ("year", "level", "subject")
MAX_GROUPS = 20
"""Largest number of groups of a grouping that is shown."""


def _groups(
    responses: list[dict[str, Any]],
) -> Iterator[tuple[tuple[str, str], tuple[int, float]]]:
    for by in GROUPINGS:
        of_groups: dict[str, dict[str, list[bool]]] = {}
        for response in responses:
            if response.get(by) is not None:
                of_group = of_groups.setdefault(str(response[by]), {})
                of_group.setdefault(_problem_key(response), []).append(bool(response["correct"]))
        if 2 <= len(of_groups) <= MAX_GROUPS:
            # Numbers come first, by value; words follow
            for name in sorted(of_groups, key=lambda n: (not n.isdecimal(), n.zfill(9), n)):
                rates = [fmean(graded) for graded in of_groups[name].values()]
                yield (by, name), (len(rates), fmean(rates))


def _problem_key(response: dict[str, Any]) -> str:
    """Return the key of a problem: rows with the same text are samples of one problem."""
    return " ".join(str(response["problem"]).split()) or str(response.get("index"))
