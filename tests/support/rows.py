"""Long tables of one kind of test: some rows for `make test`, the others for `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thin(rows: Iterable[Any], quick: Callable[[Any], bool]) -> list[Any]:
    """Return all rows; those that are not quick carry the marker `thorough`.

    Args:
        rows: Values of one parameter.
        quick: Whether `make test` has a row.
    """
    return [row if quick(row) else pytest.param(row, marks=pytest.mark.thorough) for row in rows]


def every(step: int, rows: Iterable[Any]) -> list[Any]:
    """Return all rows; those between each `step`-th carry the marker `thorough`.

    Args:
        step: Distance between rows of `make test`.
        rows: Values of one parameter, tuples of several, or `pytest.param`.
    """
    several = [row if isinstance(row, tuple) else (row,) for row in rows]
    params = [row if hasattr(row, "marks") else pytest.param(*row) for row in several]
    return [
        row if i % step == 0 else row._replace(marks=[*row.marks, pytest.mark.thorough])
        for i, row in enumerate(params)
    ]
