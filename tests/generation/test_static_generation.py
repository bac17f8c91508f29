"""Decoding with static shapes samples what the ordinary steps sample; here without the capture."""

import pytest
import torch

from lightning_vcppo.generation import (
    TransformersEngine,
    decoding,
    prompt_reader,
    slots,
    static_batch,
    static_decoder,
)
from lightning_vcppo.generation.graphs import CapturedStep
from lightning_vcppo.models import attention
from lightning_vcppo.models.lora import adapt
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.settings import LoRASettings, SamplingSettings
from tests.support.decoders import decoder
from tests.support.rows import every
from tests.support.stopping import PROMPTS, assert_responses_end_where_they_should

KINDS = ["qwen2", "qwen3", "llama", "mistral, window"]


def engine(model, static, rows=256, stops=(1, 2)):
    return TransformersEngine(
        model, pad_token_id=0, eos_token_ids=set(stops), max_num_seqs=rows, static=static
    )


def many_prompts():
    generator = torch.Generator().manual_seed(3)
    lengths = (4, 1, 9, 2, 2, 7, 1, 3)
    prompts = [torch.randint(3, 40, (n,), generator=generator).tolist() for n in lengths]
    return [prompts[0], prompts[0], *prompts, *prompts[::-1], *prompts]


def assert_same(ours, wanted, tolerance):
    assert torch.equal(ours.response_ids_BT, wanted.response_ids_BT)
    assert torch.equal(ours.response_mask_BT, wanted.response_mask_BT)
    assert torch.equal(ours.finished_B, wanted.finished_B)
    for actual, expected in (
        (ours.logprobs_BT, wanted.logprobs_BT),
        (ours.entropy_BT, wanted.entropy_BT),
    ):
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("rows", every(2, [3, 64]))
@pytest.mark.parametrize("kind", every(2, KINDS))
def test_static_steps_sample_what_the_others_do(kind, rows, monkeypatch):
    """In float64; few rows, so that sequences wait, and little room, so that storage grows."""
    monkeypatch.setattr(slots, "GROWTH", 5)
    monkeypatch.setattr(static_batch, "ROOM", 4)
    monkeypatch.setattr(static_batch, "FEWEST_ROWS", 1)
    monkeypatch.setattr(prompt_reader, "READ_AHEAD_TOKENS", 12)
    model = enable_packing(decoder(kind, torch.float64))
    prompts = many_prompts()
    settings = SamplingSettings(max_response_length=61, temperature=0.8, top_p=0.95)
    wanted = engine(model, False, rows).generate(prompts, range(len(prompts)), settings)
    ours = engine(model, True, rows).generate(prompts, range(len(prompts)), settings)
    lengths = wanted.response_mask_BT.sum(1)
    assert lengths.min() < 15 and lengths.max() > 25
    assert_same(ours, wanted, 1e-10)


