"""Actor, critic, reward model and tokenizer as Hugging Face directories."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from lightning_vcppo.data.tiny_tokenizer import train_tokenizer
from lightning_vcppo.models import forward, loading
from lightning_vcppo.models.critic import (
    Critic,
    holds_pretrained_critic,
    load_critic,
    load_reward_model,
)
from lightning_vcppo.settings import ValueSettings
from tests.support.critics import IDS_BL, MASK_BT, PROMPT_LENGTHS_B, values_of
from tests.support.decoders import ROUNDING


def shake(critic: Critic) -> Critic:
    """Give a critic's head values other than zero."""
    torch.manual_seed(0)
    torch.nn.init.normal_(critic.head.weight)
    torch.nn.init.normal_(critic.head.bias)
    return critic


def test_hidden_states_are_those_before_each_response_token(tiny_actor):
    actor = loading.load_actor(str(tiny_actor)).double()
    hidden_NH = forward.response_hidden(actor.base_model, IDS_BL, PROMPT_LENGTHS_B, MASK_BT)
    for row, places, part in ((0, [1, 2, 3], slice(0, 3)), (1, [0, 1], slice(3, 5))):
        length = int(PROMPT_LENGTHS_B[row] + MASK_BT[row].sum())
        alone = actor.base_model(IDS_BL[row : row + 1, :length]).last_hidden_state[0]
        torch.testing.assert_close(hidden_NH[part], alone[places], atol=ROUNDING, rtol=ROUNDING)


def test_a_critic_from_a_language_model_starts_at_zero(tiny_actor):
    critic = load_critic(str(tiny_actor), ValueSettings())
    assert values_of(critic).eq(0).all()
    actor = loading.load_actor(str(tiny_actor))
    for (name, ours), theirs in zip(
        critic.model.base_model.named_parameters(), actor.base_model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("head", ["scalar", "bounded", "sigmoid", "hl_gauss"])
def test_a_critic_read_back_has_equal_values(tiny_actor, tmp_path, head):
    settings = ValueSettings(head=head, num_bins=11)
    critic = shake(load_critic(str(tiny_actor), settings))
    critic.model.save_pretrained(tmp_path)
    again = load_critic(str(tmp_path), settings)
    assert torch.equal(values_of(critic), values_of(again))
    if head in ("bounded", "sigmoid"):
        assert values_of(critic).abs().max() < 1.0
    assert holds_pretrained_critic(str(tmp_path))
    assert not holds_pretrained_critic(str(tiny_actor))
    assert isinstance(
        AutoModelForTokenClassification.from_pretrained(tmp_path).score, torch.nn.Linear
    )


def test_a_critic_with_another_head_is_refused(tiny_actor, tmp_path):
    load_critic(str(tiny_actor), ValueSettings()).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"trained with value head .*scalar.*, not .*bounded"):
        load_critic(str(tmp_path), ValueSettings(head="bounded"))


def test_the_histogram_of_a_critic_is_that_of_its_settings(tiny_actor, tmp_path):
    wide = ValueSettings(head="hl_gauss", num_bins=31, hl_gauss_sigma=0.1, sigma_unit="returns")
    critic = load_critic(str(tiny_actor), wide)
    width = (critic.edges()[1] - critic.edges()[0]).item()
    assert wide.sigma_ratio * width == pytest.approx(0.1)
    assert critic.edges()[0].item() == pytest.approx(-1.0 - 4 * 0.1)
    critic.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"hl_gauss_sigma': 0\.1.*hl_gauss_sigma': 0\.75"):
        load_critic(str(tmp_path), ValueSettings(head="hl_gauss", num_bins=31))
    # Directories of the time before it could be set do not state it.
    default = ValueSettings(head="hl_gauss", num_bins=31)
    directory = load_critic(str(tiny_actor), default).model
    for name in ("hl_gauss_sigma", "sigma_unit"):
        del directory.config.value_head[name]
    directory.save_pretrained(tmp_path)
    load_critic(str(tmp_path), default)


def test_a_head_may_start_at_random(tiny_actor):
    settings = ValueSettings(head="hl_gauss", num_bins=101, head_init="normal")
    critic, same, other = (load_critic(str(tiny_actor), settings, seed=s) for s in (1, 1, 2))
    assert torch.equal(critic.head.weight, same.head.weight)
    assert not torch.equal(critic.head.weight, other.head.weight)
    assert critic.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert critic.head.bias.eq(0).all()


