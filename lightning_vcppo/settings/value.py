"""Hyper-parameters of the critic's head and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_vcppo.common.errors import require
from lightning_vcppo.settings.aggregation import LossAggMode


@dataclass(frozen=True)
class ValueSettings:
    """The critic's head and loss.

    Attributes:
        head: "scalar"; "bounded" to (value_min, value_max) by an arctangent (BPCO); "hl_gauss", a
            histogram of `num_bins` between them.
        value_min: Lowest return (bounded and hl_gauss heads).
        value_max: Highest return.
        num_bins: Of the histogram.
        loss: "mse" (the paper's) or "huber"; the histogram head has its own cross-entropy.
        huber_delta: Where the Huber loss turns linear.
        cliprange_value: PPO2's value clipping; None, as in the paper's Algorithm 1, is off.
        loss_agg_mode: How token losses become one number.
        target_correction: PACT: "importance" multiplies targets by the ratio of each token's new
            probability to the old, after the actor's update (`update.order: actor_first`).
        target_max_ratio: Tokens with a larger ratio are left out of the critic's loss.
        prompt_noise_weighting: EasyPPO: weight each prompt by
            1 / max(variance of its returns ^ exponent, floor), divided by the mean over prompts.
        prompt_noise_exponent: Its exponent; 0.5 makes it the standard deviation.
        prompt_noise_floor: Its floor.
    """

    head: Literal["scalar", "bounded", "hl_gauss"] = "scalar"
    value_min: float = -1.0
    value_max: float = 1.0
    num_bins: int = 51
    loss: Literal["mse", "huber"] = "mse"
    huber_delta: float = 1.0
    cliprange_value: float | None = None
    loss_agg_mode: LossAggMode = "token-mean"
    target_correction: Literal["none", "importance"] = "none"
    target_max_ratio: float = 6.0
    prompt_noise_weighting: bool = False
    prompt_noise_exponent: float = 0.5
    prompt_noise_floor: float = 0.25

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(
            self.value_min < self.value_max,
            f"value_min: expected below value_max, got {self.value_min} and {self.value_max}",
        )
        clip = self.cliprange_value
        require(self.huber_delta > 0, f"huber_delta: expected > 0, got {self.huber_delta}")
        require(clip is None or clip > 0, f"cliprange_value: expected > 0, got {clip}")
        require(
            self.target_max_ratio > 1,
            f"target_max_ratio: expected > 1, got {self.target_max_ratio}",
        )
        exponent, floor = self.prompt_noise_exponent, self.prompt_noise_floor
        require(exponent >= 0, f"prompt_noise_exponent: expected >= 0, got {exponent}")
        require(floor > 0, f"prompt_noise_floor: expected > 0, got {floor}")
        # Three bins on either side only keep the histogram of an extreme return unbiased.
        require(self.num_bins > 6, f"num_bins: expected > 6, got {self.num_bins}")