@pytest.mark.parametrize("kind", every(2, KINDS))
def test_attention_by_each_rows_length_samples_the_same(kind, monkeypatch):
    model = enable_packing(decoder(kind, torch.float64))
    settings = SamplingSettings(max_response_length=40, temperature=0.8)
    prompts = many_prompts()
    wanted = engine(model, True, 5).generate(prompts, range(len(prompts)), settings)
    kernel = attention.reference_varlen
    monkeypatch.setattr(static_decoder, "attends_by_length", lambda query: kernel)
    ours = engine(model, True, 5).generate(prompts, range(len(prompts)), settings)
    assert_same(ours, wanted, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_one_kernel_sample_the_same_in_float32(kind):
    """Log-probabilities differ by a few roundings of logits of size 1, 2^-24 each."""
    model = enable_packing(decoder(kind))
    settings = SamplingSettings(max_response_length=20)
    prompts = many_prompts()
    wanted = engine(model, False).generate(prompts, range(len(prompts)), settings)
    assert_same(engine(model, True).generate(prompts, range(len(prompts)), settings), wanted, 2e-6)


@pytest.mark.parametrize("width", [0, 1024])
def test_copied_weights_and_the_models_own_give_the_same(width, monkeypatch):
    monkeypatch.setattr(static_decoder, "STACKED_WIDTH", width)
    model = decoder("qwen3", torch.float64)
    settings = SamplingSettings(max_response_length=20)
    wanted = engine(model, False).generate(PROMPTS, [1, 2, 3, 4], settings)
    assert_same(engine(model, True).generate(PROMPTS, [1, 2, 3, 4], settings), wanted, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_weights_and_storage_are_half_and_nothing_else_changes(kind, monkeypatch):
    """What autocast would round is rounded, once: log-probabilities of the same tokens agree.

    Sampled tokens could part where two sums are rounded differently, so both take the most
    probable one; RMS norms are in float32 in both. The bound is a few roundings of bfloat16 logits
    of size 1, 2^-8 each.
    """
    made = []
    original = static_decoder.StaticDecoder.__init__
    monkeypatch.setattr(
        static_decoder.StaticDecoder,
        "__init__",
        lambda self, *rest: (original(self, *rest), made.append(self))[0],
    )
    model = enable_packing(decoder(kind))
    settings = SamplingSettings(max_response_length=12, temperature=0.7)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        wanted = engine(model, False).generate(PROMPTS, [1, 2, 3, 4], settings)
        ours = engine(model, True).generate(PROMPTS, [1, 2, 3, 4], settings)
    layer = made[0].layers[0]
    assert layer.keys_RCKD.dtype == torch.bfloat16
    for projection in (layer.qkv, layer.out, layer.gate_up, layer.down, made[0]._head):
        assert projection.copied[0].dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    same = (ours.response_ids_BT == wanted.response_ids_BT).cumprod(1).bool()
    assert same.float().mean() > 0.8
    torch.testing.assert_close(ours.logprobs_BT[same], wanted.logprobs_BT[same], atol=0.02, rtol=0)


def test_adapters_take_part():
    model = enable_packing(decoder("qwen2", torch.float64))
    adapt(model, LoRASettings(rank=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    settings = SamplingSettings(max_response_length=12)
    wanted = engine(model, False).generate(PROMPTS, [1, 2, 3, 4], settings)
    assert_same(engine(model, True).generate(PROMPTS, [1, 2, 3, 4], settings), wanted, 1e-10)


def test_responses_end_with_the_stop_token_and_padding_follows():
    stops = set(range(20, 30))
    assert_responses_end_where_they_should(engine(decoder("llama"), True, stops=stops), stops)


def test_one_token_is_enough():
    model = decoder("llama", torch.float64)
    settings = SamplingSettings(max_response_length=1)
    wanted = engine(model, False).generate(PROMPTS, [1, 2, 3, 4], settings)
    assert_same(engine(model, True).generate(PROMPTS, [1, 2, 3, 4], settings), wanted, 1e-10)


def test_the_host_looks_every_eight_steps(monkeypatch):
    """A tensor that is read by the host makes it wait for the device."""
    looks, steps = [], []
    look, advance = static_batch.StaticBatch._synchronize, static_batch.StaticBatch._advance
    monkeypatch.setattr(
        static_batch.StaticBatch, "_synchronize", lambda s, n: (look(s, n), looks.append(n))[0]
    )
    monkeypatch.setattr(
        static_batch.StaticBatch, "_advance", lambda s: (advance(s), steps.append(1))[0]
    )
    engine(decoder("llama"), True, stops=()).generate(
        PROMPTS, range(4), SamplingSettings(max_response_length=30)
    )
    assert len(steps) == 29 and looks == [8, 8, 8, 5]


def test_a_step_has_fixed_addresses_and_reads_nothing_back(monkeypatch):
    """What a graph needs: the same tensors every time, and no number that the host asks for."""
    model = enable_packing(decoder("qwen2"))
    settings = SamplingSettings(max_response_length=30)
    batch = static_batch.StaticBatch(
        model, PROMPTS, range(4), settings, max_num_seqs=4, eos=[1], pad=0
    )
    with torch.no_grad():
        batch._refill()
        batch._advance()

        def addresses():
            return {k: v.data_ptr() for k, v in vars(batch).items() if torch.is_tensor(v)}

        before = addresses()
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, lambda *_, n=name: pytest.fail(n))
        batch._advance()
        monkeypatch.undo()
    assert addresses() == before and len(before) > 8


def test_ordinary_steps_stay_where_layers_are_unknown_and_on_the_cpu():
    for kind in ("gpt2", "qwen2"):
        assert not engine(decoder(kind), None)._is_static()
    assert not decoding.walks_layers(decoder("gpt2")) and decoding.walks_layers(decoder("qwen2"))


def test_without_cuda_each_step_runs_eagerly():
    done = []
    step = CapturedStep(lambda: done.append(1), torch.device("cpu"))
    for _ in range(3):
        step()
    assert len(done) == 3 and not step.is_captured
