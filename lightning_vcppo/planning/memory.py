"""Estimate the memory of a run by arithmetic: bytes on a device in each phase.

The count follows what this package does: actor and critic are updated one after the other, so
gradients and activations belong to one network; rows are packed without padding; logits exist for
one block of the vocabulary at a time; the transformers engine samples from the trained weights.
If other devices sample, the training devices need no memory for it.

1. Weights and optimizer states are always present, sharded over devices or not.
2. Activations are the tensors that autograd keeps of a decoder layer for each token of a
   micro-batch: in one precision 6 hidden + 3 query + 2 key widths and 4 times the MLP's.
3. The peak is the largest of a few moments: the start and the end of a backward pass, the step of
   the optimizer, the end of sampling.

`python -m benchmarks.plan` compares it with measurements. Lengths are in tokens, memory in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import ceil

from lightning_vcppo.planning.run import GB, Network, Run

BLOCK_LOGITS = {"cpu": 2**21, "cuda": 2**26}
"""Number of logits that `logprobs.py` holds at a time, twice, in float32."""
CACHE_GROWTH, PREFILL_TOKENS, STACKED_WIDTH = 256, 16384, 1024
STATIC_ROOM = 512
"""As in `generation/`: columns that a cache grows by, tokens of prompts read at once, and the
hidden size up to which the decoder copies its projections."""
WEIGHTS_AT_ONCE = 2**25
"""As in `modules/master_weights.py`: number of weights that are stepped together in float32."""
ADAPTER_BYTES = 4
"""Bytes of a weight of an adapter, its gradient and each of its moments, in any precision."""
ROLLOUT_BYTES = 60
"""Bytes of a response token in the fields of a rollout: an id, masks, and a dozen numbers."""
CONTEXT = {"cpu": 0, "cuda": int(1.5 * GB)}
"""Bytes on a device before any tensor: CUDA's context, libraries, communication buffers."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at one moment, by part.

    Attributes:
        weights: Weights of all networks, and of the copy from which transformers_copy samples.
        optimizer: Moments of the optimizers.
        gradients: Gradients that are kept, and DDP's buffers for them.
        activations: Tensors that autograd keeps.
        kv_cache: Keys and values of the running responses.
        logits: Blocks of logits in an update, the logits of all rows in sampling.
        workspace: The rest: temporaries, gathered weights, copies, the rollout itself.
    """

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    activations: int = 0
    kv_cache: int = 0
    logits: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def plan_memory(run: Run) -> dict[str, Memory]:
    """Return the peak of each phase: sampling, updates of the critic, updates of the policy."""
    updates = {
        f"{network} update": _update(run, present(run, network, f"{network} optimizer"), network)
        for network in run.networks
    }
    return {"sampling": _sampling(run, present(run, "policy"))} | updates


def peak(run: Run) -> int:
    """Return the largest number of bytes on a device at once."""
    return max(memory.total for memory in plan_memory(run).values())


def lasting(run: Run) -> Memory:
    """Return the memory that is used in all phases."""
    size = run.bytes.weight
    trainable = sum(map(run.trainable, run.networks))
    if run.lora_rank is None:
        weights = sum(map(run.weights, run.networks)) * size
        weights += run.actor.weights * size if run.reference else 0
    else:  # actor, critic and reference share one frozen base if they have the same shape
        shared = run.critic is None or run.critic == run.actor
        weights = run.actor.weights * size + (0 if shared else run.weights("critic") * size)
        size = ADAPTER_BYTES
        weights += trainable * size
    state = run.state_bytes if run.lora_rank is None else run.moments * size
    side = run.side_weights
    weights += side * run.bytes.weight
    trainable += side
    copy = run.actor.weights * run.bytes.weight if _has_copy(run) else 0
    return Memory(
        weights=weights // run.shards + copy,
        optimizer=state * trainable // run.shards,
        gradients=trainable * size if run.strategy == "ddp" else 0,
        workspace=CONTEXT[run.device] + run.responses * run.response_length * ROLLOUT_BYTES,
    )


def offloaded(run: Run) -> dict[str, int]:
    """Return the bytes that are on the host while they are not in use, by part.

    A part is a network, the reference, or the state of an optimizer. Of networks with adapters only
    the optimizer states are offloaded.
    """
    parts: dict[str, int] = {}
    if run.lora_rank is None:
        if "reference" in run.offload and run.reference:
            parts["reference"] = run.actor.weights * run.bytes.weight
        if "idle_network" in run.offload and run.critic is not None:
            parts |= {name: run.weights(name) * run.bytes.weight for name in run.networks}
    if "idle_optimizer" in run.offload:
        state = run.state_bytes if run.lora_rank is None else run.moments * ADAPTER_BYTES
        parts |= {f"{name} optimizer": state * run.trainable(name) for name in run.networks}
    return parts


def present(run: Run, *used: str) -> Memory:
    """Return the lasting memory in a phase that uses the given offloaded parts."""
    base, parts = lasting(run), offloaded(run)
    if run.device == "cpu":  # a trial: the host's copies of the used parts are in memory, too
        copies = sum(size for part, size in parts.items() if part in used)
        return replace(base, workspace=base.workspace + copies)
    away = {part: size for part, size in parts.items() if part not in used}
    states = sum(size for part, size in away.items() if part.endswith("optimizer"))
    return replace(
        base,
        weights=base.weights - (sum(away.values()) - states),
        optimizer=base.optimizer - states,
    )


def _update(run: Run, base: Memory, network: Network) -> Memory:
    """Return the peak of the updates of a network."""
    shape, size, full = run.shape(network), run.bytes, run.lora_rank is None
    number = size.weight if full else ADAPTER_BYTES
    gradients = run.trainable(network) * number // run.shards
    count, rows = run.micro_batches(network)
    tokens = rows * (run.prompt_length + run.response_length - 1)  # the last token is not read
    trains_embedding = full and not (network == "critic" and run.critic_frozen == "embeddings")
    embedding = shape.embedding * size.weight if trains_embedding else 0
    head = embedding if network == "policy" else 0
    awake = run.engine == "vllm" and not run.engine_sleeps
    base = replace(base, workspace=base.workspace + (engine_memory(run) if awake else 0))
    copies = _copies(run, network)

    logits = logit_blocks(run, network, rows * run.response_length)
    flowing = tokens * 2 * (shape.intermediate_size + shape.hidden_size) * size.compute
    read = rows * run.response_length * shape.hidden_size * size.stream
    begun = replace(
        base,
        gradients=base.gradients + (gradients if count > 1 else 0),
        activations=tokens * activations_of_token(run, network) + read,
        logits=logits,
        workspace=base.workspace + copies + head + max(0, flowing - logits),
    )
    waiting = head if shape.tied else 0  # the head's gradient, until the embedding's is computed
    ended = replace(
        base,
        gradients=base.gradients + gradients,
        activations=tokens * shape.hidden_size * size.stream,
        workspace=base.workspace + copies + embedding + waiting,
    )
    # On a GPU one operation steps all weights, on a CPU tensors are stepped one by one.
    stepping = 2 * embedding // run.shards if run.device == "cpu" else gradients
    if run.master_weights != "none" and full:  # weights, gradients and temporaries in float32
        stepping = 3 * 4 * min(run.trainable(network), max(WEIGHTS_AT_ONCE, shape.embedding))
    stepped = replace(
        base, gradients=base.gradients + gradients, workspace=base.workspace + stepping
    )
    return max((begun, ended, stepped), key=lambda memory: memory.total)


def activations_of_token(run: Run, network: Network) -> int:
    """Return the bytes that autograd keeps of one token, over all layers."""
    shape, size = run.shape(network), run.bytes
    hidden = shape.hidden_size
    full = run.lora_rank is None  # a frozen scale needs no input
    norm, of_mlp = size.norm + (size.normed if full else 0), 4
    if run.kernels == "liger":  # its norms keep their input as it is, SwiGLU no output of SiLU
        norm, of_mlp = size.stream, 3
    attention = 3 * shape.query_width + 2 * shape.key_width
    casts = 5 if run.autocasts else 2  # each of q, k, v, gate and up casts its own input
    layer = hidden * (2 * norm + casts * size.compute) + 4 * shape.num_heads
    layer += (attention + of_mlp * shape.intermediate_size) * size.compute
    if run.lora_rank is not None:
        adapters = len(run.lora_targets) or len(shape.projections)
        layer += adapters * run.lora_rank * size.compute
    final = hidden * norm + 2 * shape.head_dim * size.stream  # with the rotary angles
    if run.checkpointing:
        return shape.num_layers * hidden * size.stream + layer + final
    return shape.num_layers * layer + final


def logit_blocks(run: Run, network: Network, tokens: int) -> int:
    """Return the bytes of the two blocks of logits of `tokens` response tokens."""
    if network == "critic":
        return 0
    ids = min(run.actor.vocab_size, max(256, BLOCK_LOGITS[run.device] // tokens))
    return 2 * 4 * tokens * ids


def _copies(run: Run, network: Network) -> int:
    """Return the bytes of temporary copies of weights: gathered, or cast for a matrix product."""
    shape, compute = run.shape(network), run.bytes.compute
    if run.strategy == "fsdp2":
        heads = run.weights(network) - shape.num_layers * shape.layer_weights
        gradients = 4 * (shape.layer_weights + heads) if run.lora_rank is None else 0
        return compute * (2 * shape.layer_weights + heads) + gradients
    if not run.autocasts:
        return 0
    layers = 1 if run.checkpointing else shape.num_layers
    return compute * layers * shape.layer_matrices


# Sampling ------------------------------------------------------------------------------------


def engine_memory(run: Run) -> int:
    """Return the bytes of vLLM's share."""
    return int(run.engine_share * run.memory)


