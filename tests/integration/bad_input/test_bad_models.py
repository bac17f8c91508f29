"""Directories of models: what is missing or does not fit, before it trains on random numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from lightning_vcppo.models import loading
from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.settings import ValueSettings
from tests.support.rows import every
from tests.support.tiny_runs import ROLLOUTS, TINY_QWEN2, vcppo


def edit_json(file, **changes):
    """Change fields of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_weights(directory, change):
    """Pass the weights through a function that changes them."""
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def cut_weights(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def spoil_header(directory):
    file = directory / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def without_a_layer(weights):
    for key in [key for key in weights if "layers.1." in key]:
        del weights[key]


def unlearn_tokens(directory):
    for file in directory.glob("tokenizer*"):
        file.unlink()


def more_tokens(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["What", *(f"<{i}>" for i in range(50))])
    tokenizer.save_pretrained(directory)


PROJECTION, OUTPUT = "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.o_proj"
SCALE = torch.ones(1)
GPTQ = {"quant_method": "gptq", "bits": 4}

SPOILED = [
    ("weights cut off", cut_weights, "cannot load a causal language model from here: Error while"),
    ("a header of noise", spoil_header, "cannot load a causal language model from here: Error whi"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "cannot load a causal language m"),
    (
        "a layer missing",
        lambda f: edit_weights(f, without_a_layer),
        "its files lack model.layers.1.input_layernorm.weight and 11 other weights; copy",
    ),
    (
        "a wrong shape",
        lambda f: edit_weights(f, lambda w: w.update({"model.norm.weight": torch.ones(5)})),
        "model.norm.weight has shape (5,), but config.json expects (32,)",
    ),
    (
        "a weight that is not finite",
        lambda f: edit_weights(f, lambda w: w["model.norm.weight"].fill_(torch.nan)),
        "model.norm.weight is not finite; the model comes from a run that diverged",
    ),
    (
        "an unknown type",
        lambda f: edit_json(f / "config.json", model_type="nosuch"),
        "cannot load a causal language model from here: The checkpoint you are trying to load has",
    ),
    ("a broken config", lambda f: (f / "config.json").write_text("{"), "cannot load a tokenizer f"),
    ("no config", lambda f: (f / "config.json").unlink(), "cannot load a causal language model fr"),
    (
        "no tokenizer",
        unlearn_tokens,
        "no tokenizer found (expected tokenizer.json next to the model)",
    ),
    (
        "a broken tokenizer",
        lambda f: (f / "tokenizer.json").write_text('{"a": 1}'),
        "cannot load a tokenizer from here: a file in it is not of the expected form",
    ),
    (
        "no end of sequence",
        lambda f: edit_json(f / "tokenizer_config.json", eos_token=None, unk_token=None),
        "the actor has 322 tokens, and the tokenizer's eos_token <|endoftext|> is none of them",
    ),
    (
        "padding that the model does not know",
        lambda f: edit_json(f / "tokenizer_config.json", pad_token="<filler>"),
        "the actor has 322 tokens, but the tokenizer has ids up to 322; use the tokenizer it was",
    ),
    (
        "a field of another type",
        lambda f: edit_json(f / "config.json", hidden_size="32"),
        "cannot load a tokenizer from here: TypeError: Field 'hidden_size' expected int, got str",
    ),
    (
        "a division by a field",
        lambda f: edit_json(f / "config.json", num_attention_heads=0),
        "cannot load a causal language model from here: a file in it is not of the expected form",
    ),
    (
        "a special token that is a number",
        lambda f: edit_json(f / "tokenizer_config.json", eos_token=3),
        "cannot load a tokenizer from here: a file in it is not of the expected form (TypeError ",
    ),
    (
        "a list instead of fields",
        lambda f: (f / "generation_config.json").write_text("[]"),
        "cannot load a causal language model from here: a file in it is not of the expected form",
    ),
    (
        "quantized with a package that is missing",
        lambda f: edit_json(f / "config.json", quantization_config=GPTQ),
        "cannot load a causal language model from here: its weights are quantized; training needs",
    ),
    (
        "quantized in a way that transformers does not know",
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "other"}),
        "its weights are quantized; training needs them in 16 or 32 bits",
    ),
    (
        "scales of quantized weights",
        lambda f: edit_weights(f, lambda w: w.update({f"{PROJECTION}.weight_scale": SCALE})),
        f"its files hold {PROJECTION}.weight_scale, which a model of its config.json does not",
    ),
    (
        "a bias that the config denies",
        lambda f: edit_weights(f, lambda w: w.update({f"{OUTPUT}.bias": SCALE})),
        f"its files hold {OUTPUT}.bias, which a model of its config.json does not read",
    ),
    ("another vocabulary", more_tokens, "the actor has 322 tokens, but the tokenizer has ids up "),
]


