"""Adaptive lambda, and the gate. Shape suffixes: B sequences, T response tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightning_vcppo.algorithm.advantages import (
    explained_variance_gate,
    length_adaptive_lambda,
    monte_carlo_returns,
)
from lightning_vcppo.algorithm.critic_free import batch_advantages
from lightning_vcppo.algorithm.statistics import Reduce
from tests.support.ranks import on_ranks


def test_length_adaptive_lambda_is_clamped() -> None:
    lengths_B = torch.tensor([0, 1, 20, 40, 2000])
    lam_B = length_adaptive_lambda(lengths_B, alpha=0.05)
    assert_close(lam_B, torch.tensor([0.0, 0.0, 0.0, 1 - 1 / 2, 1 - 1 / 100]))
    with pytest.raises(ValueError, match="length_adaptive_alpha"):
        length_adaptive_lambda(lengths_B, alpha=0.0)


def test_batch_advantages_by_hand() -> None:
    scores_B = torch.tensor([1.0, -1.0, -1.0, -1.0, 9.0])
    mask_BT = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.bool)
    # The last row does not count: mean -0.5.
    advantages_B = batch_advantages(scores_B, mask_BT)
    assert_close(advantages_B, torch.tensor([1.5, -0.5, -0.5, -0.5, 0.0]))
    with pytest.raises(ValueError, match="scores_B"):
        batch_advantages(scores_B[:2], mask_BT)


def test_batch_advantages_over_ranks_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    scores_B = torch.randn(9, dtype=torch.float64)
    mask_BT = torch.rand(9, 4) < 0.7

    def compute(rows: slice, reduce: Reduce) -> Tensor:
        return batch_advantages(scores_B[rows], mask_BT[rows], reduce=reduce)

    parts = on_ranks(compute, [slice(0, 2), slice(2, 9)])
    assert_close(torch.cat(parts), batch_advantages(scores_B, mask_BT))


def gate_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores_B = torch.tensor([1.0, -1.0, -1.0, 1.0, 9.0])
    mask_BT = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.bool)
    returns_BT = torch.where(mask_BT, scores_B[:, None], torch.nan)
    return torch.full((5, 2), 0.25), returns_BT, scores_B, mask_BT


@pytest.mark.parametrize(("slope", "is_open"), [(0.5, True), (0.0, False), (-0.5, False)])
def test_gate_is_open_while_explained_variance_is_positive(slope: float, is_open: bool) -> None:
    advantages_BT, returns_BT, scores_B, mask_BT = gate_case()
    result_BT, gate_open = explained_variance_gate(
        advantages_BT, returns_BT, slope * returns_BT, scores_B, mask_BT
    )
    chosen_BT = advantages_BT if is_open else scores_B[:, None].expand(5, 2)  # their mean is 0
    assert bool(gate_open) is is_open
    assert_close(result_BT, torch.where(mask_BT, chosen_BT, 0.0))


def test_gate_is_closed_where_the_returns_do_not_vary() -> None:
    advantages_BT, _, _, mask_BT = gate_case()
    ones_BT = torch.ones(5, 2)
    result_BT, gate_open = explained_variance_gate(
        advantages_BT, ones_BT, ones_BT, torch.ones(5), mask_BT
    )
    assert not gate_open
    assert torch.equal(result_BT, torch.zeros(5, 2))


def test_gate_takes_the_same_side_on_all_ranks() -> None:
    advantages_BT, returns_BT, scores_B, mask_BT = gate_case()
    values_BT = torch.tensor([[0.9], [-0.9], [0.1], [-0.1], [0.0]]).expand(5, 2)

    def compute(rows: slice, reduce: Reduce) -> tuple[Tensor, Tensor]:
        return explained_variance_gate(
            advantages_BT[rows],
            returns_BT[rows],
            values_BT[rows],
            scores_B[rows],
            mask_BT[rows],
            reduce=reduce,
        )

    parts = on_ranks(compute, [slice(0, 2), slice(2, 5)])
    whole_BT, gate_open = compute(slice(None), lambda statistics: statistics)
    assert_close(torch.cat([part_BT for part_BT, _ in parts]), whole_BT)
    assert all(bool(part_open) == bool(gate_open) for _, part_open in parts)


def test_monte_carlo_returns_by_hand() -> None:
    rewards_BT = torch.tensor([[0.0, 1.0, 4.0], [2.0, 7.0, 0.0]])
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    assert monte_carlo_returns(rewards_BT, mask_BT).tolist() == [[5, 5, 4], [2, 0, 0]]
    assert monte_carlo_returns(rewards_BT, mask_BT, gamma=0.5).tolist() == [[1.5, 3, 4], [2, 0, 0]]
