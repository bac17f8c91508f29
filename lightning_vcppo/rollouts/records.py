"""Define records of graded responses, gather them over ranks, and read and write their files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_vcppo.common.files import complete_file
from lightning_vcppo.data.cell_types import finite, shown, token_ids, truth
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.texts import InvalidRow
from lightning_vcppo.distributed.collectives import gather
from lightning_vcppo.rewards.answers import Answer, AnswerKind, kind_of


@dataclass  # not frozen: Lightning rebuilds what `predict_step` returns, field by field
class ResponseRecord:
    """One graded response of an evaluation, in plain types: enough to grade it again.

    Attributes:
        index: Position of the problem in its data set; the same for all its samples.
        sample: 0 .. num_generations - 1.
        source: Where the problem comes from.
        problem: Text of the problem.
        answer: The correct answer.
        response: The decoded response.
        prediction: The answer that the verifier extracted from it, or None.
        correct: Whether the reward function judged it correct.
        length: Number of tokens of the response.
        finished: False if the response was truncated.
        evaluation_set: Name of the evaluation set, if any.
        year: Year of the competition, if the source states it.
        seed: Seed of the random stream that the response was sampled from.
        accepted: Further correct answers.
        answer_kind: Kind of comparison; None decides by the type of the answer.
        level: Level of difficulty, if the source states it.
        subject: Subject of the problem, if the source states it.
        columns: Columns of the problem's row that the reward function reads, by name.
    """

    index: int
    sample: int
    source: str
    problem: str
    answer: int | str
    response: str
    prediction: str | None
    correct: bool
    length: int
    finished: bool
    evaluation_set: str = ""
    year: int | None = None
    seed: int | None = None
    accepted: list[int | str] = field(default_factory=list)
    answer_kind: AnswerKind | None = None
    level: str | None = None
    subject: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def gold(self) -> Answer:
        """The answer, or all correct answers, for graders."""
        return (self.answer, *self.accepted) if self.accepted else self.answer

    def as_problem(self) -> Problem:
        """Return what is needed to grade further responses to the same problem."""
        return Problem(
            self.problem,
            self.answer,
            source=self.source,
            accepted=tuple(self.accepted),
            answer_kind=kind_of(self.answer, self.answer_kind),
            columns=self.columns,
        )

    @property
    def others(self) -> dict[str, Any]:
        """What a reward function may read besides response and answer, by name."""
        return {**self.columns, "problem": self.problem, "finished": self.finished}


@dataclass(kw_only=True)
class SavedResponse(ResponseRecord):
    """A response of `predict`, with the fields that value pretraining needs.

    Attributes:
        prompt_ids: Token ids of the prompt.
        response_ids: Token ids of the response, its <eos> included.
        reward: Reward of the reward function.
        origin: Fingerprints of tokenizer and model, and the sampling settings.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    reward: float
    origin: dict[str, str | float]

    @property
    @override
    def others(self) -> dict[str, Any]:
        """Token ids, too."""
        return {**super().others, "response_ids": self.response_ids}


@dataclass(kw_only=True)
class ImportedResponse(ResponseRecord):
    """A response of another trainer, as text that is not tokenized yet.

    Attributes:
        prompt: Text, or messages with role and content.
        reward: Reward of the other trainer's reward function.
    """

    prompt: str | list[dict[str, str]]
    reward: float


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters with which a spreadsheet formula may begin."""


def gather_records(records: list[ResponseRecord]) -> list[ResponseRecord]:
    """Return the records of all ranks, each once.

    Every rank must call it, and all get the same list.
    """
    return unique_records(record for of_rank in gather(records) for record in of_rank)


def unique_records(records: Iterable[ResponseRecord]) -> list[ResponseRecord]:
    """Keep the first record of each sample of each problem, in order of problem and sample.

    Evaluation sets stay in the order in which they appear. A distributed sampler repeats problems
    until all ranks have equally many; counted twice, they would shift the accuracy.
    """
    sets: dict[str, int] = {}
    first: dict[tuple[int, int, int], ResponseRecord] = {}
    for record in records:
        place = sets.setdefault(record.evaluation_set, len(sets))
        first.setdefault((place, record.index, record.sample), record)
    return [first[key] for key in sorted(first)]


def write_records(path: Path, records: Iterable[ResponseRecord]) -> None:
    """Write records as JSON Lines, one object per line; the file appears complete or not at all."""
    encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps builds one for each record
    with complete_file(path) as file:
        for record in records:
            # All fields are plain; `asdict` would copy token ids one by one.
            file.write(encode(vars(record)) + "\n")


def read_records(path: Path) -> list[ResponseRecord]:
    """Read what `write_records` has written.

    Raises:
        ValueError: If a line is not a record; the message names file and line.
        OSError: If the file cannot be read.
    """
    records: list[ResponseRecord] = []
    with path.open(encoding="utf-8") as file:
        lines = enumerate(file, 1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return records
            except UnicodeDecodeError:
                raise ValueError(f"{path}: expected UTF-8 text") from None
            try:
                row = json.loads(line)
                records.append(_checked(_kind_of(row)(**row)))
            except RecursionError:
                raise ValueError(
                    f"{path}:{number}: expected a graded response; broken JSON, nested too deeply"
                ) from None
            except (TypeError, ValueError) as error:
                reason = str(error).replace("ResponseRecord.__init__()", "it")
                raise ValueError(
                    f"{path}:{number}: expected a graded response; {reason}"
                ) from error


def _checked(record: ResponseRecord) -> ResponseRecord:
    """Check the fields that tensors are made of, so that an error names its row.

    Raises:
        InvalidRow: If one has another type; the message names it.
    """
    for name in ("correct", "finished"):
        truth(getattr(record, name), name)
    if isinstance(record, (SavedResponse, ImportedResponse)):
        finite(record.reward, "reward")
    if isinstance(record, SavedResponse):
        token_ids(record.prompt_ids, "prompt_ids")
        token_ids(record.response_ids, "response_ids")
        if not isinstance(record.origin, dict):
            raise InvalidRow(f"origin: expected an object, got {shown(record.origin)}")
    if not isinstance(record.columns, dict):
        raise InvalidRow(f"columns: expected an object, got {shown(record.columns)}")
    if not isinstance(record.index, (int, str)):
        raise InvalidRow(f"index: expected a whole number, got {shown(record.index)}")
    return record


def _kind_of(row: dict[str, object]) -> type[ResponseRecord]:
    if "prompt_ids" in row:
        return SavedResponse
    return ImportedResponse if "prompt" in row else ResponseRecord


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV; the file appears complete or not at all.

    A text that a spreadsheet would read as a formula gets an apostrophe in front.
    """
    with complete_file(path) as file:
        csv.writer(file).writerows([columns, *([*map(_no_formula, row)] for row in rows)])


def _no_formula(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
