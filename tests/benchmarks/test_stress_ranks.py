"""A small share of `python -m benchmarks.stress.ranks`, and that it finds what it looks for."""

import json
import subprocess
import sys

import pytest

from benchmarks.stress.rank_settings import PRESETS, STRATEGIES, invent
from benchmarks.stress.rank_workers import Outcome, parted
from benchmarks.stress.ranks import judge
from tests.support.rows import every
from tests.support.tiny_runs import ROOT

SUM, GATHER = ("gloo:all_reduce", "[[4]]", "['Float']"), ("gloo:all_gather", "[[1]]", "['Long']")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "seed"), every(2, [(2, 15), (4, 7)]))
def test_random_runs_perform_the_same_collectives_on_all_ranks(ranks, seed):
    runs = 12  # of each strategy that so many ranks can have, as many as of the others
    command = [sys.executable, "-m", "benchmarks.stress.ranks", f"--runs={runs}"]
    command += [f"--ranks={ranks}", f"--seed={seed}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"] == runs and found["refused"] == 0, done.stdout
    assert found["stuck"] == found["mismatched"] == found["failed"] == 0, done.stdout


def test_a_few_runs_in_a_row_meet_every_preset_strategy_and_number_of_ranks(tmp_path):
    stages = [invent(seed, tmp_path, tmp_path)[0] for seed in range(60)]
    assert {stage.strategy for stage in stages} == set(STRATEGIES)
    assert {stage.ranks for stage in stages} == {2, 4}
    assert {word for stage in stages for word in stage.words if "--config=" in word} == {
        f"--config={preset}" for preset in PRESETS
    }
    assert invent(3, tmp_path, tmp_path) == invent(3, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("other", "where"),
    [
        ([SUM, GATHER], ""),
        ([SUM, SUM], "collective 1"),
        ([SUM, ("gloo:all_gather", "[[2]]", "['Long']")], "collective 1"),
        ([SUM, ("gloo:all_gather", "[[1]]", "['Int']")], "collective 1"),
        ([SUM], "2 / 1 collectives"),
    ],
)
def test_a_difference_in_operation_shape_type_or_number_is_found(other, where):
    first = [SUM, GATHER]
    assert parted([first, other]).startswith(where) and bool(parted([first, other])) == bool(where)
    verdict, _ = judge([Outcome(first, ""), Outcome(other, "")])
    assert verdict == ("mismatched" if where else "well")


def test_ends_of_runs_are_told_apart():
    assert judge(None)[0] == "stuck"
    assert judge([Outcome([SUM], ""), Outcome([SUM], "RuntimeError: x")])[0] == "mismatched"
    assert judge([Outcome([SUM], "RuntimeError: x")] * 2)[0] == "failed"
    assert judge([Outcome([SUM], "UserError: x")] * 2)[0] == "refused"
