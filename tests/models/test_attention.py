"""Which attention kernels are taken, and that what they are given is aligned."""

import pytest
import torch

from lightning_vcppo.generation import TransformersEngine, slots
from lightning_vcppo.models import attention, packing
from lightning_vcppo.models.attention import reference_varlen
from lightning_vcppo.models.packing import PackedLayout, enable_packing
from lightning_vcppo.settings import SamplingSettings
from tests.support.decoders import decoder


def test_cudnn_attention_is_off_once_a_model_is_made_ready():
    enable_packing(decoder("qwen2"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("kind", ["qwen2", "mistral, window", "gemma3, mixed windows"])
def test_masks_of_decoding_begin_at_sixteen_bytes(kind, monkeypatch):
    """In bfloat16, the narrowest type: each step's mask and each of its rows are aligned."""
    monkeypatch.setattr(slots, "GROWTH", 20)
    seen = []
    original = slots.SlotCache.masks

    def masks(cache):
        made = original(cache)
        seen.extend(made.values())
        return made

    monkeypatch.setattr(slots.SlotCache, "masks", masks)
    model = enable_packing(decoder(kind, torch.bfloat16))
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 40, (n,), generator=generator).tolist() for n in (4, 1, 9, 2) * 4]
    engine = TransformersEngine(model, pad_token_id=0, eos_token_ids={1, 2}, max_num_seqs=3)
    engine.generate(prompts, range(16), SamplingSettings(max_response_length=60))
    slices = [mask for mask in seen if mask._base is not None and mask.stride(0) != mask.shape[-1]]
    assert len(seen) > 60 and len(slices) > 10
    assert any(mask.storage_offset() for mask in seen)  # rows have left, and the first column moved
    for mask in slices:
        assert mask.storage_offset() * mask.element_size() % 16 == 0
        assert mask.stride(0) * mask.element_size() % 16 == 0


def test_packed_rows_by_variable_length_are_the_padded_groups(monkeypatch):
    """Forward and backward, with grouped queries, with and without a window."""
    lengths = [3, 9, 1, 7, 4]
    for window in (None, 4, 20):
        results = []
        for kernel in (None, reference_varlen):
            monkeypatch.setattr(packing, "variable_length_attention", lambda _, k=kernel: k)
            generator = torch.Generator().manual_seed(1)
            layout = PackedLayout.of(lengths, torch.device("cpu"))
            layer = torch.nn.Module()
            layer.num_key_value_groups, layer.is_causal = 3, True
            leaves = [
                torch.randn(1, heads, 24, 8, generator=generator, dtype=torch.float64)
                for heads in (6, 2, 2)
            ]
            leaves = [leaf.requires_grad_() for leaf in leaves]
            output, _ = packing.packed_sdpa(
                layer, *leaves, None, layout, sliding_window=window, scaling=0.3
            )
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            results.append([output, *torch.autograd.grad((output * weights).sum(), leaves)])
        for padded, packed in zip(*results, strict=True):
            torch.testing.assert_close(padded, packed, atol=1e-12, rtol=1e-12)


def test_repeated_keys_are_grouped_queries(monkeypatch):
    """What float32 does on CUDA for want of a fused kernel."""
    layout = PackedLayout.of([5, 2, 8], torch.device("cpu"))
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = 2, True
    query, key, value = torch.randn(1, 4, 15, 8), torch.randn(1, 2, 15, 8), torch.randn(1, 2, 15, 8)
    for window in (None, 3):
        outputs = []
        for repeats in (False, True):
            monkeypatch.setattr(packing, "repeats_keys", lambda *_, r=repeats: r)
            outputs.append(
                packing.packed_sdpa(layer, query, key, value, None, layout, sliding_window=window)
            )
        torch.testing.assert_close(outputs[0][0], outputs[1][0])


def test_torchs_function_gets_its_own_arguments(monkeypatch):
    """Its signature differs between versions; the wrapper's does not."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    calls = []

    def recent(query, key, value, e, k, q, n, *, scale=None, window_size=(-1, -1), seqused_k=None):
        calls.append({"window_size": window_size, "seqused_k": seqused_k, "scale": scale})
        return query

    def early(query, key, value, e, k, q, n, is_causal=False):
        calls.append({"is_causal": is_causal, "query": query})
        return query

    x = torch.ones(4, 2, 16)
    monkeypatch.setattr(varlen, "varlen_attn", recent)
    attend = attention._torch_varlen()
    attend(x, x, x, None, None, 4, 4, window=3, scale=0.5)
    attend(x, x, x, None, None, 4, 4, used_keys=x)
    assert calls[0] == {"window_size": (2, 0), "seqused_k": None, "scale": 0.5}
    assert calls[1]["window_size"] == (-1, 0) and calls[1]["seqused_k"] is x
    monkeypatch.setattr(varlen, "varlen_attn", early)
    attend = attention._torch_varlen()
    attend(x, x, x, None, None, 4, 4, scale=0.5)
    assert calls[2]["is_causal"] and torch.equal(calls[2]["query"], 2 * x)
    with pytest.raises(TypeError, match="no window"):
        attend(x, x, x, None, None, 4, 4, window=3)


def test_no_kernel_is_chosen_for_the_cpu():
    assert attention.variable_length_attention(torch.zeros(4, 2, 8, dtype=torch.bfloat16)) is None