def test_a_reward_model_gives_the_critic_its_head(tiny_actor, tmp_path):
    reward_model = load_reward_model(str(tiny_actor))
    reward_model.save_pretrained(tmp_path)
    critic = load_critic(str(tmp_path), ValueSettings())
    assert torch.equal(critic.head.weight, reward_model.score.weight)
    score = reward_model.double()(input_ids=IDS_BL[:1, :4]).logits[0, 0]
    # V before the last token: the state of the four tokens before
    value = values_of(critic.double())[2]
    torch.testing.assert_close(value, score.detach(), atol=ROUNDING, rtol=ROUNDING)
    bounded = load_critic(str(tmp_path), ValueSettings(head="bounded"))
    assert bounded.head.weight.eq(0).all()


def test_a_critic_from_a_config_has_its_own_size():
    config = {
        "model_type": "qwen2",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    critic = load_critic(config, ValueSettings())
    assert critic.head.in_features == 16
    assert values_of(critic).eq(0).all()
    with pytest.raises(ValueError, match=r"critic config .*'no_such_kind'"):
        load_critic({"model_type": "no_such_kind"}, ValueSettings())
    for wrong in (
        {"hidden_size": "16"},
        {"num_attention_heads": 0},
        {"hidden_act": "no_such_act"},
        {"hidden_size": -16},
        {"model_type": "mamba2"},
    ):
        with pytest.raises(ValueError, match=r"^critic config \(model_type '\w+'\): .+") as refusal:
            load_critic(config | wrong, ValueSettings())
        assert "\n" not in str(refusal.value)


def test_the_head_computes_in_float32_under_autocast(tiny_actor):
    critic = shake(load_critic(str(tiny_actor), ValueSettings()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert critic(IDS_BL, PROMPT_LENGTHS_B, MASK_BT).dtype == torch.float32


def test_the_tokenizer_loses_nothing_and_splits_digits(tiny_actor):
    tokenizer = AutoTokenizer.from_pretrained(tiny_actor)
    for text in (
        "Find 47 + 82.\n<think>\n",
        "Käse 数学 \\frac{1}{2}  \n\t x",
        "</think>\n\\boxed{7}",
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("1234", add_special_tokens=False).input_ids) == 4
    assert len(tokenizer("<think></think>", add_special_tokens=False).input_ids) == 2


def test_training_a_tokenizer_twice_gives_the_same(tmp_path):
    texts = ["Find the remainder when 12 + 34 is divided by 1000."] * 3
    first, second = (train_tokenizer(texts, 300).get_vocab() for _ in range(2))
    assert first == second


def test_stop_tokens_are_the_tokenizers_and_the_models(tiny_actor):
    actor, tokenizer = loading.load_actor(str(tiny_actor)), loading.load_tokenizer(str(tiny_actor))
    actor.generation_config.eos_token_id = [7, 8]
    assert loading.stop_token_ids(actor, tokenizer) == {tokenizer.eos_token_id, 7, 8}
    actor.generation_config.eos_token_id = None
    assert loading.stop_token_ids(actor, tokenizer) == {tokenizer.eos_token_id}


def test_a_loaded_tokenizer_can_pad(tiny_actor, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_actor)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = loading.load_tokenizer(str(tmp_path))
    assert loaded.pad_token_id == loaded.eos_token_id


def test_dropout_is_switched_off():
    config = AutoConfig.for_model(
        "qwen2", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, attention_dropout=0.5
    )
    model = AutoModelForCausalLM.from_config(config).train()
    loading.disable_dropout(model)
    assert all(getattr(module, "attention_dropout", 0) == 0 for module in model.modules())


def test_directories_that_hold_nothing_useful_are_refused_in_one_line(tmp_path, tiny_actor):
    for load in (loading.load_actor, loading.load_tokenizer, load_reward_model):
        with pytest.raises(ValueError, match="no such directory") as error:
            load("./nowhere")
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="cannot load a causal language model") as error:
        loading.load_actor(str(tmp_path))
    assert "\n" not in str(error.value)


def test_corrupt_weights_are_refused_in_one_line(tiny_actor, tmp_path):
    loading.load_actor(str(tiny_actor)).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot load a causal language model") as error:
        loading.load_actor(str(tmp_path))
    assert "\n" not in str(error.value)


def test_models_with_transformed_logits_are_refused(tiny_actor, tmp_path):
    actor = loading.load_actor(str(tiny_actor))
    actor.config.final_logit_softcapping = 30.0
    actor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"final_logit_softcapping=30\.0"):
        loading.load_actor(str(tmp_path))


def test_reward_models_are_ordinary_sequence_classifiers(tiny_actor, tmp_path):
    load_reward_model(str(tiny_actor)).save_pretrained(tmp_path)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).num_labels == 1
