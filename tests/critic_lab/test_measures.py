"""Measures of a critic, against closed forms and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.critic_lab.measures import measure

REWARDS = [1.0, -1.0, 1.0, 1.0, -1.0, -1.0]
GROUPS = [0, 0, 0, 1, 1, 1]
RANGE = (-1.0, 1.0)


def constant(values: list[float], length: int = 20) -> list[np.ndarray]:
    return [np.full(length, value) for value in values]


def test_a_perfect_critic_is_perfect_everywhere() -> None:
    found = measure(constant(REWARDS), REWARDS, GROUPS, RANGE)
    assert found.r2 == found.explained_variance == 1.0
    assert found.bias == found.ece == 0.0
    assert all(chance == 1.0 for chance in found.auc.values())
    assert all(decile.r2 == 1.0 for decile in found.deciles)
    # Its values never change, so no lambda makes an advantage of them.
    assert all(a.std == pytest.approx(0.0) for a in found.advantages)
    assert found.verdict(2.0)[0]


def test_the_mean_reward_explains_nothing() -> None:
    found = measure(constant([0.0] * 6), REWARDS, GROUPS, RANGE)
    assert found.r2 == 0.0 and found.explained_variance == 0.0
    assert all(chance == 0.5 for chance in found.auc.values())
    assert not found.verdict(2.0)[0]


@given(shift=st.floats(-3, 3, allow_nan=False))
def test_explained_variance_is_blind_to_a_constant_bias_and_r2_is_not(shift: float) -> None:
    values = [0.5 * reward + shift for reward in REWARDS]
    found = measure(constant(values), REWARDS, GROUPS, RANGE)
    assert found.explained_variance == pytest.approx(0.75)
    assert found.bias == pytest.approx(shift)
    assert found.r2 == pytest.approx(0.75 - shift**2)


def test_advantages_of_lambda_1_are_what_the_values_miss() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(size=n) for n in (7, 11, 5, 30, 2, 1)]
    found = measure(values, REWARDS, GROUPS, RANGE)
    (at_1,) = [a for a in found.advantages if a.lam == 1.0]
    assert np.nanmax(np.abs(at_1.bias)) < 1e-12
    errors = np.concatenate([r - v for r, v in zip(REWARDS, values, strict=True)])
    assert at_1.std == pytest.approx(errors.std())


def test_only_prompts_with_both_outcomes_tell_prefixes_apart() -> None:
    found = measure(constant([1.0, 0.0, -1.0, 5.0]), [1.0, -1.0, 1.0, 1.0], [0, 0, 0, 1], RANGE)
    assert set(found.auc.values()) == {0.5}  # 1 beats 0, and -1 does not
    found = measure(constant([1.0, 0.0]), [1.0, -1.0], [0, 1], RANGE)
    assert set(found.auc.values()) == {None}


def test_rewards_of_many_kinds_have_no_calibration() -> None:
    found = measure(constant([0.1, 0.2, 0.3]), [0.0, 0.5, 1.0], [0, 0, 1], (0.0, 1.0))
    assert found.ece is None and found.brier is None
    assert math.isfinite(found.r2)


def test_what_tells_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="all 2 held-out responses have the reward 1"):
        measure(constant([0.0, 0.0]), [1.0, 1.0], [0, 0], RANGE)
    with pytest.raises(ValueError, match="no responses"):
        measure([], [], [], RANGE)
