"""Summarize dumps of rollouts over training steps as a run that `vcppo report` draws.

Rows are summed as they are read; only the length, reward and end of each response are kept. Data
that a dump lacks are left out of the run, with a note. A response counts as right if its reward is
above 0, as for `vcppo import`. The module does not import torch.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lightning_vcppo.common.errors import require
from lightning_vcppo.data.files import is_data_file
from lightning_vcppo.interchange.cells import question
from lightning_vcppo.interchange.reading import NoResponses, Reading, data_files, read_responses
from lightning_vcppo.interchange.schemas import Fields, ForeignResponse
from lightning_vcppo.report.reading import DECILES, MAX_SAMPLES, Run, evaluate

CountTokens = Callable[[list[str]], list[int]]
"""Returns the number of tokens of each text."""

CHUNK = 256
"""Number of responses whose tokens are counted at once."""
SPLITS = ("all", "correct", "incorrect")
QUANTITIES = ("value", "return", "bias")
VALIDATION = "validation"
_STEP = re.compile(r"step[_-]?(\d+)", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")


def is_dump(path: Path) -> bool:
    """Return whether a path is a data file, or a directory of data files but not of a run."""
    if path.is_file():
        return is_data_file(path.name)
    if not path.is_dir() or any((path / name).exists() for name in ("metrics.csv", "config.yaml")):
        return False
    return any(is_data_file(file.name) for file in path.rglob("*"))


def read_dumps(
    path: Path, name: str, fields: Fields = Fields(), count_tokens: CountTokens | None = None
) -> Run:
    """Read the dumps of a training run.

    The step of a response is the `step` of its row, otherwise the number after "step" in the name
    of the file or of a directory, otherwise the last number in the file's name. Files and
    directories whose names begin with "val" are validations. Rows that cannot be read are skipped
    and counted in a note of the run.

    Args:
        path: Directory or file.
        name: Name of the run.
        fields: Names of the fields of plain rows; fields that are None are detected.
        count_tokens: Counts the tokens of responses without token ids; with None their lengths are
            in characters.

    Raises:
        ValueError: If there are no responses, none has a reward, or one has no step.
        OSError: If a file cannot be read.
    """
    reading = Reading()
    steps: dict[int, _Step] = {}
    validations: dict[int, list[dict[str, Any]]] = {}
    for file in data_files(path):
        inside = file.relative_to(path) if path.is_dir() else Path(file.name)
        of_file = step_in(inside)
        is_validation = any(part.startswith("val") for part in inside.parts)
        found = _readable(file, fields, reading)
        for response, tokens in _with_tokens(found, count_tokens):
            step = of_file if response.step is None else response.step
            if step is None:
                raise ValueError(
                    f"{file}: no training step; expected a field `step`, or a number in the name, "
                    "as in 12.jsonl"
                )
            if is_validation:
                validations.setdefault(step, []).append(_graded(response, tokens))
            else:
                steps.setdefault(step, _Step()).add(response, tokens)
    require(bool(steps or validations), f"{path}: no responses; {reading}")
    require(
        bool(steps),
        f"{path}: all dumps are validations; expected names that do not begin with val",
    )
    return _run(path, name, reading, dict(sorted(steps.items())), dict(sorted(validations.items())))


def _readable(file: Path, fields: Fields, reading: Reading) -> Iterator[ForeignResponse]:
    """Yield the responses of a file; rows that cannot be read are counted, even if all are."""
    invalid = reading.invalid
    try:
        for _, response in read_responses([file], fields, drop_invalid=True, reading=reading):
            yield response
    except NoResponses:
        if reading.invalid == invalid:  # the file is empty
            raise


def step_in(file: Path) -> int | None:
    """Return the training step in the name of a dump, relative to its directory, or None."""
    if found := _STEP.findall(str(file)):
        return int(found[-1])
    last = _LAST_NUMBER.search(file.name.partition(".")[0])
    return int(last[1]) if last else None


def _with_tokens(
    rows: Iterator[ForeignResponse], count: CountTokens | None
) -> Iterator[tuple[ForeignResponse, int | None]]:
    """Yield responses with the number of their tokens, including the end-of-text token."""
    while chunk := list(islice(rows, CHUNK)):
        texts = [row for row in chunk if row.response_ids is None and row.values is None]
        counts = iter(count([row.response for row in texts]) if count else [])
        for row in chunk:
            if row.response_ids is not None:
                yield row, len(row.response_ids)
            elif row.values is not None:
                yield row, len(row.values)
            else:
                yield row, next(counts) + (row.finished is not False) if count else None


def _graded(row: ForeignResponse, tokens: int | None) -> dict[str, Any]:
    """Return a response in the form of an evaluation file."""
    known = {"length": tokens, "answer": row.answer, "finished": row.finished}
    return {
        "problem": question(row.prompt),
        "response": row.response,
        "correct": (row.reward or 0.0) > 0,
        **{key: value for key, value in known.items() if value is not None},
    }


@dataclass
class _Step:
    """The summary of the responses of a step.

    Attributes:
        rewards: Reward of each response; NaN if it has none.
        tokens: Number of tokens of each response; -1 if unknown.
        characters: Number of characters of each response.
        ended: 1 for finished and 0 for truncated responses; others are left out.
        values: Sums of the values of the trainer's critic.
        samples: The first right and wrong responses.
    """

    rewards: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    characters: array[int] = field(default_factory=lambda: array("q"))
    ended: array[int] = field(default_factory=lambda: array("b"))
    values: _Values = field(default_factory=lambda: _Values())
    samples: dict[bool, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, row: ForeignResponse, tokens: int | None) -> None:
        self.rewards.append(math.nan if row.reward is None else row.reward)
        self.tokens.append(-1 if tokens is None else tokens)
        self.characters.append(len(row.response))
        if row.finished is not None:
            self.ended.append(row.finished)
        if row.reward is None:
            return
        if row.values:
            self.values.add(np.asarray(row.values, dtype=np.float64), row.reward)
        of_kind = self.samples.setdefault(row.reward > 0, [])
        if len(of_kind) < MAX_SAMPLES:
            of_kind.append(_graded(row, tokens))

    def metrics(self, in_tokens: bool) -> dict[str, float]:
        """Return metrics by the names that they have in a run of `vcppo fit`."""
        rewards = np.array(self.rewards)
        rewards = rewards[~np.isnan(rewards)]
        row = {}
        if len(rewards):
            row["rollout/accuracy"] = float((rewards > 0).mean())
            row["rollout/reward_mean"] = float(rewards.mean())
        if in_tokens:
            row["rollout/response_length"] = float(np.mean(self.tokens))
        else:
            row["rollout/response_characters"] = float(np.mean(self.characters))
        if self.ended:
            row["rollout/truncation_rate"] = 1 - float(np.mean(self.ended))
        return row | self.values.metrics()

    def accuracy_by_length(self, in_tokens: bool) -> list[float | None]:
        """Return the share of right responses in each tenth, from the shortest to the longest."""
        rewards = np.array(self.rewards)
        lengths = np.array(self.tokens if in_tokens else self.characters)
        order = np.argsort(lengths, kind="stable")
        right = (rewards > 0)[order][~np.isnan(rewards[order])]
        return [
            float(part.mean()) if len(part) else None for part in np.array_split(right, DECILES)
        ]


class _Values:
    """Sums over the tokens of a step, if the dump has their values."""

    def __init__(self) -> None:
        self._count = 0
        self._sums = np.zeros(5)  # R, R^2, R - V, (R - V)^2, |R - V|
        self._tokens = np.zeros((len(SPLITS), DECILES))
        self._deciles = np.zeros((len(QUANTITIES), len(SPLITS), DECILES))

    def add(self, values_N: np.ndarray, reward: float) -> None:
        count = len(values_N)
        error_N = reward - values_N
        self._count += count
        self._sums += [
            count * reward,
            count * reward**2,
            error_N.sum(),
            np.square(error_N).sum(),
            np.abs(error_N).sum(),
        ]
        decile_N = np.minimum(np.arange(count) * DECILES // count, DECILES - 1)
        tokens_D = np.bincount(decile_N, minlength=DECILES)
        values_D = np.bincount(decile_N, weights=values_N, minlength=DECILES)
        returns_D = reward * tokens_D
        for split in (0, 1 if reward > 0 else 2):
            self._tokens[split] += tokens_D
            self._deciles[:, split] += [values_D, returns_D, values_D - returns_D]

    def metrics(self) -> dict[str, float]:
        if not self._count:
            return {}
        returns, squares, error, square_error, size = self._sums / self._count
        row = {"critic/bias": float(error), "critic/value_error": float(size)}
        if (variance := squares - returns**2) > 1e-12:
            row["critic/r2"] = float(1 - square_error / variance)
            row["critic/explained_variance"] = float(1 - (square_error - error**2) / variance)
        return row

    def deciles(self) -> dict[str, dict[str, list[float | None]]]:
        """Return means by quantity, split and tenth of the response."""
        if not self._count:
            return {}
        with np.errstate(invalid="ignore"):
            means = self._deciles / self._tokens
        return {
            quantity: {
                split: [None if math.isnan(mean) else float(mean) for mean in of_split]
                for split, of_split in zip(SPLITS, of_quantity, strict=True)
            }
            for quantity, of_quantity in zip(QUANTITIES, means, strict=True)
        }


def _run(
    path: Path,
    name: str,
    reading: Reading,
    steps: dict[int, _Step],
    validations: dict[int, list[dict[str, Any]]],
) -> Run:
    in_tokens = all(min(step.tokens) >= 0 for step in steps.values())
    rows = {number: step.metrics(in_tokens) for number, step in steps.items()}
    require(
        any("rollout/accuracy" in row for row in rows.values()),
        f"{path}: no response has a reward; --reward_field=NAME names the field",
    )
    positions = [
        {
            "rollout": number,
            "deciles": step.values.deciles()
            | {"accuracy_by_length": {"all": step.accuracy_by_length(in_tokens)}},
        }
        for number, step in steps.items()
    ]
    last = list(steps.values())[-1]
    return Run(
        name=name,
        directory=path,
        rows=rows,
        evaluations=[evaluate(VALIDATION, n, found) for n, found in validations.items()],
        positions=positions,
        trainer=", ".join(reading.trainers),
        samples=[*last.samples.get(True, []), *last.samples.get(False, [])],
        notes=_notes(reading, rows, in_tokens),
    )


def _notes(reading: Reading, rows: dict[int, dict[str, float]], in_tokens: bool) -> list[str]:
    """Return notes on the data that the dumps lack."""
    known = set().union(*rows.values())
    notes = []
    if reading.invalid:
        notes.append(f"Skipped {reading.invalid} rows that cannot be read: {reading}.")
    if not in_tokens:
        notes.append(
            "Lengths are in characters: some responses have no token ids. --model=NAME counts "
            "their tokens."
        )
    if "rollout/truncation_rate" not in known:
        notes.append("The dumps do not record which responses are truncated.")
    if "critic/value_error" not in known:
        notes.append("The dumps have no values of a critic.")
    return notes
