"""Metrics against brute force and against cases worked out by hand."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from lightning_vcppo.advantages import gae
from lightning_vcppo.metrics import (
    PositionProfile,
    actor_lambda,
    effective_horizon,
    position_profile,
    reward_weights,
)
from lightning_vcppo.settings import AdvantageSettings

SHARED_DATA = Path(
    os.environ.get("VCPPO_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)
MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)


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
