"""The same run over one and over two processes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def runs(tiny_actor, tmp_path_factory):
    """Return what one process, and each of two, had at the end."""
    folder = tmp_path_factory.mktemp("ranks")
    for ranks in (1, 2):
        command = [sys.executable, "-m", "tests.rank_run", tiny_actor, str(folder), str(ranks)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
    found = {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}
    return found | {"folder": folder}


def test_both_ranks_hold_the_same_weights(runs):
    first, second = runs["2_ranks_0"], runs["2_ranks_1"]
    assert torch.equal(first["actor"], second["actor"])
    assert torch.equal(first["critic"], second["critic"])


def test_two_ranks_sample_the_responses_of_one(runs):
    together = runs["2_ranks_0"]["responses"] + runs["2_ranks_1"]["responses"]
    assert together == runs["1_ranks_0"]["responses"]
    assert runs["2_ranks_0"]["responses"] != runs["2_ranks_1"]["responses"]


def test_two_ranks_reach_the_weights_of_one(runs):
    one, two = runs["1_ranks_0"], runs["2_ranks_0"]
    for network in ("actor", "critic"):
        torch.testing.assert_close(two[network], one[network], rtol=1e-6, atol=1e-9)


def test_two_ranks_log_the_metrics_of_one(runs):
    one, two = runs["1_ranks_0"]["metrics"], runs["2_ranks_0"]["metrics"]
    assert one.keys() == two.keys()
    for key in one:
        if not key.startswith(("time/", "rollout/tokens_per_second", "mismatch/")):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key


def numbers(value):
    """Return all numbers of a JSON value, depth first."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [] if isinstance(value, str) else [math.nan if value is None else value]


@pytest.mark.parametrize("name", ["positions", "calibration"])
def test_two_ranks_write_the_diagnostics_of_one(runs, name):
    one, two = (
        (runs["folder"] / f"{ranks}_ranks" / "diagnostics" / f"{name}.jsonl").read_text()
        for ranks in (1, 2)
    )
    assert one.count("\n") == two.count("\n") == 4
    for line_1, line_2 in zip(one.splitlines(), two.splitlines(), strict=True):
        assert numbers(json.loads(line_2)) == pytest.approx(
            numbers(json.loads(line_1)), rel=1e-4, abs=1e-6, nan_ok=True
        )
