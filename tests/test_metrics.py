"""Metrics against brute force and against cases worked out by hand."""

from __future__ import annotations

import json
import math
import os
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.metrics import (
    majority_vote,
    pass_at_k,
    summarize,
)
from lightning_vcppo.rollout import ResponseRecord

SHARED_DATA = Path(
    os.environ.get("VCPPO_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)


def record(
    index: int, sample: int, *, prediction: str | None = "7", correct: bool = True, length: int = 10
) -> ResponseRecord:
    """Make a graded response; one without an answer was truncated."""
    return ResponseRecord(
        index=index,
        sample=sample,
        source="test",
        problem=f"problem {index}",
        answer=7,
        response=f"\\boxed{{{prediction}}}",
        prediction=prediction,
        correct=correct,
        length=length,
        finished=prediction is not None,
    )


@given(st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(data: st.DataObject) -> None:
    outcomes = data.draw(st.lists(st.booleans(), min_size=1, max_size=8))
    k = data.draw(st.integers(1, len(outcomes)))
    subsets = list(combinations(outcomes, k))
    expected = sum(map(any, subsets)) / len(subsets)
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_limits() -> None:
    assert pass_at_k(4, 1, 1) == 0.25  # pass@1 is the accuracy
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
    # Factorials of this size overflow a float; a product of ratios is an independent oracle.
    misses = math.prod((990 - i) / (1000 - i) for i in range(32))
    assert pass_at_k(1000, 10, 32) == pytest.approx(1 - misses, rel=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        (["7", "7", "8"], 1.0),
        (["7", "8", "8"], 0.0),
        (["7", "8"], 0.5),
        (["7", "8", "9"], 1 / 3),
        (["7", "8", "9", "9"], 0.0),
        (["7", "007"], 1.0),  # right however written
        (["7", "08", "8"], 0.0),  # wrong ones are normalised too
        ([None, None, "7"], 1.0),  # no answer, no vote
        ([None, "8"], 0.0),
        ([None], 0.0),
    ],
)
def test_majority_vote_by_hand(predictions: list[str | None], expected: float) -> None:
    correct = [p is not None and int(p) == 7 for p in predictions]
    assert majority_vote(predictions, correct) == pytest.approx(expected)


def test_a_summary_by_hand() -> None:
    records = [
        record(0, 0),
        record(0, 1, prediction="8", correct=False, length=30),
        record(1, 0, prediction=None, correct=False, length=50),
        record(1, 1, prediction="9", correct=False),
    ]
    summary = summarize(records)
    assert (summary.problems, summary.k) == (2, 2)
    assert summary.accuracy == 0.25
    assert summary.pass_at_k == 0.5
    assert summary.maj_at_k == 0.25  # problem 0 is a tie
    assert summary.response_length == 25
    assert summary.truncation_rate == 0.25


def test_a_summary_needs_records() -> None:
    with pytest.raises(ValueError, match="at least one response"):
        summarize([])


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no model outputs in {SHARED_DATA}")
@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("aime24_qwen2.5-math-7b", 0.200),
        ("aime24_sky-t1-32b-ckpt133", 0.400),
        ("amc23_qwen2.5-14b-instruct", 0.650),
    ],
)
def test_the_accuracy_of_published_outputs(name: str, accuracy: float) -> None:
    lines = (SHARED_DATA / f"outputs_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    outputs = [json.loads(line) for line in lines]
    records = [
        record(i, 0, prediction=str(output["published_pred"]), correct=output["published_correct"])
        for i, output in enumerate(outputs)
    ]
    summary = summarize(records)
    assert summary.accuracy == pytest.approx(accuracy)
    assert summary.pass_at_k == summary.maj_at_k == summary.accuracy  # one sample a problem