@pytest.mark.parametrize(
    ("spoil", "message"),
    every(6, [pytest.param(spoil, message, id=name) for name, spoil, message in SPOILED]),
)
def test_a_spoiled_directory(mistake, model_copy, tiny_actor, spoil, message):
    spoil(model_copy(tiny_actor))
    line = mistake(actor="./model")
    assert line.startswith(f"./model: {message}"), line


@pytest.mark.parametrize(
    ("actor", "message"),
    every(
        2,
        [
            ("./mode", "./mode: no such directory (expected a tokenizer); did you mean model?"),
            (
                "./model/config.json",
                "./model/config.json: no such directory (expected a tokenizer)",
            ),
            ("./empty", "./empty: cannot load a tokenizer from here"),
            ("./modle/nothing", "./modle/nothing: no such directory (expected a tokenizer)"),
            ("a/b/c", "a/b/c: no such directory (expected a tokenizer)"),
            (
                "modle",
                "modle: no such directory (expected a tokenizer), and the hub cannot be asked f",
            ),
            (
                "nobody/nothing",
                "nobody/nothing: no such directory (expected a tokenizer), and the hub cannot be "
                "asked for it: HF_HUB_OFFLINE is set; download it where there is a network (hf",
            ),
        ],
    ),
)
def test_no_directory_of_a_model(mistake, model_copy, tiny_actor, tmp_path, actor, message):
    model_copy(tiny_actor)
    (tmp_path / "empty").mkdir()
    line = mistake(actor=actor)
    assert line.startswith(message), line


def test_a_model_that_continues_no_text(mistake, tmp_path, tiny_actor):
    sizes = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1}
    model = T5ForConditionalGeneration(T5Config(vocab_size=322, **sizes))
    write_folder(tmp_path / "t5", model, loading.load_tokenizer(str(tiny_actor)))
    line = mistake(actor="./t5")
    assert line.startswith("./t5: cannot load a causal language model from here: Unrecognized con")


@pytest.mark.parametrize(
    ("template", "reason"),
    every(
        3,
        [
            ("{{ raise_exception('no system') }}", "no system"),
            ("{% if %}", "Expected an expression, got 'end of statement block'"),
            ("{{ messages[5].content }}", "list object has no element 5"),
        ],
    ),
)
def test_a_chat_template_that_fails(mistake, model_copy, tiny_actor, template, reason):
    edit_json(model_copy(tiny_actor) / "tokenizer_config.json", chat_template=template)
    line = mistake(actor="./model")
    assert line == f"the tokenizer's chat template refuses the prompt: {reason}"


# The other networks


def test_a_critic_or_reference_that_is_not_there(mistake):
    assert mistake("--model.critic=./none").startswith(
        "./none: no such directory (expected a model"
    )
    line = mistake("--model.reference=./none", "--model.policy.kl_coef=0.1")
    assert line.startswith("./none: no such directory (expected a causal language model)")


def test_a_critic_with_another_head(mistake, tiny_critic):
    line = mistake(f"--model.critic={tiny_critic}", "--model.value.head=bounded")
    assert line.startswith(f"--model.critic: {tiny_critic} was trained with value head"), line


def test_a_critic_that_has_lost_its_head(mistake, model_copy, tiny_critic):
    edit_weights(model_copy(tiny_critic), lambda weights: weights.pop("score.weight"))
    line = mistake("--model.critic=./model")
    assert line.startswith("./model: its files lack score.weight; copy the directory again"), line


def critic_of(size, tokens, directory, tokenizer):
    config = TINY_QWEN2 | {"hidden_size": size, "vocab_size": tokens}
    write_folder(directory, load_critic(config, ValueSettings()).model, tokenizer)


def test_a_critic_of_another_vocabulary(mistake, tmp_path, tiny_actor):
    critic_of(16, 100, tmp_path / "small", loading.load_tokenizer(str(tiny_actor)))
    line = mistake("--model.critic=./small")
    assert line.startswith(
        "./small: the critic has 100 tokens, but the tokenizer has ids up to 321"
    )


def test_a_critic_of_another_size_is_right(tmp_path, tiny_actor):
    critic_of(16, 322, tmp_path / "narrow", loading.load_tokenizer(str(tiny_actor)))
    vcppo(
        *("fit", f"--model.actor={tiny_actor}", "--model.critic=./narrow", *ROLLOUTS),
        *("--loggers=[csv]", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0"),
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    )
    assert (tmp_path / "run" / "critic" / "config.json").exists()


def test_our_own_directories_have_no_token_that_the_model_lacks(tiny_actor):
    tokenizer = loading.load_tokenizer(str(tiny_actor))
    rows = loading.load_actor(str(tiny_actor)).get_input_embeddings().weight.shape[0]
    assert len(tokenizer) == rows == 322
    assert max(tokenizer("1<|endoftext|>2").input_ids) < rows
