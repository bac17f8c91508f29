"""Adapters given as a model are merged as they are loaded; no directory lacks weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lightning_vcppo.models import loading
from lightning_vcppo.models.critic import load_critic, load_reward_model
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.settings import LoRASettings, ValueSettings
from tests.support.training import fit, make_module

peft = pytest.importorskip("peft")


def save_adapter(directory, base, **config):
    """Write an adapter that changes the model, as peft does, with a tokenizer beside it."""
    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | config
    adapted = peft.get_peft_model(loading.load_actor(str(base)), peft.LoraConfig(**settings))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(directory)
    loading.load_tokenizer(str(base)).save_pretrained(directory)
    edit(directory, base_model_name_or_path=str(base))
    return adapted


def edit(directory, **changes):
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(5, 15)[None]).logits


KINDS = {
    "lora": {},
    "rslora on all layers": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"use_dora": True},
    "with a trained embedding": {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_into_its_base(tiny_actor, tmp_path, kind):
    adapted = save_adapter(tmp_path / "adapter", tiny_actor, **KINDS[kind])
    model = loading.load_actor(str(tmp_path / "adapter"))
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert all(p.requires_grad for p in model.parameters())
    assert not any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(logits(model), logits(adapted), atol=1e-5, rtol=1e-5)
    before = logits(loading.load_actor(str(tiny_actor)))
    assert (logits(model) - before).abs().max() > 0.01

    write_folder(tmp_path / "out", model, loading.load_tokenizer(str(tmp_path / "adapter")))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("lora", [LoRASettings(), LoRASettings(rank=4)], ids=["full", "lora"])
def test_a_run_that_starts_from_an_adapter_leaves_all_weights(tiny_actor, tmp_path, lora):
    save_adapter(tmp_path / "adapter", tiny_actor)
    module = make_module(tmp_path / "adapter", lora=lora)
    fit(module, 1)
    module.export(tmp_path / "run")
    expected = load_file(tiny_actor / "model.safetensors").keys()
    assert load_file(tmp_path / "run" / "actor" / "model.safetensors").keys() == expected
    assert not (tmp_path / "run" / "actor" / "adapter_config.json").exists()
    assert (tmp_path / "run" / "critic" / "model.safetensors").exists()


def test_critic_and_reward_model_take_adapters_too(tiny_actor, tmp_path):
    save_adapter(tmp_path / "adapter", tiny_actor)
    actor = loading.load_actor(str(tmp_path / "adapter"))
    wanted = actor.base_model.layers[0].self_attn.q_proj.weight
    critic = load_critic(str(tmp_path / "adapter"), ValueSettings())
    assert torch.equal(critic.model.base_model.layers[0].self_attn.q_proj.weight, wanted)
    reward_model = load_reward_model(str(tmp_path / "adapter"))
    assert torch.equal(reward_model.base_model.layers[0].self_attn.q_proj.weight, wanted)


def test_the_base_lends_a_tokenizer(tiny_actor, tmp_path):
    save_adapter(tmp_path / "adapter", tiny_actor)
    for file in (tmp_path / "adapter").glob("tokenizer*"):
        file.unlink()
    tokenizer = loading.load_tokenizer(str(tmp_path / "adapter"))
    assert tokenizer.get_vocab() == loading.load_tokenizer(str(tiny_actor)).get_vocab()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, base: edit(f, base_model_name_or_path=None), "names no base model"),
        (lambda f, base: edit(f, base_model_name_or_path="./gone"), "./gone: no such directory"),
        (lambda f, base: (f / "adapter_config.json").write_text("{"), "names no base model"),
        (
            lambda f, base: (f / "model.safetensors").write_bytes(
                (base / "model.safetensors").read_bytes()
            ),
            "holds a complete model and an adapter",
        ),
        (
            lambda f, base: (f / "adapter_model.safetensors").unlink(),
            "has no adapter_model.safetensors",
        ),
        (
            lambda f, base: (f / "adapter_model.safetensors").write_bytes(b"noise"),
            "an adapter of",
        ),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(tiny_actor, tmp_path, spoil, message):
    save_adapter(tmp_path / "adapter", tiny_actor)
    spoil(tmp_path / "adapter", tiny_actor)
    with pytest.raises(ValueError, match=message) as refusal:
        loading.load_actor(str(tmp_path / "adapter"))
    assert "\n" not in str(refusal.value)


def test_no_directory_is_written_without_weights(tiny_actor, tmp_path):
    model = loading.load_actor(str(tiny_actor))
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))  # saves the adapter alone
    with pytest.raises(RuntimeError, match="without weights"):
        write_folder(tmp_path / "out", model, loading.load_tokenizer(str(tiny_actor)))
    assert not (tmp_path / "out").exists()