def engine_needs(run: Run) -> int:
    """Return the smallest memory for vLLM: its copy of the actor, and the cache of one response."""
    longest = run.prompt_length + run.response_length
    return run.actor.weights * run.engine_bytes + longest * cache_bytes_of_token(run)


def cache_bytes_of_token(run: Run) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    # Under autocast keys are rotated in float32, and values are stored in the same type; with
    # static steps both are stored in autocast's type.
    own = run.bytes.compute if _has_static_steps(run) else run.bytes.stream
    size = run.engine_bytes if run.engine == "vllm" else own
    return 2 * size * run.actor.num_layers * run.actor.key_width


def _has_static_steps(run: Run) -> bool:
    """Return whether sampling uses generation/static_batch.py, as for most models on CUDA."""
    return run.device == "cuda" and run.engine.startswith("transformers")


def _has_copy(run: Run) -> bool:
    """Return whether each training device holds a second, complete actor."""
    return run.engine == "transformers_copy" and not run.sampling_devices


def cache_columns(run: Run) -> list[int]:
    """Return the sizes of the growing cache, in columns, as in generation/slots.py.

    With static steps the size doubles, up to the longest sequence (generation/static_batch.py).
    """
    longest = run.prompt_length + run.response_length
    if _has_static_steps(run):
        columns = [run.prompt_length + min(run.response_length, STATIC_ROOM)]
        while columns[-1] < longest:
            columns.append(min(2 * columns[-1], longest))
        return columns
    columns = [run.prompt_length + min(run.response_length, CACHE_GROWTH)]
    while columns[-1] < longest - 1:
        columns.append(columns[-1] + max(CACHE_GROWTH, columns[-1] // 2))
    if run.responses > run.rows:  # rows begin at different times, and the last ones end later
        columns.append(max(columns[-1], longest + max(CACHE_GROWTH, longest // 2)))
    return columns


def _sampling(run: Run, base: Memory) -> Memory:
    """Return the memory at the peak of sampling."""
    if run.sampling_devices:
        return base
    if run.engine == "vllm":
        copy = run.actor.weights * run.engine_bytes
        return replace(
            base,
            kv_cache=max(0, engine_memory(run) - copy),
            workspace=base.workspace + min(copy, engine_memory(run)),
        )
    shape, size = run.actor, run.bytes
    decoder = replace(run, lora_rank=None) if _has_copy(run) else run  # adapters are added to it
    token, workspace = cache_bytes_of_token(run), base.workspace + _decoder_copies(decoder)
    columns = cache_columns(run)
    *before, last = columns
    moved = before[-1] * token // (2 * shape.num_layers) if before else 0  # one layer's keys
    ended = replace(
        base,
        kv_cache=run.rows * (last * token + moved),
        logits=4 * 4 * run.rows * shape.vocab_size,  # logits, their log, exponential and sums
        workspace=workspace,
    )
    prompts = ceil(run.rows / run.num_generations)
    of_prompts = prompts * run.prompt_length * token
    joined = replace(  # the keys and values of prompts exist twice while they enter the cache
        base,
        kv_cache=run.rows * columns[0] * token + of_prompts,
        workspace=workspace + run.rows * run.prompt_length * token // shape.num_layers,
    )
    read = min(prompts * run.prompt_length, max(PREFILL_TOKENS, run.prompt_length))
    widths = shape.query_width + 2 * shape.key_width + 3 * shape.intermediate_size
    reading = replace(
        base,
        kv_cache=of_prompts + read * token,
        workspace=workspace + read * (widths + 3 * shape.hidden_size) * size.compute,
    )
    return max((ended, joined, reading), key=lambda memory: memory.total)


def _decoder_copies(run: Run) -> int:
    """Return the bytes of the copies of weights that sampling holds."""
    shape, size = run.actor, run.bytes
    if run.strategy == "fsdp2":
        return shape.weights * size.compute
    if run.autocasts and _has_static_steps(run) and run.lora_rank is None:
        head = shape.embedding  # the output layer, tied or not
        return (shape.num_layers * shape.layer_matrices + head) * size.compute
    copies = 0
    unmerged = run.lora_rank is not None and (run.autocasts or size.weight < 4)
    if shape.hidden_size <= STACKED_WIDTH and not unmerged:
        alone = () if run.lora_rank is not None else ("o_proj", "down_proj")
        stacked = (n for name, n in shape.projections.items() if name not in alone)
        copies = shape.num_layers * size.weight * sum(a * b for a, b in stacked)
    if run.autocasts:  # casts for a product or for attention, which are freed afterwards
        cache = run.rows * (run.prompt_length + run.response_length) * 2 * shape.key_width
        copies += max(shape.embedding, shape.layer_matrices, cache) * size.compute
    return copies
