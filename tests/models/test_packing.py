"""Packed rows against rows with padding, on real models of several kinds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lightning_vcppo.models.forward import response_hidden
from lightning_vcppo.models.packing import PackedLayout, enable_packing, reads_packed_rows
from tests.support.decoders import CONFIGS, HIDDEN, ROUNDING, VOCABULARY, decoder

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if "eager" not in kind])
def test_states_and_gradients_are_those_of_padded_rows(kind):
    prompt_lengths_B = torch.tensor([3, 1, 2, 4, 2])
    response_lengths_B = torch.tensor([2, 25, 9, 1, 24])
    mask_BT = torch.arange(25) < response_lengths_B[:, None]
    mask_BT[1, 3] = False  # a token that nobody asks for
    ids_BL = torch.randint(1, VOCABULARY, (5, 29), generator=torch.Generator().manual_seed(1))
    model = decoder(kind, torch.float64)
    weight_NH = torch.randn(int(mask_BT.sum()), HIDDEN, dtype=torch.float64)

    def states_and_gradient():
        hidden_NH = response_hidden(model.base_model, ids_BL, prompt_lengths_B, mask_BT)
        embedding = model.get_input_embeddings().weight
        return hidden_NH, torch.autograd.grad((hidden_NH * weight_NH).sum(), embedding)[0]

    padded = states_and_gradient()
    assert not reads_packed_rows(model)
    assert reads_packed_rows(enable_packing(model))
    packed = states_and_gradient()
    for actual, expected in zip(packed, padded, strict=True):
        torch.testing.assert_close(actual, expected, rtol=ROUNDING, atol=ROUNDING)


def test_a_model_that_reads_packed_rows_reads_others_as_before():
    ids_BL = torch.randint(1, VOCABULARY, (2, 9))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[0, :4] = 0
    model = decoder("qwen2")
    before = model(ids_BL, attention_mask=mask_BL).logits
    after = enable_packing(model)(ids_BL, attention_mask=mask_BL).logits
    assert torch.equal(after, before)


def test_the_attention_function_is_not_part_of_a_saved_model(tmp_path):
    enable_packing(decoder("qwen2")).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_recurrent_layers_keep_their_padding():
    model = decoder("qwen2")
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert not reads_packed_rows(enable_packing(model))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_every_token_has_its_place(lengths):
    layout = PackedLayout.of(lengths, CPU)
    ids_BL = torch.arange(len(lengths) * max(lengths)).view(len(lengths), -1)
    ids_N = layout.pack(ids_BL)
    assert len(ids_N) == sum(lengths) == sum(group.tokens for group in layout.groups)
    for row, (start, length) in enumerate(zip(layout.starts_B.tolist(), lengths, strict=True)):
        assert torch.equal(ids_N[start : start + length], ids_BL[row, :length])
    tokens_N11 = ids_N[:, None, None].double().requires_grad_()
    parts = tokens_N11.split([group.tokens for group in layout.groups])
    padded = [group.pad(part) for group, part in zip(layout.groups, parts, strict=True)]
    for group, places in zip(layout.groups, padded, strict=True):
        assert places.shape == (group.rows, 1, group.width, 1)
        assert group.rows * group.width * 0.7 <= group.tokens  # little padding
    back = torch.cat(
        [g.unpad(p.transpose(1, 2)) for g, p in zip(layout.groups, padded, strict=True)]
    )
    assert torch.equal(back, tokens_N11)
    (gradient,) = torch.autograd.grad((back * tokens_N11.detach()).sum(), tokens_N11)
    assert torch.equal(gradient, tokens_N11)
