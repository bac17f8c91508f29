"""Activation checkpointing, bfloat16 and other optimizers, on tiny real models."""

import math

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_vcppo.generation import TransformersEngine
from lightning_vcppo.models import forward, loading
from lightning_vcppo.models.lora import adapt
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.modules.scoring import Scorer
from lightning_vcppo.settings import LoRASettings, OptimizerSettings, SamplingSettings
from tests.support.decoders import VOCABULARY, decoder
from tests.support.rows import every
from tests.support.training import EVERYTHING, fit, make_module

PROMPT_LENGTHS_B = torch.tensor([3, 1, 2])
MASK_BT = torch.arange(9) < torch.tensor([2, 9, 4])[:, None]
IDS_BL = torch.randint(1, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))


def gradients(model):
    """Return a loss's gradients and the bytes that its graph has kept for them."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_NH = forward.response_hidden(model.base_model, IDS_BL, PROMPT_LENGTHS_B, MASK_BT)
    hidden_NH.square().sum().backward()
    parameters = {p.data_ptr() for p in model.parameters()}
    activations = sum(size for place, size in kept.items() if place not in parameters)
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, activations


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapters"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", ["qwen2", "gemma3, mixed windows"])
def test_checkpointed_gradients_are_equal_and_keep_less(kind, packed, lora):
    results = []
    for checkpointed in (False, True):
        model = decoder(kind).train()
        if packed:
            enable_packing(model)
        if lora:
            adapt(model, LoRASettings(rank=4), seed=0)
        if checkpointed:
            loading.checkpoint_activations(model)
        results.append(gradients(model))
    (plain, kept), (checkpointed, kept_too) = results
    assert plain.keys() == checkpointed.keys() and len(plain) > 10
    assert all(torch.equal(checkpointed[name], gradient) for name, gradient in plain.items())
    assert kept_too < kept / 2


@pytest.mark.parametrize("kind", ["qwen2", "gemma3, mixed windows"])
def test_a_checkpointed_model_samples_as_before(kind):
    sampling = SamplingSettings(max_response_length=10)
    sampled = []
    for checkpointed in (False, True):
        model = decoder(kind).train()
        if checkpointed:
            loading.checkpoint_activations(model)
        engine = TransformersEngine(model, pad_token_id=0, eos_token_ids={1})
        sampled.append(engine.generate([[5, 6, 7], [8]], [1, 2], sampling))
        assert model.training
    assert torch.equal(sampled[0].response_ids_BT, sampled[1].response_ids_BT)
    assert torch.equal(sampled[0].logprobs_BT, sampled[1].logprobs_BT)


def test_a_run_with_checkpointed_activations_is_the_run_without(tiny_actor):
    ends = []
    for checkpointing in (False, True):
        seed_everything(0)
        module = make_module(tiny_actor, activation_checkpointing=checkpointing, **EVERYTHING)
        record = fit(module, 2)
        ends.append((record.actors[-1], record.critics[-1]))
    for plain, checkpointed in zip(*ends, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("lora", [LoRASettings(), LoRASettings(rank=4)], ids=["all", "adapters"])
@pytest.mark.parametrize("precision", every(2, ["bf16-true", "bf16-mixed"]))
def test_bfloat16_is_finite_and_near_float32(tiny_actor, precision, lora):
    seed_everything(0)
    module = make_module(tiny_actor, lora=lora, **EVERYTHING)
    record = fit(module, 2, precision=precision)
    assert all(math.isfinite(v) for metrics in record.metrics for v in metrics.values())
    assert not torch.equal(record.critics[0], record.critics[1])
    assert module.critic.head.weight.dtype == torch.float32
    stored = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert module.actor.get_input_embeddings().weight.dtype == stored
    first = record.rollouts[0]
    assert first.old_logprobs_BT.dtype == first.values_BT.dtype == torch.float32
    # The same tokens, read in float32 by the model that has sampled them.
    plain = Scorer(
        loading.load_actor(str(tiny_actor)), None, None, temperature=1.0, max_tokens=1024
    )
    with torch.no_grad():
        logprobs_BT, entropy_BT = plain.actor_logprobs(first)
    torch.testing.assert_close(first.old_logprobs_BT, logprobs_BT, atol=0.03, rtol=0)
    torch.testing.assert_close(first.entropy_BT, entropy_BT, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("class_path", "init_args"),
    [("torch.optim.AdamW", {"fused": True, "weight_decay": 0.0}), ("torch.optim.Adafactor", {})],
    ids=["fused", "Adafactor"],
)
def test_optimizers_are_chosen_by_class_path(tiny_actor, class_path, init_args):
    seed_everything(0)
    settings = OptimizerSettings(lr=1e-3, class_path=class_path, init_args=init_args)
    module = make_module(tiny_actor, actor_optimizer=settings, critic_optimizer=settings)
    record = fit(module, 2)
    assert type(record.trainer.optimizers[0]).__name__ == class_path.rpartition(".")[2]
    for network in (record.actors, record.critics):
        assert network[1].isfinite().all() and not torch.equal(network[0], network[1])


def test_adafactor_keeps_a_fraction_of_adams_state(tiny_actor):
    numbers = {}
    for name in ("AdamW", "Adafactor"):
        seed_everything(0)
        settings = OptimizerSettings(lr=1e-3, class_path=f"torch.optim.{name}", init_args={})
        record = fit(make_module(tiny_actor, actor_optimizer=settings), 1)
        states = record.trainer.optimizers[0].state.values()
        numbers[name] = sum(x.numel() for state in states for x in state.values())
    assert numbers["Adafactor"] < 0.1 * numbers["AdamW"]
