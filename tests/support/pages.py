"""Code blocks of Markdown pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^```(?P<info>.*)\n(?P<text>(?:.*\n)*?)^```$", re.MULTILINE)
INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield language (and title) and text of the code blocks of a page."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        yield match["info"], match["text"]
    for match in INDENTED.finditer(FENCE.sub("", text)):
        yield "", match[0]


def titled(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of the files that a page shows."""
    for info, text in blocks(page):
        if match := re.fullmatch(rf'{language} title="(.+)"', info):
            yield match[1], text
