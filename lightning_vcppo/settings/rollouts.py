"""Hyper-parameters of sampling responses and rewarding them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_vcppo.common.errors import require


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
        name: "transformers", the trained model itself; "transformers_copy", a copy of it, on the
            same device or another; "vllm", a copy in the same process, in vLLM's arithmetic. Copies
            take the new weights over after each rollout's updates.
        rollouts_ahead: Rollouts that are sampled, by an engine with a copy of its own, while others
            are learned from. Up to so many updates of the policy, counted in rollouts, lie between
            the weights that sample and those that learn; 0 samples and learns in turn.
        max_num_seqs: Responses that are sampled at the same time; memory of the key-value cache
            grows with them.
        gpu_memory_utilization: vLLM's share of the device's memory, for its weights and cache (on
            the CPU a share of main memory, taken for good).
        max_model_len: Most tokens of a prompt and its response; None is the model's own limit.
        sleep: Give vLLM's memory back to the trainer between rollouts (on the GPU; the CPU cannot).
        init_args: Other arguments of the engine: of `vllm.LLM`, such as dtype (by default the type
            in which the actor computes: bfloat16 under bf16-mixed); of transformers_copy: device.
    """

    name: Literal["transformers", "transformers_copy", "vllm"] = "transformers"
    rollouts_ahead: int = 0
    max_num_seqs: int = 256
    gpu_memory_utilization: float = 0.3
    max_model_len: int | None = None
    sleep: bool = True
    init_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        share, length = self.gpu_memory_utilization, self.max_model_len
        ahead = self.rollouts_ahead
        require(ahead >= 0, f"rollouts_ahead: expected >= 0 rollouts, got {ahead}")
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
