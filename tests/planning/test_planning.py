"""The arithmetic of `vcppo plan`, on numbers small enough to be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_vcppo.generation import decoding, prompt_reader, slots, static_batch
from lightning_vcppo.models import logprobs
from lightning_vcppo.modules import master_weights
from lightning_vcppo.planning import advice, memory
from lightning_vcppo.planning.advice import advise, fits, starved
from lightning_vcppo.planning.memory import (
    Memory,
    activations_of_token,
    cache_bytes_of_token,
    cache_columns,
    engine_needs,
    lasting,
    logit_blocks,
    offloaded,
    peak,
    plan_memory,
)
from lightning_vcppo.planning.run import GB, Run
from lightning_vcppo.planning.seconds import DEVICES, Rates, forward_flops, plan_seconds
from lightning_vcppo.planning.shapes import PUBLISHED, ModelShape
from lightning_vcppo.planning.split import best_split

# Two layers of width 8: q (8 x 8), k and v (8 x 4), o (8 x 8), an MLP of 16; 10 tokens.
SMALL = ModelShape(
    vocab_size=10,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=16,
    tied=True,
)
MATRICES = 64 + 32 + 32 + 64 + 3 * 128
LAYER = MATRICES + 2 * 8
BACKBONE = 80 + 2 * LAYER + 8
RUN = Run(
    actor=SMALL,
    critic=SMALL,
    prompt_length=4,
    response_length=6,
    mean_response_length=6,
    prompts=8,
    mini_batch=8,
    critic_mini_batch=4,
    max_tokens=20,
    max_num_seqs=4,
)
QWEN = PUBLISHED["Qwen/Qwen2.5-7B"]


def test_weights_are_counted():
    assert (SMALL.layer_weights, SMALL.backbone, SMALL.weights) == (LAYER, BACKBONE, BACKBONE)
    assert replace(SMALL, tied=False).weights == BACKBONE + 80
    assert replace(SMALL, qkv_bias=True).layer_weights == LAYER + 8 + 4 + 4
    assert replace(SMALL, qk_norm=True).layer_weights == LAYER + 4 + 4


@pytest.mark.parametrize(
    ("name", "weights"),  # the hub's own count of the files' tensors
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-14B", 14_770_033_664),
        ("Qwen/Qwen2.5-32B", 32_763_876_352),
    ],
)
def test_published_shapes_have_the_published_weights(name, weights):
    assert PUBLISHED[name].weights == PUBLISHED[f"{name}-Instruct"].weights == weights


def test_weights_and_moments_of_both_networks_last():
    lasts = lasting(RUN)
    assert (lasts.weights, lasts.optimizer) == (2 * 4 * BACKBONE, 2 * 2 * 4 * BACKBONE)
    assert lasts.workspace == 8 * 6 * 60  # the rollout
    assert lasting(replace(RUN, reference=True)).weights == 3 * 4 * BACKBONE
    assert lasting(replace(RUN, critic=None)).weights == 4 * BACKBONE
    assert lasting(replace(RUN, precision="bf16-true")).weights == 2 * 2 * BACKBONE
    assert lasting(replace(RUN, moments=0)).optimizer == 0


def test_master_weights_keep_the_state_in_float32_and_something_beside_it():
    half = replace(RUN, precision="bf16-true")
    moments = {
        kind: lasting(replace(half, master_weights=kind)).optimizer // (2 * BACKBONE)
        for kind in ("none", "stochastic", "kahan", "float32")
    }
    assert moments == {"none": 4, "stochastic": 8, "kahan": 8 + 2, "float32": 8 + 4}
    assert lasting(replace(RUN, master_weights="float32")).optimizer == 2 * BACKBONE * 8
    stepping = replace(half, master_weights="kahan", device="cuda", max_tokens=1, prompt_length=1)
    update = plan_memory(replace(stepping, response_length=1))["critic update"]
    # of a model this small all weights are in float32 at once: weight, gradient, one temporary
    assert update.workspace == lasting(stepping).workspace - 8 * 5 * 60 + 12 * BACKBONE


def test_half_precision_is_not_advised_where_it_would_train_nothing():
    run = replace(RUN, memory=1, device="cuda", critic=None)
    assert advice._half_precision(replace(run, lora_rank=2))[0] == "--trainer.precision=bf16-true"
    flag, changed = advice._half_precision(run)
    assert flag.endswith("bf16-true --model.master_weights=stochastic")
    assert changed.master_weights == "stochastic"
    assert advice._half_precision(replace(run, strategy="fsdp2")) is None


def test_a_language_model_with_its_own_head_has_more_weights_than_its_critic():
    untied = replace(SMALL, tied=False)
    assert lasting(replace(RUN, actor=untied, critic=untied)).weights == 4 * (2 * BACKBONE + 80)


def test_sharding_divides_what_lasts_and_ddp_adds_buffers_for_gradients():
    sharded = lasting(replace(RUN, strategy="fsdp2", devices=4, shards=4))
    assert (sharded.weights, sharded.optimizer) == (2 * BACKBONE, 4 * BACKBONE)
    assert sharded.gradients == 0
    assert lasting(replace(RUN, strategy="ddp", devices=2)).gradients == 2 * 4 * BACKBONE


def test_adapters_share_a_base_and_train_little():
    run = replace(RUN, lora_rank=2, lora_targets=("q_proj", "v_proj"), precision="bf16-true")
    adapter = 2 * (8 + 8) + 2 * (8 + 4)  # rank x (inputs + outputs)
    assert run.trainable("policy") == 2 * adapter
    assert lasting(run).weights == 2 * BACKBONE + 2 * 4 * 2 * adapter
    assert lasting(run).optimizer == 2 * 2 * 4 * 2 * adapter
    whole = replace(run, lora_targets=())
    both_ways = 2 * (8 + 8) + 2 * (8 + 4) + 3 * (8 + 16)
    assert whole.trainable("critic") == 2 * 2 * both_ways


def test_a_frozen_part_of_the_critic_is_there_and_is_not_trained():
    attention = replace(RUN, critic_frozen="attention")
    matrices = 2 * (2 * 8 * 8 + 2 * 8 * 4)  # two layers: queries and outputs, keys and values
    assert attention.trainable("critic") == BACKBONE - matrices
    assert attention.trainable("policy") == RUN.trainable("policy")
    assert lasting(attention).weights == lasting(RUN).weights
    assert lasting(attention).optimizer == lasting(RUN).optimizer - 2 * 4 * matrices
    biased = replace(SMALL, qkv_bias=True)
    assert biased.part("attention") == matrices + 2 * (8 + 4 + 4)
    embeddings = replace(RUN, critic_frozen="embeddings")
    assert embeddings.trainable("critic") == BACKBONE - SMALL.embedding
    assert plan_memory(embeddings)["critic update"].total < plan_memory(RUN)["critic update"].total
    slower, faster = (plan_seconds(run, Rates(1.0, 1.0), 1).critic for run in (RUN, attention))
    assert faster < slower


def test_a_side_critic_is_small_and_reads_the_actor():
    alone = replace(RUN, critic=None)
    side = replace(alone, side_weights=SMALL.ladder(2, 4))
    assert side.side_weights == 2 * (8 + 1 + 8 * 4 + 4 + 4 * 16) + 4
    assert lasting(side).weights == lasting(alone).weights + 4 * side.side_weights
    assert lasting(side).optimizer == lasting(alone).optimizer + 2 * 4 * side.side_weights
    assert lasting(side).weights < lasting(RUN).weights
    none, some, whole = (plan_seconds(r, Rates(1.0, 1.0), 1) for r in (alone, side, RUN))
    assert none.critic == 0 and 3 * some.critic == pytest.approx(whole.critic)
    assert some.score - none.score == pytest.approx(some.critic)
    shared = plan_seconds(replace(side, side_together=True, logprob_readings=1), Rates(1.0, 1.0), 1)
    assert shared.critic == 0 and shared.score == forward_flops(RUN, "policy")


def test_activations_of_a_token():
    # 6 hidden, 3 query, 2 key widths, 4 of the MLP, a sum of each head; at the end two more hidden,
    # and cosine and sine of its position
    layer = 6 * 8 + 3 * 8 + 2 * 4 + 4 * 16
    heads = 4 * 2  # in float32, whatever the precision
    assert activations_of_token(RUN, "policy") == 2 * (4 * layer + heads) + 4 * (2 * 8 + 2 * 4)
    mixed = 2 * 8 * (4 + 4) + 5 * 8 * 2 + 2 * (3 * 8 + 2 * 4 + 4 * 16) + heads
    run = replace(RUN, precision="bf16-mixed")
    assert activations_of_token(run, "critic") == 2 * mixed + 8 * (4 + 4) + 4 * 2 * 4
    half = 2 * 8 * (4 + 2 + 2) + 2 * (3 * 8 + 2 * 4 + 4 * 16) + heads
    for run in (
        replace(RUN, precision="bf16-true"),
        replace(RUN, precision="bf16-mixed", strategy="fsdp2", devices=2, shards=2),
    ):
        assert activations_of_token(run, "critic") == 2 * half + 8 * (4 + 2) + 2 * 2 * 4


def test_ligers_kernels_keep_less():
    # a norm keeps its input as it is, and the MLP two inputs and one output
    run = replace(RUN, precision="bf16-mixed", kernels="liger")
    layer = 8 * (2 * 4 + 5 * 2) + 2 * (3 * 8 + 2 * 4 + 3 * 16) + 4 * 2
    assert activations_of_token(run, "critic") == 2 * layer + 8 * 4 + 4 * 2 * 4


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer():
    layer = 4 * (6 * 8 + 3 * 8 + 2 * 4 + 4 * 16) + 4 * 2
    run = replace(RUN, checkpointing=True)
    assert activations_of_token(run, "policy") == 2 * 4 * 8 + layer + 4 * (2 * 8 + 2 * 4)


def test_micro_batches_are_balanced_over_devices():
    assert RUN.micro_batches("policy") == (4, 2)  # two rows of 10 tokens in 20
    assert RUN.micro_batches("critic") == (2, 2)
    assert replace(RUN, devices=2).micro_batches("policy") == (2, 2)
    assert replace(RUN, max_tokens=5).micro_batches("policy") == (8, 1)  # a row is never cut
    assert replace(RUN, max_tokens=70).micro_batches("policy") == (2, 4)  # not 7 and 1


def test_an_update_holds_gradients_activations_and_one_gradient_of_the_head():
    tokens, read = 2 * 9, 2 * 6
    critic = plan_memory(RUN)["critic update"]
    assert critic.gradients == 4 * BACKBONE
    assert critic.activations == tokens * activations_of_token(RUN, "critic") + 4 * read * 8
    assert critic.logits == 0
    flowing = tokens * 2 * (16 + 8) * 4
    assert critic.workspace == 8 * 6 * 60 + flowing
    policy = plan_memory(RUN)["policy update"]
    assert policy.logits == 2 * 4 * read * 10  # all ten tokens of the vocabulary at once
    assert policy.workspace == 8 * 6 * 60 + 4 * 80 + flowing - policy.logits


def test_a_single_micro_batch_has_no_gradients_yet_when_it_begins():
    run = replace(RUN, max_tokens=80)
    assert run.micro_batches("policy") == (1, 8)
    assert plan_memory(run)["policy update"].gradients == 0
    wordy = replace(SMALL, vocab_size=10_000)  # the end is worse: all gradients, and three more
    ended = plan_memory(replace(run, actor=wordy, prompts=1))["policy update"]
    assert ended.gradients == 4 * wordy.weights
    assert ended.workspace == 6 * 60 + 2 * 4 * 80_000


def test_logits_exist_a_block_at_a_time():
    large = replace(RUN, actor=replace(SMALL, vocab_size=150_000))
    assert logit_blocks(large, "policy", 8192) == 2 * 4 * 8192 * 256
    assert logit_blocks(large, "policy", 4096) == 2 * 4 * 2**21
    assert logit_blocks(replace(large, device="cuda"), "policy", 8192) == 2 * 4 * 2**26
    assert logit_blocks(large, "critic", 8192) == 0


def test_the_cache_grows_by_halves():
    assert cache_columns(replace(RUN, max_num_seqs=8)) == [10]
    long = replace(RUN, prompt_length=64, response_length=1024, max_num_seqs=8)
    assert cache_columns(long) == [320, 576, 864, 1296]
    assert cache_columns(replace(long, max_num_seqs=4))[-1] == 1088 + 544  # rows of other ages
    assert cache_bytes_of_token(RUN) == 2 * 2 * 4 * 4
    assert cache_bytes_of_token(replace(RUN, precision="bf16-mixed")) == 2 * 2 * 4 * 4
    assert cache_bytes_of_token(replace(RUN, precision="bf16-true")) == 2 * 2 * 4 * 2


def test_sampling_holds_the_cache_and_copies_of_small_projections():
    run = replace(RUN, max_num_seqs=8, prompt_length=1, response_length=100)
    memory = plan_memory(run)["sampling"]
    assert memory.kv_cache == 8 * 101 * cache_bytes_of_token(run)
    assert memory.logits == 4 * 4 * 8 * 10
    assert memory.workspace == 8 * 100 * 60 + 4 * 2 * (64 + 2 * 32 + 2 * 128)
    wide = replace(SMALL, hidden_size=2048)
    memory = plan_memory(replace(run, actor=wide, critic=None))["sampling"]
    assert memory.workspace < 4 * wide.layer_matrices  # no copies


def test_vllm_takes_its_share_and_gives_it_back():
    run = replace(RUN, actor=QWEN, critic=QWEN, engine="vllm", engine_bytes=2, device="cuda")
    memory = plan_memory(run)
    assert memory["sampling"].kv_cache == 24 * GB - 2 * QWEN.weights
    asleep = memory["policy update"].total
    awake = plan_memory(replace(run, engine_sleeps=False))["policy update"].total
    assert awake - asleep == 24 * GB
    assert engine_needs(run) == 2 * QWEN.weights + 10 * 2 * 28 * 512 * 2
    assert not fits(replace(run, engine_share=0.1, memory=141 * GB))


def test_servers_sample_with_memory_of_their_own():
    here = replace(RUN, actor=QWEN, critic=QWEN, engine_bytes=2, device="cuda", memory=400 * GB)
    run = replace(here, engine="vllm_server", sampling_devices=2)
    memory = plan_memory(run)
    assert memory["sampling"] == lasting(run)
    assert memory["policy update"] == plan_memory(here)["policy update"]
    rates = DEVICES["h100"].rates("bf16-mixed")
    servers = replace(here, engine="vllm", engine_share=0.9, devices=2)
    sharded = plan_seconds(replace(run, strategy="fsdp2", devices=4, shards=4), rates, 8)
    assert sharded.sampling == plan_seconds(servers, rates, 8).sampling
    assert fits(run) and not starved(replace(run, memory=17 * GB))  # 15.2 GB of weights in 15.3
    assert starved(replace(run, memory=16 * GB)) and not starved(replace(here, memory=16 * GB))


@pytest.mark.parametrize(("strategy", "shards"), [("single", 1), ("fsdp2", 4)])
def test_a_copy_that_samples_is_complete_on_each_device(strategy, shards):
    run = replace(RUN, strategy=strategy, devices=shards, shards=shards)
    copied = replace(run, engine="transformers_copy")
    assert peak(copied) - peak(run) == 4 * BACKBONE
    assert lasting(copied).weights - lasting(run).weights == 4 * BACKBONE
    elsewhere = replace(copied, sampling_devices=1)
    assert plan_memory(elsewhere)["sampling"] == lasting(run)


def test_a_copy_has_the_decoder_of_a_model_without_adapters():
    run = replace(RUN, engine="transformers_copy", lora_rank=1)
    sampling = plan_memory(run)["sampling"]
    assert sampling.workspace == plan_memory(replace(run, lora_rank=None))["sampling"].workspace
    assert sampling.weights == lasting(replace(run, engine="transformers")).weights + 4 * BACKBONE


def test_a_total_is_the_sum_of_the_parts():
    assert Memory(1, 2, 3, 4, 5, 6, 7).total == 28
    assert peak(RUN) == max(memory.total for memory in plan_memory(RUN).values())


BIG = Run(
    actor=QWEN,
    critic=QWEN,
    response_length=8192,
    prompts=128,
    num_generations=16,
    precision="bf16-mixed",
    strategy="fsdp2",
    devices=8,
    shards=8,
    engine="vllm",
    engine_share=0.6,
    engine_bytes=2,
    device="cuda",
)


def test_advice_names_one_flag_if_that_is_enough():
    changes, enough = advise(BIG)
    assert enough
    assert [change.flag for change in changes] == ["--model.activation_checkpointing=true"]
    assert changes[0].peak == peak(replace(BIG, checkpointing=True)) <= BIG.memory


def test_advice_goes_on_until_it_fits():
    copies = replace(BIG, strategy="ddp", shards=1, engine_share=0.3)
    changes, enough = advise(copies)
    assert enough and {"--model.activation_checkpointing=true", "--trainer.strategy=fsdp2"} <= {
        change.flag for change in changes
    }
    assert [c.peak for c in changes] == sorted((c.peak for c in changes), reverse=True)
    assert changes[-1].peak <= copies.memory


def test_advice_lowers_the_rows_of_a_large_cache():
    run = replace(RUN, prompts=1000, mini_batch=4, max_num_seqs=256, response_length=100)
    run = replace(run, max_tokens=104, memory=peak(replace(run, max_num_seqs=64)))
    changes, enough = advise(run)
    assert enough and [change.flag for change in changes] == ["--model.engine.max_num_seqs=64"]


def test_advice_gives_vllm_what_is_free():
    run = replace(BIG, checkpointing=True, engine_share=0.1)
    changes, enough = advise(run)
    assert enough
    assert [c.flag for c in changes] == ["--model.engine.gpu_memory_utilization=0.7"]


def test_advice_asks_for_machines_only_where_flags_are_not_enough():
    run = replace(BIG, engine="transformers", max_num_seqs=256)
    changes, enough = advise(run)
    assert enough and len(changes) > 1 and all(c.flag.startswith("--model.") for c in changes)
    assert len({c.name for c in changes}) == len(changes)
    changes, enough = advise(replace(run, memory=run.memory // 4))
    assert enough and changes[-1].flag.endswith(" devices")


def test_advice_may_not_be_enough():
    changes, enough = advise(replace(BIG, memory=GB))
    assert changes and not enough


def test_operations_of_a_rollout():
    # 8 responses of 10 tokens; two operations a weight; each token attends to 5 others on average
    tokens = 8 * 10
    body = tokens * 2 * (2 * MATRICES + 4 * 8 * 5)
    assert forward_flops(RUN, "critic") == body
    assert forward_flops(RUN, "policy") == body + 2 * 8 * 6 * 80
    seconds = plan_seconds(RUN, Rates(1.0, 1.0), 8)
    assert seconds.critic == 3 * body
    assert seconds.policy == 3 * body + 4 * 2 * 8 * 6 * 80
    assert seconds.score == body  # of the critic: the sampler's log-probabilities are the policy's
    assert plan_seconds(replace(RUN, logprob_readings=1), Rates(1.0, 1.0), 8).score == (
        2 * body + 2 * 8 * 6 * 80
    )
    again = plan_seconds(replace(RUN, checkpointing=True, epochs=2), Rates(1.0, 1.0), 8)
    assert again.critic == 4 * body
    assert again.policy == 2 * (4 * body + 4 * 2 * 8 * 6 * 80)


def test_sampling_is_as_slow_as_the_slower_of_arithmetic_and_memory():
    weights = 2 * MATRICES + 80
    prefill = 8 * 4 * 2 * (2 * MATRICES + 4 * 8 * 2)
    column = 4 * (2 * weights + 4 * 8 * 2 * 7)
    assert plan_seconds(RUN, Rates(1.0, 1.0), 8).sampling == prefill + 2 * 6 * column
    reads = 4 * weights + 4 * 7 * cache_bytes_of_token(RUN)
    slow_memory = plan_seconds(RUN, Rates(1.0, 1e30, bandwidth=1.0), 8).sampling
    assert slow_memory == pytest.approx(2 * 6 * reads)


def test_sharded_weights_travel_while_the_arithmetic_goes_on():
    run = replace(RUN, strategy="fsdp2", devices=2, shards=2)
    link = plan_seconds(run, Rates(1e30, 1e30, link=1.0), 8)
    # 2 micro-batches an update and device, weights twice, gradients once
    assert link.policy == 2 * (2 * 4 * BACKBONE + 4 * BACKBONE)
    network = plan_seconds(run, Rates(1e30, 1e30, link=1e30, network=1.0), 1)
    assert network.policy == link.policy


def test_a_device_is_slower_than_its_data_sheet():
    rates = DEVICES["h100"].rates("bf16-mixed")
    assert rates.update_flops == pytest.approx(0.4 * 989e12)
    assert DEVICES["h100"].rates("32-true").update_flops == pytest.approx(0.4 * 67e12)


def test_tf32_is_half_as_fast_as_bfloat16():
    h100 = DEVICES["h100"]
    assert h100.rates("32-true", tf32=True).update_flops == pytest.approx(0.4 * 989e12 / 2)
    assert h100.rates("64-true", tf32=True) == h100.rates("64-true")
    assert h100.rates("bf16-mixed", tf32=True) == h100.rates("bf16-mixed")


OFFLOADED = replace(
    RUN,
    reference=True,
    device="cuda",
    offload=("reference", "idle_optimizer", "idle_network"),
)


def test_what_is_offloaded_is_in_memory_while_it_is_used():
    network, state = 4 * BACKBONE, 2 * 4 * BACKBONE
    assert offloaded(replace(OFFLOADED, offload=())) == {}
    assert offloaded(OFFLOADED) == {
        "reference": network,
        **dict.fromkeys(("policy", "critic"), network),
        **dict.fromkeys(("policy optimizer", "critic optimizer"), state),
    }
    memory = plan_memory(OFFLOADED)
    assert (memory["sampling"].weights, memory["sampling"].optimizer) == (network, 0)
    for name in ("policy update", "critic update"):
        assert (memory[name].weights, memory[name].optimizer) == (network, state)
    some = plan_memory(replace(OFFLOADED, offload=("idle_optimizer",)))["critic update"]
    assert (some.weights, some.optimizer) == (3 * network, state)


def test_networks_with_adapters_have_their_states_to_offload_alone():
    run = replace(OFFLOADED, lora_rank=2)
    assert offloaded(run).keys() == {"policy optimizer", "critic optimizer"}
    assert plan_memory(run)["sampling"].optimizer == 0
    assert plan_memory(run)["sampling"].weights == lasting(run).weights


def test_a_rehearsal_of_offloading_on_a_cpu_takes_memory():
    plain, moved = (
        plan_memory(replace(OFFLOADED, device="cpu", offload=kinds))["sampling"]
        for kinds in ((), OFFLOADED.offload)
    )
    assert moved.total == plain.total + 4 * BACKBONE


def test_what_is_offloaded_leaves_and_comes_back_once_a_rollout():
    fast = Rates(1e30, 1e30, host=1.0)
    seconds = plan_seconds(OFFLOADED, fast, 8)
    network, state = 4 * BACKBONE, 2 * 4 * BACKBONE
    assert seconds.sampling == pytest.approx(2 * network)
    assert seconds.score == pytest.approx(network)  # the reference's copy on the host stays right
    assert seconds.critic == pytest.approx(2 * network + 2 * state)
    assert seconds.policy == pytest.approx(2 * state)


def test_advice_offloads_before_it_changes_the_arithmetic():
    most = replace(OFFLOADED, offload=(), max_tokens=1, max_num_seqs=1, checkpointing=True)
    run = replace(most, memory=peak(replace(most, offload=OFFLOADED.offload)))
    changes, enough = advise(run)
    flag = "--model.offload=[reference,idle_optimizer,idle_network]"
    assert enough and [change.flag for change in changes] == [flag]
    assert advice._offload(replace(run, strategy="fsdp2")) is None
    assert advice._offload(replace(run, device="cpu")) is None


def test_the_plan_knows_the_sizes_that_a_run_uses() -> None:
    """It is arithmetic alone and imports none of them."""
    assert memory.BLOCK_LOGITS == {
        "cpu": logprobs._CPU_BLOCK_LOGITS,
        "cuda": logprobs._BLOCK_LOGITS,
    }
    assert memory.CACHE_GROWTH == slots.GROWTH
    assert memory.PREFILL_TOKENS == prompt_reader.PREFILL_TOKENS
    assert memory.STATIC_ROOM == static_batch.ROOM
    assert memory.WEIGHTS_AT_ONCE == master_weights.WEIGHTS_AT_ONCE
    assert memory.STACKED_WIDTH == decoding.STACKED_WIDTH


def test_devices_are_split_so_that_neither_waits_long():
    run, rates = replace(RUN, prompts=24, devices=8, strategy="ddp"), Rates(1e6, 1e6)
    whole = plan_seconds(run, rates, 8)
    best = best_split(run, rates, 8)
    assert best.sampling + best.training == 8 and run.prompts % best.training == 0
    for training in (1, 2, 3, 4, 6):  # 5 and 7 do not divide the prompts
        served = {"engine": "vllm_server", "sampling_devices": 8 - training}
        seconds = plan_seconds(replace(run, devices=training, **served), rates, 8)
        assert best.seconds <= max(seconds.sampling, seconds.total - seconds.sampling)
    assert whole.total / 2 < best.seconds  # all devices at all times cannot be beaten by much
    assert best_split(replace(run, devices=1), rates, 8) is None
    assert best_split(replace(run, memory=1), rates, 8) is None
    divided = replace(run, devices=5, engine="vllm_server", sampling_devices=3)
    assert best_split(divided, rates, 8) == best
