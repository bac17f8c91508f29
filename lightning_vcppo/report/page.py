"""Write figures, tables and texts into one page that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_vcppo.report.drawing import Spec, color
from lightning_vcppo.report.figures import sections
from lightning_vcppo.report.reading import Evaluation, Run
from lightning_vcppo.report.summary import headline

HERE = Path(__file__).parent
INSTALL = "the page needs plotly and jinja2: pip install 'lightning-vcppo[report]'"


def render(runs: Sequence[Run]) -> str:
    """Write the report of runs as HTML.

    The page contains no address and forbids the browser to load anything or to run any script
    except its own two, so any text in it stays text.

    Args:
        runs: One or more runs, in the order of their colours.

    Raises:
        ImportError: If plotly or jinja2 is not installed.
    """
    found = sections(runs)
    return offline_page(
        HERE / "page.html",
        [panel.spec for part in found for figure in part.figures for panel in figure.panels],
        runs=runs,
        colors=[color(place) for place in range(len(runs))],
        headlines=[headline(run) for run in runs],
        sections=found,
        evaluations=[(place, e) for place, run in enumerate(runs) for e in run.evaluations],
        grouped=[(place, e) for place, run in enumerate(runs) for e in first_and_last(run)],
        samples=[_samples(run) for run in runs],
        differences=differences(runs),
        configs=[yaml.safe_dump(run.config, sort_keys=False) if run.config else "" for run in runs],
    )


def offline_page(template: Path, plots: Sequence[Spec], **content: Any) -> str:
    """Fill a template, with plots that the page draws by itself.

    Args:
        template: The template; it extends `base.html`.
        plots: Specifications of plotly, in the order of their `data-plot`.
        content: Names in the template.

    Raises:
        ImportError: If plotly or jinja2 is not installed.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ImportError(INSTALL) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"percent": percent, "signed": signed}
    scripts = [get_plotlyjs(), (HERE / "page.js").read_text(encoding="utf-8")]
    page: str = environment.get_template(template.name).render(
        plots=plots,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        script_hashes=[_hash(script) for script in scripts],
        **content,
    )
    return page


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share as a percentage."""
    return "" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def signed(number: float, digits: int = 1) -> str:
    """Format a number with its sign."""
    return f"{number:+.{digits}f}"


def _hash(script: str) -> str:
    """Return the source expression of a script in the page's content security policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


# Tables


def first_and_last(run: Run) -> list[Evaluation]:
    """Return the first and the last evaluation of each set whose problems are in groups."""
    found: list[Evaluation] = []
    for name in dict.fromkeys(e.name for e in run.evaluations):
        of_set = [e for e in run.evaluations if e.name == name and e.groups]
        found += of_set[:1] + of_set[1:][-1:]
    return found


def _samples(run: Run) -> list[dict[str, Any]]:
    """Return responses of the last evaluation of a run, right ones first."""
    first_set = [e for e in run.evaluations if e.name == run.evaluations[0].name]
    return first_set[-1].samples if first_set else run.samples


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings in which the runs differ, each with its value in every run."""
    flat = [dict(flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [settings.get(key, "") for settings in flat] for key in keys}
    return [(key, row) for key, row in values.items() if len(set(row)) > 1]


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested settings with their dotted names, each as a text."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node if isinstance(node, str) else json.dumps(node, default=str)
