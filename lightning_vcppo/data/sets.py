"""Define evaluation sets by name, as a path or with their own settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.lists import as_list
from lightning_vcppo.common.suggestions import did_you_mean
from lightning_vcppo.data.answers import ReadKind
from lightning_vcppo.data.prompts import HELD_OUT

Paths = str | list[str] | None


@dataclass(frozen=True)
class ProblemSet:
    """The sources of problems, and how they are read.

    Attributes:
        path: A file, pattern, directory, hub id, `reasoning_gym:TASK`, or several of these; None
            generates problems.
        answer_kind: Kind of its answers; "auto" chooses it.
        problem_field: Field of a row with the problem; None means `--data.problem_field`.
        answer_field: Field of a row with the answer; None means `--data.answer_field`.
        split: Split of a data set; None means `--data.val_split`.
    """

    path: str | list[str] | None = None
    answer_kind: ReadKind = "auto"
    problem_field: str | None = None
    answer_field: str | None = None
    split: str | None = None

    @property
    def paths(self) -> list[str]:
        """Sources of the set, as a list."""
        return as_list(self.path)

    def with_defaults(self, **defaults: str | None) -> ProblemSet:
        """Return the set with these values for fields that are None."""
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing)  # type: ignore[arg-type]


NamedSets = dict[str, ProblemSet | dict[str, Any] | str | list[str] | None] | None
"""Type of `--data.evaluation_sets`."""


def named_sets(evaluation_sets: NamedSets, **defaults: str | None) -> dict[str, ProblemSet]:
    """Return evaluation sets by name.

    Args:
        evaluation_sets: Paths, `ProblemSet`s, or the fields of one, by name; None means no sets.
        defaults: Values for fields that are None.

    Raises:
        ValueError: If a name cannot be part of metric names, or a set has an unknown field or
            kind.
    """
    given_sets = evaluation_sets or {}
    for name in given_sets:
        require(
            bool(re.fullmatch(r"[\w.-]+", name)) and name != HELD_OUT,
            "evaluation_sets: expected names of letters, digits, '_', '-' and '.', other than "
            f"{HELD_OUT}, got {name!r}",
        )
    return {
        name: _as_set(name, given).with_defaults(**defaults) for name, given in given_sets.items()
    }


def _as_set(name: str, given: Paths | ProblemSet | dict[str, Any]) -> ProblemSet:
    if isinstance(given, dict):
        known = [field.name for field in fields(ProblemSet)]
        for key in given:
            require(
                key in known,
                f"evaluation_sets: {name} has no field {key!r}{did_you_mean(key, known)}; "
                f"expected {', '.join(known)}",
            )
        given = ProblemSet(**given)
    elif not isinstance(given, ProblemSet):
        given = ProblemSet(given)
    require(
        given.answer_kind in get_args(ReadKind),
        f"evaluation_sets: {name} has the answer_kind {given.answer_kind!r}; expected one of "
        f"{', '.join(get_args(ReadKind))}",
    )
    return given
