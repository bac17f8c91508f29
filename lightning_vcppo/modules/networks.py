"""Actor, critic and reference: how they are loaded, saved and read.

Shapes: B responses, L tokens of prompt + response, T response tokens, N masked response tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vcppo.common import places
from lightning_vcppo.common.errors import require
from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.distributed.sharding import is_sharded
from lightning_vcppo.distributed.standstill import in_place
from lightning_vcppo.distributed.strategies import prepare_strategy
from lightning_vcppo.models import forward, hf_folders, loading
from lightning_vcppo.models import lora as adapters
from lightning_vcppo.models.checks import check_vocabulary
from lightning_vcppo.models.critic import Critic, holds_pretrained_critic, load_critic
from lightning_vcppo.models.fingerprints import base_of_adapters
from lightning_vcppo.models.packing import reads_packed_rows
from lightning_vcppo.modules.actor_module import ActorModule
from lightning_vcppo.modules.micro_batches import token_balanced_micro_batches
from lightning_vcppo.rewards.functions import RewardFunction
from lightning_vcppo.rollouts.rollout import Rollout, pad
from lightning_vcppo.settings import (
    EngineSettings,
    LoRASettings,
    SamplingSettings,
    UpdateSettings,
    ValueSettings,
)


class NetworksModule(ActorModule):
    """Actor, critic and reference. A subclass trains them."""

    def __init__(
        self,
        actor: str,
        critic: str | dict[str, Any] | None,
        reference: str | None,
        reward: str | RewardFunction,
        sampling: SamplingSettings,
        evaluation: SamplingSettings,
        engine: EngineSettings,
        value: ValueSettings | None,
        update: UpdateSettings,
        lora: LoRASettings,
        activation_checkpointing: bool,
    ) -> None:
        """Collect the settings, see `VCPPOModule`."""
        super().__init__(actor, loading.load_tokenizer(actor), reward, evaluation, engine)
        require(
            lora.rank is None or not isinstance(critic, dict),
            "critic: a model config has random weights, which adapters would leave as they are",
        )
        self.critic_source = actor if critic is None else critic
        self.reference_source = reference
        self.sampling = sampling
        self.value = value
        self.update = update
        self.lora = lora
        self.activation_checkpointing = activation_checkpointing
        self.bases: dict[str, dict[str, str]] = {}  # under the adapters: source and fingerprint
        self.restored: dict[str, Tensor] = {}  # what has to come back in float32
        self.critic: Critic | None = None
        self.reference: PreTrainedModel | None = None
        adapters.save_trained_alone(self)

    @property
    def critic_is_pretrained(self) -> bool:
        """Whether the run starts from a critic that has been fitted already."""
        return holds_pretrained_critic(self.critic_source)

    # Loading and saving --------------------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        """Prepare the strategy; evaluation loads the actor alone, so a checkpoint has more keys."""
        super().setup(stage)
        prepare_strategy(self.trainer.strategy, lambda: adapters.keep_precise(self, self.restored))
        self.strict_loading = stage == "fit"

    @override
    def configure_model(self) -> None:
        """Load the networks, once for all stages; critic and reference not to evaluate."""
        super().configure_model()
        assert self.actor is not None
        if self.critic is not None or (self._trainer and not self.trainer.training):
            return
        source, value, reference = self.critic_source, self.value, self.reference_source
        if value is not None:
            self.critic = self.build(lambda: self._load_critic(source, value))
            check_vocabulary(self.critic.model, self.tokenizer, str(source), "critic")
            adapters.share_weights(self.critic.model.base_model, self.actor.base_model)
        if reference is not None and self.reference is None:
            self.reference = self.build(lambda: loading.load_actor(reference).requires_grad_(False))
            adapters.share_weights(self.reference, self.actor)

    @override
    def _load_actor(self) -> PreTrainedModel:
        actor = super()._load_actor()
        self._pull_levers("actor", actor)
        return actor

    def _load_critic(self, source: str | dict[str, Any], value: ValueSettings) -> Critic:
        critic = load_critic(source, value)
        self._pull_levers("critic", critic.model)
        critic.head.requires_grad_(True)
        return critic

    def _pull_levers(self, name: str, model: PreTrainedModel) -> None:
        """Give a network what the settings say of memory."""
        if self.activation_checkpointing:
            loading.checkpoint_activations(model)
        if self.lora.rank is not None:
            source = self.actor_source if name == "actor" else self.critic_source
            # Where weights are sent to other ranks, the first builds a model without memory, too.
            self.bases[name] = self.bases.get(name, {}) | base_of_adapters(str(source), model)
            adapters.adapt(model, self.lora, stream_seed(self.run_seed, "lora", name))

    @override
    def training_settings(self) -> dict[str, SamplingSettings]:
        """Return how training samples, by flag."""
        return {"sampling": self.sampling}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the networks are, but for their weights."""
        super().on_save_checkpoint(checkpoint)
        if self.critic is not None:
            checkpoint["folders"]["critic"] = hf_folders.describe(self.critic.model)
        checkpoint["lora"] = adapters.record(self.lora, self.bases)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse adapters of another kind or on another base."""
        super().on_load_checkpoint(checkpoint)
        adapters.require_same(checkpoint.get("lora"), adapters.record(self.lora, self.bases))
        self.restored = adapters.precise(checkpoint.get("state_dict", {}))

    @override
    def export(self, folder: Path) -> None:
        """Write `actor` and `critic` as ordinary Hugging Face folders; called on every rank."""
        super().export(folder)
        if self.critic is not None:
            self.export_critic(folder / "critic")

    def export_critic(self, folder: Path) -> None:
        """Write the critic as an ordinary Hugging Face folder; called on every rank."""
        assert self.critic is not None
        self.write(folder, self.critic.model)

    # Reading the networks ------------------------------------------------------------------------

    def actor_logprobs(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropy, at the sampling temperature, (B, T) each."""
        assert self.actor is not None
        return self._logprobs(self.actor, rollout)

    def reference_logprobs(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropy under the reference, (B, T) each."""
        assert self.reference is not None
        return self._logprobs(self.reference, rollout)

    def critic_values(self, rollout: Rollout) -> tuple[Tensor]:
        """Return V of the state before each token, (B, T)."""
        assert self.critic is not None
        mask_BT = rollout.response_mask_BT
        outputs_NK = self.critic(rollout.input_ids_BL, rollout.prompt_lengths_B, mask_BT)
        return (pad(self.critic.values(outputs_NK), mask_BT),)

    def bootstrap(self, rollout: Rollout) -> Tensor:
        """Return V after the last token of truncated responses and 0 for finished ones, (B,)."""
        end_BT = torch.nn.functional.one_hot(
            rollout.response_lengths_B, rollout.response_mask_BT.shape[1] + 1
        ).bool()
        (values_BT,) = self.in_micro_batches(
            self.critic_values, rollout.with_(response_mask_BT=end_BT)
        )
        return values_BT.sum(1).masked_fill(rollout.finished_B, 0.0)

    def in_micro_batches(
        self, read: Callable[[Rollout], tuple[Tensor, ...]], rollout: Rollout
    ) -> tuple[Tensor, ...]:
        """Apply a reading of (B, T) tensors to a rollout piece by piece, without gradients.

        Rows come back in the rollout's order.
        """
        results: list[Tensor] = []
        all_rows = self._micro_batch_rows(rollout)
        assert self.actor is not None
        missing = 0
        if is_sharded(self.actor):  # weights are gathered from ranks with fewer pieces, too
            missing = self.max_over_ranks(len(all_rows)) - len(all_rows)
        with in_place("reading of the networks"):
            for rows in all_rows:
                for i, values in enumerate(read(rollout.select(rows))):
                    if len(results) <= i:
                        results.append(values.new_zeros(rollout.response_mask_BT.shape))
                    results[i][rows, : values.shape[1]] = values
                places.move_on()
            for _ in range(missing):
                read(rollout.select(torch.zeros(1, dtype=torch.long, device=self.device)))
        return tuple(results)

    def _logprobs(self, model: PreTrainedModel, rollout: Rollout) -> tuple[Tensor, Tensor]:
        mask_BT = rollout.response_mask_BT
        logprobs_N, entropy_N = forward.response_logprobs(
            model,
            rollout.input_ids_BL,
            rollout.prompt_lengths_B,
            mask_BT,
            rollout.response_ids_N,
            temperature=self.sampling.temperature,
        )
        return pad(logprobs_N, mask_BT), pad(entropy_N, mask_BT)

    def _micro_batch_rows(self, rollout: Rollout) -> list[Tensor]:
        assert self.actor is not None
        networks = [self.actor] if self.critic is None else [self.actor, self.critic.model]
        rows = token_balanced_micro_batches(
            rollout.lengths_B.tolist(),
            self.update.ppo_max_token_len_per_gpu,
            padded=not all(map(reads_packed_rows, networks)),
        )
        return [torch.tensor(r, dtype=torch.long, device=self.device) for r in rows]
