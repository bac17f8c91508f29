"""Metrics against brute force and against cases worked out by hand."""

from __future__ import annotations

import json
import math
import os
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.advantages import gae
from lightning_vcppo.metrics import (
    PositionProfile,
    actor_lambda,
    effective_horizon,
    majority_vote,
    pass_at_k,
    position_profile,
    reward_weights,
    summarize,
)
from lightning_vcppo.rollout import ResponseRecord
from lightning_vcppo.settings import AdvantageSettings

SHARED_DATA = Path(
    os.environ.get("VCPPO_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)
MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)


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


def test_relative_positions_by_hand() -> None:
    values_BT = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, torch.nan, torch.nan]])
    profile = PositionProfile(num_bins=2)
    profile.update(values_BT, MASK_BT)
    # First halves: 1, 2 and 10; second halves: 3, 4 and 20.
    assert profile.compute().tolist() == pytest.approx([13 / 3, 9.0])


def test_absolute_positions_by_hand_with_an_open_last_bin() -> None:
    values_BT = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 0.0, 0.0]])
    profile = PositionProfile(num_bins=3, bin_width=1)
    profile.update(values_BT, MASK_BT)
    assert profile.compute().tolist() == pytest.approx([5.5, 11.0, 3.5])


def test_a_profile_does_not_depend_on_how_rows_are_batched() -> None:
    values_BT = torch.randn(6, 30)
    mask_BT = torch.arange(30) < torch.tensor([[30], [3], [17], [1], [9], [22]])
    at_once, in_turn = PositionProfile(), PositionProfile()
    at_once.update(values_BT, mask_BT)
    for row in range(6):
        in_turn.update(values_BT[row : row + 1], mask_BT[row : row + 1])
    torch.testing.assert_close(at_once.compute(), in_turn.compute())
    assert position_profile(values_BT, mask_BT) == at_once.compute().tolist()


def test_an_empty_bin_is_nan() -> None:
    means = position_profile(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool))
    assert [i for i, mean in enumerate(means) if not math.isnan(mean)] == [0, 3, 6]


@pytest.mark.parametrize(("num_bins", "bin_width"), [(0, None), (1, 0)])
def test_a_profile_refuses_empty_bins(num_bins: int, bin_width: int | None) -> None:
    with pytest.raises(ValueError, match="expected >= 1"):
        PositionProfile(num_bins, bin_width)


def test_reward_weights_by_hand() -> None:
    weights_BT = reward_weights(MASK_BT, 0.5)
    assert weights_BT.tolist() == [[0.125, 0.25, 0.5, 1.0], [0.5, 1.0, 0.0, 0.0]]
    one_each = reward_weights(MASK_BT, torch.tensor([1.0, 0.5]), gamma=0.5)
    assert one_each.tolist() == [[0.125, 0.25, 0.5, 1.0], [0.25, 1.0, 0.0, 0.0]]


def test_reward_weights_at_the_limits_of_lambda() -> None:
    torch.testing.assert_close(reward_weights(MASK_BT, 1.0), MASK_BT.float())
    assert reward_weights(MASK_BT, 0.0).tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]


def test_reward_weights_are_those_of_the_advantages() -> None:
    # With V = 0 an advantage holds nothing but the terminal reward, here 1.
    last_BT = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    lam_B = torch.tensor([0.9, 0.3])
    advantages_BT = gae(last_BT, torch.zeros(2, 4), MASK_BT, gamma=0.8, lam=lam_B)
    torch.testing.assert_close(reward_weights(MASK_BT, lam_B, gamma=0.8), advantages_BT)


def test_reward_weights_give_the_figures_of_the_paper() -> None:
    def first_of(length: int, lam: float) -> float:
        return reward_weights(torch.ones(1, length, dtype=torch.bool), lam)[0, 0].item()

    assert first_of(101, 0.95) == pytest.approx(0.006, abs=5e-4)
    assert first_of(501, 0.99) == pytest.approx(0.007, abs=5e-4)


def test_effective_horizon() -> None:
    assert effective_horizon(0.95) == pytest.approx(20)
    assert effective_horizon(1.0) == math.inf
    assert effective_horizon(1.0, gamma=0.9) == pytest.approx(10)


def test_actor_lambda_is_fixed_or_follows_the_length() -> None:
    lengths_B = torch.tensor([10, 100])
    assert actor_lambda(lengths_B, AdvantageSettings()).tolist() == pytest.approx([0.99, 0.99])
    adaptive = AdvantageSettings(length_adaptive_alpha=0.05)
    assert actor_lambda(lengths_B, adaptive).tolist() == pytest.approx([0.0, 0.8])


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
