"""Train by VC-PPO: PPO for long chains of thought with a pretrained critic (arXiv 2503.01491).

How it differs from standard PPO:

1. *Value pretraining.* Before the actor is trained, the critic is fitted on Monte-Carlo returns of
   the frozen policy (phase `value_pretraining`), so that its first values are not those of a
   reward model or of a random head.
2. *Decoupled GAE.* One trajectory, one V, two lambdas: the critic's targets use lambda_critic = 1,
   so the terminal reward reaches every token; the policy's advantages use lambda_actor < 1.
3. gamma = 1, one verifiable reward at the end of each response; by default no value clip, no KL.

Shapes: B responses, T response tokens, N masked response tokens, K outputs of the value head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vcppo.algorithm.value_pretraining import Phase
from lightning_vcppo.checkpointing.format import Keys
from lightning_vcppo.common.files import is_trial
from lightning_vcppo.common.lightning_compat import forget_logged, is_attached, lift_step_limit
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.precision import step_precision
from lightning_vcppo.distributed.standstill import in_place
from lightning_vcppo.distributed.strategies import prepare_strategy
from lightning_vcppo.metrics.rollout import describe_step
from lightning_vcppo.models import loading
from lightning_vcppo.models import lora as adapters
from lightning_vcppo.models.critic import Critic
from lightning_vcppo.models.side_critic import SideCritic
from lightning_vcppo.modules import estimation
from lightning_vcppo.modules.base import PolicyModule
from lightning_vcppo.modules.consistency import require_consistency
from lightning_vcppo.modules.master_weights import (
    require_master_weights,
    require_same_master_weights,
)
from lightning_vcppo.modules.networks import NetworkLoader
from lightning_vcppo.modules.objectives import CriticObjective, Objective, PolicyObjective
from lightning_vcppo.modules.offload import Offloader, require_offload
from lightning_vcppo.modules.rollout_source import RolloutSource
from lightning_vcppo.modules.scoring import Scorer
from lightning_vcppo.modules.stopwatch import Stopwatch
from lightning_vcppo.modules.updates import (
    Backend,
    Learner,
    Network,
    build_optimizers,
    build_updaters,
    copy_state,
    restore_state,
    run_updates,
)
from lightning_vcppo.rewards.functions import RewardFunction
from lightning_vcppo.rollouts.privileged import PrivilegedPrompt
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.rollouts.store import RolloutStore
from lightning_vcppo.settings import (
    AdvantageSettings,
    EngineSettings,
    GradingSettings,
    Kernels,
    LoRASettings,
    MasterWeights,
    Offload,
    OptimizerSettings,
    PolicySettings,
    RewardShapingSettings,
    SamplingSettings,
    UpdateSettings,
    ValueSettings,
)


class VCPPOModule(PolicyModule):
    """Actor and critic, trained by VC-PPO and related algorithms.

    One `training_step` is one rollout: sample -> verify -> score -> advantages -> updates. The
    collaborators, each usable separately: `sampler` and `evaluator` (rollouts/), `source`,
    `scorer`, `updaters` and `objectives` (this directory). A subclass may override any method of
    the step, or `build_objectives`.
    """

    sampling: SamplingSettings

    def __init__(
        self,
        actor: str,
        critic: str | dict[str, Any] | None = None,
        reference: str | None = None,
        reward: str | RewardFunction = "lightning_vcppo.rewards.verify",
        reward_shaping: RewardShapingSettings = RewardShapingSettings(),
        grading: GradingSettings = GradingSettings(),
        sampling: SamplingSettings = SamplingSettings(),
        evaluation: SamplingSettings = SamplingSettings(),
        engine: EngineSettings = EngineSettings(),
        advantage: AdvantageSettings = AdvantageSettings(),
        policy: PolicySettings = PolicySettings(),
        value: ValueSettings = ValueSettings(),
        update: UpdateSettings = UpdateSettings(),
        lora: LoRASettings = LoRASettings(),
        activation_checkpointing: bool = False,
        kernels: Kernels = "auto",
        master_weights: MasterWeights = "none",
        offload: Sequence[Offload] | Offload = (),
        actor_optimizer: OptimizerSettings = OptimizerSettings(lr=1e-6),
        critic_optimizer: OptimizerSettings = OptimizerSettings(lr=2e-6),
    ) -> None:
        """Collect the settings; the networks are loaded by `configure_model`.

        Args:
            actor: Directory or hub id of the causal language model to train, with its tokenizer.
            critic: Directory or hub id of a critic, reward model or causal language model; a model
                config (`model_type`, ...) for random weights; None starts from the actor's weights.
            reference: Directory or hub id of the frozen reference policy; None means the actor's
                initial weights. It is loaded only when `policy.kl_coef` is not 0.
            reward: A style of the verifier, or a function of (response, answer, ...) that returns a
                float, positive for correct; or its import path. See `docs/howto/reward.md`.
            reward_shaping: Penalties added to the reward.
            grading: Worker processes of the verifier.
            sampling: How rollouts are sampled.
            evaluation: How responses are sampled in `validate`, `test` and `predict`.
            engine: The engine that samples them.
            advantage: Advantages and value targets.
            policy: The policy loss.
            value: The critic's head and loss.
            update: Epochs, mini-batches, micro-batches.
            lora: Train adapters and the value head instead of all weights.
            activation_checkpointing: Compute each layer again in the backward pass, to save memory.
            kernels: Norms, SwiGLU and rotation on CUDA; auto takes Liger's if it is installed.
            master_weights: Way to keep updates that weights under `bf16-true` would round away.
            offload: Parts that are kept on the host while they are not in use (offload.py).
            actor_optimizer: Optimizer of the actor.
            critic_optimizer: Optimizer of the critic.

        Raises:
            ValueError: For settings that contradict each other, or a tokenizer that cannot load.
        """
        super().__init__(actor, loading.load_tokenizer(actor), reward, evaluation, engine, grading)
        require_consistency(
            sampling, engine, reward_shaping, advantage, policy, value, update, critic
        )
        self.automatic_optimization = False
        self.importance_correction = policy.correction_with(engine)
        self.reward_shaping, self.sampling, self.advantage = reward_shaping, sampling, advantage
        self.policy, self.value, self.update = policy, value, update
        self.master_weights, self.kernels = master_weights, kernels
        self.offloader = Offloader(offload, lambda: self.device)
        privileged = PrivilegedPrompt(self.tokenizer, value)
        self.critic_reads, self.hint_lengths = privileged.view, {"critic": privileged.longest}
        self.source = RolloutSource(self.sampler, sampling, self.sample, self.sampling_context)

        ref = (reference or actor) if policy.kl_coef else None
        self.loader = NetworkLoader(
            actor, actor if critic is None else critic, ref, value, lora, activation_checkpointing
        )
        self.critic: Critic | SideCritic | None = None
        self.reference: PreTrainedModel | None = None
        adapters.save_only_trained(self)
        self.updaters = build_updaters(update, actor_optimizer, critic_optimizer)
        self.health = {network: updater.health for network, updater in self.updaters.items()}
        self.begin_run()

    @override
    def begin_run(self) -> None:
        """Also reset the phase, the rollouts and the networks' counters."""
        super().begin_run()
        self.phase = Phase.POLICY_OPTIMIZATION
        self.rollout: Rollout | None = None  # the last one
        self.source.begin_run()
        self.rollout_store: RolloutStore | None = None  # while the critic is pretrained
        self.saved_rollout: Rollout | None = None  # to be used instead of sampling one
        for updater in self.updaters.values():
            updater.updates_done = 0
        self.update_metrics: dict[str, float] = {}
        self.stopwatch = Stopwatch(self.grader)

    # One rollout ---------------------------------------------------------------------------------

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Do one rollout and the updates on it."""
        with self.stopwatch.timing("generate"):
            sampled = self.sample_rollout(batch)
        self.rollout = None
        if sampled is None:
            return
        rollout = self.shape_rewards(sampled)
        with self.stopwatch.timing("score"):
            rollout = self.estimate_advantages(self.score(rollout))
        with self.stopwatch.timing("update"):
            if self.phase is Phase.VALUE_PRETRAINING:
                self.pretrain_critic(rollout)
            else:
                self.update_networks(rollout)
        self.rollouts_done += 1
        self.rollout = rollout
        self.log_rollout(rollout)

    def sample_rollout(self, batch: PromptBatch) -> Rollout | None:
        """Sample a rollout; None until there are enough informative or complete groups."""
        if self.saved_rollout is not None:
            return self.saved_rollout.to(self.device)
        seed = (self.run_seed, self.rollouts_done)
        whole = self.phase is Phase.VALUE_PRETRAINING  # the critic learns from every group
        return self.source.take(batch, seed, self.vantage(), self.ranks, whole=whole)

    def shape_rewards(self, rollout: Rollout) -> Rollout:
        """Add the overlong penalty, if it is on, to the verifier's reward."""
        limit = self.sampling.max_response_length
        return estimation.punish_length(rollout, self.reward_shaping, limit)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Rollout:
        """Read log-probabilities and values before any update, and place the rewards on tokens."""
        values: Sequence[Tensor] = ()
        if self.phase is Phase.POLICY_OPTIMIZATION:
            old_logprobs_BT, entropy_BT = rollout.sampler_logprobs_BT, rollout.entropy_BT
            auto = self.policy.old_logprobs == "auto" and self.importance_correction == "off"
            exact = auto and entropy_BT is not None and self.sampler_is_exact()
            if self.policy.old_logprobs != "sampler" and not exact:
                old_logprobs_BT, entropy_BT, *values = self.read(self.scorer.actor_outputs, rollout)
            rollout = rollout.with_(old_logprobs_BT=old_logprobs_BT, entropy_BT=entropy_BT)
            if self.reference is not None:
                ref_logprobs_BT, _ = self.read(self.scorer.reference_logprobs, rollout)
                rollout = rollout.with_(ref_logprobs_BT=ref_logprobs_BT)
        if self.advantage.needs_critic:
            values = values or self.read(self.scorer.critic_values, self.critic_reads(rollout))
            rollout = rollout.with_(values_BT=values[0])
            rollout = estimation.weigh_prompts(rollout, self.value, reduce=self.sum_over_ranks)
        return estimation.place_rewards(rollout, self.policy)

    @torch.no_grad()
    def estimate_advantages(self, rollout: Rollout) -> Rollout:
        """Compute advantages (lambda_actor) and value targets (lambda_critic)."""
        # Pretraining uses Monte-Carlo returns, whatever lambda_critic is in the second phase.
        pretraining = self.phase is Phase.VALUE_PRETRAINING
        bootstrap_B = None
        if self.advantage.needs_critic and self.advantage.bootstrap_truncated:
            bootstrap_B = self.scorer.bootstrap(self.critic_reads(rollout), self.ranks)
        return estimation.estimate_advantages(
            rollout,
            self.advantage,
            lambda_critic=1.0 if pretraining else self.advantage.lambda_critic,
            bootstrap_B=bootstrap_B,
            reduce=self.sum_over_ranks,
        )

    def update_networks(self, rollout: Rollout) -> None:
        """Update actor and critic in the set order, from what was read before both updates."""
        order = self.update.order if self.advantage.needs_critic else None
        if order == "critic_first":
            self.update_network("critic", self.critic_reads(rollout))
        also: list[Network] = ["critic"] if order == "together" else []
        self.update_network("policy", self.prepare_policy_update(rollout), also=also)
        if order == "actor_first":
            rollout = self.critic_reads(self.prepare_critic_update(rollout))
            self.update_network("critic", rollout)

    def prepare_policy_update(self, rollout: Rollout) -> Rollout:
        """Whiten the advantages and correct for differences between sampler and policy."""
        if self.importance_correction != "off":
            rollout, metrics = estimation.correct_mismatch(
                rollout, self.importance_correction, self.policy, reduce=self.sum_over_ranks
            )
            self.update_metrics |= metrics
        if self.advantage.whiten:
            rollout = estimation.whiten_advantages(rollout, reduce=self.sum_over_ranks)
        return rollout

    @torch.no_grad()
    def prepare_critic_update(self, rollout: Rollout) -> Rollout:
        """Correct the targets for the actor's update, if that is on."""
        if self.value.target_correction == "none":
            return rollout
        logprobs_BT, _ = self.read(self.scorer.actor_logprobs, rollout)
        rollout, metrics = estimation.correct_targets(
            rollout, logprobs_BT, self.value, reduce=self.sum_over_ranks
        )
        self.update_metrics |= metrics
        return rollout

    def pretrain_critic(self, rollout: Rollout) -> None:
        """Store a rollout; fit the critic on it and on stored ones, except held-out prompts."""
        assert self.rollout_store is not None
        self.rollout_store.add(self.critic_reads(rollout), reduce=self.sum_over_ranks)
        # Monte-Carlo returns do not change; other targets, and a clipped loss, need V again.
        needs_values = self.advantage.bootstrap_truncated or self.value.cliprange_value is not None
        for epoch, stored in enumerate(self.rollout_store.rollouts_to_fit()):
            rollout = stored.to(self.device)
            rollout = self.estimate_advantages(self.score(rollout)) if needs_values else rollout
            self.update_network("critic", rollout, [epoch])

    def update_network(
        self,
        network: Network,
        rollout: Rollout,
        epochs: Sequence[int] | None = None,
        also: Sequence[Network] = (),
    ) -> None:
        """Do all updates of a network on a rollout, and of others in the same passes (`also`)."""
        names = [network, *also]
        with in_place(f"update of the {' and '.join(names)}"):
            self.update_metrics |= run_updates(
                [Learner(self.updaters[n], self.objectives[n], self._optimizer(n)) for n in names],
                rollout,
                self.scorer,
                Backend.of(self, self.ranks),
                seed=(self.run_seed, self.rollouts_done),
                epochs=epochs,
            )
        for name in names:
            key, skipped = f"update/skipped_{name}", self.health[name].take_skipped()
            self.update_metrics[key] = self.update_metrics.get(key, 0.0) + skipped

    def read(
        self, reading: Callable[[Rollout], tuple[Tensor, ...]], rollout: Rollout
    ) -> tuple[Tensor, ...]:
        """Apply a method of the scorer in micro-batches; called on every rank.

        It runs in the Trainer's precision, also when called from a callback.
        """
        with in_place("reading of the networks"), step_precision(self):
            return self.scorer.in_micro_batches(reading, rollout, self.ranks)

    def build_objectives(self) -> dict[Network, Objective]:
        """Return the loss of each network; called once they are loaded."""
        found: dict[Network, Objective] = {
            "policy": PolicyObjective(self.policy, self.scorer.actor_logprobs)
        }
        if self.critic is not None:
            found["critic"] = CriticObjective(self.value, self.critic, self.scorer.critic_outputs)
        return found

    # Value pretraining, whose schedule a callback owns -------------------------------------------

    def begin_value_pretraining(self, store: RolloutStore, saved: Rollout | None = None) -> None:
        """Freeze the actor; from now on rollouts fit the critic and are kept in a store.

        Args:
            store: Store of the rollouts.
            saved: Used by the next step instead of sampling; may be set before each step.
        """
        self.rollout_store, self.saved_rollout = store, saved
        self.phase = Phase.VALUE_PRETRAINING

    def end_value_pretraining(self, best_critic: dict[str, Any]) -> None:
        """Begin to train the actor; restore the critic from a `critic_state`, if one is given."""
        if best_critic:
            self.restore_critic(best_critic)
        self.phase = Phase.POLICY_OPTIMIZATION
        self.rollout_store = self.saved_rollout = None

    def critic_state(self, into: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return a copy, on the CPU, of the critic's weights and of its optimizer's state."""
        assert self.critic is not None
        return copy_state(self.critic, self._optimizer("critic"), into)

    def restore_critic(self, state: dict[str, Any]) -> None:
        """Restore what `critic_state` has returned."""
        assert self.critic is not None
        self.offloader.bring("critic")
        restore_state(self.critic, self._optimizer("critic"), state)

    # Lightning's hooks ---------------------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        """Prepare the strategy, and a trial run, of which Lightning would count optimizer steps."""
        super().setup(stage)
        require_master_weights(self.master_weights, self.trainer)
        strategy = self.trainer.strategy
        require_offload(self.offloader.kinds, self.policy, self.advantage, self.value, strategy)
        prepare_strategy(strategy, lambda: adapters.keep_precise(self, self.loader.restored))
        if is_trial(self.trainer):
            lift_step_limit(self.trainer)
        self.strict_loading = stage == "fit"  # evaluation loads only the actor

    @override
    def configure_model(self) -> None:
        """Load the networks, once for all stages; critic and reference only for training."""
        super().configure_model()
        assert self.actor is not None
        if self.critic is not None or (is_attached(self) and not self.trainer.training):
            return
        if self.advantage.needs_critic:
            self.critic = self.build(self.load_critic)
            self.loader.join(self.critic, self.actor, self.tokenizer)
        if self.loader.reference is not None and self.reference is None:
            self.reference = self.build(self.loader.load_reference)
            self.loader.check_tokens(self.reference, self.tokenizer, "reference")
            adapters.share_weights(self.reference, self.actor)
        if is_attached(self):
            self.use_kernels(self.kernels)
            self.offloader.watch_networks(self.actor, self.critic, self.reference)
            device = self.trainer.strategy.root_device
            self.sampler.attach(self.actor, self.offloader.make_room, device)
        self.scorer = Scorer(
            self.actor,
            self.critic,
            self.reference,
            temperature=self.sampling.temperature,
            max_tokens=self.update.ppo_max_token_len_per_gpu,
        )
        self.objectives = self.build_objectives()

    @override
    def load_actor(self) -> PreTrainedModel:
        """Load the actor, with adapters if they are on."""
        return self.loader.load_actor(self.run_seed)

    def load_critic(self) -> Critic | SideCritic:
        """Load the critic, with adapters if they are on."""
        assert self.actor is not None
        return self.loader.load_critic(self.run_seed, self.actor)

    @override
    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return one optimizer for the actor and, if there is one, one for the critic."""
        adapters.keep_precise(self, self.loader.restored)
        networks: dict[Network, nn.Module | None] = {"policy": self.actor, "critic": self.critic}
        built = build_optimizers(self.updaters, networks, self.master_weights, self.run_seed)
        self.offloader.watch_optimizers(*built)
        return built

    @override
    def configure_callbacks(self) -> list[Callback]:
        """Also return the callback that ends sampling ahead with the run, if that is on."""
        return [*super().configure_callbacks(), *self.source.callbacks()]

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Drop what the last rollout logged, because a resumed run does not have it."""
        forget_logged(self.trainer)

    @override
    def _networks(self, *, training: bool) -> dict[str, PreTrainedModel | Critic]:
        networks = super()._networks(training=training)
        if training and isinstance(self.critic, Critic):
            networks["critic"] = self.critic
        if training and self.reference is not None:
            networks["reference"] = self.reference
        return networks

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save phase, counters, and the rollouts that are not yet learned from."""
        super().on_save_checkpoint(checkpoint)
        self.loader.save(checkpoint)
        checkpoint[Keys.MASTER_WEIGHTS] = self.master_weights
        checkpoint[Keys.PHASE] = self.phase.value
        checkpoint[Keys.UPDATES_DONE] = self.updates_done
        self.source.save(checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saves; refuse a run that trains other weights."""
        super().on_load_checkpoint(checkpoint)
        self.loader.restore(checkpoint)
        require_same_master_weights(checkpoint, self.master_weights)
        self.phase = Phase(checkpoint[Keys.PHASE])
        for network, number in checkpoint[Keys.UPDATES_DONE].items():
            self.updaters[network].updates_done = number
        self.source.restore(checkpoint, self.ranks if is_attached(self) else None)

    @override
    def exported(self) -> dict[str, PreTrainedModel]:
        """Return `actor` and, if there is one, `critic`."""
        critic = {} if self.critic is None else {"critic": self.critic.model}
        return super().exported() | critic

    def export_critic(self, directory: Path) -> None:
        """Write the critic as an ordinary Hugging Face directory; called on every rank."""
        assert self.critic is not None
        self.write(directory, self.critic.model)

    # Between Lightning and the collaborators -----------------------------------------------------

    @property
    def updates_done(self) -> dict[Network, int]:
        """Number of optimizer steps made, by network."""
        return {network: updater.updates_done for network, updater in self.updaters.items()}

    @override
    def _updates_of_actor(self) -> int:
        return self.updates_done["policy"]

    @property
    def optimizer_settings(self) -> dict[Network, OptimizerSettings]:
        """Settings of the optimizers, by network."""
        return {network: updater.settings for network, updater in self.updaters.items()}

    def _optimizer(self, network: Network) -> Any:
        """Return a network's optimizer in Lightning's wrapper; see `configure_optimizers`."""
        optimizers = self.optimizers()
        if not isinstance(optimizers, list):  # Lightning returns a single one, the actor's, itself
            return optimizers
        of_actor, of_critic = optimizers
        return of_actor if network == "policy" else of_critic

    def log_rollout(self, rollout: Rollout) -> None:
        """Log metrics of the rollout and of its updates, over all ranks."""
        seconds = self.stopwatch.take()
        metrics = describe_step(rollout, self.advantage.gamma, seconds, self.ranks)
        metrics |= self.update_metrics | {"grading/limit_hits": float(self.grader.limit_hits)}
        metrics |= self.source.describe(rollout, self.ranks)
        self.update_metrics = {}
        self.log_dict(metrics, batch_size=len(rollout))
        # Lightning counts optimizer steps; the loggers' x-axis counts rollouts.
        self.log("step", float(self.rollouts_done), batch_size=len(rollout))
