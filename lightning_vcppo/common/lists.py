"""Let a setting that is a list be given as a single value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Text = TypeVar("Text", bound=str)


def as_list(given: Text | Iterable[Text] | None) -> list[Text]:
    """Return texts as a list: a single one as a list of one, None as an empty list."""
    if isinstance(given, str):
        return [given]
    return list(given or ())
