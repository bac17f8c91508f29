"""Read runs from a CSV file with one row for each run, as committed by the experiments.

    arm,seed,accuracy,...                 one row for each run, in the order of the runs
    arm,seed,rollout,accuracy,...         NAME_curves.csv next to NAME.csv, optional; with
                                          policy_rollout, which is empty in value pretraining

`accuracy` is the accuracy on held-out problems, `problems` their number. `start`,
`cold_start_accuracy` and `held_out` are equal in runs that can be paired. `rollouts`,
`policy_rollouts`, `tokens` and `seconds` are places on the axes of that name, `finished` is a date
in ISO format. Other numeric columns are metrics of that name.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from lightning_vcppo.comparison.runs import ACCURACY, Problems, RunData

EQUAL_COLUMNS = ("start", "cold_start_accuracy", "held_out")
"""Columns that identify the start of a run and the problems of its evaluation."""
_LARGEST = 2**53
"""Larger numbers of rollouts or problems are not exact in a table."""

Row = Mapping[str, str]


def read_table(
    path: Path, by: Sequence[str] = ("arm",), problems: int | None = None
) -> list[RunData]:
    """Read the runs of a CSV file.

    Args:
        path: The file.
        by: Columns whose values together name the arm of a row.
        problems: Number of held-out problems of all rows; None takes it from the column `problems`.

    Raises:
        ValueError: If the file has no rows, lacks a column, or has a seed that is not an integer.
    """
    rows = list(_rows(path, ("seed", *by)))
    if not rows:
        raise ValueError(f"{path}: no rows; expected one for each run")
    curves_path = path.with_name(f"{path.stem}_curves.csv")
    curves: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    shared: tuple[str, ...] = ()
    if curves_path.is_file():
        points = list(_rows(curves_path, ("seed", "rollout", *by)))
        identity = ("seed", *by, "actor_lr", "critic_lr")
        known = points[0][1].keys() & rows[0][1].keys() if points else ()
        shared = tuple(dict.fromkeys(name for name in identity if name in known))
        for line, row in points:
            where = f"{curves_path}:{line}"
            step = _count(row, "rollout", where)
            _count(row, "policy_rollout", where)
            _check_shares(row, where)
            curves[tuple(row[name] for name in shared)].append({**row, "rollout": str(step)})
    return [
        _run(path, line, row, by, curves[tuple(row[name] for name in shared)], problems)
        for line, row in rows
    ]


def _run(
    path: Path,
    line: int,
    row: Row,
    by: Sequence[str],
    points: Sequence[Row],
    problems: int | None,
) -> RunData:
    where = f"{path}:{line}"
    try:
        seed = int(row["seed"])
    except ValueError:
        raise ValueError(f"{where}: seed: expected an integer, got {row['seed']!r}") from None
    _check_shares(row, where)
    final = {_metric(name): number for name, number in _numbers(row)}
    if problems is not None and problems < 1:
        raise ValueError(f"--problems: expected >= 1, got {problems}")
    count = problems if problems is not None else _count(row, "problems", where)
    curves = defaultdict(list)
    for point in points:
        step = int(point["rollout"])
        for name, number in _numbers(point):
            curves[_metric_of_curve(name)].append((step, number))
    ended = _finished(row.get("finished", ""), where, line)
    knows = bool(count) and ACCURACY in final
    return RunData(
        where=where,
        seed=seed,
        label=", ".join(row[name] for name in by),
        settings={name: row[name] for name in by},
        starts={name: row[name] for name in EQUAL_COLUMNS if row.get(name)},
        curves=dict(curves),
        places=_places(points),
        problems={(ACCURACY, -1): Problems({}, count)} if knows else {},
        began=ended - final.get("seconds", 0.0) if "finished" in row else ended,
        ended=ended,
        final=final,
    )


def _places(points: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Return the place of each rollout of a curve on the axes that its columns give."""
    if not points:
        return {}
    places: dict[str, dict[int, float]] = {"rollouts": {0: 0.0}}
    policy = 0.0
    if "policy_rollout" in points[0]:
        places["policy_rollouts"] = {0: 0.0}
    for point in points:
        step = int(point["rollout"])
        places["rollouts"][step] = float(step)
        if "policy_rollouts" in places:
            policy = float(point["policy_rollout"] or policy)
            places["policy_rollouts"][step] = policy
    return places


def _count(row: Row, name: str, where: str) -> int:
    """Return a whole number >= 0 of a row; 0 if the row has no such cell."""
    text = row.get(name, "").strip()
    try:
        number = float(text or 0)
    except ValueError:
        number = math.nan
    if not (0 <= number <= _LARGEST and number.is_integer()):
        raise ValueError(f"{where}: {name}: expected a whole number >= 0, got {text[:40]!r}")
    return int(number)


def _check_shares(row: Row, where: str) -> None:
    """Refuse accuracies that are no shares; an empty cell has none."""
    for name, text in row.items():
        if name.rpartition("/")[2] == "accuracy" and text.strip():
            try:
                share = float(text)
            except ValueError:
                share = math.inf
            if share < 0 or share > 1:  # NaN is an accuracy that was not measured
                raise ValueError(f"{where}: {name}: expected a share in [0, 1], got {text[:40]!r}")


def _finished(text: str, where: str, line: int) -> float:
    """Return the time at which a row was finished, in seconds; without a date its line number."""
    if not text:
        return float(line)
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise ValueError(f"{where}: finished: expected a date in ISO format, got {text}") from None


def _metric(column: str) -> str:
    """Return the metric for a column of results."""
    return {"accuracy": ACCURACY, "response_length": "eval/response_length"}.get(column, column)


def _metric_of_curve(column: str) -> str:
    rollout = ("accuracy", "response_length", "reward_mean")
    return f"rollout/{column}" if column in rollout else column


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    for name, cell in row.items():
        try:
            number = float(cell)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number) and name not in ("seed", "rollout", "policy_rollout"):
            yield name, number


def _rows(path: Path, required: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a CSV file with their line numbers."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in required if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{path}: no column {', '.join(missing)}; expected rows of runs with "
                    f"{', '.join(required)} (--by names the columns of an arm)"
                )
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{path}:{reader.line_num}: expected as many cells as columns")
                yield reader.line_num, row
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8 text") from None
    except csv.Error as error:
        raise ValueError(f"{path}: expected a CSV file of runs: {error}") from None
