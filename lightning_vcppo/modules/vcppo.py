"""VC-PPO: PPO for long chains of thought with a critic that can be trusted (arXiv 2503.01491).

How it differs from the PPO the reader knows:

1. *Value pretraining.* Before the actor moves, the critic is fitted on Monte-Carlo returns of the
   frozen policy (phase `value_pretraining`), so that its first values are not those of a reward
   model or of a random head.
2. *Decoupled GAE.* One trajectory, one V, two lambdas: the critic's targets use lambda_critic = 1
   and hear the terminal reward at any distance; the policy's advantages use lambda_actor < 1.
3. gamma = 1, one verifiable reward at the end of each response; by default no value clip, no KL.

Shapes: B responses, T response tokens, N masked response tokens, K outputs of the value head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_vcppo.algorithm import advantages, losses, value_heads
from lightning_vcppo.algorithm.loss_weights import aggregation_weights, weighted_sum
from lightning_vcppo.algorithm.statistics import whiten
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.collectives import gather
from lightning_vcppo.metrics.rollout import describe_critic, describe_rollout
from lightning_vcppo.modules.actor_critic import ActorCriticModule, Network, Phase
from lightning_vcppo.rewards.functions import RewardFunction
from lightning_vcppo.rewards.shaping import overlong_penalty
from lightning_vcppo.rollouts.rollout import Rollout, last_token, pad
from lightning_vcppo.settings import (
    AdvantageSettings,
    EngineSettings,
    LoRASettings,
    OptimizerSettings,
    PolicySettings,
    RewardShapingSettings,
    SamplingSettings,
    UpdateSettings,
    ValueSettings,
    require_consistency,
)


class VCPPOModule(ActorCriticModule):
    """Actor and critic, trained by VC-PPO and its relatives.

    One `training_step` is one rollout: sample -> verify -> score -> advantages -> updates.
    """

    def __init__(
        self,
        actor: str,
        critic: str | dict[str, Any] | None = None,
        reference: str | None = None,
        reward: str | RewardFunction = "lightning_vcppo.rewards.verifier.verify",
        reward_shaping: RewardShapingSettings = RewardShapingSettings(),
        sampling: SamplingSettings = SamplingSettings(),
        evaluation: SamplingSettings = SamplingSettings(),
        engine: EngineSettings = EngineSettings(),
        advantage: AdvantageSettings = AdvantageSettings(),
        policy: PolicySettings = PolicySettings(),
        value: ValueSettings = ValueSettings(),
        update: UpdateSettings = UpdateSettings(),
        lora: LoRASettings = LoRASettings(),
        activation_checkpointing: bool = False,
        actor_optimizer: OptimizerSettings = OptimizerSettings(lr=1e-6),
        critic_optimizer: OptimizerSettings = OptimizerSettings(lr=2e-6),
    ) -> None:
        """Collect the settings; the networks are loaded by `configure_model`.

        Args:
            actor: Folder or hub id of the causal language model to train, with its tokenizer.
            critic: Folder or hub id of a critic, a reward model or a causal language model; a model
                config (`model_type`, ...) for random weights; None starts from the actor's weights.
            reference: Folder or hub id of the frozen reference policy; None means the actor's
                start. It is loaded only when `policy.kl_coef` is not 0.
            reward: A style of the verifier, or a function of (response, answer), or its import
                path. It returns a float, positive for correct; or (float, whether correct).
            reward_shaping: What is added to it.
            sampling: How rollouts are sampled.
            evaluation: How responses are sampled in `validate`, `test` and `predict`.
            engine: What samples them.
            advantage: Advantages and value targets.
            policy: The policy loss.
            value: The critic's head and loss.
            update: Epochs, mini-batches, micro-batches.
            lora: Train adapters and the value head instead of all weights.
            activation_checkpointing: Keep a layer's input alone and compute the layer again in the
                backward pass: less memory, a third more arithmetic in an update.
            actor_optimizer: Of the actor.
            critic_optimizer: Of the critic.

        Raises:
            ValueError: for settings that contradict each other, or a tokenizer that cannot load.
        """
        super().__init__(
            actor=actor,
            critic=critic,
            reference=(reference or actor) if policy.kl_coef else None,
            reward=reward,
            sampling=sampling,
            evaluation=evaluation,
            engine=engine,
            value=value if advantage.estimator == "gae" else None,
            update=update,
            lora=lora,
            activation_checkpointing=activation_checkpointing,
            actor_optimizer=actor_optimizer,
            critic_optimizer=critic_optimizer,
        )
        require_consistency(sampling, engine, reward_shaping, advantage, policy)
        self.importance_correction = policy.correction_with(engine)
        self.reward_shaping = reward_shaping
        self.advantage = advantage
        self.policy = policy

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Do one rollout and the updates that it is worth."""
        with self.timed("generate"):
            sampled = self.sample_rollout(batch)
        self.rollout = None
        if sampled is None:
            return
        rollout = self.shape_rewards(sampled)
        with self.timed("score"):
            rollout = self.estimate_advantages(self.score(rollout))
        with self.timed("update"):
            if self.phase is Phase.VALUE_PRETRAINING:
                self.pretrain_critic(rollout)
            else:
                if self.critic is not None:
                    self.update_network("critic", rollout)
                self.update_network("policy", self.prepare_policy_update(rollout))
        self.rollouts_done += 1
        self.rollout = rollout
        self.log_rollout(rollout)

    def sample_rollout(self, batch: PromptBatch) -> Rollout | None:
        """Sample a rollout; with dynamic sampling None until enough groups can teach something."""
        if self.saved_rollout is not None:
            return self.saved_rollout.to(self.device)
        stream = (self.run_seed, "rollout", self.rollouts_done, self.waiting_groups.batches)
        rollout = self.sample(batch, self.sampling, *stream)
        if not self.sampling.dynamic_sampling or self.phase is Phase.VALUE_PRETRAINING:
            return rollout
        self.waiting_groups.add(rollout, gather=gather)
        size, n = len(rollout), self.sampling.num_generations
        if len(self.waiting_groups) < size * self.trainer.world_size:
            return None
        return self.waiting_groups.take(size, self.global_rank * size, n).to(self.device)

    def pretrain_critic(self, rollout: Rollout) -> None:
        """Store a rollout; fit the critic on stored ones and on it, but not on what is held out."""
        assert self.rollout_store is not None and self.value is not None
        self.rollout_store.add(rollout, reduce=self.sum_over_ranks)
        # Monte-Carlo returns stay what they are; other targets, and a clipped loss, ask V anew.
        asks = self.advantage.bootstrap_truncated or self.value.cliprange_value is not None
        for epoch, stored in enumerate(self.rollout_store.lessons()):
            rollout = stored.to(self.device)
            rollout = self.estimate_advantages(self.score(rollout)) if asks else rollout
            self.update_network("critic", rollout, [epoch])

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the groups that wait for a rollout to fill up, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["waiting_groups"] = self.waiting_groups.state_dict()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the waiting groups, too."""
        super().on_load_checkpoint(checkpoint)
        self.waiting_groups.load_state_dict(checkpoint["waiting_groups"])

    def shape_rewards(self, rollout: Rollout) -> Rollout:
        """Add the overlong penalty, if it is on, to the verifier's reward."""
        shaping = self.reward_shaping
        if shaping.overlong_buffer_len == 0:
            return rollout
        penalty_B = overlong_penalty(
            rollout.response_lengths_B,
            max_response_length=self.sampling.max_response_length,
            overlong_buffer_len=shaping.overlong_buffer_len,
            penalty_factor=shaping.overlong_penalty_factor,
        )
        return rollout.with_(scores_B=rollout.scores_B + penalty_B)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Rollout:
        """Read log-probabilities and values before any update, and place the rewards on tokens."""
        mask_BT = rollout.response_mask_BT
        rewards_BT = torch.where(last_token(mask_BT), rollout.scores_B[:, None], 0.0)
        if self.phase is Phase.POLICY_OPTIMIZATION:
            old_logprobs_BT, entropy_BT = rollout.sampler_logprobs_BT, rollout.entropy_BT
            if entropy_BT is None or not self.sampler_is_exact():
                old_logprobs_BT, entropy_BT = self.in_micro_batches(self.actor_logprobs, rollout)
            rollout = rollout.with_(old_logprobs_BT=old_logprobs_BT, entropy_BT=entropy_BT)
            if self.reference is not None:
                ref_logprobs_BT, _ = self.in_micro_batches(self.reference_logprobs, rollout)
                rollout = rollout.with_(ref_logprobs_BT=ref_logprobs_BT)
                if self.policy.kl_placement == "reward":
                    kl_BT = losses.kl_estimate(
                        old_logprobs_BT, ref_logprobs_BT, estimator=self.policy.kl_estimator
                    )
                    rewards_BT = rewards_BT - self.policy.kl_coef * kl_BT
        if self.critic is not None:
            (values_BT,) = self.in_micro_batches(self.critic_values, rollout)
            rollout = rollout.with_(values_BT=values_BT)
        if self.value is not None and self.value.prompt_noise_weighting:
            noise_weights_B = losses.prompt_noise_weights(
                rollout.scores_B, rollout.group_ids_B, normalize=True, reduce=self.sum_over_ranks
            )
            rollout = rollout.with_(noise_weights_B=noise_weights_B)
        return rollout.with_(rewards_BT=rewards_BT)

    def sampler_is_exact(self) -> bool:
        """Tell whether sampling has left the policy's own log-probabilities, but for rounding."""
        assert self.actor is not None
        return (
            self.policy.reuse_sampler_logprobs
            and self.sampler_agrees
            and self.importance_correction == "off"
            and self.actor.dtype.itemsize >= 4
            and not torch.is_autocast_enabled(self.device.type)
        )

    @torch.no_grad()
    def estimate_advantages(self, rollout: Rollout) -> Rollout:
        """Compute advantages (lambda_actor) and value targets (lambda_critic)."""
        settings, mask_BT = self.advantage, rollout.response_mask_BT
        if settings.estimator == "group":
            advantages_B = advantages.group_advantages(
                rollout.scores_B, rollout.group_ids_B, normalize_std=settings.normalize_group_std
            )
            return rollout.with_(advantages_BT=torch.where(mask_BT, advantages_B[:, None], 0.0))
        assert rollout.rewards_BT is not None and rollout.values_BT is not None
        lambda_actor: float | Tensor = settings.lambda_actor
        if settings.length_adaptive_alpha is not None:
            lambda_actor = advantages.length_adaptive_lambda(
                rollout.response_lengths_B, settings.length_adaptive_alpha
            )
        pretraining = self.phase is Phase.VALUE_PRETRAINING
        advantages_BT, returns_BT = advantages.decoupled_gae(
            rollout.rewards_BT,
            rollout.values_BT,
            mask_BT,
            gamma=settings.gamma,
            lambda_actor=lambda_actor,
            # Pretraining is on Monte-Carlo returns, whatever the second phase bootstraps from.
            lambda_critic=1.0 if pretraining else settings.lambda_critic,
            bootstrap_B=self.bootstrap(rollout) if settings.bootstrap_truncated else None,
        )
        if settings.explained_variance_gate:
            advantages_BT, _ = advantages.explained_variance_gate(
                advantages_BT,
                returns_BT,
                rollout.values_BT,
                rollout.scores_B,
                mask_BT,
                reduce=self.sum_over_ranks,
            )
        return rollout.with_(advantages_BT=advantages_BT, returns_BT=returns_BT)

    def prepare_policy_update(self, rollout: Rollout) -> Rollout:
        """Whiten the advantages and correct for a sampler that is not quite the policy."""
        advantages_BT = rollout.advantages_BT
        assert advantages_BT is not None and rollout.old_logprobs_BT is not None
        if self.importance_correction != "off":
            weights_BT, trusted_BT, metrics = losses.truncated_importance_weights(
                rollout.old_logprobs_BT,
                rollout.sampler_logprobs_BT,
                rollout.response_mask_BT,
                cap=self.policy.importance_cap,
                mode=self.importance_correction,
                reduce=self.sum_over_ranks,
            )
            rollout = rollout.with_(importance_weights_BT=weights_BT, trusted_BT=trusted_BT)
            self.update_metrics |= {f"mismatch/{k}": float(v) for k, v in metrics.items()}
        if self.advantage.whiten:
            whitened_BT = whiten(
                advantages_BT, rollout.response_mask_BT, reduce=self.sum_over_ranks
            )
            rollout = rollout.with_(advantages_BT=whitened_BT)
        return rollout

    @override
    def weigh_tokens(self, network: Network, mini_batch: Rollout) -> Rollout:
        """Fix each token's weight in the loss of a mini-batch, before it is cut any further."""
        mask_BT, reduce = mini_batch.response_mask_BT, self.sum_over_ranks
        if network == "critic":
            assert self.value is not None
            weights_BT = aggregation_weights(
                mask_BT,
                self.value.loss_agg_mode,
                reduce=reduce,
                sequence_weights_B=mini_batch.noise_weights_B,
            )
            return mini_batch.with_(loss_weights_BT=weights_BT)
        if self.policy.positive_example_nll_weight:
            positive_BT = mask_BT & mini_batch.correct_B[:, None]
            nll_weights_BT = aggregation_weights(positive_BT, "token-mean", reduce=reduce)
            mini_batch = mini_batch.with_(nll_weights_BT=nll_weights_BT)
        counted_BT = mask_BT
        if self.policy.mask_truncated:
            counted_BT = counted_BT & mini_batch.finished_B[:, None]
        if mini_batch.trusted_BT is not None:
            counted_BT = counted_BT & mini_batch.trusted_BT
        weights_BT = aggregation_weights(counted_BT, self.policy.loss_agg_mode, reduce=reduce)
        return mini_batch.with_(loss_weights_BT=weights_BT)

    @override
    def policy_loss(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the actor's loss on (a part of) a mini-batch and its diagnostics."""
        settings, mask_BT = self.policy, rollout.response_mask_BT
        assert rollout.loss_weights_BT is not None and rollout.advantages_BT is not None
        assert rollout.old_logprobs_BT is not None
        logprobs_BT, entropy_BT = self.actor_logprobs(rollout)
        loss, metrics = losses.policy_loss(
            logprobs_BT,
            rollout.old_logprobs_BT,
            rollout.advantages_BT,
            mask_BT,
            clip_ratio_low=settings.clip_ratio_low,
            clip_ratio_high=settings.clip_ratio_high,
            clip_ratio_c=settings.clip_ratio_c,
            importance_weights_BT=rollout.importance_weights_BT,
            token_weights_BT=rollout.loss_weights_BT,
        )
        entropy = weighted_sum(entropy_BT, mask_BT, rollout.loss_weights_BT)
        metrics["entropy"] = entropy.detach()
        if settings.entropy_coeff:
            loss = loss - settings.entropy_coeff * entropy
        if rollout.ref_logprobs_BT is not None:
            kl, kl_metrics = losses.kl_penalty(
                logprobs_BT,
                rollout.ref_logprobs_BT,
                mask_BT,
                estimator=settings.kl_estimator,
                token_weights_BT=rollout.loss_weights_BT,
            )
            metrics |= kl_metrics
            if settings.kl_placement == "loss":
                loss = loss + settings.kl_coef * kl
        if rollout.nll_weights_BT is not None:
            nll, nll_metrics = losses.positive_example_nll(
                logprobs_BT, mask_BT, rollout.correct_B, token_weights_BT=rollout.nll_weights_BT
            )
            metrics |= nll_metrics
            loss = loss + settings.positive_example_nll_weight * nll
        return loss, metrics

    @override
    def critic_loss(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critic's loss on (a part of) a mini-batch and its diagnostics."""
        assert self.critic is not None and self.value is not None
        assert rollout.returns_BT is not None
        mask_BT = rollout.response_mask_BT
        outputs_NK = self.critic(rollout.input_ids_BL, rollout.prompt_lengths_B, mask_BT)
        if self.value.head == "hl_gauss":
            return value_heads.hl_gauss_loss(
                pad(outputs_NK, mask_BT),
                rollout.returns_BT,
                mask_BT,
                edges_E=self.critic.edges(),
                token_weights_BT=rollout.loss_weights_BT,
            )
        return losses.value_loss(
            pad(self.critic.values(outputs_NK), mask_BT),
            rollout.returns_BT,
            mask_BT,
            loss=self.value.loss,
            huber_delta=self.value.huber_delta,
            old_values_BT=rollout.values_BT,
            cliprange_value=self.value.cliprange_value,
            token_weights_BT=rollout.loss_weights_BT,
        )

    # Logging -------------------------------------------------------------------------------------

    def log_rollout(self, rollout: Rollout) -> None:
        """Log what the rollout was like and what its updates did, over all ranks."""
        reduce = self.sum_over_ranks
        metrics = describe_rollout(rollout, reduce=reduce) | self.update_metrics
        if rollout.values_BT is not None:
            metrics |= describe_critic(rollout, self.advantage.gamma, reduce=reduce)
        responses = len(rollout) * self.trainer.world_size
        tokens = metrics["rollout/response_length"] * responses
        metrics["rollout/tokens_per_second"] = tokens / sum(self.seconds.values())
        metrics |= {f"time/{part}_s": seconds for part, seconds in self.seconds.items()}
        self.update_metrics, self.seconds = {}, {}
        self.log_dict(metrics, batch_size=len(rollout))
        # Lightning counts optimizer steps; the loggers' x-axis counts rollouts.
        self.log("step", float(self.rollouts_done), batch_size=len(rollout))
