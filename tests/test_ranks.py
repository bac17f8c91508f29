"""The same run over one and over two processes."""

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
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


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
