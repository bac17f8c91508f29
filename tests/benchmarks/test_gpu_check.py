"""The check of one GPU, as far as a machine without one can run it."""

import importlib
import json
import os
import subprocess
import sys

import pytest

from benchmarks.gpu import findings, parts
from benchmarks.gpu.findings import Findings


@pytest.mark.parametrize("plan", [*parts.TOGETHER.values(), *parts.ALONE.values()], ids=str)
def test_every_part_has_a_file_that_runs_it(plan):
    assert callable(importlib.import_module(f"benchmarks.gpu.{plan.module}").run)


def fails():
    raise ValueError("first line\nsecond line")


def test_a_failure_is_noted_and_the_next_attempt_goes_on(tmp_path):
    found = Findings(tmp_path / "found.json")
    found.attempt("one", fails)
    found.attempt("two", lambda: {"seconds": 1 / 3, "odd": float("nan")})
    values = json.loads((tmp_path / "found.json").read_text())
    assert values["one FAILED"] == "ValueError: first line"
    assert values["two"] == {"seconds": 0.33333, "odd": "nan"}


def test_after_a_broken_context_the_process_begins_again_without_what_it_tried(
    tmp_path, monkeypatch
):
    restarted = []
    monkeypatch.setattr(findings, "is_poisoned", lambda: True)
    monkeypatch.setattr(findings.os, "execv", lambda program, command: restarted.append(command))
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--part", "kernels"])
    Findings(tmp_path / "found.json").attempt("one", fails)
    assert restarted == [[sys.executable, "-m", "benchmarks.gpu", "--part", "kernels"]]
    ran = []
    again = Findings(tmp_path / "found.json")
    again.attempt("one", lambda: ran.append(1))
    again.attempt("two", lambda: ran.append(2))
    assert ran == [2]
    assert json.loads((tmp_path / "found.json").read_text())["one broke the context"]


@pytest.mark.thorough
def test_a_rehearsal_ends_well_and_leaves_a_summary(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device=cpu", "--tiny", "--patience=5"]
    done = subprocess.run(
        [*command, "--only=numbers", f"--out={tmp_path}"],
        cwd=parts.ROOT,
        env=os.environ | {"PYTHONPATH": str(parts.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["numbers"]["state"] == "ended"
    assert results["numbers"]["gae: largest gap"] == 0
    assert not [key for key in results["numbers"] if "FAILED" in key]
    assert "== numbers: ended" in (tmp_path / "summary.txt").read_text()
