"""The hyper-parameters of VC-PPO, grouped by the part of the algorithm that reads them.

Defaults are the paper's (VC-PPO, arXiv 2503.01491) where it states one; every switch that came with
a later paper is off. `configs/` holds the presets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_vcppo.common.errors import require

__all__ = [
    "AdvantageSettings",
    "EngineSettings",
    "GradingSettings",
    "LoRASettings",
    "OptimizerSettings",
    "PolicySettings",
    "RewardShapingSettings",
    "SamplingSettings",
    "UpdateSettings",
    "ValueSettings",
]

LossAggMode = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are sampled.

    Attributes:
        num_generations: Responses for each prompt.
        temperature: Of the softmax; 0 is greedy (for evaluation only).
        top_p: Keep the smallest set of tokens with this probability mass.
        max_response_length: Tokens after which a response is truncated.
        dynamic_sampling: DAPO: drop groups that are all right or all wrong, and sample on with the
            next prompts until the rollout is full (training, policy phase).
    """

    num_generations: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_response_length: int = 1024
    dynamic_sampling: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(
            self.num_generations >= 1, f"num_generations: expected >= 1, got {self.num_generations}"
        )
        require(self.temperature >= 0, f"temperature: expected >= 0, got {self.temperature}")
        require(0 < self.top_p <= 1, f"top_p: expected a share in (0, 1], got {self.top_p}")
        require(
            self.max_response_length >= 1,
            f"max_response_length: expected >= 1 token, got {self.max_response_length}",
        )


@dataclass(frozen=True)
class EngineSettings:
    """What samples the responses.

    Attributes:
        name: "transformers", the trained model itself; "vllm", a copy of it in the same process
            that takes the new weights over after each update.
        max_num_seqs: Responses that are sampled at the same time; memory of the key-value cache
            grows with them.
        gpu_memory_utilization: vLLM's share of the device's memory, for its weights and cache (on
            the CPU a share of main memory, taken for good).
        max_model_len: Most tokens of a prompt and its response; None is the model's own limit.
        sleep: Give vLLM's memory back to the trainer between rollouts (on the GPU; the CPU cannot).
        init_args: Other arguments of `vllm.LLM`, such as dtype (by default the type in which
            the actor computes: bfloat16 under bf16-mixed).
    """

    name: Literal["transformers", "vllm"] = "transformers"
    max_num_seqs: int = 256
    gpu_memory_utilization: float = 0.3
    max_model_len: int | None = None
    sleep: bool = True
    init_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        share, length = self.gpu_memory_utilization, self.max_model_len
        require(self.max_num_seqs >= 1, f"max_num_seqs: expected >= 1, got {self.max_num_seqs}")
        require(0 < share <= 1, f"gpu_memory_utilization: expected a share in (0, 1], got {share}")
        require(length is None or length >= 2, f"max_model_len: expected >= 2 tokens, got {length}")
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            size = self.init_args.get(name, 1)
            require(
                size == 1,
                f"init_args.{name}: expected 1, got {size}: each process samples its own prompts "
                "with a vLLM of its own, which cannot be shared; shard with fsdp2 to train a "
                "larger model",
            )


@dataclass(frozen=True)
class RewardShapingSettings:
    """What is added to the verifier's reward.

    Attributes:
        overlong_buffer_len: DAPO's soft punishment over the last tokens before the limit; 0 is off.
        overlong_penalty_factor: Its weight.
    """

    overlong_buffer_len: int = 0
    overlong_penalty_factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        length = self.overlong_buffer_len
        require(length >= 0, f"overlong_buffer_len: expected >= 0 tokens, got {length}")


@dataclass(frozen=True)
class GradingSettings:
    """Processes that compare answers, see `rewards/pool.py`; a reward function of yours has none.

    What texts do not decide alone is evaluated there. No accepted expression needs a hundredth of
    the limits, so verdicts depend on neither the number of workers nor the load.

    Attributes:
        workers: Worker processes of each rank; 0 compares in the training process.
        limit_s: CPU seconds of one comparison; one that reaches it counts as wrong.
        memory_mb: Memory, in MiB of address space, of one worker.
    """

    workers: int = 2
    limit_s: float = 30.0
    memory_mb: int = 4096

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.workers >= 0, f"workers: expected >= 0, got {self.workers}")
        require(self.limit_s >= 1, f"limit_s: expected >= 1 second, got {self.limit_s}")
        require(self.memory_mb >= 512, f"memory_mb: expected >= 512 MiB, got {self.memory_mb}")


