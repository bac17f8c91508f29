"""Define the hyper-parameters of the updates: optimizers, adapters, epochs and batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.lists import as_list

MasterWeights: TypeAlias = Literal["none", "float32", "kahan", "stochastic"]
"""Ways to keep updates that bfloat16 weights would round away."""
Kernels: TypeAlias = Literal["auto", "liger", "none"]
"""Kernels of norms, SwiGLU and rotation on CUDA; "auto" uses Liger's if it is installed."""

Offload: TypeAlias = Literal["reference", "idle_optimizer", "idle_network"]
"""Parts that are kept on the host while they are not in use."""


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer and its learning rate.

    Attributes:
        lr: Peak learning rate.
        warmup_updates: Number of updates over which the learning rate rises linearly to `lr`.
        max_grad_norm: Gradients are scaled down to this norm; 0 switches clipping off.
        max_skipped_updates: An update whose loss or gradient is not finite is skipped; this many
            in a row end the run with a checkpoint; 0 means no limit. The default, ours, is two
            rollouts of the paper's size, because a bad reward can spoil all updates of a rollout.
        class_path: Import path of a `torch.optim.Optimizer`.
        init_args: Its other arguments.
    """

    lr: float = 1e-6
    warmup_updates: int = 0
    max_grad_norm: float = 1.0
    max_skipped_updates: int = 32
    class_path: str = "torch.optim.AdamW"
    init_args: dict[str, Any] = field(default_factory=lambda: {"weight_decay": 0.0})

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.lr > 0, f"lr: expected > 0, got {self.lr}")
        require(
            self.warmup_updates >= 0, f"warmup_updates: expected >= 0, got {self.warmup_updates}"
        )
        require(self.max_grad_norm >= 0, f"max_grad_norm: expected >= 0, got {self.max_grad_norm}")
        require(
            self.max_skipped_updates >= 0,
            f"max_skipped_updates: expected >= 0, got {self.max_skipped_updates}",
        )


ALL_LINEAR = "all-linear"
"""Instead of the names of layers: all linear layers except the heads."""


@dataclass(frozen=True)
class LoRASettings:
    """Low-rank adapters for actor and critic on one frozen base (LoRA, arXiv 2106.09685).

    Attributes:
        rank: Rank of the adapters; None trains all weights instead.
        alpha: Scale of an adapter's change, which is multiplied by alpha / rank.
        target_modules: Linear layers with adapters, such as q_proj or [q_proj, v_proj];
            "all-linear" means all except the heads.
    """

    rank: int | None = None
    alpha: float = 32.0
    target_modules: list[str] | str = ALL_LINEAR

    def __post_init__(self) -> None:
        """Refuse impossible values; a single layer's name becomes a list."""
        if self.target_modules != ALL_LINEAR:
            object.__setattr__(self, "target_modules", as_list(self.target_modules))
        require(self.rank is None or self.rank >= 1, f"rank: expected >= 1, got {self.rank}")
        require(self.alpha > 0, f"alpha: expected > 0, got {self.alpha}")
        require(len(self.target_modules) > 0, "target_modules: expected at least one layer's name")


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of the updates on a rollout.

    Attributes:
        order: Network that is updated first; or both "together": a side critic learns in the
            policy's own forward passes, which saves as many passes of the actor. Advantages and
            targets are computed before both updates, so the order matters with
            `value.target_correction`, and to a side critic: it reads the actor before the actor's
            updates, after them, or before each.
        ppo_epochs: Number of passes of the policy over a rollout.
        ppo_mini_batch_size: Number of responses, over all ranks, of one policy update.
        critic_epochs: Number of passes of the critic; None means `ppo_epochs`.
        critic_mini_batch_size: Number of responses of one critic update; None means
            `ppo_mini_batch_size`.
        ppo_max_token_len_per_gpu: Most tokens of one forward pass on one device (a micro-batch).
    """

    order: Literal["critic_first", "actor_first", "together"] = "critic_first"
    ppo_epochs: int = 1
    ppo_mini_batch_size: int = 512
    critic_epochs: int | None = None
    critic_mini_batch_size: int | None = None
    ppo_max_token_len_per_gpu: int = 16384

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name, value in vars(self).items():
            require(not isinstance(value, int) or value >= 1, f"{name}: expected >= 1, got {value}")
