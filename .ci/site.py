"""Turn equations into MathML and files from elsewhere into pages, which mkdocs does not."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


_INCLUDED = re.compile(r'^--8<-- "(?P<file>.+)"$', re.MULTILINE)
_ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in the files that a page names; their links to docs/ are links within the site."""
    return _INCLUDED.sub(
        lambda match: (_ROOT / match["file"]).read_text("utf-8").replace("](../docs/", "]("),
        markdown,
    )


def on_page_content(content: str, **_: Any) -> str:
    """Draw the equations of a page; needs no script and no network."""
    return _EQUATION.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    return convert(html.unescape(match["latex"]).strip(), display=display)
