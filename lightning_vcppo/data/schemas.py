"""Read rows in the schemas of public data sets as problems whose answers are not parsed yet.

The first field of `PROBLEM_FIELDS` and of `ANSWER_FIELDS` with a value is used, unless a field is
named; a field may be a path through nested values: `prompt[0].content`. If no field has an answer,
it is the last box of the solution or of the chat's reply.
"""

from __future__ import annotations

import re
import sys
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from lightning_vcppo.data.answers import KINDS, Answers, ReadAs, answer_values, read_answers
from lightning_vcppo.data.cell_types import as_json
from lightning_vcppo.data.chats import Chat, parsed, read_chat
from lightning_vcppo.data.choices import CHOICE_FIELDS, choice_answers, join_choices, read_choices
from lightning_vcppo.data.files import Row
from lightning_vcppo.data.problem import Message, Problem
from lightning_vcppo.data.texts import InvalidRow, check_text, plain
from lightning_vcppo.rewards.signatures import RESERVED, Reads
from lightning_vcppo.rewards.verifier import last_boxed

PROBLEM_FIELDS = (
    *("problem", "question", "prompt", "messages", "conversations"),
    "0.value",  # a row that is a list of messages (Open-Reasoner-Zero)
)
ANSWER_FIELDS = (
    *("answer", "final_answer", "expected_answer", "ground_truth"),
    *("reward_model.ground_truth", "extra_info.answer", "label", "correct_answer", "answerKey"),
    "1.ground_truth.value",
)
SYSTEM_FIELDS = ("system", "system_prompt")
SOLUTION_FIELDS = ("solution",)
LEVEL_FIELDS = ("level", "difficulty")
SUBJECT_FIELDS = ("subject", "type", "category", "topic", "subfield", "problem_type")
YEAR_FIELDS = ("year", "competition", "contest", "url", "link", "id")

OTHER_FIELDS = (
    *(*CHOICE_FIELDS, *SYSTEM_FIELDS, *SOLUTION_FIELDS),
    *(*LEVEL_FIELDS, *SUBJECT_FIELDS, *YEAR_FIELDS),
)
_PATH_KEY = re.compile(r"[^.\[\]]+")
NO_ANSWER = Answers("")
_MANY_SCHEMAS = 1000

Path = tuple[str, ...]


class Draft(NamedTuple):
    """A problem whose answer is not parsed yet, because the kind is only known for a complete set.

    Attributes:
        question: The question with its choices.
        context: The turns before it.
        values: Accepted answers; None if the reward function reads none and the row has none.
        solution: As in `Problem`, like the remaining fields.
    """

    question: str
    context: tuple[Message, ...]
    values: tuple[object, ...] | None
    solution: str | None
    source: str
    year: int | None
    level: str | None
    subject: str | None
    columns: dict[str, Any]

    def as_problem(self, kind: ReadAs) -> Problem:
        """Return the problem, with its answer parsed as a kind.

        Raises:
            InvalidRow: If the answer is of another kind.
        """
        answers = NO_ANSWER if self.values is None else read_answers(self.values, kind)
        return Problem(
            problem=self.question,
            answer=answers.first,
            solution=self.solution,
            source=self.source,
            year=self.year,
            accepted=answers.others,
            answer_kind=KINDS[kind] if self.values is not None else "text",
            context=self.context,
            level=self.level,
            subject=self.subject,
            columns=self.columns,
        )


class _Schema(NamedTuple):
    """The paths of each content in rows with certain fields, and the fields of kept columns."""

    columns: dict[str, str | None]
    problem: tuple[Path, ...]
    answer: tuple[Path, ...]
    choices: tuple[Path, ...]
    system: tuple[Path, ...]
    solution: tuple[Path, ...]
    level: tuple[Path, ...]
    subject: tuple[Path, ...]
    year: tuple[Path, ...]


