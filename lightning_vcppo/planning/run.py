"""Describe a run for the arithmetic of memory and time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, TypeAlias

from lightning_vcppo.planning.shapes import ModelShape
from lightning_vcppo.settings import Kernels

GB = 10**9
Network: TypeAlias = Literal["policy", "critic"]


@dataclass(frozen=True)
class Bytes:
    """Bytes of one number, by its kind, under a precision flag of the Trainer.

    Attributes:
        weight: A weight, a gradient, a moment of the optimizer.
        compute: Output of projections and attention.
        stream: Output of a layer, which the next one reads.
        norm: Input that a norm keeps.
        normed: Output before the scale that a norm keeps.
    """

    weight: int
    compute: int
    stream: int
    norm: int
    normed: int


PRECISIONS = {
    "32-true": Bytes(4, 4, 4, 4, 4),
    "64-true": Bytes(8, 8, 8, 8, 8),
    "bf16-true": Bytes(2, 2, 2, 4, 2),
    "16-true": Bytes(2, 2, 2, 4, 2),
    "bf16-mixed": Bytes(4, 2, 4, 4, 4),
    "16-mixed": Bytes(4, 2, 4, 4, 4),
}
"""Bytes by flag; norms compute at least in float32, and autocast keeps the stream in float32."""
GATHERED_MIXED = Bytes(4, 2, 2, 4, 2)
"""bf16-mixed with fsdp2, which gathers weights in bfloat16 and casts the inputs of a layer."""

SERVER_SHARE = 0.9
"""Default share of a server's device memory that `vcppo serve` gives to vLLM."""
SERVER_BYTES = {"cpu": 4, "cuda": 2}
"""Bytes of a weight on a server, by its kind of device; `vcppo serve` chooses the type."""

KEPT_BYTES = {"float32": 4, "kahan": 2, "stochastic": 0}
"""Bytes for each bfloat16 weight that an optimizer keeps in addition to its float32 state."""


