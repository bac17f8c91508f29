"""Define the hyper-parameters of the policy loss."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.ranks import own_rank
from lightning_vcppo.settings.aggregation import LossAggMode
from lightning_vcppo.settings.rollouts import EngineSettings


@dataclass(frozen=True)
class PolicySettings:
    """Settings of the policy loss.

    Attributes:
        loss: "ppo", the clipped loss; "dis", SAO's band, outside of which a token has no gradient;
            "dppo_tv", BPCO's bound on the change of the probability; "cispo", a clipped weight on
            every token's gradient; "gspo", PPO with one ratio per response.
        clip_ratio_low: PPO's lower clip, 1 - clip_ratio_low; in every loss the lower bound.
        clip_ratio_high: Upper clip, 1 + clip_ratio_high (VAPO's clip-higher: 0.28). Sizes differ
            by loss: DIS uses 0.3 and 5, DPPO-TV 0.2 and 0.2 of a probability, GSPO 3e-4 and 4e-4.
        clip_ratio_c: Dual clip of PPO: bound of the loss for negative advantages; in DPPO-TV bound
            of the ratio.
        loss_agg_mode: Aggregation of token losses.
        entropy_coeff: Weight of the entropy bonus.
        kl_coef: Weight of the KL divergence from the reference; at 0 no reference is loaded.
        kl_estimator: k1, k2 or k3 (Schulman). As a loss k1 has no gradient on average: use k2 or k3
            in the loss, k1 in the reward.
        kl_placement: Add the KL to the loss, or subtract it from each token's reward.
        positive_example_nll_weight: VAPO's language-model loss on correct responses (0.1 there).
        importance_correction: Correct the sampler's mismatch with truncated or masked weights;
            "auto" truncates with vLLM, whose arithmetic differs, and with rollouts ahead, whose
            weights are older; otherwise it is off.
            importance_cap: Bound C of the weights.
            old_logprobs: Source of the log-probabilities before the update. "recomputed": from a
                forward pass. "sampler": from sampling, by any engine ("bypass", as intended by DIS
                and DPPO-TV), so the ratio is that to the sampler. "auto": from sampling if they are
                equal except for rounding: in float32, from the transformers engine and without
                importance correction; else from a forward pass.
        reuse_sampler_logprobs: Former name, accepted until the next version: true is "auto" and
            false "recomputed".
        mask_truncated: EasyPPO: truncated responses leave the policy loss, not the critic's.
    """

    loss: Literal["ppo", "dis", "dppo_tv", "cispo", "gspo"] = "ppo"
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
    old_logprobs: Literal["auto", "recomputed", "sampler"] = "auto"
    reuse_sampler_logprobs: bool | None = None
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
            c is None or self.loss in ("ppo", "dppo_tv"),
            f"clip_ratio_c: only the losses ppo and dppo_tv have it, and the loss is {self.loss}",
        )
        self._take_former_name()
        require(
            self.old_logprobs != "sampler" or self.importance_correction in ("auto", "off"),
            "importance_correction: with old_logprobs=sampler the ratio is that to the sampler, so "
            f"nothing is left to correct; expected off, got {self.importance_correction}",
        )
        require(
            self.importance_cap >= 1, f"importance_cap: expected >= 1, got {self.importance_cap}"
        )

    def _take_former_name(self) -> None:
        """Read `reuse_sampler_logprobs` into `old_logprobs`, with a warning of one line."""
        reuse = self.reuse_sampler_logprobs
        if reuse is None:
            return
        instead = "auto" if reuse else "recomputed"
        require(
            self.old_logprobs in ("auto", instead),
            f"reuse_sampler_logprobs: remove it, because old_logprobs={self.old_logprobs} "
            "replaces it",
        )
        if own_rank() == 0:
            message = (
                f"policy.reuse_sampler_logprobs={str(reuse).lower()} is now "
                f"policy.old_logprobs={instead}, and will be refused in the next version"
            )
            # Without a file name the warning is one line; its reader wrote a flag or YAML.
            warnings.warn_explicit(message, FutureWarning, filename="vcppo", lineno=0)
        object.__setattr__(self, "old_logprobs", instead)
        object.__setattr__(self, "reuse_sampler_logprobs", None)

    def correction_with(self, engine: EngineSettings) -> Literal["off", "truncate", "mask"]:
        """Return the importance correction to apply to the samples of an engine."""
        if self.importance_correction != "auto":
            return self.importance_correction
        if self.old_logprobs == "sampler":
            return "off"
        return "truncate" if engine.is_vllm or engine.samples_off_policy else "off"
