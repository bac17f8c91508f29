"""Shape suffixes: B sequences, T response tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lightning_vcppo.algorithm.loss_weights import LossAggMode, aggregation_weights, weighted_sum
from lightning_vcppo.algorithm.statistics import (
    Reduce,
    explained_variance,
    group_moments,
    masked_mean,
    masked_var,
    r_squared,
    whiten,
)
from lightning_vcppo.modules.micro_batches import token_balanced_micro_batches
from tests.support.ranks import on_ranks

MODES: list[LossAggMode] = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
RANKS = [slice(0, 2), slice(2, 5)]


def case() -> tuple[Tensor, Tensor]:
    """Values with NaN outside a mask of very unequal rows, one of them empty."""
    torch.manual_seed(0)
    lengths_B = torch.tensor([7, 1, 0, 3, 2])
    mask_BT = torch.arange(7) < lengths_B[:, None]
    return torch.where(mask_BT, torch.randn(5, 7).double() + 3, torch.nan), mask_BT


def test_masked_moments_are_those_of_the_selected_elements() -> None:
    values_BT, mask_BT = case()
    assert_close(masked_mean(values_BT, mask_BT), values_BT[mask_BT].mean())
    assert_close(masked_var(values_BT, mask_BT), values_BT[mask_BT].var(unbiased=False))


def test_moments_of_nothing_are_zero() -> None:
    values_BT, mask_BT = torch.full((2, 2), torch.nan), torch.zeros(2, 2, dtype=torch.bool)
    assert masked_mean(values_BT, mask_BT) == 0
    assert masked_var(values_BT, mask_BT) == 0
    assert torch.equal(whiten(values_BT, mask_BT), torch.zeros(2, 2))


def test_variance_survives_a_large_mean() -> None:
    returns_BT = 1e7 + torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    values_BT = 1e7 + torch.tensor([[0.0, 1.0, 2.0, 2.0]])
    explained = explained_variance(values_BT, returns_BT, torch.ones(1, 4, dtype=torch.bool))
    assert_close(explained, torch.tensor(1 - 0.1875 / 1.25))


def test_whitened_values_have_zero_mean_and_unit_variance() -> None:
    values_BT, mask_BT = case()
    whitened_BT = whiten(values_BT, mask_BT, eps=0.0)
    assert_close(whitened_BT[mask_BT].mean(), torch.zeros((), dtype=torch.float64))
    assert_close(whitened_BT[mask_BT].var(unbiased=False), torch.ones((), dtype=torch.float64))
    assert not whitened_BT[~mask_BT].any()


def test_constant_values_whiten_to_zero() -> None:
    mask_BT = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(whiten(torch.full((2, 3), 0.1), mask_BT), torch.zeros(2, 3))


def test_whitening_over_ranks_is_whitening_of_the_whole() -> None:
    values_BT, mask_BT = case()

    def compute(rows: slice, reduce: Reduce) -> Tensor:
        return whiten(values_BT[rows], mask_BT[rows], reduce=reduce)

    parts = on_ranks(compute, RANKS)
    assert_close(torch.cat(parts), whiten(values_BT, mask_BT))
    alone_BT = torch.cat([whiten(values_BT[rows], mask_BT[rows]) for rows in RANKS])
    assert (alone_BT - torch.cat(parts)).abs().max() > 0.1  # what each rank for itself would give


def test_explained_variance_by_hand() -> None:
    returns_BT = torch.tensor([[1.0, -1.0, 1.0, -1.0, torch.nan]])
    mask_BT = ~returns_BT.isnan()

    def ev(values_BT: Tensor) -> float:
        return explained_variance(values_BT, returns_BT, mask_BT).item()

    assert ev(returns_BT) == 1.0
    assert ev(returns_BT + 5) == 1.0  # a constant error is no error here
    assert ev(torch.zeros(1, 5)) == 0.0
    assert ev(0.5 * returns_BT) == 0.75
    assert ev(-returns_BT) == -3.0


def test_r_squared_by_hand() -> None:
    returns_BT = torch.tensor([[1.0, -1.0, 1.0, -1.0, torch.nan]])
    mask_BT = ~returns_BT.isnan()

    def r2(values_BT: Tensor) -> float:
        return r_squared(values_BT, returns_BT, mask_BT).item()

    assert r2(returns_BT) == 1.0
    assert r2(returns_BT + 5) == -24.0  # 1 - 25 / 1: the constant error that EV does not see
    assert r2(torch.zeros(1, 5)) == 0.0
    assert r2(0.5 * returns_BT) == 0.75
    assert r2(0.5 * returns_BT - 0.5) == 0.5  # 0.75 - 0.25
    assert r2(-returns_BT) == -3.0


MEASURES = pytest.mark.parametrize("measure", [explained_variance, r_squared])


@MEASURES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_constant_returns_nothing_can_be_explained(measure, dtype: torch.dtype) -> None:
    returns_BT = torch.full((3, 7), 0.1, dtype=dtype)
    mask_BT = torch.ones(3, 7, dtype=torch.bool)
    explained = measure(torch.randn(3, 7, dtype=dtype), returns_BT, mask_BT)
    assert explained.isnan()
    assert not explained > 0


@MEASURES
def test_what_is_explained_over_ranks_is_that_of_the_whole(measure) -> None:
    values_BT, mask_BT = case()
    returns_BT = values_BT + torch.randn_like(values_BT)

    def compute(rows: slice, reduce: Reduce) -> Tensor:
        return measure(values_BT[rows], returns_BT[rows], mask_BT[rows], reduce=reduce)

    whole = measure(values_BT, returns_BT, mask_BT)
    for part in on_ranks(compute, RANKS):
        assert_close(part, whole)


def test_group_moments_by_hand() -> None:
    values_B = torch.tensor([1.0, 4.0, 3.0, 8.0])
    mean_B, std_B, count_B = group_moments(values_B, torch.tensor([5, 2, 5, 2]))
    assert mean_B.tolist() == [2.0, 6.0, 2.0, 6.0]
    assert_close(std_B.square(), torch.tensor([2.0, 8.0, 2.0, 8.0], dtype=torch.float64))
    assert count_B.tolist() == [2, 2, 2, 2]


def test_aggregation_weights_by_hand() -> None:
    _, mask_BT = case()  # 7, 1, 0, 3, 2 tokens
    expected = {
        "token-mean": [1 / 13, 1 / 13, 0.0, 1 / 13, 1 / 13],
        "seq-mean-token-mean": [1 / 7 / 4, 1 / 4, 0.0, 1 / 3 / 4, 1 / 2 / 4],
        "seq-mean-token-sum": [1 / 4, 1 / 4, 0.0, 1 / 4, 1 / 4],
    }
    for mode in MODES:
        weights_BT = aggregation_weights(mask_BT, mode)
        assert_close(weights_BT.amax(1), torch.tensor(expected[mode]))
        assert torch.equal(weights_BT > 0, mask_BT)


@pytest.mark.parametrize("mode", MODES)
def test_aggregation_weights_over_ranks_are_those_of_the_whole(mode: LossAggMode) -> None:
    _, mask_BT = case()
    parts = on_ranks(
        lambda rows, reduce: aggregation_weights(mask_BT[rows], mode, reduce=reduce), RANKS
    )
    assert torch.equal(torch.cat(parts), aggregation_weights(mask_BT, mode))


@pytest.mark.parametrize("mode", MODES)
def test_sequence_weights_change_the_numerator_alone(mode: LossAggMode) -> None:
    _, mask_BT = case()
    factors_B = torch.tensor([0.0, 2.0, 1.0, 1.0, 0.5])
    weights_BT = aggregation_weights(mask_BT, mode, sequence_weights_B=factors_B)
    assert_close(weights_BT, aggregation_weights(mask_BT, mode) * factors_B[:, None])


@pytest.mark.parametrize("mode", MODES)
def test_no_tokens_have_no_weight(mode: LossAggMode) -> None:
    mask_BT = torch.zeros(3, 4, dtype=torch.bool)
    assert torch.equal(aggregation_weights(mask_BT, mode), torch.zeros(3, 4))
    assert aggregation_weights(mask_BT[:0], mode).shape == (0, 4)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_agg_mode"):
        aggregation_weights(torch.ones(1, 1, dtype=torch.bool), "mean")


def test_weighted_sum_reads_nothing_outside_the_mask() -> None:
    terms_BT = torch.tensor([[1.0, 2.0, torch.nan, torch.inf]], requires_grad=True)
    mask_BT = torch.tensor([[True, True, False, False]])
    weights_BT = torch.tensor([[0.5, 0.25, torch.nan, 1.0]])
    total = weighted_sum(terms_BT, mask_BT, weights_BT)
    total.backward()
    assert total == 1.0
    assert torch.equal(terms_BT.grad, torch.tensor([[0.5, 0.25, 0.0, 0.0]]))


def size(micro_batch: list[int], lengths: list[int], padded: bool) -> int:
    if not padded:
        return sum(lengths[index] for index in micro_batch)
    return len(micro_batch) * max((lengths[index] for index in micro_batch), default=0)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), max_size=40),
    max_tokens=st.integers(1, 1000),
    forced=st.none() | st.integers(1, 12),
    padded=st.booleans(),
)
def test_micro_batches_partition_within_their_bound(
    lengths: list[int], max_tokens: int, forced: int | None, padded: bool
) -> None:
    def cut(forced: int | None) -> list[list[int]]:
        return token_balanced_micro_batches(
            lengths, max_tokens, num_micro_batches=forced, padded=padded
        )

    micro_batches = cut(forced)
    assert sorted(index for micro_batch in micro_batches for index in micro_batch) == list(
        range(len(lengths))
    )
    assert len(micro_batches) >= (forced or 0)
    for micro_batch in micro_batches:
        assert size(micro_batch, lengths, padded) <= max_tokens or len(micro_batch) == 1
    assert cut(forced) == micro_batches
    needed = len(cut(None))
    assert len(micro_batches) == max(needed, forced or 0)


def test_micro_batches_are_balanced_and_little_padded() -> None:
    lengths = [100, 10, 90, 10, 100, 10, 90, 10]
    assert token_balanced_micro_batches(lengths, 1000, num_micro_batches=2, padded=True) == [
        [0, 4, 2, 6],
        [1, 3, 5, 7],
    ]
    assert token_balanced_micro_batches(lengths, 1000, num_micro_batches=2) == [
        [0, 4, 1],
        [2, 6, 3, 5, 7],  # 210 tokens each
    ]
    assert token_balanced_micro_batches([5] * 6, 20) == [[0, 1, 2], [3, 4, 5]]  # not 4 and 2


def test_a_row_that_is_too_long_stands_alone() -> None:
    assert token_balanced_micro_batches([4, 50, 4], max_tokens=8) == [[1], [0, 2]]


def test_forced_micro_batches_may_be_empty() -> None:
    assert token_balanced_micro_batches([3], 10, num_micro_batches=3) == [[0], [], []]
    assert token_balanced_micro_batches([], 10, num_micro_batches=2) == [[], []]
    assert token_balanced_micro_batches([], 10) == []


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "forced"), [([-1], 8, None), ([1], 0, None), ([1], 8, 0)]
)
def test_impossible_micro_batches_are_refused(
    lengths: list[int], max_tokens: int, forced: int | None
) -> None:
    with pytest.raises(ValueError, match="must"):
        token_balanced_micro_batches(lengths, max_tokens, num_micro_batches=forced)


@given(
    lengths=st.lists(st.integers(0, 300), max_size=40),
    max_tokens=st.integers(1, 1000),
    padded=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_lengths_may_be_a_tensor_and_are_only_read(
    lengths: list[int], max_tokens: int, padded: bool
) -> None:
    as_tensor, as_list = torch.tensor(lengths, dtype=torch.long), list(lengths)
    found = token_balanced_micro_batches(as_tensor, max_tokens, padded=padded)
    assert found == token_balanced_micro_batches(as_list, max_tokens, padded=padded)
    assert as_tensor.tolist() == as_list == lengths
    assert all(type(index) is int for micro_batch in found for index in micro_batch)


def next_fit(lengths: list[int], max_tokens: int) -> int:
    """Count micro-batches that are filled one after the other, longest sequences first."""
    count, room = 0, -1
    for length in sorted(lengths, reverse=True):
        if length > room:
            count, room = count + 1, max_tokens
        room -= length
    return count


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60), max_tokens=st.integers(300, 900)
)
@settings(max_examples=200, deadline=None)
def test_micro_batches_are_few_and_about_equal(lengths: list[int], max_tokens: int) -> None:
    micro_batches = token_balanced_micro_batches(lengths, max_tokens)
    fewest = -(-sum(lengths) // max_tokens)
    assert fewest <= len(micro_batches) <= next_fit(lengths, max_tokens)
    largest = max(size(micro_batch, lengths, padded=False) for micro_batch in micro_batches)
    # Without the longest row, no two micro-batches fit into one that is as large as the largest.
    assert largest <= sum(lengths) / len(micro_batches) + max(lengths)


def test_long_responses_leave_little_room_unused() -> None:
    """Two of the middle beside none of the long: a third fewer passes than one after the other."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(2000, 6001, (512,), generator=rng).tolist()
    count = len(token_balanced_micro_batches(lengths, 9216))
    assert count <= 0.8 * next_fit(lengths, 9216)
    assert count <= 1.05 * sum(lengths) / 9216
