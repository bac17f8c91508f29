"""Load actor, critic and reference, and describe them in checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_vcppo.checkpointing.format import Keys
from lightning_vcppo.common.errors import require
from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.distributed.sharding import is_sharded
from lightning_vcppo.models import loading
from lightning_vcppo.models import lora as adapters
from lightning_vcppo.models.checks import check_same_tokens, check_vocabulary
from lightning_vcppo.models.critic import Critic, holds_pretrained_critic, load_critic
from lightning_vcppo.models.fingerprints import base_of_adapters
from lightning_vcppo.models.side_critic import SideCritic, build_side_critic
from lightning_vcppo.settings import LoRASettings, ValueSettings

FIXED = {"architecture": "backbone", "freeze": "none", "privileged_prompt": "none"}
"""Settings that a checkpoint fixes, with their values where it does not state them."""
FIXED_BESIDE = ("side_taps", "side_width")
"""Settings that it fixes only for a side critic."""
_RANGE = ("value_min", "value_max")
FIXED_BY_HEAD: dict[str, tuple[str, ...]] = {
    "scalar": ("head",),
    "bounded": ("head", *_RANGE),
    "sigmoid": ("head", *_RANGE),
    "hl_gauss": ("head", *_RANGE, "num_bins"),
}
"""Settings that say what the outputs of a head mean, by the head; older checkpoints lack them."""


@dataclass
class NetworkLoader:
    """Loads the networks of a run, with adapters and activation checkpointing if they are on.

    Attributes:
        actor: Directory or hub id of the actor.
        critic: Directory or hub id of the critic, or a model config for random weights.
        reference: Directory or hub id of the frozen reference policy; None means there is none.
        value: Settings of the critic's head and frozen part.
        lora: Settings of the adapters on actor and critic.
        activation_checkpointing: Whether only the input of each layer is kept.
        bases: Source and fingerprint of the weights under the adapters, by network.
        restored: Weights of a checkpoint that must be restored in float32.
    """

    actor: str
    critic: str | dict[str, Any]
    reference: str | None
    value: ValueSettings
    lora: LoRASettings
    activation_checkpointing: bool
    bases: dict[str, dict[str, str]] = field(default_factory=dict)
    restored: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse adapters on random weights, or together with `value.freeze`.

        Raises:
            ValueError: The message names the setting to change.
        """
        require(
            self.lora.rank is None or not isinstance(self.critic, dict),
            "critic: a model config has random weights, which adapters would leave untrained",
        )
        require(
            self.lora.rank is None or self.value.freeze == "none",
            f"value.freeze: {self.value.freeze} cannot be combined with adapters, which freeze all "
            "weights; choose layers by lora.target_modules, or set value.freeze=none",
        )

    @property
    def critic_is_pretrained(self) -> bool:
        """Whether the run starts from a critic that has been fitted already."""
        return holds_pretrained_critic(self.critic)

    def load_actor(self, run_seed: int) -> PreTrainedModel:
        """Load the actor; the seed is that of new adapters."""
        actor = loading.load_actor(self.actor)
        self._save_memory("actor", actor, run_seed)
        return actor

    def load_critic(self, run_seed: int, actor: PreTrainedModel) -> Critic | SideCritic:
        """Load the critic; the seed is that of new adapters and of a new head.

        Raises:
            ValueError: For a side critic on an actor that is sharded, or cannot be read from.
        """
        if self.value.architecture == "side":
            require(
                not is_sharded(actor),
                "--model.value.architecture: a side critic needs the complete actor in each "
                "process; set --trainer.strategy=ddp, or --model.value.architecture=backbone",
            )
            return build_side_critic(actor, self.value, run_seed)
        critic = load_critic(self.critic, self.value, seed=run_seed)
        assert isinstance(critic, Critic)
        self._save_memory("critic", critic.model, run_seed)
        critic.head.requires_grad_(True)
        return critic

    def join(
        self,
        critic: Critic | SideCritic,
        actor: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Check that a critic has the actor's tokens; store weights frozen in both only once."""
        if isinstance(critic, Critic):
            self.check_tokens(critic.model, tokenizer, "critic")
            adapters.share_weights(critic.model.base_model, actor.base_model)

    def load_reference(self) -> PreTrainedModel:
        """Load the reference policy, frozen."""
        assert self.reference is not None
        return loading.load_actor(self.reference).requires_grad_(False)

    def check_tokens(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: Literal["critic", "reference"],
    ) -> None:
        """Refuse a critic or reference with other tokens than the actor's tokenizer."""
        source = self.critic if name == "critic" else self.reference
        check_vocabulary(model, tokenizer, str(source), name)
        if not isinstance(source, str) or source == self.actor:
            return
        if (own := loading.find_tokenizer(source)) is not None:
            check_same_tokens(tokenizer, own, source, name)

    def _save_memory(self, name: str, model: PreTrainedModel, run_seed: int) -> None:
        if self.activation_checkpointing:
            loading.checkpoint_activations(model)
        if self.lora.rank is not None:
            source = self.actor if name == "actor" else self.critic
            # If weights are sent to other ranks, the first rank also builds a model without memory.
            self.bases[name] = self.bases.get(name, {}) | base_of_adapters(str(source), model)
            adapters.adapt(model, self.lora, stream_seed(run_seed, "lora", name))

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Record in a checkpoint which weights the run trains."""
        checkpoint[Keys.ADAPTERS] = adapters.record(self.lora, self.bases)
        names = [*FIXED, *FIXED_BY_HEAD[self.value.head]]
        names += FIXED_BESIDE if self.value.architecture == "side" else ()
        checkpoint[Keys.CRITIC] = {name: getattr(self.value, name) for name in names}

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of a run that trains other weights.

        Raises:
            ValueError: For adapters of another kind or on another base, another frozen part, a
                critic with another head, or a side critic of another size.
        """
        adapters.require_same(checkpoint.get(Keys.ADAPTERS), adapters.record(self.lora, self.bases))
        for name, saved in (FIXED | checkpoint.get(Keys.CRITIC, {})).items():
            own = getattr(self.value, name)
            require(
                saved == own,
                f"--model.value.{name}: the checkpoint's critic has {saved}, got {own}",
            )
        self.restored = adapters.precise(checkpoint.get(Keys.WEIGHTS, {}))
