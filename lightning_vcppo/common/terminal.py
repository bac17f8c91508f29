"""Print safely to the terminal, and show what is being waited for without a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from lightning_vcppo.common.ranks import own_rank


def printable(text: str) -> str:
    r"""Return a text that is safe to print: all characters that are not printable are escaped.

    These are control characters, so that no response clears the screen or moves the cursor, and
    marks that change the writing direction; a line end becomes `\n`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Show what is being done while the body runs.

    The text disappears afterwards. Log files, pipes and ranks after the first do not show it.

    Args:
        what: Text to show, such as "Loading the actor".
    """
    console = Console(stderr=True)
    if not console.is_terminal or own_rank() != 0:
        yield
        return
    with console.status(f"{what} ...", spinner="dots"):
        yield
