"""Define and load the critic: a backbone with a value head on each token.

Shapes: B sequences, L tokens, T response tokens, N masked response tokens, K outputs of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from typing_extensions import override

from lightning_vcppo.common.errors import require
from lightning_vcppo.models.forward import response_hidden
from lightning_vcppo.models.freezing import freeze
from lightning_vcppo.models.loading import (
    _load,
    build_model,
    load_config,
)
from lightning_vcppo.models.lora import save_only_trained
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.models.side_critic import Ladder, LadderConfig, SideCritic
from lightning_vcppo.models.value_network import (
    ValueNetwork,
    describe_head,
    is_head,
    num_outputs,
)
from lightning_vcppo.settings import ValueSettings


class Critic(ValueNetwork):
    """A transformers token classifier as a value function.

    The head runs in float32 whatever the precision of the backbone. Dropout is off, because V must
    be the same function in training and in evaluation.
    """

    def __init__(self, model: PreTrainedModel, settings: ValueSettings) -> None:
        """Wrap an `AutoModelForTokenClassification` with `num_outputs(settings)` labels.

        Raises:
            ValueError: If its head is not a linear layer `score`, or it has no such part to freeze.
        """
        super().__init__()
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise ValueError(
                f"critic: {type(model).__name__} has no linear head named `score`; "
                "use a decoder of the Llama, Qwen, Gemma, Mistral or SmolLM family"
            )
        self.model = enable_packing(model)
        self.settings = settings
        model.config.value_head = describe_head(settings)
        freeze(model, settings.freeze)
        save_only_trained(self)

    @property
    @override
    def head(self) -> nn.Linear:
        """The value head, (H -> K)."""
        head = self.model.score
        assert isinstance(head, nn.Linear)
        return head

    def forward(self, input_ids_BL: Tensor, prompt_lengths_B: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the head's float32 (or better) output for the state before each token, (N, K)."""
        hidden_NH = response_hidden(self.model.base_model, input_ids_BL, prompt_lengths_B, mask_BT)
        return self.read_head(hidden_NH)


def holds_pretrained_critic(source: str | Mapping[str, Any]) -> bool:
    """Return whether a directory holds a critic of this package, not a reward or language model."""
    return isinstance(source, str) and hasattr(load_config(source), "value_head")


def holds_value_head(source: str) -> bool:
    """Return whether a directory holds a critic of any trainer, or a reward model."""
    config = load_config(source)
    return hasattr(config, "value_head") or _has_plain_head(config) or _has_reward_head(config)


def require_value_head(source: str, flag: str = "") -> None:
    """Refuse a directory that holds no critic.

    Args:
        source: Directory or hub id.
        flag: Flag that named it, for the message.

    Raises:
        ValueError: If its model has no value head.
    """
    require(
        holds_value_head(source),
        f"{flag}{source} holds no critic: its model has no head of one number",
    )


def _has_plain_head(config: PreTrainedConfig) -> bool:
    """Return whether a model is a critic as other trainers write them."""
    architecture = (config.architectures or [""])[0]
    return architecture.endswith("ForTokenClassification") and config.num_labels == 1


def _has_reward_head(config: PreTrainedConfig) -> bool:
    return (config.architectures or [""])[0].endswith("ForSequenceClassification")


def load_critic(
    source: str | Mapping[str, Any], settings: ValueSettings, *, seed: int = 0
) -> Critic | SideCritic:
    """Load a critic: the backbone of any decoder with a value head on every token.

    A directory may hold a critic; a token classifier with one label or a reward model, whose head
    initializes a scalar head; or a causal language model (the head starts as set by
    `value.head_init`).

    Args:
        source: Directory or hub id, or a model config (`model_type`, ...) for random weights.
        settings: Settings of the head.
        seed: Seed of a head that starts at random.

    Returns:
        The critic; a side critic if the directory holds one, to which the actor must be given by
        `attach`.

    Raises:
        ValueError: If there is no such model, its type has no token-classification form, or it is
            a critic with another head.
    """
    if not isinstance(source, str):
        labels = {"num_labels": num_outputs(settings)}
        model = build_model(AutoModelForTokenClassification, source, labels, "critic")
        critic = Critic(model, settings)
        critic.reset_head(seed)
        return critic
    config = load_config(source)
    held = getattr(config, "value_head", None)
    if held is not None and not is_head(held, settings):
        wanted = describe_head(settings)
        raise ValueError(f"critic: {source} was trained with value head {held}, not {wanted}")
    if isinstance(config, LadderConfig):
        return SideCritic(Ladder.from_pretrained(source), settings)
    is_scalar = settings.head == "scalar" and held is None
    is_reward_model = is_scalar and _has_reward_head(config)
    has_head = held is not None or is_reward_model or (is_scalar and _has_plain_head(config))
    # A reward model's head has no bias.
    new = "score.bias" if is_reward_model else "" if has_head else "score."
    outputs = num_outputs(settings)
    model = _load(AutoModelForTokenClassification, source, "critic", new=new, num_labels=outputs)
    critic = Critic(model, settings)
    if not has_head:
        critic.reset_head(seed)
    return critic


def load_reward_model(name_or_path: str) -> PreTrainedModel:
    """Load a sequence classifier with one output; its head is random if the source has none.

    Raises:
        ValueError: If there is no such model or its type has no sequence-classification form.
    """
    model: PreTrainedModel = _load(
        AutoModelForSequenceClassification, name_or_path, "reward model", new="score.", num_labels=1
    )
    return model
