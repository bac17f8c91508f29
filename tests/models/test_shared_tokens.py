"""What networks share is compared by content: tokens, and positions for what they will read."""

import json

import pytest
from lightning.pytorch import Trainer
from transformers import AutoTokenizer

from lightning_vcppo import AIMEDataModule
from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.models import loading
from lightning_vcppo.models.checks import check_same_tokens, check_vocabulary
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.settings import PolicySettings
from tests.support.rows import every
from tests.support.tiny_runs import TINY_QWEN2
from tests.support.training import fit, make_module

KL = PolicySettings(kl_coef=0.1)


def build(directory, size=320, **config):
    tokenizer = default_tokenizer(size)
    write_folder(directory, loading.build_actor(TINY_QWEN2 | config, tokenizer), tokenizer)
    return str(directory)


ROLES = {
    "critic": lambda source: {"critic": source},
    "reference": lambda source: {"reference": source, "policy": KL},
}


@pytest.mark.parametrize("role", every(2, ROLES))
def test_a_network_with_another_tokenizer_is_refused(tiny_actor, tmp_path, role):
    other = build(tmp_path / "other", size=400)  # it has more rows, so their number fits
    with pytest.raises(ValueError, match=rf"other: the {role} must share .* but token \d+ is"):
        fit(make_module(tiny_actor, **ROLES[role](other)), 1)


@pytest.mark.parametrize("role", every(2, ROLES))
def test_a_network_with_too_few_tokens_is_refused(tiny_actor, tmp_path, role):
    other = build(tmp_path / "other", size=300)
    for file in (tmp_path / "other").glob("tokenizer*"):
        file.unlink()  # then their number alone can tell
    with pytest.raises(ValueError, match=f"the {role} has 302 tokens"):
        fit(make_module(tiny_actor, **ROLES[role](other)), 1)


@pytest.mark.parametrize("role", every(2, ROLES))
def test_a_network_with_too_few_positions_is_refused(tiny_actor, tmp_path, role):
    other = build(tmp_path / "other", max_position_embeddings=16)
    message = rf"sampling.max_response_length: .* are more than the {role}'s 16 positions"
    with pytest.raises(ValueError, match=message):
        fit(make_module(tiny_actor, **ROLES[role](other)), 1)


def test_prompts_of_another_tokenizer_are_refused(tiny_actor, tmp_path):
    data = AIMEDataModule(train_size=8, val_size=1, tokenizer=build(tmp_path / "other", size=400))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"--data.tokenizer .*the prompts must share"):
        trainer.fit(make_module(tiny_actor), data)


def test_tokens_that_only_one_side_has_are_no_difference(tiny_actor):
    ours, theirs = (AutoTokenizer.from_pretrained(tiny_actor) for _ in range(2))
    theirs.add_tokens(["[PAD]"])
    check_same_tokens(ours, theirs, "x")
    check_same_tokens(theirs, ours, "x")
    ours.add_tokens(["<tool>"])  # the id that the other gives to [PAD]
    with pytest.raises(
        ValueError, match=r"token \d+ is '<tool>' for the actor and '\[PAD\]' there"
    ):
        check_same_tokens(ours, theirs, "x", "critic")


def test_the_same_token_with_another_id_is_a_difference(tiny_actor):
    ours, theirs = (AutoTokenizer.from_pretrained(tiny_actor) for _ in range(2))
    ours.add_tokens(["<a>", "<b>"])
    theirs.add_tokens(["<b>"])
    with pytest.raises(ValueError, match="'<a>' for the actor and '<b>' there"):
        check_same_tokens(ours, theirs, "x")


def more_special_tokens(directory, tiny_actor, *tokens):
    model = loading.load_actor(str(tiny_actor))
    tokenizer = loading.load_tokenizer(str(tiny_actor))
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    write_folder(directory, model, tokenizer)
    return str(directory)


def test_a_special_token_that_no_prompt_holds_is_a_warning(tiny_actor, tmp_path):
    actor = more_special_tokens(tmp_path / "a", tiny_actor, "<image_soft_token>")
    with pytest.warns(UserWarning, match="without the special token '<image_soft_token>'"):
        fit(make_module(actor), 1)


def test_a_prompt_with_a_token_beyond_the_embedding_is_refused(tiny_actor, tmp_path):
    actor = more_special_tokens(tmp_path / "a", tiny_actor, "<image_soft_token>")
    path = tmp_path / "problems.jsonl"
    row = {"problem": "See <image_soft_token> and add 1 + 1.", "answer": 2}
    path.write_text((json.dumps(row) + "\n") * 9)
    data = AIMEDataModule(str(path), val_size=0, prompts_per_rollout=4)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    with (
        pytest.warns(UserWarning, match="without the special"),
        pytest.raises(ValueError, match="a prompt contains token 322, but the model has only 322"),
    ):
        trainer.fit(make_module(actor), data)


@pytest.mark.parametrize("role", ["pad_token", "bos_token", "eos_token"])
def test_a_special_token_that_a_response_needs_is_refused(tiny_actor, role):
    model = loading.load_actor(str(tiny_actor))
    tokenizer = loading.load_tokenizer(str(tiny_actor))
    tokenizer.add_special_tokens({role: "<new>"})
    with pytest.raises(ValueError, match=r"so no response could end|has ids up to 322"):
        check_vocabulary(model, tokenizer, "x", "actor")
