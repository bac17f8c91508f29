"""Runs of two ranks of which one stands still or dies: they end, and say where they were."""

import json
import re
import signal
import subprocess
import sys

import pytest

from tests.support.tiny_runs import ROOT

THOROUGH = pytest.mark.thorough


@pytest.fixture(scope="module")
def cases(request, tiny_actor, tmp_path_factory):
    """Return what became of each case that is asked for, with what its ranks have printed."""
    tests = [item for item in request.session.items if item.module is request.module]
    names = [item.callspec.params["name"] for item in tests]
    directory = tmp_path_factory.mktemp("standstill")
    command = [
        sys.executable,
        "-m",
        "tests.support.stopping_ranks",
        tiny_actor,
        str(directory),
        *names,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads((directory / "cases.json").read_text())
    for name, case in found.items():
        case["logs"] = [(directory / name / f"{rank}.log").read_text() for rank in range(2)]
        assert None not in case["ended"], f"{name}: {case}"  # nothing is left behind
    return found


@pytest.mark.parametrize("name", ["waits_ddp", pytest.param("waits_fsdp2", marks=THOROUGH)])
def test_a_rank_that_waits_too_long_says_where_and_ends_the_run(cases, name):
    case = cases[name]
    waiting = 1 - case["rank"]
    said = re.search(
        rf"error: rank {waiting} has waited (\d+) s in '[\w ]+' \(\w+\.py:\d+\) for other ranks.*"
        r"--trainer\.strategy\.timeout",
        case["logs"][waiting],
    )
    assert said and 4 <= int(said[1]) <= 20, case["logs"][waiting]
    assert "Traceback" not in case["logs"][waiting]
    assert case["codes"][waiting] == 2 and case["ended"][waiting] < 30
    assert re.search(
        rf"rank {case['rank']} has been in '[\w ]+' \(stopping_ranks.py:\d+\) for \d+ s",
        case["logs"][case["rank"]],
    )
    assert case["ended"][case["rank"]] < 50


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=THOROUGH) for name in ("dies", "raises")]
)
def test_a_rank_that_ends_ends_the_other(cases, name):
    case = cases[name]
    other = 1 - case["rank"]
    assert max(case["ended"]) < 30
    assert f"error: rank {other} has lost another rank in '" in case["logs"][other]
    assert "Traceback" not in case["logs"][other]
    assert case["codes"][case["rank"]] == {"dies": 9, "raises": 2}[name]
    if name == "raises":
        assert "error: this rank alone has met a mistake" in case["logs"][case["rank"]]


@pytest.mark.parametrize(
    ("name", "number"),
    [("sigterm", signal.SIGTERM), pytest.param("ctrl_c", signal.SIGINT, marks=THOROUGH)],
)
def test_a_signal_ends_a_run_that_stands_still_within_seconds(cases, name, number):
    case = cases[name]
    assert max(case["ended"]) < 30
    assert 128 + number in case["codes"] and 0 not in case["codes"]
    first = case["codes"].index(128 + number)
    assert re.search(
        rf"rank {first} has been in '[\w ]+' \(\S+:\d+\) for \d+ s; "
        rf"ended by {number.name}; the last checkpoint stays",
        case["logs"][first],
    )


@pytest.mark.parametrize("name", ["orphan"])
def test_no_rank_outlives_its_launcher(cases, name):
    case = cases[name]
    assert max(case["ended"]) < 10
    assert any("its launcher has ended" in log for log in case["logs"])
