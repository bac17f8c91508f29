"""Define a critic on the actor's activations: a small ladder network instead of a second backbone.

1. The actor is read without gradients, and the states after some of its layers are tapped. So the
   critic's loss cannot change the actor.
2. A ladder (side tuning, arXiv 2206.06522) goes from tap to tap: s_k = m s_{k-1} + (1 - m) x_k,
   with a learnt share m and x_k the normalized, down-projected state, and a small MLP on each rung.
   It treats tokens one by one: the context of a token is in the actor's states.
3. V depends on the actor: when its weights change, so do the states. Each update of the critic
   computes them again, in a forward pass of its own, or in the policy's (`sharing_forward`).

Shapes: B sequences, L tokens, T response tokens, N masked response tokens, K taps, H hidden, R
width of the ladder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from typing_extensions import override

from lightning_vcppo.common.seeding import stream_seed
from lightning_vcppo.models.forward import response_layers, tapping
from lightning_vcppo.models.value_network import ValueNetwork, describe_head, num_outputs
from lightning_vcppo.settings import ValueSettings


class LadderConfig(PreTrainedConfig):
    """Config of a ladder: the layers it taps, and its widths."""

    model_type = "vcppo_ladder"

    def __init__(
        self,
        taps: tuple[int, ...] | list[int] = (1,),
        tapped_size: int = 32,
        width: int = 128,
        **kwargs: Any,
    ) -> None:
        """Collect the sizes.

        Args:
            taps: Numbers of the actor's layers, from 1, whose outputs are read.
            tapped_size: Hidden size H of the actor.
            width: Width R of the ladder.
            kwargs: Arguments of every transformers config.
        """
        self.taps, self.tapped_size, self.width = list(taps), tapped_size, width
        super().__init__(**kwargs)


class Rung(nn.Module):
    """One step of the ladder."""

    def __init__(self, tapped_size: int, width: int) -> None:
        """Build a rung for states of that size."""
        super().__init__()
        self.norm = nn.RMSNorm(tapped_size, eps=1e-6)
        self.down = nn.Linear(tapped_size, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.mlp_up = nn.Linear(width, 2 * width, bias=False)
        self.mlp_down = nn.Linear(2 * width, width, bias=False)

    def forward(self, below_NR: Tensor, tapped_NH: Tensor) -> Tensor:
        """Return the ladder's state after this rung, (N, R)."""
        share = self.gate.sigmoid()
        state_NR = share * below_NR + (1 - share) * self.down(self.norm(tapped_NH))
        inner = nn.functional.silu(self.mlp_up(self.mlp_norm(state_NR)))
        stepped_NR: Tensor = state_NR + self.mlp_down(inner)
        return stepped_NR


class Ladder(PreTrainedModel):
    """The ladder and its head, as a model that transformers can save and load."""

    config_class = LadderConfig
    base_model_prefix = "rungs"

    def __init__(self, config: LadderConfig) -> None:
        """Build a ladder with random weights."""
        super().__init__(config)
        self.rungs = nn.ModuleList(Rung(config.tapped_size, config.width) for _ in config.taps)
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.score = nn.Linear(config.width, int(config.num_labels or 1))
        self.post_init()  # type: ignore[no-untyped-call]

    @override
    def _init_weights(self, module: nn.Module) -> None:
        """Keep torch's initial weights, which the seed of the run determines."""

    def forward(self, tapped_NKH: Tensor) -> Tensor:
        """Return the state that the head reads, (N, R)."""
        state_NR = tapped_NKH.new_zeros(len(tapped_NKH), self.config.width)
        for rung, tapped_NH in zip(self.rungs, tapped_NKH.unbind(1), strict=True):
            state_NR = rung(state_NR, tapped_NH)
        normed_NR: Tensor = self.norm(state_NR)
        return normed_NR


class SideCritic(ValueNetwork):
    """A ladder that reads the actor, as a value function; the actor is not a submodule."""

    def __init__(self, model: Ladder, settings: ValueSettings) -> None:
        """Wrap a ladder; `attach` sets the actor whose activations it reads."""
        super().__init__()
        self.model, self.settings = model, settings
        model.config.value_head = describe_head(settings)
        self._actor: tuple[PreTrainedModel, ...] = ()  # in a tuple, so that it is not a submodule
        self._tapped: Sequence[Tensor] | None = None  # states of the policy's forward pass

    def attach(self, actor: PreTrainedModel) -> SideCritic:
        """Set the actor whose activations are read, and return the critic.

        Raises:
            ValueError: If the actor has another size than the ladder was built for.
        """
        text, config = actor.config.get_text_config(), self.model.config
        if text.hidden_size != config.tapped_size or text.num_hidden_layers < max(config.taps):
            raise ValueError(
                f"critic: the side critic is for an actor with {max(config.taps)} layers of size "
                f"{config.tapped_size}, got {text.num_hidden_layers} of {text.hidden_size}"
            )
        self._actor = (actor,)
        return self

    @property
    @override
    def reader(self) -> PreTrainedModel:
        """The actor."""
        assert self._actor, "attach an actor first"
        return self._actor[0]

    @property
    @override
    def head(self) -> nn.Linear:
        """The value head, (R -> K)."""
        head = self.model.score
        assert isinstance(head, nn.Linear)
        return head

    @override
    @contextmanager
    def sharing_forward(self) -> Iterator[None]:
        """Read the states of the actor's forward pass in this context, instead of running another.

        Within it, the actor reads some tokens once, with or without gradients; then the critic is
        asked about the same tokens.
        """
        with tapping(self.reader.base_model, self.model.config.taps) as self._tapped:
            try:
                yield
            finally:
                self._tapped = None

    def forward(self, input_ids_BL: Tensor, prompt_lengths_B: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the head's float32 (or better) output for the state before each token, (N, K)."""
        with torch.no_grad():
            tapped_NKH = response_layers(
                self.reader.base_model,
                input_ids_BL,
                prompt_lengths_B,
                mask_BT,
                self.model.config.taps,
                self._tapped,
            )
        return self.read_head(self.model(tapped_NKH.to(self.model.dtype)))


def build_side_critic(actor: PreTrainedModel, settings: ValueSettings, seed: int) -> SideCritic:
    """Build a side critic for an actor; its head starts like that of any new critic.

    Args:
        actor: Actor whose activations are read.
        settings: Number of taps, width, head.
        seed: Seed of the ladder's weights.

    Raises:
        ValueError: If the actor has no list of layers that can be tapped.
    """
    text = actor.config.get_text_config()
    if not isinstance(getattr(actor.base_model, "layers", None), nn.ModuleList):
        raise ValueError(
            f"value.architecture: a side critic taps the `layers` of the actor, and a model of "
            f"type {text.model_type} has none; use the Llama, Qwen, Gemma or Mistral family"
        )
    layers, count = text.num_hidden_layers, min(settings.side_taps, text.num_hidden_layers)
    config = LadderConfig(
        taps=[layers * (k + 1) // count for k in range(count)],
        tapped_size=text.hidden_size,
        width=settings.side_width,
        num_labels=num_outputs(settings),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "side critic"))
        ladder = Ladder(config)
    critic = SideCritic(ladder, settings).attach(actor)
    critic.reset_head(seed)
    return critic


AutoConfig.register(LadderConfig.model_type, LadderConfig, exist_ok=True)
AutoModelForTokenClassification.register(LadderConfig, Ladder, exist_ok=True)
