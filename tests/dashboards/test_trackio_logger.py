"""Runs on Trackio, which stores them on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_vcppo.dashboards import trackio_logger
from lightning_vcppo.dashboards.trackio_logger import RunTrackioLogger

PROGRAM = """
import json, sys
from matplotlib.figure import Figure
from lightning_vcppo.dashboards.trackio_logger import PROJECT, RunTrackioLogger

figure = Figure(figsize=(1, 1))
figure.subplots().plot([0, 1])
for resumes, step in ((False, 1), (True, 2)):
    logger = RunTrackioLogger(sys.argv[1])
    logger.resumes = resumes
    assert logger.experiment is None  # Lightning opens loggers before it reads data
    logger.may_open = True
    logger.log_hyperparams({"model": {"seed": 7}})
    logger.log_metrics({"eval/accuracy": 0.5}, step)
    logger.log_table("eval/samples", ["problem", "right"], [["1 + 1", True]], step)
    logger.log_figure("plots/reward", figure, step)
    logger.finalize("success")

import trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs(PROJECT)
rows = SQLiteStorage.get_logs(PROJECT, run.name, run_id=run.id)
print(json.dumps({"name": run.name, "config": run.config, "rows": rows}, default=str))
"""


def test_a_resumed_run_continues_its_own_run(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    places = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "seed_0")],
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    found = json.loads(line)
    assert found["name"].startswith("seed_0-")
    assert found["config"]["model"] == {"seed": 7}
    steps = [row["step"] for row in found["rows"] if "eval/accuracy" in row]
    assert steps == [1, 2]
    assert any(row.get("eval/samples") for row in found["rows"])
    assert list((tmp_path / "trackio").rglob("*.png"))


def test_runs_of_equal_names_in_other_directories_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackio_logger, "find_spec", lambda name: name)
    names = {RunTrackioLogger(str(tmp_path / arm / "seed_0")).version for arm in "ab"}
    names.add(RunTrackioLogger(str(tmp_path / "a" / "seed_0"), "validate").version)
    assert len(names) == 3


def test_a_missing_trackio_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackio_logger, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'lightning-vcppo\[trackio\]'"):
        RunTrackioLogger(str(tmp_path))
