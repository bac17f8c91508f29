"""The engine that samples from a copy of the actor."""

import pytest
import torch

from lightning_vcppo.generation import TransformersEngine, build_engine
from lightning_vcppo.models.lora import adapt
from lightning_vcppo.settings import EngineSettings, LoRASettings, SamplingSettings
from tests.support.decoders import decoder

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]] * 2
SAMPLING = SamplingSettings(max_response_length=12)
ENDS = {"pad_token_id": 0, "eos_token_ids": {1}}


def copy_of(model, **init_args):
    settings = EngineSettings("transformers_copy", init_args=init_args)
    return build_engine(model, settings, device=model.device, **ENDS)


def sampled(engine):
    return engine.generate(PROMPTS, range(6), SAMPLING)


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_copy_samples_what_the_actor_would_with_the_weights_that_were_taken(kind):
    model = decoder(kind, torch.float64)
    before = torch.get_rng_state()
    engine = copy_of(model)
    engine.take_weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    first = sampled(TransformersEngine(model, **ENDS))
    change(model)
    ours = sampled(engine)
    assert torch.equal(ours.response_ids_BT, first.response_ids_BT)
    assert torch.equal(ours.logprobs_BT, first.logprobs_BT)
    engine.take_weights(1)  # it is said that these are there
    assert torch.equal(sampled(engine).response_ids_BT, first.response_ids_BT)
    engine.take_weights(2)
    second = sampled(TransformersEngine(model, **ENDS))
    assert torch.equal(sampled(engine).logprobs_BT, second.logprobs_BT)
    assert not torch.equal(first.response_ids_BT, second.response_ids_BT)
    change(model)
    engine.forget_weights()
    engine.take_weights(2)
    third = sampled(TransformersEngine(model, **ENDS))
    assert torch.equal(sampled(engine).logprobs_BT, third.logprobs_BT)


def test_the_copy_has_what_adapters_have_learnt():
    model = decoder("qwen2", torch.float64)
    adapt(model, LoRASettings(rank=2, alpha=4.0), 0)
    change(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.2)
    engine = copy_of(model)
    engine.take_weights(1)
    ours, wanted = sampled(engine), sampled(TransformersEngine(model, **ENDS))
    assert torch.equal(ours.response_ids_BT, wanted.response_ids_BT)
    assert torch.allclose(ours.logprobs_BT, wanted.logprobs_BT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_is_sampled_does_not_depend_on_the_default_type(dtype):
    """The Trainer's precision sets it while a step runs, and another thread would see it change."""
    engine = copy_of(decoder("qwen2", torch.bfloat16))
    engine.take_weights(1)
    wanted, before = sampled(engine), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        ours = sampled(engine)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(ours.response_ids_BT, wanted.response_ids_BT)
    assert torch.equal(ours.logprobs_BT, wanted.logprobs_BT)


def test_a_wrong_argument_is_named():
    model = decoder("qwen2")
    with pytest.raises(ValueError, match="init_args: transformers_copy takes device, not dtype"):
        copy_of(model, dtype="float32")
    with pytest.raises(ValueError, match=r"init_args\.device: expected a device .* got cuda:77"):
        copy_of(model, device="cuda:77")