class RowReader:
    """Reads rows; the fields are searched once for all rows with the same names.

    Attributes:
        fields: Names of all fields of the rows so far.
    """

    def __init__(
        self,
        problem_field: str | None = None,
        answer_field: str | None = None,
        reads: Reads = Reads(),
    ) -> None:
        """Name the fields of problem and answer; None finds them.

        Args:
            problem_field: A field, or a path such as `prompt[0].content`.
            answer_field: Likewise.
            reads: Columns that are kept for the reward function.
        """
        self.problem_field, self.answer_field, self.reads = problem_field, answer_field, reads
        self.fields: dict[str, None] = {}
        self._schemas: dict[tuple[str, ...], _Schema] = {}

    def needs(self, field: str) -> bool:
        """Return whether a field may be read; others are not needed."""
        return self.reads.everything or field.lower() in self._needed

    @cached_property
    def _needed(self) -> frozenset[str]:
        """Names, in lower case, of the fields that may be read."""
        paths = (*PROBLEM_FIELDS, *ANSWER_FIELDS, *OTHER_FIELDS, *self.reads.names)
        named = [path for path in (self.problem_field, self.answer_field) if path]
        tops = {found[0] for path in paths if (found := _PATH_KEY.search(path))}
        tops |= {found[0] for path in named if (found := _PATH_KEY.search(path))}
        return frozenset(name.lower() for name in {*tops, *paths, *named})

    def read(self, row: Row, source: str) -> Draft:
        """Read a row.

        Args:
            row: Row of a file or a data set.
            source: Name and number of the row.

        Raises:
            InvalidRow: If it has no problem or no answer, or a text with invalid characters.
        """
        schema = self._schema(row)
        chat = self._chat(row, schema)
        question, context = chat.question, chat.context
        if not any(role == "system" for role, _ in context):
            system = _first(row, schema.system)
            if isinstance(system, str) and system.strip():
                check_text(system, "the system message")
                context = (("system", system.strip()), *context)

        solution = _text_of(_first(row, schema.solution))
        value = self._answer(row, schema, solution, chat.reply)
        choices = read_choices(_first(row, schema.choices)) if schema.choices else {}
        if choices:
            question = join_choices(question, choices)
        values: tuple[object, ...] | None = None
        if value is not None:
            values = choice_answers(value, choices) if choices else answer_values(value)
        if not solution and isinstance(value, str) and "####" in value:
            solution = value.rpartition("####")[0]  # in GSM8K the solution precedes it
        if solution:
            check_text(solution, "the solution")
            solution = solution.strip()
        return Draft(
            question,
            context,
            values,
            solution or None,
            source,
            _year([(path[0], row[path[0]]) for path in schema.year], source),
            _level(_first(row, schema.level)),
            _subject(_first(row, schema.subject)),
            {
                name: None if field is None else as_json(row[field], name)
                for name, field in schema.columns.items()
            },
        )

    def _schema(self, row: Row) -> _Schema:
        fields = tuple(row)
        if (schema := self._schemas.get(fields)) is None:
            if len(self._schemas) >= _MANY_SCHEMAS:
                self._schemas.clear()
            problem = (self.problem_field,) if self.problem_field else PROBLEM_FIELDS
            answer = (self.answer_field,) if self.answer_field else ANSWER_FIELDS
            self.fields.update(dict.fromkeys(map(str, fields)))
            of_contents = (
                tuple(path for name in names if (path := _find(row, name)))
                for names in (
                    *(problem, answer, CHOICE_FIELDS, SYSTEM_FIELDS, SOLUTION_FIELDS),
                    *(LEVEL_FIELDS, SUBJECT_FIELDS, YEAR_FIELDS),
                )
            )
            schema = self._schemas[fields] = _Schema(self._columns(row), *of_contents)
        return schema

    def _columns(self, row: Row) -> dict[str, str | None]:
        """Return the field of each kept column; None if rows like this one lack it."""
        found = {name: _find(row, name) for name in self.reads.names}
        named = {name: path[0] if path else None for name, path in found.items()}
        all_of_row = row if self.reads.everything else ()
        return {field: field for field in all_of_row if field not in RESERVED} | named

    def check_columns(self, name: str) -> None:
        """Check that the rows so far have the columns that the reward function needs.

        Args:
            name: Name of the source.

        Raises:
            ValueError: If no row has one of them.
        """
        self.reads.check([*self.fields], name)

    def _chat(self, row: Row, schema: _Schema) -> Chat:
        value = _first(row, schema.problem)
        if value is None:
            raise _missing(row, self.problem_field, PROBLEM_FIELDS, "--data.problem_field")
        chat = read_chat(value)
        if chat is None:
            raise InvalidRow(f"the problem is empty or not text; fields: {_listed(row)}")
        return chat

    def _answer(self, row: Row, schema: _Schema, solution: str | None, reply: str | None) -> object:
        value = _first(row, schema.answer)
        if value is not None:
            return value
        if self.answer_field is None:
            for text in (solution, reply):
                if text and (boxed := last_boxed(text)):
                    return boxed
            if not self.reads.answer:
                return None
        raise _missing(row, self.answer_field, ANSWER_FIELDS, "--data.answer_field")


