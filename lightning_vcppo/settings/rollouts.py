"""Define the hyper-parameters of sampling responses and rewarding them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.lists import as_list

EngineName = Literal["transformers", "transformers_copy", "vllm", "vllm_server"]
WeightTransferName = Literal["files", "nccl"]
_HOST = r"(?!.{254})[\w-]{1,63}(\.[\w-]{1,63})*\.?"


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
        name: "transformers", the trained model itself; "transformers_copy", a copy of it on the
            same device or another; "vllm", a copy in the same process that copies the new weights
            after each update; "vllm_server", copies in servers that `vcppo serve` has started.
        rollouts_ahead: Number of rollouts that are sampled, by an engine with a copy of its own,
            while others are learned from; also the largest age of a rollout, in rollouts. 0 samples
            and learns in turn.
        partial_length: Most tokens that a response gains in one training step; longer ones are
            continued in the next steps, with newer weights. None samples complete responses.
        max_num_seqs: Number of responses sampled at the same time, by each server if there are
            some; memory of the key-value cache grows with them.
        gpu_memory_utilization: vLLM's share of the device's memory, for its weights and cache (on
            the CPU a share of main memory, which is not released).
        max_model_len: Most tokens of a prompt and its response; None means the model's own limit.
        sleep: Release vLLM's memory to the trainer between rollouts (only on the GPU).
        init_args: Other arguments of the engine: of `vllm.LLM`, such as dtype (by default the type
            in which the actor computes: bfloat16 under bf16-mixed); of transformers_copy: device.
        urls: Addresses of the servers, such as http://127.0.0.1:8000, one or a list; the
            prompts are spread over them.
        token_file: File of the servers' token; None looks for VCPPO_SERVER_TOKEN in the
            environment, then where `vcppo serve` writes it by default.
        weight_transfer: How servers get new weights: "files" in a directory, or "nccl" from GPU to
            GPU, with vLLM's own API (one training process; not tried on a GPU yet).
        weights_dir: Directory that trainer and servers see under the same name, for the weights;
            None is that for temporary files, which is enough on one machine.
        timeout_s: Seconds without an answer to a question that needs no work, after which a server
            counts as hanging.
        weights_timeout_s: Seconds in which a server must have taken new weights over.
        response_timeout_s: Seconds that a response may take a server.
        retry_s: Seconds until a server that has failed is tried again; doubled each time, up to 30.
        patience_s: Seconds for which a server is tried again before it is given up. Without any
            server the run ends, with a checkpoint.
    """

    name: EngineName = "transformers"
    rollouts_ahead: int = 0
    partial_length: int | None = None
    max_num_seqs: int = 256
    gpu_memory_utilization: float = 0.3
    max_model_len: int | None = None
    sleep: bool = True
    init_args: dict[str, Any] = field(default_factory=dict)
    urls: list[str] | str = field(default_factory=list)
    token_file: str | None = None
    weight_transfer: WeightTransferName = "files"
    weights_dir: str | None = None
    timeout_s: float = 60.0
    weights_timeout_s: float = 600.0
    response_timeout_s: float = 3600.0
    retry_s: float = 1.0
    patience_s: float = 600.0

    @property
    def is_vllm(self) -> bool:
        """Whether vLLM samples, here or elsewhere: with arithmetic of its own."""
        return self.name.startswith("vllm")

    @property
    def samples_off_policy(self) -> bool:
        """Whether older weights sample than learn."""
        return self.rollouts_ahead > 0 or self.partial_length is not None

    def __post_init__(self) -> None:
        """Refuse impossible values; a single address becomes a list."""
        object.__setattr__(self, "urls", as_list(self.urls))
        self._check_servers()
        share, length = self.gpu_memory_utilization, self.max_model_len
        ahead, part = self.rollouts_ahead, self.partial_length
        require(ahead >= 0, f"rollouts_ahead: expected >= 0 rollouts, got {ahead}")
        require(part is None or part >= 1, f"partial_length: expected >= 1 token, got {part}")
        require(
            part is None or ahead == 0,
            f"partial_length: with rollouts_ahead={ahead} responses are sampled while others are "
            "learned from, and cannot be continued in between; set one of the two",
        )
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

    def _check_servers(self) -> None:
        """Refuse missing, superfluous or invalid addresses of servers, and times below 0."""
        require(
            bool(self.urls) == (self.name == "vllm_server"),
            "urls: name=vllm_server needs the address of at least one `vcppo serve`, such as "
            '["http://127.0.0.1:8000"]; other engines have none',
        )
        way = self.weight_transfer
        require(way in ("files", "nccl"), f"weight_transfer: expected files or nccl, got {way}")
        require(
            way == "files" or (self.name == "vllm_server" and self.weights_dir is None),
            "weight_transfer: nccl is for name=vllm_server without a weights_dir",
        )
        for url in self.urls:
            require(
                _is_address(url),
                f"urls: expected an address like http://HOST:PORT, PORT in 1..65535, got {url}",
            )
        plain = [url.rstrip("/") for url in self.urls]
        require(len({*plain}) == len(plain), "urls: the same address twice")
        for name in ("timeout_s", "weights_timeout_s", "response_timeout_s", "retry_s"):
            value = getattr(self, name)
            require(value > 0, f"{name}: expected more than 0 seconds, got {value}")
        require(self.patience_s >= 0, f"patience_s: expected >= 0 seconds, got {self.patience_s}")


def _is_address(url: str) -> bool:
    """Return whether a URL has a host, a port in its range if any, and no query."""
    if re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url) is None:
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.netloc.startswith("["):
            after = parts.netloc.partition("]")[2]
            return port != 0 and after[:1] in ("", ":") and ip_address(host).version == 6
    except ValueError:
        return False
    return port != 0 and not parts.netloc.endswith(":") and re.fullmatch(_HOST, host) is not None


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
