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
