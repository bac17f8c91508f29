"""Compute the advantages and value targets of a scored rollout.

Shapes: B responses, T response tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_vcppo.algorithm import advantages, critic_free
from lightning_vcppo.algorithm.importance import (
    importance_corrected_returns,
    truncated_importance_weights,
)
from lightning_vcppo.algorithm.loss_weights import prompt_noise_weights
from lightning_vcppo.algorithm.losses import kl_estimate
from lightning_vcppo.algorithm.statistics import Reduce, whiten
from lightning_vcppo.rewards.shaping import overlong_penalty
from lightning_vcppo.rollouts.rollout import Rollout, last_token
from lightning_vcppo.settings import (
    AdvantageSettings,
    PolicySettings,
    RewardShapingSettings,
    ValueSettings,
)


def punish_length(
    rollout: Rollout, settings: RewardShapingSettings, max_response_length: int
) -> Rollout:
    """Add the overlong penalty, if it is on, to the scores."""
    if settings.overlong_buffer_len == 0:
        return rollout
    penalty_B = overlong_penalty(
        rollout.response_lengths_B,
        max_response_length=max_response_length,
        overlong_buffer_len=settings.overlong_buffer_len,
        penalty_factor=settings.overlong_penalty_factor,
    )
    return rollout.with_(scores_B=rollout.scores_B + penalty_B)


def place_rewards(rollout: Rollout, settings: PolicySettings) -> Rollout:
    """Put the score on a response's last token; subtract the KL if it is part of the reward."""
    rewards_BT = torch.where(last_token(rollout.response_mask_BT), rollout.scores_B[:, None], 0.0)
    if rollout.ref_logprobs_BT is not None and settings.kl_placement == "reward":
        assert rollout.old_logprobs_BT is not None
        kl_BT = kl_estimate(
            rollout.old_logprobs_BT, rollout.ref_logprobs_BT, estimator=settings.kl_estimator
        )
        rewards_BT = rewards_BT - settings.kl_coef * kl_BT
    return rollout.with_(rewards_BT=rewards_BT)


def weigh_prompts(rollout: Rollout, settings: ValueSettings, *, reduce: Reduce) -> Rollout:
    """Give responses to noisy prompts less weight in the critic's loss, if that is on."""
    if not settings.prompt_noise_weighting:
        return rollout
    noise_weights_B = prompt_noise_weights(
        rollout.scores_B,
        rollout.group_ids_B,
        exponent=settings.prompt_noise_exponent,
        floor=settings.prompt_noise_floor,
        reduce=reduce,
    )
    return rollout.with_(noise_weights_B=noise_weights_B)


def estimate_advantages(
    rollout: Rollout,
    settings: AdvantageSettings,
    *,
    lambda_critic: float,
    bootstrap_B: Tensor | None,
    reduce: Reduce,
) -> Rollout:
    """Compute advantages and, with a critic, value targets; called on every rank.

    Args:
        rollout: Rollout with scores and, for GAE, rewards and values.
        settings: Settings of the estimator.
        lambda_critic: Lambda of the value targets; 1 makes them Monte-Carlo returns.
        bootstrap_B: V after the last token of truncated responses; None means 0 for all.
        reduce: Sums a small tensor over ranks.
    """
    if not settings.needs_critic:
        return _without_critic(rollout, settings, reduce)
    assert rollout.rewards_BT is not None and rollout.values_BT is not None
    mask_BT = rollout.response_mask_BT
    lambda_actor: float | Tensor = settings.lambda_actor
    if settings.length_adaptive_alpha is not None:
        lambda_actor = advantages.length_adaptive_lambda(
            rollout.response_lengths_B, settings.length_adaptive_alpha
        )
    advantages_BT, returns_BT = advantages.decoupled_gae(
        rollout.rewards_BT,
        rollout.values_BT,
        mask_BT,
        gamma=settings.gamma,
        lambda_actor=lambda_actor,
        lambda_critic=lambda_critic,
        bootstrap_B=bootstrap_B,
    )
    if settings.explained_variance_gate:
        advantages_BT, _ = advantages.explained_variance_gate(
            advantages_BT, returns_BT, rollout.values_BT, rollout.scores_B, mask_BT, reduce=reduce
        )
    return rollout.with_(advantages_BT=advantages_BT, returns_BT=returns_BT)


