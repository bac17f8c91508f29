"""One policy for sampling, scoring and updating, whatever shares the batch, or a refusal."""

import time
import warnings
from functools import cache

import pytest
import torch

from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.generation import TransformersEngine
from lightning_vcppo.models import loading
from lightning_vcppo.models.checks import check_rotary
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.models.packing import PACKED_SDPA, reads_packed_rows
from lightning_vcppo.modules import policy_probe
from lightning_vcppo.modules.policy_probe import probe_policy
from lightning_vcppo.settings import SamplingSettings
from tests.support.tiny_runs import TINY, vcppo
from tests.support.training import fit, make_module

CPU = torch.device("cpu")
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4}
ROPE |= {"long_factor": [8.0] * 4, "original_max_position_embeddings": 16}

KINDS = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6},
    "phi3": {},
    "olmo2": {},
    "stablelm": {},
    "starcoder2": {},
    "gpt2": {},
    "gpt_neox": {},
    "bloom": {"n_head": 4},
    "falcon": {},
    "nemotron": {},
    "opt": {"ffn_dim": 64},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "smollm3": {},
    "qwen2_moe": {"moe_intermediate_size": 16, "num_experts": 4},
    "mixtral": {"num_local_experts": 2},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "doge": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "exaone4": {"sliding_window": 6},
    "helium": {"head_dim": 8},
}
ACCEPTED = {
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma3_text",
    "olmo2",
    "smollm3",
    "gpt2",
}
"""Kinds that must not be refused."""


@cache
def tokenizer():
    return default_tokenizer(320)


def build(model_type, **fields):
    torch.manual_seed(0)
    config = {"model_type": model_type} | SMALL | KINDS.get(model_type, {}) | fields
    model = loading.build_actor(config, tokenizer())
    loading.disable_dropout(model)
    return model.eval()


def sampler(model):
    return TransformersEngine(model, pad_token_id=0, eos_token_ids=set()).generate


def gaps(model):
    """Sample three rows; return the largest gap to the model's own forward pass, row by row."""
    prompts = [[5, 6, 7], list(range(10, 40)), list(range(40, 52))]
    sampled = sampler(model)(prompts, [3, 4, 5], SamplingSettings(max_response_length=8))
    found = []
    for prompt, ids, mask, logprobs in zip(
        prompts,
        sampled.response_ids_BT,
        sampled.response_mask_BT,
        sampled.logprobs_BT,
        strict=True,
    ):
        text = torch.cat([torch.tensor(prompt), ids[mask]])[None]
        with torch.no_grad():
            logits = model(input_ids=text).logits[0].float().log_softmax(-1)
        own = logits[len(prompt) - 1 : -1].gather(1, ids[mask][:, None])[:, 0]
        found.append((own - logprobs[mask]).abs().max())
    return float(torch.stack(found).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_model_is_one_policy_or_refused_in_one_line(kind):
    try:
        model = build(kind)
        with torch.no_grad():
            exact = probe_policy({"model": model}, sampler(model), device=CPU)
    except ValueError as refusal:
        assert kind not in ACCEPTED, refusal
        assert "\n" not in str(refusal) and len(str(refusal)) < 400
        assert kind in str(refusal) or "supported" in str(refusal)
        return
    assert gaps(model) < (2e-3 if exact else 0.3)


def test_the_probe_is_quick(tiny_actor):
    model = loading.load_actor(str(tiny_actor)).eval()
    start = time.perf_counter()
    with torch.no_grad():
        assert probe_policy({"model": model}, sampler(model), device=CPU)
    assert time.perf_counter() - start < 1


class Shifted(torch.nn.Module):
    """An attention output that depends on the number of tokens in the row."""

    def __init__(self, inner, strength):
        super().__init__()
        self.inner, self.strength = inner, strength

    def forward(self, x):
        return self.inner(x) * (1 + self.strength * x.shape[1])


def test_packing_is_switched_off_where_it_makes_a_difference(monkeypatch):
    model = build("llama")
    assert reads_packed_rows(model)
    truth = policy_probe._differs_among_others
    monkeypatch.setattr(
        policy_probe,
        "_differs_among_others",
        lambda m, t, d: m.config._attn_implementation == PACKED_SDPA or truth(m, t, d),
    )
    with pytest.warns(UserWarning, match="llama has other outputs for packed than for single rows"):
        probe_policy({"model": model}, sampler(model), device=CPU)
    assert not reads_packed_rows(model)


def test_a_model_whose_states_depend_on_the_batch_is_refused():
    model = build("llama")
    attention = model.model.layers[0].self_attn
    attention.o_proj = Shifted(attention.o_proj, 0.1)
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="llama has other outputs for a row when a longer row"),
    ):
        warnings.simplefilter("ignore")
        probe_policy({"critic": model}, None, device=CPU)


@pytest.mark.parametrize(("shift", "refused"), [(0.01, False), (1.0, True)])
def test_a_sampler_that_is_not_the_policy_is_not_reused_or_refused(shift, refused):
    model = build("llama")

    def sample(*arguments):
        sampled = sampler(model)(*arguments)
        sampled.logprobs_BT.add_(shift)
        return sampled

    with torch.no_grad():
        if refused:
            with pytest.raises(
                ValueError, match=r"of sampling and reading differ by .* of another type"
            ):
                probe_policy({"model": model}, sample, device=CPU)
        else:
            with pytest.warns(UserWarning, match=r"differ by 0.01 nats; they are read again"):
                assert not probe_policy({"model": model}, sample, device=CPU)


def test_a_run_is_probed_once_and_heeds_it(tiny_actor, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lightning_vcppo.modules.base.probe_policy",
        lambda networks, *a, **k: seen.append(list(networks)),
    )
    module = make_module(tiny_actor)
    fit(module, 2)
    assert seen == [["model", "critic"]]
    assert not module.sampler_is_exact()  # the double has returned None
    fit(module, 1)
    assert len(seen) == 2


@pytest.mark.parametrize(("limit", "fits"), [(8, True), (9, False)])
@pytest.mark.parametrize("rope", [ROPE, {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}])
def test_lengths_past_a_change_of_rotary_factors_are_refused(limit, fits, rope):
    border = {"max_position_embeddings": 16} if rope["rope_type"] == "dynamic" else {}
    kind = "llama" if border else "phi3"
    model = build(kind, rope_parameters=rope, original_max_position_embeddings=16, **border)
    if fits:
        check_rotary(model, 8, limit, "sampling.max_response_length")
    else:
        with pytest.raises(
            ValueError, match="exceed 16 positions, where the model's rotary factors"
        ):
            check_rotary(model, 8, limit, "sampling.max_response_length")


def test_validate_names_the_kind_that_cannot_be_sampled_from(tmp_path):
    write_folder(tmp_path / "bloom", build("bloom"), tokenizer())
    with pytest.raises(ValueError, match="a model of type bloom cannot be sampled from here: "):
        vcppo("validate", f"--model.actor={tmp_path / 'bloom'}", *TINY, "--loggers=[csv]")
