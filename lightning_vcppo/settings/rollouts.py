"""Define the hyper-parameters of sampling responses and rewarding them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_vcppo.common.errors import require


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of the sampling of responses.

    Attributes:
        num_generations: Number of responses to each prompt.
        temperature: Temperature of the softmax; 0 is greedy (only for evaluation).
        top_p: Keep the smallest set of tokens with this probability mass.
        max_response_length: Number of tokens after which a response is truncated.
        dynamic_sampling: DAPO: drop groups that are all right or all wrong, and continue with the
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
    """Settings of the generation engine.

    Attributes:
        name: "transformers", the trained model itself; "vllm", a copy of it in the same process
            that copies the new weights after each update.
        max_num_seqs: Number of responses sampled at the same time; memory of the key-value cache
            grows with them.
        gpu_memory_utilization: vLLM's share of the device's memory, for its weights and cache (on
            the CPU a share of main memory, which is not released).
        max_model_len: Most tokens of a prompt and its response; None means the model's own limit.
        sleep: Release vLLM's memory to the trainer between rollouts (only on the GPU).
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
                "with its own vLLM, which cannot be sharded; use fsdp2 to train a larger model",
            )


@dataclass(frozen=True)
class RewardShapingSettings:
    """Settings of penalties added to the verifier's reward.

    Attributes:
        overlong_buffer_len: DAPO's soft penalty on the last tokens before the limit; 0 means off.
        overlong_penalty_factor: Weight of the penalty.
    """

    overlong_buffer_len: int = 0
    overlong_penalty_factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        length = self.overlong_buffer_len
        require(length >= 0, f"overlong_buffer_len: expected >= 0 tokens, got {length}")


@dataclass(frozen=True)
class GradingSettings:
    """Settings of the processes that compare answers, see `rewards/pool.py`.

    Answers that cannot be compared as text are evaluated there; a user's own reward function does
    not use them. No accepted expression needs a hundredth of the limits, so verdicts depend on
    neither the number of workers nor the load.

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
