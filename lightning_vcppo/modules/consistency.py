"""Refuse settings that are valid one by one and contradict each other."""

from __future__ import annotations

from lightning_vcppo.common.errors import require
from lightning_vcppo.settings import (
    AdvantageSettings,
    EngineSettings,
    PolicySettings,
    RewardShapingSettings,
    SamplingSettings,
    UpdateSettings,
    ValueSettings,
)


def require_consistency(
    sampling: SamplingSettings,
    engine: EngineSettings,
    shaping: RewardShapingSettings,
    advantage: AdvantageSettings,
    policy: PolicySettings,
    value: ValueSettings,
    update: UpdateSettings,
    critic: object = None,
) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ValueError: The message names the setting to change.
    """
    require(sampling.temperature > 0, "sampling.temperature: expected more than 0 for training")
    require(
        not advantage.needs_groups or sampling.num_generations > 1,
        f"sampling.num_generations: the {advantage.estimator} estimator compares responses to the "
        "same prompt, so it needs at least 2",
    )
    require(
        not sampling.dynamic_sampling or sampling.num_generations > 1,
        "sampling.dynamic_sampling: it drops groups whose responses all have the same reward; "
        "sampling.num_generations must be at least 2",
    )
    require(
        value.architecture == "backbone" or critic is None,
        "critic: a side critic has no backbone to load; add --model.critic null, or set "
        "value.architecture=backbone",
    )
    require(
        value.privileged_prompt != "siblings" or sampling.num_generations > 1,
        "value.privileged_prompt: siblings are other responses to the same prompt, so "
        "sampling.num_generations must be at least 2",
    )
    _require_known_sampler(sampling, engine, policy)
    require(
        value.target_correction == "none" or update.order == "actor_first",
        "value.target_correction: before the actor's update there is nothing to correct; set "
        "update.order=actor_first",
    )
    together = update.order == "together" and advantage.needs_critic
    require(
        not together or value.architecture == "side",
        "update.order: only a side critic learns together with the actor, whose forward pass it "
        "reads; set value.architecture=side, or update.order=critic_first",
    )
    for name, of_policy in (
        ("critic_epochs", update.ppo_epochs),
        ("critic_mini_batch_size", update.ppo_mini_batch_size),
    ):
        own = getattr(update, name)
        require(
            not together or own in (None, of_policy),
            f"update.{name}: with update.order=together, the critic learns in the policy's passes "
            f"and mini-batches; leave it null, or set update.order=critic_first",
        )
    alpha, longest = advantage.length_adaptive_alpha, sampling.max_response_length
    require(
        alpha is None or alpha * longest > 1,
        f"advantage.length_adaptive_alpha: with {alpha}, lambda_actor = 1 - 1 / (alpha length) is "
        f"0 for every response of up to {longest} tokens; raise it (VAPO: 0.05)",
    )
    part = engine.partial_length
    require(
        part is None or longest % part == 0,
        f"engine.partial_length: expected a divisor of sampling.max_response_length={longest}, so "
        f"that parts make complete responses, got {part}",
    )
    buffer = shaping.overlong_buffer_len
    require(
        buffer <= longest,
        f"reward_shaping.overlong_buffer_len: {buffer} is more than "
        f"sampling.max_response_length={longest}",
    )


def _require_known_sampler(
    sampling: SamplingSettings, engine: EngineSettings, policy: PolicySettings
) -> None:
    """Refuse a loss that takes the sampler for another distribution than it is."""
    correction = policy.correction_with(engine)
    reads_sampler = correction != "off" or policy.old_logprobs == "sampler"
    older = "partial_length" if engine.partial_length else "rollouts_ahead"
    require(
        not engine.samples_off_policy or reads_sampler,
        f"policy.importance_correction: with engine.{older}={getattr(engine, older)} older "
        "weights sample than learn, and nothing would correct for it; expected truncate or mask, "
        "or policy.old_logprobs=sampler, where the loss itself does, got off",
    )
    require(
        not engine.is_vllm or not reads_sampler or sampling.top_p == 1,
        f"sampling.top_p: with {sampling.top_p}, vLLM's log-probs are those of the truncated "
        "distribution; set sampling.top_p=1, or policy.importance_correction=off and "
        "policy.old_logprobs=recomputed",
    )
