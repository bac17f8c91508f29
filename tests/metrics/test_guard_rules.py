"""Each guard rail on numbers made up by hand: on both sides of its limit."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_vcppo.metrics.guard_rules import (
    MISMATCH_KL,
    REWARD_VARIANCE,
    RULES,
    Facts,
    Limits,
    broken_rules,
)
from lightning_vcppo.settings import AdvantageSettings
from tests.support.tiny_runs import ROOT

HEALTHY = {
    "rollout/response_length": 100.0,
    "rollout/accuracy": 0.4,
    "rollout/truncation_rate": 0.05,
    "critic/r2": 0.4,
    "critic/bias": 0.1,
    "critic/value_mean": -0.3,
    "policy/clipfrac": 0.1,
    "policy/approx_kl": 0.01,
    MISMATCH_KL: 1e-4,
}


def facts(**changes: Any) -> Facts:
    """A healthy run in its policy phase, but for some facts; a metric's name changes `now`."""
    metrics = {key: value for key, value in changes.items() if "/" in key}
    given: dict[str, Any] = {
        "advantage": AdvantageSettings(),
        "actor_lr": 1e-6,
        "critic_lr": 2e-6,
        "cliprange_value": None,
        "fresh_critic": False,
        "fits_critic": True,
        "pretraining": False,
        "actor_moves": True,
        "last": HEALTHY,
        "now": HEALTHY | metrics,
        "seen": 5,
        "start": HEALTHY,
        "reward_range": (-1.0, 1.0),
    }
    return Facts(**given | {key: value for key, value in changes.items() if "/" not in key})


def advantage(**settings: Any) -> dict[str, AdvantageSettings]:
    return {"advantage": AdvantageSettings(**settings)}


def explained(value: float) -> dict[str, Any]:
    return {"critic/r2": value}


NO_CRITIC = {"critic_lr": None}
HELD_OUT = "value_pretraining/r2"
LENGTH = "rollout/response_length"
CASES: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
    # rule, facts that break it, facts nearby that do not, what the message must name
    (
        "bootstrapped_targets",
        advantage(lambda_critic=0.99),
        advantage(lambda_critic=0.99) | {"fits_critic": False},
        ("0.99", "--model.advantage.lambda_critic=1"),
    ),
    (
        "unready_critic",
        explained(0.0),
        explained(0.01),
        ("0.00", "--value_pretraining.max_rollouts"),
    ),
    (
        "unready_critic",
        explained(-0.5) | {"fits_critic": False},
        explained(-0.5) | advantage(explained_variance_gate=True),
        ("-0.50", "--value_pretraining.enabled=true"),
    ),
    (
        "unready_critic",  # as the phase ends, the last rollout counts and not the mean
        {"pretraining": True, "last": HEALTHY | explained(-0.1)},
        explained(-0.1) | {"pretraining": True},
        ("-0.10",),
    ),
    (
        "unready_critic",  # and that on held-out responses, if there are any
        {"pretraining": True, "last": HEALTHY | {HELD_OUT: -0.2}},
        {"pretraining": True, "last": HEALTHY | explained(-0.2) | {HELD_OUT: 0.2}},
        ("-0.20",),
    ),
    (
        "biased_critic",  # as in the demo's PPO: V of -1.46, returns of -0.86
        {"critic/bias": 0.6, "critic/value_mean": -0.9},
        {"critic/bias": 0.5},
        ("0.60 below", "range of 2", "--value_pretraining.max_rollouts"),
    ),
    (
        "biased_critic",
        {"critic/bias": -0.6, "fits_critic": False},
        {"critic/bias": -0.6, "reward_range": (-2.0, 1.0)},
        ("0.60 above", "--value_pretraining.enabled=true"),
    ),
    (
        "biased_critic",  # less than a quarter, but no reward is so low
        {"critic/value_mean": -1.01},
        {"critic/value_mean": -1.0},
        ("-1.01", "-1 to 1"),
    ),
    (
        "biased_critic",  # as the phase ends: on held-out responses, after the fit
        {"pretraining": True, "last": HEALTHY | {"value_pretraining/bias": 0.6}},
        {"pretraining": True, "critic/bias": 0.9, "critic/value_mean": -1.4, "last": HEALTHY},
        ("0.60 below",),
    ),
    (
        "biased_critic",
        {"critic/bias": 0.9},
        {"critic/bias": 0.9, "reward_range": (-1.0, -1.0)},
        ("0.90 below",),
    ),
    (
        "unheard_reward",
        advantage(lambda_critic=0.95, lambda_actor=0.95) | {LENGTH: 101.0},
        advantage(lambda_critic=0.95, lambda_actor=0.95) | {LENGTH: 50.0},
        ("0.95", "0.0059", "shared", "--model.advantage.lambda_critic=1"),
    ),
    (
        "unheard_reward",
        advantage(lambda_critic=0.9) | {LENGTH: 101.0},
        advantage(lambda_critic=0.9) | {LENGTH: 101.0, "pretraining": True},
        ("lambda_critic of 0.9",),
    ),
    (
        "zero_lambda",
        advantage(length_adaptive_alpha=0.05) | {LENGTH: 20.0},
        advantage(length_adaptive_alpha=0.05) | {LENGTH: 21.0},
        ("0.05", "20", "--model.advantage.length_adaptive_alpha"),
    ),
    (
        "slow_critic",
        {"critic_lr": 1e-6},
        {"critic_lr": 1.1e-6},
        ("1e-06", "--model.critic_optimizer.lr"),
    ),
    (
        "clipped_values",
        {"cliprange_value": 0.2, "fresh_critic": True},
        {"cliprange_value": 0.2},
        ("0.2", "--model.value.cliprange_value=null"),
    ),
    (
        "shrinking_responses",
        {LENGTH: 49.0, "rollout/accuracy": 0.1},
        {LENGTH: 50.0},
        ("100", "49", "40%", "10%", "decay/*"),
    ),
    (
        "shrinking_responses",
        {LENGTH: 49.0, "fits_critic": False},
        {LENGTH: 300.0},
        ("--value_pretraining.enabled=true",),
    ),
    (
        "shrinking_responses",
        {LENGTH: 49.0} | NO_CRITIC,
        {LENGTH: 51.0} | NO_CRITIC,
        ("--model.actor_optimizer.lr",),
    ),
    (
        "equal_rewards",
        {REWARD_VARIANCE: 0.0, "rollout/accuracy": 0.0},
        {REWARD_VARIANCE: 0.0, "rollout/accuracy": 0.0, "seen": 4},
        ("5 rollouts", "0%", "--data.path", "--model=ColdStartModule"),
    ),
    (
        "equal_rewards",
        {REWARD_VARIANCE: 0.0, "rollout/accuracy": 1.0},
        {REWARD_VARIANCE: 0.01, "rollout/accuracy": 1.0},  # of different size
        ("100%", "harder problems"),
    ),
    (
        "rising_truncation",
        {"rollout/truncation_rate": 0.16},
        {"rollout/truncation_rate": 0.14},
        ("5%", "16%", "--model.sampling.max_response_length"),
    ),
    (
        "large_clip_fraction",
        {"policy/clipfrac": 0.31},
        {"policy/clipfrac": 0.3},
        ("0.31", "--model.actor_optimizer.lr"),
    ),
    (
        "large_policy_kl",
        {"policy/approx_kl": 0.11},
        {"policy/approx_kl": 0.1},
        ("0.11", "--model.update.ppo_epochs"),
    ),
    (
        "sampler_mismatch",
        {MISMATCH_KL: 0.02},
        {MISMATCH_KL: 0.01},
        ("0.02", "--model.policy.importance_correction=truncate"),
    ),
    (
        "skipped_updates",
        {"last": HEALTHY | {"update/skipped_policy": 2.0, "update/skipped_critic": 0.0}},
        {"last": HEALTHY | {"update/skipped_policy": 0.0, "update/skipped_critic": 0.0}},
        ("2 of the policy", "--model.reward", "--model.actor_optimizer.lr"),
    ),
    (
        "skipped_updates",
        {"last": HEALTHY | {"update/skipped_critic": 1.0}},
        {},
        ("1 of the critic", "--model.critic_optimizer.lr"),
    ),
]


