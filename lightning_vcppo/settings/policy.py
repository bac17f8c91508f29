"""Hyper-parameters of the policy loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_vcppo.common.errors import require
from lightning_vcppo.settings.aggregation import LossAggMode
from lightning_vcppo.settings.rollouts import EngineSettings


@dataclass(frozen=True)
class PolicySettings:
    """The policy loss.

    Attributes:
        clip_ratio_low: PPO's lower clip, 1 - clip_ratio_low.
        clip_ratio_high: The upper one, 1 + clip_ratio_high (VAPO's clip-higher: 0.28).
        clip_ratio_c: Dual clip: bound of the loss for negative advantages.
        loss_agg_mode: How token losses become one number.
        entropy_coeff: Weight of the entropy bonus.
        kl_coef: Weight of the KL divergence from the reference; at 0 no reference is loaded.
        kl_estimator: k1, k2 or k3 (Schulman). As a loss k1 has no gradient on average: use k2 or k3
            there, k1 in the reward.
        kl_placement: Add the KL to the loss, or subtract it from each token's reward.
        positive_example_nll_weight: VAPO's language-model loss on correct responses (0.1 there).
        importance_correction: Correct the sampler's mismatch with truncated or masked weights;
            "auto" truncates with vLLM, whose arithmetic is another, and is off with transformers.
        importance_cap: Their bound C.
        reuse_sampler_logprobs: Take log-probabilities and entropy before the update from sampling
            instead of another forward pass, where they are the same numbers but for rounding: in
            float32, from the transformers engine, without importance correction.
        mask_truncated: EasyPPO: truncated responses leave the policy loss, not the critic's.
    """

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_ratio_c: float | None = None
    loss_agg_mode: LossAggMode = "token-mean"
    entropy_coeff: float = 0.0
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"
    kl_placement: Literal["loss", "reward"] = "loss"
    positive_example_nll_weight: float = 0.0
    importance_correction: Literal["auto", "off", "truncate", "mask"] = "auto"
    importance_cap: float = 2.0
    reuse_sampler_logprobs: bool = True
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in ("clip_ratio_low", "clip_ratio_high", "kl_coef", "positive_example_nll_weight"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: expected >= 0, got {value}")
        low = self.clip_ratio_low
        require(low <= 1, f"clip_ratio_low: expected <= 1, as 1 - clip_ratio_low bounds, got {low}")
        c = self.clip_ratio_c
        require(c is None or c > 1, f"clip_ratio_c: expected > 1, got {c}")
        require(
            self.importance_cap >= 1, f"importance_cap: expected >= 1, got {self.importance_cap}"
        )

    def correction_with(self, engine: EngineSettings) -> Literal["off", "truncate", "mask"]:
        """Return the importance correction to apply to the samples of an engine."""
        if self.importance_correction != "auto":
            return self.importance_correction
        return "truncate" if engine.name == "vllm" else "off"
