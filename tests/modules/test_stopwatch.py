"""Times of the parts of a rollout: grading counts as grading, wherever it happens."""

import time

from lightning_vcppo.modules.stopwatch import Stopwatch
from lightning_vcppo.rewards.functions import Grader
from tests.support.training import fit, make_module

SLOW_S = 0.02


def slow(response: str, answer: int) -> float:
    """Take a while."""
    time.sleep(SLOW_S)
    return 1.0 if len(response) % 2 else -1.0


def test_grading_inside_of_a_part_counts_as_grading_alone():
    grader = Grader(slow)
    watch = Stopwatch(grader)
    start = time.perf_counter()
    with watch.timing("generate"):
        grader.grade_all(["response"] * 5, [1] * 5)
    with watch.timing("update"):
        pass
    total = time.perf_counter() - start
    taken = watch.take()
    assert taken["grade"] >= 5 * SLOW_S
    assert min(taken.values()) >= 0 and sum(taken.values()) <= total
    assert watch.take() == {}


def test_a_run_logs_its_time_of_grading_each_rollout(tiny_actor):
    start = time.perf_counter()
    recorder = fit(make_module(tiny_actor, reward=slow), 2)
    total = time.perf_counter() - start
    graded = [metrics["time/grade_s"] for metrics in recorder.metrics]
    responses = [len(rollout.responses) for rollout in recorder.rollouts]
    assert all(s >= n * SLOW_S for s, n in zip(graded, responses, strict=True))
    parts = [v for m in recorder.metrics for k, v in m.items() if k.startswith("time/")]
    assert sum(graded) < total and sum(parts) <= total