@dataclass(frozen=True)
class Run:
    """The properties of a run on which its memory and time depend.

    Attributes:
        actor: Shape of the actor.
        critic: Shape of the critic; None if there is no critic.
        side_weights: Weights of a side critic, which reads the actor; 0 if there is none.
        side_together: Whether it learns in the policy's passes.
        reference: Whether there is a frozen reference, which has the actor's shape.
        prompt_length: Tokens of the longest prompt.
        response_length: Tokens of the longest response.
        mean_response_length: Expected mean tokens of a response, which determine the time.
        prompts: Prompts of a rollout, on all devices.
        num_generations: Responses a prompt.
        mini_batch: Responses of a policy update, on all devices.
        critic_mini_batch: Responses of a critic update, on all devices.
        epochs: Passes of the policy over a rollout.
        critic_epochs: Passes of the critic over a rollout.
        max_tokens: Tokens of a micro-batch on one device.
        max_num_seqs: Responses that are sampled together on one device.
        engine: Name of the engine that samples.
        engine_share: vLLM's share of the device's memory.
        engine_sleeps: Whether vLLM releases its memory between rollouts.
        engine_bytes: Bytes of a weight in vLLM.
        sampling_devices: Number of other devices on which the engine samples; 0 if it samples on
            those that train.
        precision: Precision flag of the Trainer.
        strategy: Distribution of a network over devices.
        devices: Number of all devices.
        shards: Devices that share one copy of the weights; 1 without fsdp2.
        moments: Numbers that the optimizer keeps for each weight; 2 for Adam.
        critic_frozen: Part of the critic that is not trained.
        master_weights: Way to keep small updates of bfloat16 weights.
        lora_rank: Rank of the adapters; None trains all weights.
        lora_targets: Projections with adapters; empty means all.
        checkpointing: Whether layers are computed again in the backward pass.
        offload: Parts that are on the host while they are not in use.
        kernels: Kernels of the layers. "auto" is planned as "none", because the plan does not know
            whether Liger is installed where the run will be.
        logprob_readings: Number of times the actor reads log-probabilities outside its updates:
            before them, and after them to correct the critic's targets.
        device: "cpu" or "cuda".
        memory: Bytes of one device.
    """

    actor: ModelShape
    critic: ModelShape | None
    side_weights: int = 0
    side_together: bool = False
    reference: bool = False
    prompt_length: int = 2048
    response_length: int = 1024
    mean_response_length: int = 1024
    prompts: int = 64
    num_generations: int = 1
    mini_batch: int = 512
    critic_mini_batch: int = 512
    epochs: int = 1
    critic_epochs: int = 1
    max_tokens: int = 16384
    max_num_seqs: int = 256
    engine: Literal["transformers", "transformers_copy", "vllm", "vllm_server"] = "transformers"
    engine_share: float = 0.3
    engine_sleeps: bool = True
    engine_bytes: int = 4
    sampling_devices: int = 0
    precision: str = "32-true"
    strategy: Literal["single", "ddp", "fsdp2"] = "single"
    devices: int = 1
    shards: int = 1
    moments: int = 2
    critic_frozen: Literal["none", "attention", "embeddings"] = "none"
    master_weights: Literal["none", "float32", "kahan", "stochastic"] = "none"
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] = ()
    checkpointing: bool = False
    offload: tuple[str, ...] = ()
    kernels: Kernels = "auto"
    logprob_readings: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    memory: int = 80 * GB

    @property
    def bytes(self) -> Bytes:
        """Bytes of numbers, by their kind."""
        if self.strategy == "fsdp2" and self.precision == "bf16-mixed":
            return GATHERED_MIXED
        return PRECISIONS[self.precision]

    @property
    def state_bytes(self) -> int:
        """Bytes that the optimizer keeps for one trained weight, without adapters."""
        if self.master_weights == "none" or self.bytes.weight >= 4:
            return self.moments * self.bytes.weight
        return 4 * self.moments + KEPT_BYTES[self.master_weights]

    @property
    def autocasts(self) -> bool:
        """Whether weights are cast for each product; fsdp2 gathers them in that precision."""
        return self.precision.endswith("mixed") and self.strategy != "fsdp2"

    @property
    def responses(self) -> int:
        """Number of responses of a rollout on one device."""
        return ceil(self.prompts * self.num_generations / self.devices)

    @property
    def rows(self) -> int:
        """Number of responses that are sampled together on one device."""
        return min(self.responses, self.max_num_seqs)

    @property
    def sampler(self) -> Run:
        """The run on the devices that sample; the run itself if none are separate."""
        if not self.sampling_devices:
            return self
        return replace(
            self,
            engine="vllm" if self.engine == "vllm_server" else "transformers",
            engine_share=SERVER_SHARE,
            devices=self.sampling_devices,
            sampling_devices=0,
            strategy="single",
            shards=1,
        )

    @property
    def networks(self) -> list[Network]:
        """Networks that are trained."""
        return ["policy"] if self.critic is None else ["critic", "policy"]

    def shape(self, network: Network) -> ModelShape:
        """Return the architecture of a network."""
        shape = self.actor if network == "policy" else self.critic
        assert shape is not None
        return shape

    def weights(self, network: Network) -> int:
        """Return the number of weights of a network, without adapters and value heads."""
        shape = self.shape(network)
        return shape.weights if network == "policy" else shape.backbone

    def trainable(self, network: Network) -> int:
        """Return the number of weights of a network that get a gradient."""
        shape = self.shape(network)
        if self.lora_rank is None:
            frozen = self.critic_frozen if network == "critic" else "none"
            return self.weights(network) - shape.part(frozen)
        chosen = shape.projections.items()
        adapted = sum(sum(n) for name, n in chosen if name in (self.lora_targets or name))
        return shape.num_layers * self.lora_rank * adapted

    def passes(self, network: Network) -> int:
        """Return the number of passes of a network over a rollout."""
        return self.epochs if network == "policy" else self.critic_epochs

    def mini_batch_of(self, network: Network) -> int:
        """Return the number of responses of an update, on all devices."""
        return self.mini_batch if network == "policy" else self.critic_mini_batch

    def micro_batches(self, network: Network) -> tuple[int, int]:
        """Return the number of micro-batches of an update on one device, and the rows of one."""
        responses = min(self.mini_batch_of(network), self.prompts * self.num_generations)
        mine = ceil(responses / self.devices)
        fitting = max(1, self.max_tokens // (self.prompt_length + self.response_length))
        count = ceil(mine / fitting)
        return count, ceil(mine / count)