@pytest.mark.parametrize(("name", "broken", "whole", "named"), CASES)
def test_a_rule_is_broken_on_one_side_of_its_limit_alone(
    name: str, broken: dict[str, Any], whole: dict[str, Any], named: tuple[str, ...]
) -> None:
    message = RULES[name](facts(**broken), Limits())
    assert message is not None
    assert [part for part in named if part not in message] == []
    assert RULES[name](facts(**whole), Limits()) is None


def test_every_rule_has_a_case_and_a_row_in_the_documentation() -> None:
    assert {name for name, *_ in CASES} == set(RULES)
    documentation = (ROOT / "docs" / "metrics.md").read_text()
    assert [name for name in RULES if f"| `{name}` |" not in documentation] == []


def test_a_healthy_run_breaks_no_rule() -> None:
    assert broken_rules(facts(), Limits()) == {}


def test_nothing_is_asked_of_a_critic_that_is_not_there() -> None:
    settings = AdvantageSettings(
        estimator="group", lambda_critic=0.5, length_adaptive_alpha=1e-3, lambda_actor=0.5
    )
    without = {k: v for k, v in HEALTHY.items() if not k.startswith("critic/")}
    free = facts(advantage=settings, fits_critic=False, last=without, now=without, **NO_CRITIC)
    assert broken_rules(free, Limits()) == {}


def test_before_anything_was_measured_no_number_is_out_of_range() -> None:
    assert broken_rules(facts(last={}, now={}, start={}), Limits()) == {}


def test_limits_can_be_moved() -> None:
    close = Limits(clipfrac=0.05, approx_kl=0.001, r2=0.5)
    assert set(broken_rules(facts(), close)) == {
        "large_clip_fraction",
        "large_policy_kl",
        "unready_critic",
    }
    with pytest.raises(ValueError, match="window: expected >= 1, got 0"):
        Limits(window=0)
