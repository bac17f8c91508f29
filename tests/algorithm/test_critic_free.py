"""Baselines from other responses. Shape suffixes: B sequences."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lightning_vcppo.algorithm.critic_free import group_advantages, leave_one_out_advantages


def test_group_advantages_by_hand() -> None:
    rewards_B = torch.tensor([1.0, 5.0, -1.0, 7.0, 1.0, 7.0], dtype=torch.float64)
    group_ids_B = torch.tensor([3, 8, 3, 0, 3, 0])
    # Group 3: mean 1/3, deviations 2/3, -4/3, 2/3, variance (4 + 16 + 4) / 9 / 2 = 4/3.
    std = (4 / 3) ** 0.5
    centred_B = torch.tensor([2 / 3, 0.0, -4 / 3, 0.0, 2 / 3, 0.0], dtype=torch.float64)
    assert_close(group_advantages(rewards_B, group_ids_B, normalize_std=False), centred_B)
    assert_close(group_advantages(rewards_B, group_ids_B), centred_B / (std + 1e-6))
    with pytest.raises(ValueError, match="same shape"):
        group_advantages(rewards_B, group_ids_B[:2])


def test_leave_one_out_advantages_by_hand() -> None:
    rewards_B = torch.tensor([1.0, 5.0, -1.0, 7.0, 1.0, 6.0], dtype=torch.float64)
    group_ids_B = torch.tensor([3, 8, 3, 0, 3, 0])
    # Of group 3 the others of the first have the mean 0, those of the second 1.
    expected_B = torch.tensor([1.0, 0.0, -2.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    assert_close(leave_one_out_advantages(rewards_B, group_ids_B), expected_B)


def test_leave_one_out_advantages_are_those_of_the_mean_times_n_over_n_minus_1() -> None:
    rewards_B, ids_B = torch.randn(12, dtype=torch.float64), torch.arange(12) % 3
    centred_B = group_advantages(rewards_B, ids_B, normalize_std=False)
    assert_close(leave_one_out_advantages(rewards_B, ids_B), centred_B * 4 / 3)


def test_groups_without_signal_get_zero() -> None:
    rewards_B = torch.full((7,), 0.1)
    group_ids_B = torch.tensor([0, 0, 0, 0, 0, 0, 1])
    assert torch.equal(group_advantages(rewards_B, group_ids_B), torch.zeros(7))
    assert torch.equal(leave_one_out_advantages(rewards_B, group_ids_B), torch.zeros(7))
