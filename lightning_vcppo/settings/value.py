"""Define the hyper-parameters of the critic's head and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_vcppo.common.errors import require
from lightning_vcppo.settings.aggregation import LossAggMode


@dataclass(frozen=True)
class ValueSettings:
    """Settings of the critic's head and loss.

    Attributes:
        architecture: "backbone", a separate model; "side", a small ladder on the actor's
            activations, without gradients to the actor (valm; side tuning, arXiv 2206.06522).
        side_taps: Number of the actor's layers that the ladder reads, evenly spaced up to the last.
        side_width: Width of the ladder.
        head: "scalar"; "bounded" to (value_min, value_max) by an arctangent (BPCO); "sigmoid", to
            the same range (PACT); "hl_gauss", a histogram of `num_bins` around it (HL-Gauss,
            arXiv 2403.03950).
        value_min: Lowest return (for all heads except the scalar one).
        value_max: Highest return.
        num_bins: Number of bins of the histogram.
        hl_gauss_sigma: Standard deviation of the histogram's targets; 0.75 bins in HL-Gauss, 0.024
            of the return with 101 bins in HL-Gauss PPO (arXiv 2608.02181).
        sigma_unit: Unit of `hl_gauss_sigma`: "bins", or "returns".
        head_init: Initial weights of a new head: "zero", so that V is constant, or "normal" with
            standard deviation 0.02 (HL-Gauss PPO).
        loss: "mse" (the paper's), "huber", or "bce" of a sigmoid head: the binary cross-entropy to
            the return mapped to [0, 1] (PACT). The histogram head has its own cross-entropy.
        huber_delta: Error at which the Huber loss becomes linear.
        cliprange_value: PPO2's value clipping; None, as in the paper's Algorithm 1, is off.
        loss_agg_mode: Aggregation of token losses.
        freeze: Part of the critic that keeps its initial weights: "attention" (SAO, arXiv
            2607.07508) or "embeddings".
        privileged_prompt: Hint that only the critic reads before a prompt: the reference "answer"
            (BPCO, arXiv 2608.23566), or "siblings", a right and a wrong response to the same
            prompt, never the judged one (piPPO, arXiv 2609.37825).
        privileged_max_length: Most tokens of the hint; the ends of longer siblings are kept.
        target_correction: PACT: "importance" multiplies targets by the ratio of each token's new
            probability to the old, after the actor's update (`update.order: actor_first`).
        target_max_ratio: Tokens with a larger ratio are dropped from the critic's loss.
        prompt_noise_weighting: EasyPPO: weight each prompt by
            1 / max(variance of its returns ^ exponent, floor), divided by the mean over prompts.
        prompt_noise_exponent: The exponent of that formula; 0.5 gives the standard deviation.
        prompt_noise_floor: The floor of that formula.
    """

    architecture: Literal["backbone", "side"] = "backbone"
    side_taps: int = 4
    side_width: int = 128
    head: Literal["scalar", "bounded", "sigmoid", "hl_gauss"] = "scalar"
    value_min: float = -1.0
    value_max: float = 1.0
    num_bins: int = 51
    hl_gauss_sigma: float = 0.75
    sigma_unit: Literal["bins", "returns"] = "bins"
    head_init: Literal["zero", "normal"] = "zero"
    loss: Literal["mse", "huber", "bce"] = "mse"
    huber_delta: float = 1.0
    cliprange_value: float | None = None
    loss_agg_mode: LossAggMode = "token-mean"
    freeze: Literal["none", "attention", "embeddings"] = "none"
    privileged_prompt: Literal["none", "answer", "siblings"] = "none"
    privileged_max_length: int = 1024
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
        for name in ("side_taps", "side_width"):
            number = getattr(self, name)
            require(number >= 1, f"{name}: expected >= 1, got {number}")
        for name in ("freeze", "privileged_prompt"):
            require(
                self.architecture == "backbone" or getattr(self, name) == "none",
                f"{name}: a side critic has no backbone; set architecture=backbone, or {name}=none",
            )
        longest = self.privileged_max_length
        require(longest >= 32, f"privileged_max_length: expected >= 32 tokens, got {longest}")
        require(self.huber_delta > 0, f"huber_delta: expected > 0, got {self.huber_delta}")
        require(clip is None or clip > 0, f"cliprange_value: expected > 0, got {clip}")
        require(
            self.target_max_ratio > 1,
            f"target_max_ratio: expected > 1, got {self.target_max_ratio}",
        )
        exponent, floor = self.prompt_noise_exponent, self.prompt_noise_floor
        require(exponent >= 0, f"prompt_noise_exponent: expected >= 0, got {exponent}")
        require(floor > 0, f"prompt_noise_floor: expected > 0, got {floor}")
        sigma, margin = self.hl_gauss_sigma, 8 * self.sigma_ratio
        require(sigma > 0, f"hl_gauss_sigma: expected > 0, got {sigma}")
        # Four sigmas on each side keep the histogram of an extreme return unbiased.
        require(self.num_bins > margin, f"num_bins: expected > {margin:g}, got {self.num_bins}")
        require(
            self.loss != "bce" or self.head == "sigmoid",
            f"loss: bce is the cross-entropy of a sigmoid head, and head is {self.head}; "
            "set head=sigmoid, or loss=mse",
        )
        require(
            clip is None or not (self.loss == "bce" or self.head == "hl_gauss"),
            "cliprange_value: clips only squared and Huber losses, no cross-entropy; leave it null",
        )

    @property
    def sigma_ratio(self) -> float:
        """Standard deviation of the histogram's targets, in bins.

        With the unit "returns", the bins cover the range and four sigmas on each side.
        """
        sigma = self.hl_gauss_sigma
        if self.sigma_unit == "bins":
            return sigma
        return sigma * self.num_bins / (self.value_max - self.value_min + 8 * sigma)