def has_answer(row: Row) -> bool:
    """Return whether a JSON object is a row itself, not a list of rows with metadata."""
    return any(
        path and _follow(row, path) is not None
        for path in (_find(row, name) for name in ANSWER_FIELDS)
    )


def _find(row: Row, name: str) -> Path | None:
    """Return the path of a field in rows like this one; None if they do not have it.

    The exact name has precedence, then the name in any letter case, then a path.
    """
    by_name = {field.lower(): field for field in row}
    whole = name if name in row else by_name.get(name.lower())
    if whole is not None:
        return (whole,)
    first, *rest = _PATH_KEY.findall(name) or [""]
    top = first if first in row else by_name.get(first.lower())
    return (top, *rest) if top is not None and rest else None


def _first(row: Row, paths: tuple[Path, ...]) -> object:
    """Return the first value that is neither None nor empty text."""
    for path in paths:
        value = _follow(row, path)
        if value is not None and value != "":
            return value
    return None


def _follow(row: Row, path: Path) -> object:
    """Return the value of a path in a row; None if there is none."""
    value: object = row[path[0]]
    for key in path[1:]:
        value = parsed(value)
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return plain(value)


def _missing(row: Row, wanted: str | None, usual: tuple[str, ...], flag: str) -> InvalidRow:
    if wanted:
        return InvalidRow(f"no field {wanted!r} with a value; fields: {_listed(row)}")
    return InvalidRow(
        f"no field {', '.join(usual)} with a value; fields: {_listed(row)} ({flag} names one)"
    )


def _listed(row: Row) -> str:
    """Return the names of a row's fields, at most twelve of them."""
    names = [str(name)[:40] for name in row]
    return ", ".join(names if len(names) <= 12 else [*names[:12], f"and {len(names) - 12} more"])


def _text_of(value: object) -> str | None:
    """Return a text, or the first of a list of texts."""
    value = plain(value[0] if isinstance(value, list) and value else value)
    return value if isinstance(value, str) else None


def _level(value: object) -> str | None:
    """Return a level of difficulty: "Level 5", 5 and 5.0 are "5"."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = f"{value:g}" if isinstance(value, float) else str(value).strip()
    return sys.intern(text[5:].strip() if text[:5].lower() == "level" else text) or None


def _subject(value: object) -> str | None:
    if isinstance(value, list):
        value = ", ".join(item for item in value if isinstance(item, str))
    return sys.intern(value.strip()) or None if isinstance(value, str) else None


_YEAR = re.compile(r"(?<!\d)((?:19|20)\d\d)(?!\d)|(?:aime|amc)[ _-]?(\d\d)(?!\d)", re.IGNORECASE)


def find_year(row: Row, source: str = "") -> int | None:
    """Return the year of the competition that a row or the name of its source states.

    Args:
        row: Row, whose fields `year`, `competition`, `contest`, `url`, `link` and `id` are read.
        source: Source, such as "aime24.jsonl:7".

    Returns:
        The year, or None if no text names one, or one names several.
    """
    paths = (path for name in YEAR_FIELDS if (path := _find(row, name)))
    return _year([(path[0], row[path[0]]) for path in paths], source)


def _year(cells: list[tuple[str, object]], source: str) -> int | None:
    for name, value in cells:
        # Only a number, except in the field `year`, is the number of a row.
        text = str(value or "")
        if not (text.isdecimal() and name.lower() != "year") and (year := _year_in(text)):
            return year
    return _year_in(source.rpartition(":")[0])


@lru_cache
def _year_in(text: str) -> int | None:
    """Return the only year that a text names."""
    found = {int(year or f"20{short}") for year, short in _YEAR.findall(text)}
    return found.pop() if len(found) == 1 else None
