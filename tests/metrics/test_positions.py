"""Profiles by position and the reach of the reward, against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_vcppo.algorithm.advantages import gae
from lightning_vcppo.algorithm.statistics import Reduce
from lightning_vcppo.metrics.positions import (
    SPLITS,
    PositionProfiles,
    absolute_bins,
    actor_lambda,
    effective_horizon,
    profile_positions,
    profile_rollout,
    reward_reach,
    reward_weights,
    token_quantities,
)
from lightning_vcppo.rollouts.rollout import Rollout, of_all_ranks
from lightning_vcppo.settings import AdvantageSettings
from tests.support.inventing import invent_rollout
from tests.support.ranks import on_ranks

MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
VALUES_BT = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, torch.nan, torch.nan]])
RIGHT_FIRST = torch.tensor([True, False])


def by_hand() -> PositionProfiles:
    """A right response of four tokens and a wrong one of two, in bins of three tokens."""
    return profile_positions(
        {"value": VALUES_BT}, MASK_BT, RIGHT_FIRST, 3.0, bin_width=3, num_bins=2
    )


def test_deciles_by_hand() -> None:
    profile = by_hand().deciles["value"]
    # Tokens 0 to 3 of four stand at 0, 25, 50 and 75 %; of two at 0 and 50 %.
    right = [1.0, None, 2.0, None, None, 3.0, None, 4.0, None, None]
    wrong = [10.0, None, None, None, None, 20.0, None, None, None, None]
    assert profile["correct"] == profile["long"] == right
    assert profile["incorrect"] == profile["short"] == wrong
    assert profile["all"] == [5.5, None, 2.0, None, None, 11.5, None, 4.0, None, None]


def test_absolute_bins_by_hand() -> None:
    profiles = by_hand()
    assert profiles.count == [5, 1]
    assert profiles.absolute["value"]["all"] == [pytest.approx(36 / 5), 4.0]
    assert profiles.absolute["value"]["incorrect"] == [15.0, None]


def test_the_last_absolute_bin_takes_all_later_tokens() -> None:
    profiles = profile_positions(
        {"value": VALUES_BT}, MASK_BT, RIGHT_FIRST, 3.0, bin_width=1, num_bins=3
    )
    assert profiles.absolute["value"]["all"] == [5.5, 11.0, 3.5]
    assert profiles.count == [2, 2, 2]


def test_responses_of_the_median_length_are_neither_short_nor_long() -> None:
    profiles = profile_positions(
        {"value": VALUES_BT}, MASK_BT, RIGHT_FIRST, 4.0, bin_width=4, num_bins=1
    )
    assert profiles.absolute["value"]["long"] == [None]
    assert profiles.absolute["value"]["short"] == [15.0]


@pytest.mark.parametrize(("num_bins", "bin_width"), [(0, 1), (1, 0)])
def test_a_profile_refuses_empty_bins(num_bins: int, bin_width: int) -> None:
    with pytest.raises(ValueError, match="expected bins"):
        profile_positions({}, MASK_BT, RIGHT_FIRST, 3.0, bin_width=bin_width, num_bins=num_bins)


@pytest.mark.parametrize(
    ("limit", "given", "width", "count"),
    [(144, None, 3, 48), (30, None, 1, 30), (8192, None, 164, 50), (100, 40, 40, 3)],
)
def test_absolute_bins_hold_every_response(
    limit: int, given: int | None, width: int, count: int
) -> None:
    assert absolute_bins(limit, given, 50) == (width, count)


def test_ranks_together_see_the_profile_of_one() -> None:
    whole = invent_rollout(2, AdvantageSettings(), size=8)

    def profile(rollout: Rollout, reduce: Reduce, ranks: int = 2) -> PositionProfiles:
        return profile_rollout(
            rollout,
            token_quantities(rollout),
            bin_width=7,
            num_bins=9,
            ranks=ranks,
            reduce=reduce,
        )

    alone = profile(whole, lambda statistics: statistics, ranks=1)
    halves = [whole.select(torch.arange(4)), whole.select(torch.arange(4, 8))]
    assert set(alone.deciles) == {"value", "return", "bias", "advantage", "entropy"}
    for together in on_ranks(profile, halves):
        assert together.count == alone.count
        for name, splits in alone.absolute.items():
            for split in SPLITS:
                assert together.absolute[name][split] == pytest.approx(splits[split])


def test_what_ranks_know_about_their_rows_is_put_in_order() -> None:
    rows = [(torch.tensor([3.0, 1.0]), torch.tensor([3, 1])), (torch.tensor([0.0, 2.0]),
             torch.tensor([0, 2]))]  # fmt: skip

    def gather(mine: tuple[Tensor, Tensor], reduce: Reduce) -> list[float]:
        whole: list[float] = of_all_ranks(*mine, ranks=2, reduce=reduce).tolist()
        return whole

    assert on_ranks(gather, rows) == [[0, 1, 2, 3]] * 2


def test_bias_is_against_the_outcome_and_not_against_the_critics_own_targets() -> None:
    rollout = invent_rollout(1, AdvantageSettings(lambda_critic=0.0))
    found, mask_BT = token_quantities(rollout), rollout.response_mask_BT
    outcome_BT = torch.where(mask_BT, rollout.scores_B[:, None], 0.0)
    assert rollout.values_BT is not None and rollout.returns_BT is not None
    torch.testing.assert_close(found["return"], outcome_BT)
    torch.testing.assert_close(found["bias"], rollout.values_BT - outcome_BT)
    assert not torch.allclose(rollout.returns_BT, outcome_BT)


def test_without_a_critic_there_is_no_value_and_no_bias() -> None:
    rollout = invent_rollout(1, AdvantageSettings()).with_(values_BT=None, returns_BT=None)
    assert set(token_quantities(rollout)) == {"advantage", "entropy"}


# The reach of the reward


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
    group = AdvantageSettings(estimator="group")  # every token gets the whole reward
    assert actor_lambda(lengths_B, group).tolist() == [1.0, 1.0]


def test_reward_reach_by_hand_on_two_ranks() -> None:
    def reach(row: int, reduce: Reduce) -> list[float]:
        reach = reward_reach(
            MASK_BT[row : row + 1], torch.tensor([[0.5, 0.9][row]]), 0.5, reduce=reduce
        )
        return [
            *(reach.response_length, reach.lambda_actor, reach.actor_horizon),
            *(reach.actor_reward_share_first, reach.actor_reward_share_mean),
            *(reach.critic_horizon, reach.critic_reward_share_first),
            reach.critic_reward_share_mean,
        ]

    # Weights 1/8, 1/4, 1/2, 1 and 0.9, 1 for the actor, and 1/2, 1 in its place for the critic.
    actor = [(0.125 + 0.9) / 2, (1.875 + 1.9) / 6]
    critic = [2.0, (0.125 + 0.5) / 2, (1.875 + 1.5) / 6]
    for rank in on_ranks(reach, [0, 1]):
        assert rank == pytest.approx([3, 0.7, (2 + 10) / 2, *actor, *critic])
