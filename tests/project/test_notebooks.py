"""The notebooks of the documents are whole, and what they show runs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_vcppo.cli.commands import critic
from lightning_vcppo.critic_lab.specs import read_specs
from tests.support.tiny_runs import ROOT

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
MOST_BYTES = 400_000
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def sources(path: Path, kind: str) -> Iterator[str]:
    """Yield the text of the cells of a kind."""
    for cell in read(path)["cells"]:
        if cell["cell_type"] == kind:
            yield "".join(cell["source"])


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@each_notebook
def test_a_notebook_is_whole_and_names_no_machine(path: Path) -> None:
    notebook = read(path)
    assert notebook["nbformat"] == 4 and notebook["nbformat_minor"] >= 5
    assert path.stat().st_size < MOST_BYTES
    assert not re.search(r"(?:/home|/root|/tmp|/work|/Users)/", path.read_text(encoding="utf-8"))
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    pictures = 0
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result")
            assert output.get("name") != "stderr"
            if "image/png" in output.get("data", {}):
                assert cell["metadata"]["alt"]
                pictures += 1
        assert cell["metadata"].keys() <= {"alt"}  # no times of an execution
    assert pictures


@each_notebook
def test_what_a_notebook_imports_exists(path: Path) -> None:
    imports = 0
    for text in sources(path, "code"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(f"{node.module}")
                assert all(hasattr(module, alias.name) for alias in node.names), text
                imports += 1
    assert imports


@each_notebook
def test_a_link_of_a_notebook_leads_to_a_file(path: Path) -> None:
    for text in sources(path, "markdown"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            assert target.startswith("https://") or (path.parent / target).exists(), target


@each_notebook
def test_the_comparison_of_a_notebook_can_be_typed(path: Path) -> None:
    text = "\n".join(sources(path, "markdown")).replace("\\\n", " ")
    found = re.findall(r"^ {4}vcppo critic compare (.+)$", text, re.MULTILINE)
    for arguments in found:
        options, flags = critic.compare_parser().parse_known_args(arguments.split())
        read_specs(options.critics)
        critic.fit_parser().parse_args([options.rollouts, "--model=m", "--output=o", *flags])
    assert found


@pytest.mark.thorough
@pytest.mark.timeout(1200)
@each_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    program = tmp_path / "notebook.py"
    program.write_text("\n\n".join(sources(path, "code")), encoding="utf-8")
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "--model.critic=" in done.stdout
