"""A word in the terminal while one waits for what has no progress bar of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from lightning_vcppo.common.ranks import own_rank


def printable(text: str) -> str:
    r"""Return a text without power over a terminal: what is no visible character is escaped.

    Control characters, so that no response clears the screen or writes elsewhere, and marks that
    turn the direction of writing; a line's end becomes `\n`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say what is being done, for as long as the body takes.

    It is gone afterwards. Log files, pipes and other ranks than the first see nothing of it.

    Args:
        what: Such as "Loading the actor".
    """
    console = Console(stderr=True)
    if not console.is_terminal or own_rank() != 0:
        yield
        return
    with console.status(f"{what} ...", spinner="dots"):
        yield
