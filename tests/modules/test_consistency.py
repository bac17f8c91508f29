"""Settings that are right alone and contradict each other."""

import pytest

from lightning_vcppo.modules.consistency import require_consistency
from lightning_vcppo.settings import (
    AdvantageSettings,
    EngineSettings,
    PolicySettings,
    RewardShapingSettings,
    SamplingSettings,
    UpdateSettings,
    ValueSettings,
)

VLLM, TOP_P = EngineSettings(name="vllm"), SamplingSettings(top_p=0.9)


def check(
    sampling=SamplingSettings(),
    engine=EngineSettings(),
    policy=PolicySettings(),
    value=ValueSettings(),
    update=UpdateSettings(),
):
    shaping, advantage = RewardShapingSettings(), AdvantageSettings()
    require_consistency(sampling, engine, shaping, advantage, policy, value, update)


@pytest.mark.parametrize(
    "policy",
    [
        PolicySettings(old_logprobs="sampler"),
        PolicySettings(),  # which corrects vLLM's mismatch
        PolicySettings(importance_correction="mask"),
    ],
)
def test_nothing_is_compared_with_a_truncated_distribution(policy):
    with pytest.raises(ValueError, match=r"sampling.top_p: with 0\.9, vLLM's log-probs"):
        check(TOP_P, VLLM, policy)
    check(SamplingSettings(), VLLM, policy)
    check(TOP_P, EngineSettings(), policy)  # its log-probabilities are those before top-p


def test_a_truncated_distribution_is_sampled_from_where_nothing_reads_it():
    off = PolicySettings(importance_correction="off")
    check(TOP_P, VLLM, off)


def test_targets_are_corrected_after_the_actors_update_only():
    value = ValueSettings(target_correction="importance")
    with pytest.raises(ValueError, match=r"set update\.order=actor_first"):
        check(value=value)
    check(value=value, update=UpdateSettings(order="actor_first"))


def test_only_a_side_critic_with_the_policys_passes_learns_together_with_the_actor():
    side, order = (
        ValueSettings(architecture="side"),
        {"order": "together", "ppo_mini_batch_size": 8},
    )
    check(value=side, update=UpdateSettings(**order, critic_epochs=1, critic_mini_batch_size=8))
    with pytest.raises(ValueError, match=r"update\.order: only a side critic .*architecture=side"):
        check(update=UpdateSettings(**order))
    for name in ("critic_epochs", "critic_mini_batch_size"):
        with pytest.raises(
            ValueError, match=rf"update\.{name}: with update\.order=together, .* null"
        ):
            check(value=side, update=UpdateSettings(**order, **{name: 2}))
