"""Estimate the time of a rollout by arithmetic: operations and bytes over a device's rates.

1. A token costs two operations per weight in a forward pass and four in a backward pass; a layer
   that is computed again costs two more. Attention adds 4 query widths for each earlier token.
2. Sampling reads all weights and the cache for every column of tokens; a device is as fast as the
   slower of its arithmetic and its memory.
3. Sharded weights are sent twice in a micro-batch, gradients once, both during the arithmetic.
4. If other devices sample, the time of sampling is theirs. The transfer of the weights to them is
   not counted.
5. Offloaded parts move to the host and back once a rollout; no computation overlaps with that.

No device reaches its data sheet, so rates are multiplied by usual shares: `MFU` for the arithmetic
in updates, `BANDWIDTH_SHARE` for bandwidths. Both are assumptions, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf

from lightning_vcppo.planning.memory import cache_bytes_of_token, engine_memory, offloaded
from lightning_vcppo.planning.run import GB, Network, Run

MFU = 0.4
"""Large models on H100s: 38 to 43 % in bfloat16 (Llama 3, arXiv 2407.21783, table 4)."""
BANDWIDTH_SHARE = 0.6
"""Share of the bandwidth of memory and links; our assumption."""


@dataclass(frozen=True)
class Device:
    """The data sheet of a device.

    Attributes:
        memory: Bytes of memory.
        half_flops: Dense operations a second in bfloat16.
        full_flops: Operations a second in float32 without TF32; with TF32 half of `half_flops`.
        bandwidth: Bytes a second from memory.
        link: Bytes a second to the devices of the same machine, one way.
        host: Bytes a second to the memory of the host, one way.
        network: Bytes a second to other machines, for each device.
    """

    memory: float
    half_flops: float
    full_flops: float
    bandwidth: float
    link: float
    host: float
    network: float = 50 * GB  # 400 Gbit/s for each GPU, as in DGX machines

    def rates(self, precision: str, *, tf32: bool = False) -> Rates:
        """Return the expected rates for a precision flag of the Trainer, with or without TF32."""
        peak = self.half_flops
        if precision.startswith(("32", "64")):
            peak = self.half_flops / 2 if tf32 and precision == "32-true" else self.full_flops
        others = (self.bandwidth, self.link, self.network, self.host)
        return Rates(MFU * peak, MFU * peak, *(BANDWIDTH_SHARE * rate for rate in others))


@dataclass(frozen=True)
class Rates:
    """Operations and bytes of a device in one second.

    Attributes:
        update_flops: Operations in an update.
        sampling_flops: Operations in sampling.
        bandwidth: Bytes read from memory in sampling.
        link: Bytes sent to the devices of the same machine.
        network: Bytes sent to other machines.
        host: Bytes moved to or from the memory of the host.
    """

    update_flops: float
    sampling_flops: float
    bandwidth: float = inf
    link: float = inf
    network: float = inf
    host: float = inf


# NVIDIA's data sheets of these products (dense rates, NVLink one way); PCIe 4.0 x16 without NVLink.
# The host is reached by PCIe: 4.0 x16 (A100, L40S, RTX 4090) or 5.0 x16.
DEVICES = {
    "a100-40gb": Device(40 * GB, 312e12, 19.5e12, 1555 * GB, 300 * GB, 32 * GB),
    "a100": Device(80 * GB, 312e12, 19.5e12, 2039 * GB, 300 * GB, 32 * GB),
    "h100": Device(80 * GB, 989e12, 67e12, 3350 * GB, 450 * GB, 64 * GB),
    "h200": Device(141 * GB, 989e12, 67e12, 4800 * GB, 450 * GB, 64 * GB),
    "b200": Device(180 * GB, 2250e12, 75e12, 7700 * GB, 900 * GB, 64 * GB),
    "l40s": Device(48 * GB, 362e12, 91.6e12, 864 * GB, 32 * GB, 32 * GB),
    "rtx4090": Device(24 * GB, 165e12, 82.6e12, 1008 * GB, 32 * GB, 32 * GB),
}
"""Devices by their name in `vcppo plan --device`."""


@dataclass(frozen=True)
class Seconds:
    """Seconds of one rollout of the policy phase.

    Attributes:
        sampling: Reading prompts and sampling responses.
        score: Reading log-probabilities and values before the update.
        critic: Updates of the critic.
        policy: Updates of the policy.
    """

    sampling: float
    score: float
    critic: float
    policy: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.sampling + self.score + self.critic + self.policy


def plan_seconds(run: Run, rates: Rates, devices_per_machine: int) -> Seconds:
    """Return the seconds of a rollout in which all responses have the mean length."""
    readings = run.logprob_readings + int(run.reference)
    score = readings * forward_flops(run, "policy")
    score += forward_flops(run, "critic") if "critic" in run.networks else 0.0
    # A side critic reads the actor without gradients, unless its log-probabilities are read anyway.
    reading = forward_flops(run, "policy", head=False) if run.side_weights else 0.0
    score += 0.0 if run.logprob_readings else reading
    passes = 0 if run.side_together else run.critic_epochs
    link = rates.link if run.shards <= devices_per_machine else rates.network
    moved = {part: 2 * size / rates.host for part, size in offloaded(run).items()}
    return Seconds(
        sampling=_sampling(run, rates, link) + moved.get("policy", 0.0),
        score=score / rates.update_flops + moved.get("reference", 0.0) / 2,  # it does not change
        critic=(
            _updates(run, "critic", rates, link)
            if "critic" in run.networks
            else passes * reading / rates.update_flops
        )
        + moved.get("critic", 0.0)
        + moved.get("critic optimizer", 0.0),
        policy=_updates(run, "policy", rates, link) + moved.get("policy optimizer", 0.0),
    )


def rounded(seconds: float) -> str:
    """Format seconds with two digits, or from 100 as an integer."""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.2g}"


def forward_flops(run: Run, network: Network, *, head: bool = True) -> float:
    """Return the operations of a forward pass over all responses of a device."""
    shape, length = run.shape(network), run.prompt_length + run.mean_response_length
    attention = 4 * shape.query_width * length / 2  # each token attends to half of the others
    flops = run.responses * length * shape.num_layers * (2 * shape.layer_matrices + attention)
    if head and network == "policy":
        flops += 2 * run.responses * run.mean_response_length * shape.embedding
    return flops


def _updates(run: Run, network: Network, rates: Rates, link: float) -> float:
    """Return the seconds of the updates of a network."""
    body = forward_flops(run, network, head=False)
    head = forward_flops(run, network) - body
    each = 2 if run.lora_rank is not None else 3  # frozen weights have no gradients
    # A checkpointed layer is computed twice; the logits always are.
    flops = (each + run.checkpointing) * body + (each + 1) * head
    if network == "critic" and run.critic_frozen == "attention":
        shape, length = run.shape(network), run.prompt_length + run.mean_response_length
        flops -= 2 * run.responses * length * shape.num_layers * shape.attention_matrices
    gradients = 4 * run.trainable(network)
    sent = 0
    if run.strategy == "fsdp2":
        length = run.prompt_length + run.mean_response_length
        updates = ceil(run.prompts * run.num_generations / run.mini_batch_of(network))
        count = ceil(run.responses / updates * length / run.max_tokens)
        sent = updates * count * (2 * run.bytes.compute * run.weights(network) + gradients)
    elif run.devices > 1:
        sent = 2 * gradients  # an all-reduce sends twice what it sums
    return run.passes(network) * max(flops / rates.update_flops, sent / link)


def _sampling(run: Run, rates: Rates, link: float) -> float:
    """Return the seconds of sampling: prompts, then one column of tokens after the other."""
    run = run.sampler
    shape = run.actor
    size = run.engine_bytes if run.engine == "vllm" else run.bytes.compute
    weights = shape.num_layers * shape.layer_matrices + shape.embedding
    prompts = ceil(run.responses / run.num_generations) * run.prompt_length
    attention = 4 * shape.query_width * run.prompt_length / 2
    prefill = prompts * shape.num_layers * (2 * shape.layer_matrices + attention)

    seen = run.prompt_length + run.mean_response_length / 2
    token, rows = cache_bytes_of_token(run), float(run.rows)
    if run.engine == "vllm":  # its cache limits the number of running responses
        cache = engine_memory(run) - shape.weights * size
        rows = max(1.0, min(rows, cache / (seen * token)))
    reads = size * weights + rows * seen * token
    flops = rows * (2 * weights + 4 * shape.query_width * shape.num_layers * seen)
    column = max(flops / rates.sampling_flops, reads / rates.bandwidth)
    waves = run.responses / rows
    sent = shape.weights * run.bytes.compute / link if run.strategy == "fsdp2" else 0.0
    return prefill / rates.sampling_flops + waves * run.mean_response_length * column + sent
