"""Convert responses of another trainer to the records of this package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from lightning_vcppo.common.errors import require
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.interchange.cells import question
from lightning_vcppo.interchange.reading import Reading
from lightning_vcppo.interchange.schemas import ForeignResponse
from lightning_vcppo.interchange.tokens import RoundTrips, Tokens
from lightning_vcppo.models.fingerprints import tokenizer_fingerprint
from lightning_vcppo.rewards.answers import AnswerKind
from lightning_vcppo.rewards.functions import Grade, Grader
from lightning_vcppo.rollouts.records import ImportedResponse, SavedResponse

CHUNK = 256
"""Number of responses that are tokenized and graded at once."""


@dataclass
class ImportReport:
    """A summary of an import for the user.

    Attributes:
        responses: Number of responses.
        prompts: Number of different prompts.
        truncated: Number of responses that are truncated, by the dump or by the length limit.
        unknown_end: Number of responses that may be truncated; they count as finished.
        rewards: Sum of the rewards.
        changed_verdicts: Number of responses whose reward changed its sign when they were graded
            again.
        reading: Rows by trainer, and those that could not be read.
        round_trips: Counts of the conversion of texts to token ids; None without a tokenizer.
        graded: Whether the responses were graded again.
    """

    responses: int = 0
    prompts: int = 0
    truncated: int = 0
    unknown_end: int = 0
    rewards: float = 0.0
    changed_verdicts: int = 0
    reading: Reading = field(default_factory=Reading)
    round_trips: RoundTrips | None = None
    graded: bool = False

    def lines(self) -> Iterator[str]:
        """Yield the lines to print."""
        trainers = ", ".join(f"{n} rows of {name}" for name, n in self.reading.trainers.items())
        yield (
            f"{self.responses} responses to {self.prompts} prompts ({trainers}), "
            f"mean reward {self.rewards / max(self.responses, 1):.3f}"
        )
        if self.reading.summed and not self.graded:
            yield (
                f"the reward is {' + '.join(self.reading.summed)} (--reward_field=NAME takes one)"
            )
        if self.reading.invalid:
            yield f"skipped {self.reading.invalid} rows: {self.reading}"
        yield f"truncated: {self.truncated}" + (
            f"; {self.unknown_end} others have no such information and count as finished "
            "(--max_response_length=N decides it)"
            if self.unknown_end
            else ""
        )
        if (trips := self.round_trips) is None:
            yield "no token ids were made (--model=NAME names the tokenizer)"
        elif trips.made or trips.restored or trips.bare:
            yield (
                f"token ids: {trips.taken} responses from the dump, {trips.made} tokenized, of "
                f"which {trips.changed} do not decode to their text"
            )
            yield (
                f"prompts without special tokens: {trips.restored} with the chat template "
                f"restored, {trips.bare} as plain text"
            )
        if self.changed_verdicts:
            yield f"graded again: {self.changed_verdicts} rewards changed their sign"


class _Task(NamedTuple):
    """What a response answers: as the file of problems has it, or else its own row.

    Attributes:
        problem: Text of the problem.
        answers: Right answers; empty if none is known.
        answer_kind: Kind of comparison; None decides by the type of the answer.
        columns: What a reward function may read besides, by name.
    """

    problem: str
    answers: list[int | str]
    answer_kind: AnswerKind | None
    columns: dict[str, Any]


class Importer:
    """Builds the records of responses: token ids, groups, rewards, verdicts."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        reward: str | None = None,
        problems: Iterable[Problem] = (),
        max_response_length: int | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Collect the settings.

        Args:
            tokenizer: Tokenizer of the policy; None adds no token ids that the dump lacks.
            reward: A style of the verifier or a reward function, to grade the responses again.
            problems: Problems with the answers that the dump lacks; a prompt belongs to the problem
                whose text it contains.
            max_response_length: Number of tokens at which responses were truncated.
            reading: Counts of the rows that were read.
        """
        self._tokens = None
        if tokenizer is not None:
            self._tokens = Tokens(tokenizer, max_response_length)
        origin = {"tokenizer": tokenizer_fingerprint(tokenizer)} if tokenizer is not None else {}
        self._origin: dict[str, str | float] = {"imported": "true", **origin}
        self._grader = Grader(reward) if reward is not None else None
        self._problems = {problem.problem.strip(): problem for problem in problems}
        self._limit = max_response_length
        self._groups: dict[str, list[int]] = {}  # number of the prompt, responses so far
        self.report = ImportReport(
            reading=reading or Reading(),
            round_trips=self._tokens.round_trips if self._tokens else None,
            graded=reward is not None,
        )

    def records(
        self, responses: Iterable[tuple[str, ForeignResponse]]
    ) -> Iterator[SavedResponse | ImportedResponse]:
        """Yield the record of each response.

        Args:
            responses: Responses, each with its place, "FILE:ROW".

        Raises:
            ValueError: If a response has no reward, or no answer to be graded by.
        """
        stream = iter(responses)
        while chunk := list(islice(stream, CHUNK)):
            rows = [response for _, response in chunk]
            ids = self._tokens.ids_of(rows) if self._tokens else [(None, None)] * len(rows)
            tasks = [*map(self._task, rows)]
            grades = self._grades(chunk, tasks)
            for (place, row), (prompt_ids, response_ids), task, grade in zip(
                chunk, ids, tasks, grades, strict=True
            ):
                yield self._record(
                    place,
                    row,
                    task,
                    row.prompt_ids if prompt_ids is None else prompt_ids,
                    row.response_ids if response_ids is None else response_ids,
                    grade,
                )

    def _record(
        self,
        place: str,
        row: ForeignResponse,
        task: _Task,
        prompt_ids: list[int] | None,
        response_ids: list[int] | None,
        grade: Grade,
    ) -> SavedResponse | ImportedResponse:
        finished = self._finished(row, response_ids)
        group = self._groups.setdefault(row.group or _key(row), [len(self._groups), 0])
        index, sample = group
        group[1] += 1
        report = self.report
        report.responses += 1
        report.prompts = len(self._groups)
        report.rewards += grade.reward
        report.truncated += finished is False
        report.unknown_end += finished is None
        answer, *accepted = task.answers or [""]
        common: dict[str, Any] = dict(
            index=index,
            sample=sample,
            source=place,
            problem=task.problem,
            answer=answer,
            response=row.response,
            prediction=None,
            correct=grade.correct,
            length=len(response_ids) if response_ids is not None else len(row.response),
            finished=finished is not False,
            accepted=accepted,
            answer_kind=task.answer_kind,
            columns=task.columns,
            reward=grade.reward,
        )
        if prompt_ids is None or response_ids is None:
            return ImportedResponse(**common, prompt=row.prompt)
        origin = {**(row.origin or {}), **self._origin}
        return SavedResponse(
            **common, prompt_ids=prompt_ids, response_ids=response_ids, origin=origin
        )

    def _finished(self, row: ForeignResponse, response_ids: list[int] | None) -> bool | None:
        if row.finished is not None:
            return row.finished
        known = row.response_ids is not None or self._limit is not None
        if known and response_ids is not None and self._tokens is not None:
            return self._tokens.ends(response_ids)
        return None

    def _problem(self, row: ForeignResponse) -> Problem | None:
        if not self._problems:
            return None
        asked = question(row.prompt).strip()
        if (problem := self._problems.get(asked)) is not None:
            return problem
        return next((p for text, p in self._problems.items() if text in asked), None)

    def _task(self, row: ForeignResponse) -> _Task:
        problem = self._problem(row)
        if problem is None:
            columns = dict(row.columns or {})
            return _Task(question(row.prompt), _answers(row.answer), row.answer_kind, columns)
        answers = _answers(problem.gold if row.answer is None else row.answer)
        columns = {**(row.columns or {}), **problem.columns}
        return _Task(problem.problem, answers, problem.answer_kind, columns)

    def _grades(
        self,
        chunk: list[tuple[str, ForeignResponse]],
        tasks: Sequence[_Task],
    ) -> list[Grade]:
        if self._grader is None:
            for place, row in chunk:
                require(
                    row.reward is not None,
                    f"{place}: no reward; grade the responses with --reward=boxed (or another "
                    "style), or name the field with --reward_field",
                )
            return [Grade(r.reward or 0.0, (r.reward or 0.0) > 0, True) for _, r in chunk]
        for (place, _), task in zip(chunk, tasks, strict=True):
            require(
                bool(task.answers) or not self._grader.reads.answer,
                f"{place}: no answer to grade by; name the problems with --problems=FILE",
            )
        grades = self._grader.grade_all(
            [row.response for _, row in chunk],
            [tuple(task.answers or [""]) for task in tasks],
            [task.answer_kind for task in tasks],
            [
                {**task.columns, "problem": task.problem, "finished": row.finished}
                for (_, row), task in zip(chunk, tasks, strict=True)
            ],
        )
        for (_, row), grade in zip(chunk, grades, strict=True):
            if row.reward is not None:
                self.report.changed_verdicts += (row.reward > 0) != grade.correct
        return grades


def _key(row: ForeignResponse) -> str:
    """Return a key that is equal for equal prompts, and short for long prompts, too."""
    prompt = row.prompt or row.prompt_ids
    key = repr(prompt)
    return key if len(key) < 64 else f"{hash(key)}:{len(key)}"


def _answers(value: Any) -> list[int | str]:
    """Return the answers in a cell as integers or texts; an empty list for an empty cell."""
    if isinstance(value, Mapping):
        value = value.get("target", value.get("answer", value.get("ground_truth")))
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return [v if isinstance(v, int) else str(v) for v in items if v is not None and v != ""]