def _without_critic(rollout: Rollout, settings: AdvantageSettings, reduce: Reduce) -> Rollout:
    """Compare each response with its group (GRPO, RLOO), or with the complete rollout."""
    scores_B, groups_B, mask_BT = rollout.scores_B, rollout.group_ids_B, rollout.response_mask_BT
    if settings.estimator == "batch":
        advantages_B = critic_free.batch_advantages(scores_B, mask_BT, reduce=reduce)
    elif settings.estimator == "rloo":
        advantages_B = critic_free.leave_one_out_advantages(scores_B, groups_B)
    else:
        advantages_B = critic_free.group_advantages(
            scores_B, groups_B, normalize_std=settings.normalize_group_std
        )
    advantages_BT = torch.where(mask_BT, advantages_B[:, None], 0.0)
    return rollout.with_(advantages_BT=advantages_BT)


def whiten_advantages(rollout: Rollout, *, reduce: Reduce) -> Rollout:
    """Scale the advantages to mean 0 and variance 1 over the tokens of all ranks."""
    assert rollout.advantages_BT is not None
    whitened_BT = whiten(rollout.advantages_BT, rollout.response_mask_BT, reduce=reduce)
    return rollout.with_(advantages_BT=whitened_BT)


def correct_mismatch(
    rollout: Rollout,
    mode: Literal["truncate", "mask"],
    settings: PolicySettings,
    *,
    reduce: Reduce,
) -> tuple[Rollout, dict[str, float]]:
    """Weight tokens by the ratio of policy to sampler probability; called on every rank.

    Args:
        rollout: Rollout with log-probabilities under the sampler and under the policy.
        mode: Whether weights above the cap are truncated to it, or their tokens masked.
        settings: Policy settings, with the cap.
        reduce: Sums a small tensor over ranks.

    Returns:
        The rollout with its weights, and `mismatch/*` metrics.
    """
    assert rollout.old_logprobs_BT is not None
    weights_BT, trusted_BT, metrics = truncated_importance_weights(
        rollout.old_logprobs_BT,
        rollout.sampler_logprobs_BT,
        rollout.response_mask_BT,
        cap=settings.importance_cap,
        mode=mode,
        reduce=reduce,
    )
    corrected = rollout.with_(importance_weights_BT=weights_BT, trusted_BT=trusted_BT)
    return corrected, {f"mismatch/{key}": float(value) for key, value in metrics.items()}


def correct_targets(
    rollout: Rollout, logprobs_BT: Tensor, settings: ValueSettings, *, reduce: Reduce
) -> tuple[Rollout, dict[str, float]]:
    """Correct the critic's targets for the actor's update; called on every rank.

    Args:
        rollout: Rollout with targets and the log-probabilities before the update.
        logprobs_BT: Log-probabilities after the update.
        settings: Value settings, with the largest ratio and the lowest return.
        reduce: Sums a small tensor over ranks.

    Returns:
        The rollout with corrected targets, and `critic/target_*` metrics.
    """
    assert rollout.returns_BT is not None and rollout.old_logprobs_BT is not None
    returns_BT, fitted_BT, metrics = importance_corrected_returns(
        rollout.returns_BT,
        logprobs_BT,
        rollout.old_logprobs_BT,
        rollout.response_mask_BT,
        low=settings.value_min,
        max_ratio=settings.target_max_ratio,
        reduce=reduce,
    )
    corrected = rollout.with_(returns_BT=returns_BT, fitted_BT=fitted_BT)
    return corrected, {f"critic/{key}": float(value) for key, value in metrics.items()}
