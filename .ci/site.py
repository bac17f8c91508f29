"""Turn equations into MathML, notebooks and files from elsewhere into pages: mkdocs does not."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


_INCLUDED = re.compile(r'^--8<-- "(?P<file>.+)"$', re.MULTILINE)
_NOTEBOOK = re.compile(r"(\]\([^)\s]+)\.ipynb\)")
_ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, which stays beside it to be downloaded."""
    for file in [*files]:
        if file.src_uri.endswith(".ipynb"):
            notebook = json.loads(file.content_string)
            for name, content in _pages_of(notebook, PurePosixPath(file.src_uri)):
                files.append(File.generated(config, name, content=content))
    return files


def _pages_of(notebook: dict[str, Any], path: PurePosixPath) -> Iterator[tuple[str, str | bytes]]:
    """Yield name and content of the pictures of a notebook, then of its page."""
    parts: list[str] = []
    for number, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else _fenced("python", text))
        for output in cell.get("outputs", ()):
            picture = output.get("data", {}).get("image/png")
            if picture is None:
                plain = output.get("text") or output["data"]["text/plain"]
                parts.append(_fenced("text", "".join(plain)))
                continue
            name = f"{path.stem}_{number}.png"
            yield str(path.with_name(name)), base64.b64decode(picture)
            parts.append(f"![{cell['metadata']['alt']}]({name})")
    parts.append(f'<a href="{path.name}" download>Download this page as a notebook</a>')
    yield str(path.with_suffix(".md")), "\n\n".join(parts)


def _fenced(language: str, text: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in the files that a page names, and lead to the pages of notebooks.

    Links of included files to docs/ are links within the site.
    """
    whole = _INCLUDED.sub(
        lambda match: (_ROOT / match["file"]).read_text("utf-8").replace("](../docs/", "]("),
        markdown,
    )
    return _NOTEBOOK.sub(r"\1.md)", whole)


def on_page_content(content: str, **_: Any) -> str:
    """Draw the equations of a page; needs no script and no network."""
    return _EQUATION.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    return convert(html.unescape(match["latex"]).strip(), display=display)
