"""One HTML page with a table and figures, which loads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lightning_vcppo.common.files import complete_file
from lightning_vcppo.report.page import HERE, INSTALL, script_hash

_DRAW = """\
for (const box of document.querySelectorAll("[data-plot]")) {
  const plot = JSON.parse(document.getElementById(box.dataset.plot).textContent);
  const layout = {...plot.layout, height: 340,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)"};
  Plotly.newPlot(box, plot.data, layout, {responsive: true, displaylogo: false});
}
"""


def write_page(
    path: Path,
    title: str,
    notes: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    figures: Sequence[tuple[str, str, dict[str, Any]]],
) -> None:
    """Write a page; all texts stay texts.

    Args:
        path: Of the file.
        title: Of the page.
        notes: Paragraphs under the title.
        columns: Names of the table's columns.
        rows: Cells of the table.
        figures: Title, a sentence, and plotly specification of each.

    Raises:
        ImportError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ImportError(INSTALL) from None
    scripts = [get_plotlyjs(), _DRAW]
    hashes = " ".join(f"'{script_hash(script)}'" for script in scripts)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes}"
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    plots = "".join(
        f"<section><h2>{escape(name)}</h2><p>{escape(text)}</p>"
        f'<div data-plot="plot{place}"></div>'
        f'<script type="application/json" id="plot{place}">{_json(spec)}</script></section>'
        for place, (name, text, spec) in enumerate(figures)
    )
    style = (HERE / "page.css").read_text(encoding="utf-8")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{''.join(f'<p>{escape(note)}</p>' for note in notes)}"
        f'<div style="overflow-x:auto"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{plots}</main>"
        + "".join(f"<script>{script}</script>" for script in scripts)
        + "</body></html>"
    )
    with complete_file(path) as file:
        file.write(page)


def _json(spec: dict[str, Any]) -> str:
    return json.dumps(spec, allow_nan=False).replace("<", "\\u003c")