@dataclass(frozen=True)
class AdvantageSettings:
    """From rewards and values to advantages and value targets.

    Attributes:
        estimator: "gae", or "group" for the critic-free group advantage of GRPO.
        gamma: Discount.
        lambda_actor: Of the advantages (VC-PPO's decoupled GAE).
        lambda_critic: Of the value targets; 1 makes them Monte-Carlo returns.
        length_adaptive_alpha: VAPO's lambda_actor = 1 - 1 / (alpha length) instead of a fixed one.
        whiten: Normalise advantages over the tokens of the rollout, on all ranks.
        normalize_group_std: Divide group advantages by the group's standard deviation.
        bootstrap_truncated: End truncated responses with the critic's value instead of 0.
        explained_variance_gate: EVPO: use the batch mean as baseline while explained variance <= 0.
    """

    estimator: Literal["gae", "group"] = "gae"
    gamma: float = 1.0
    lambda_actor: float = 0.99
    lambda_critic: float = 1.0
    length_adaptive_alpha: float | None = None
    whiten: bool = True
    normalize_group_std: bool = True
    bootstrap_truncated: bool = False
    explained_variance_gate: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in ("gamma", "lambda_actor", "lambda_critic"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name}: expected a number in [0, 1], got {value}")
        alpha = self.length_adaptive_alpha
        require(alpha is None or alpha > 0, f"length_adaptive_alpha: expected > 0, got {alpha}")

    @property
    def needs_critic(self) -> bool:
        """Whether advantages are made from values."""
        return self.estimator == "gae"


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer and its learning rate.

    Attributes:
        lr: Peak learning rate.
        warmup_updates: Optimizer updates over which the learning rate rises linearly to `lr`.
        max_grad_norm: Gradients are scaled down to this norm; 0 switches clipping off.
        max_skipped_updates: An update whose loss or gradient is not finite is left out; so many in
            a row end the run with a checkpoint, 0 never does. The default, ours, is two rollouts of
            the paper's size: one bad reward can spoil all updates of one.
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
        prompt_noise_weighting: EasyPPO: weight each prompt by 1 / max(std of its returns, 0.25).
    """

    head: Literal["scalar", "bounded", "hl_gauss"] = "scalar"
    value_min: float = -1.0
    value_max: float = 1.0
    num_bins: int = 51
    loss: Literal["mse", "huber"] = "mse"
    huber_delta: float = 1.0
    cliprange_value: float | None = None
    loss_agg_mode: LossAggMode = "token-mean"
    prompt_noise_weighting: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(
            self.value_min < self.value_max,
            f"value_min: expected below value_max, got {self.value_min} and {self.value_max}",
        )
        clip = self.cliprange_value
        require(self.huber_delta > 0, f"huber_delta: expected > 0, got {self.huber_delta}")
        require(clip is None or clip > 0, f"cliprange_value: expected > 0, got {clip}")
        # Three bins on either side only keep the histogram of an extreme return unbiased.
        require(self.num_bins > 6, f"num_bins: expected > 6, got {self.num_bins}")


@dataclass(frozen=True)
class LoRASettings:
    """Low-rank adapters for actor and critic on one frozen base (LoRA, arXiv 2106.09685).

    Attributes:
        rank: Of the adapters; None trains all weights instead.
        alpha: What an adapter adds is scaled by alpha / rank.
        target_modules: Linear layers that get one, such as [q_proj, v_proj]; "all-linear" is all
            but the heads.
    """

    rank: int | None = None
    alpha: float = 32.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.rank is None or self.rank >= 1, f"rank: expected >= 1, got {self.rank}")
        require(self.alpha > 0, f"alpha: expected > 0, got {self.alpha}")
        require(len(self.target_modules) > 0, "target_modules: expected a layer's name at least")


@dataclass(frozen=True)
class UpdateSettings:
    """How a rollout is cut into updates.

    Attributes:
        ppo_epochs: Passes of the policy over a rollout.
        ppo_mini_batch_size: Responses, over all ranks, of one policy update.
        critic_epochs: Passes of the critic; None means `ppo_epochs`.
        critic_mini_batch_size: Responses of one critic update; None means `ppo_mini_batch_size`.
        ppo_max_token_len_per_gpu: Tokens of one forward pass on one device (a micro-batch).
    """

    ppo_epochs: int = 1
    ppo_mini_batch_size: int = 512
    critic_epochs: int | None = None
    critic_mini_batch_size: int | None = None
    ppo_max_token_len_per_gpu: int = 16384

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name, value in vars(self).items():
            require(value is None or value >= 1, f"{name}: expected >= 1, got {value}")
