"""A word in the terminal while one waits for what has no progress bar of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say what is being done, for as long as the body takes.

    It is gone afterwards. Log files, pipes and other ranks than the first see nothing of it.

    Args:
        what: Such as "Loading the actor".
    """
    console = Console(stderr=True)
    first_rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
    if not console.is_terminal or not first_rank:
        yield
        return
    with console.status(f"{what} ...", spinner="dots"):
        yield
