"""Critics for other trainers: their loaders, written down by shape, read the same values.

Shapes: B sequences, L tokens, P prompt tokens, T response tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.models import loading
from lightning_vcppo.models.critic import Critic, load_critic
from lightning_vcppo.models.critic_layouts import Layout, how_to_load, write_layout
from lightning_vcppo.settings import ValueSettings
from tests.support.critics import MASK_BT, values_of

LEFT_PADDED_BL = torch.tensor([[5, 6, 7, 8, 9], [0, 4, 3, 2, 0]])
"""The rows of `IDS_BL` as trainers lay them out: prompts end, and responses begin, together."""
ATTENTION_BL = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]])
POSITIONS_BL = (ATTENTION_BL.cumsum(-1) - 1).clamp(min=0)


@pytest.fixture(scope="module")
def tokenizer(tiny_actor: Path) -> PreTrainedTokenizerBase:
    return loading.load_tokenizer(str(tiny_actor))


def make_critic(source: Path, **settings: object) -> Critic:
    critic = load_critic(str(source), ValueSettings(head_init="normal", **settings))
    assert isinstance(critic, Critic)
    with torch.no_grad():
        critic.head.bias.fill_(0.25)
    return critic.eval()


@pytest.fixture(scope="module")
def critic(tiny_actor: Path) -> Critic:
    return make_critic(tiny_actor)


def masked(values_BT: Tensor) -> Tensor:
    """Return values in the order of ours."""
    return values_BT[MASK_BT]


def verl_values(model: PreTrainedModel) -> Tensor:
    """Read values as verl's critic worker does: V of a token's state is the output before it."""
    with torch.no_grad():
        logits = model(LEFT_PADDED_BL, ATTENTION_BL, POSITIONS_BL, use_cache=False).logits
    responses = MASK_BT.shape[1]
    return masked(logits[:, -responses - 1 : -1].squeeze(-1))


def verl_model(directory: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(directory)
    config.num_labels, config.classifier_dropout = 1, 0.0
    return AutoModelForTokenClassification.from_pretrained(directory, config=config)


def test_verl_loads_a_token_classifier(
    critic: Critic, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_layout(tmp_path / "critic", critic.model, tokenizer, "verl")
    torch.testing.assert_close(verl_values(verl_model(tmp_path / "critic")), values_of(critic))
    assert how_to_load(tmp_path / "critic", "verl").endswith(f"={tmp_path / 'critic'}")
    again = load_critic(str(tmp_path / "critic"), ValueSettings())
    assert torch.equal(values_of(again), values_of(critic))


def test_nemo_restores_a_checkpoint_of_its_value_model(
    critic: Critic, tokenizer: PreTrainedTokenizerBase, tiny_actor: Path, tmp_path: Path
) -> None:
    write_layout(tmp_path / "step_0", critic.model, tokenizer, "nemo")
    # The value model comes from the policy's directory, its head at random; then the checkpoint,
    # which must have every key, is read into it.
    model = AutoModelForTokenClassification.from_pretrained(tiny_actor, num_labels=1).eval()
    assert not torch.equal(verl_values(model), values_of(critic))
    state = model.state_dict()
    place = tmp_path / "step_0" / "value" / "weights" / "model"
    checkpoint.load(state, storage_reader=HuggingFaceStorageReader(str(place)), no_dist=True)
    model.load_state_dict(state)
    torch.testing.assert_close(verl_values(model), values_of(critic))


def openrlhf_values(directory: Path, *, normalize: bool) -> Tensor:
    """Read values as OpenRLHF's critic does: a head without bias, then its normalization."""
    config = AutoConfig.from_pretrained(directory)
    base = AutoModel._model_mapping[type(config)]

    class TheirCritic(base.__base__):  # type: ignore[misc, name-defined]
        def __init__(self, config: AutoConfig) -> None:
            super().__init__(config)
            setattr(self, self.base_model_prefix, base(config))
            setattr(self, config.value_head_prefix, nn.Linear(config.hidden_size, 1, bias=False))
            self.post_init()

    model, info = TheirCritic.from_pretrained(directory, config=config, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        backbone = getattr(model.eval(), model.base_model_prefix)
        hidden = backbone(LEFT_PADDED_BL, ATTENTION_BL, POSITIONS_BL).last_hidden_state
        values_BL = getattr(model, config.value_head_prefix)(hidden).squeeze(-1)[:, :-1]
    if normalize:
        values_BL = (values_BL - config.mean) / config.std
    return masked(values_BL[:, -MASK_BT.shape[1] :])


def test_openrlhf_takes_the_bias_as_a_mean(
    critic: Critic, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    directory = tmp_path / "critic"
    write_layout(directory, critic.model, tokenizer, "openrlhf")
    assert "--reward.normalize_enable" in how_to_load(directory, "openrlhf")
    torch.testing.assert_close(openrlhf_values(directory, normalize=True), values_of(critic))
    torch.testing.assert_close(
        openrlhf_values(directory, normalize=False) + 0.25, values_of(critic)
    )


def test_openrlhf_needs_no_mean_without_a_bias(
    tiny_actor: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    critic = make_critic(tiny_actor)
    with torch.no_grad():
        critic.head.bias.zero_()
    write_layout(tmp_path, critic.model, tokenizer, "openrlhf")
    assert "normalize" not in how_to_load(tmp_path, "openrlhf")
    torch.testing.assert_close(openrlhf_values(tmp_path, normalize=False), values_of(critic))


@pytest.mark.parametrize("layout", ["verl", "nemo", "openrlhf"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "hl_gauss", "num_bins": 11}, "has the head hl_gauss, whose value is not its out"),
        ({"head": "sigmoid"}, "has the head sigmoid"),
        ({"privileged_prompt": "answer"}, r"reads a hint before each prompt \(answer\)"),
    ],
)
def test_values_that_others_cannot_compute_are_refused(
    settings: dict[str, object],
    message: str,
    layout: Layout,
    tiny_actor: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    critic = make_critic(tiny_actor, **settings)
    with pytest.raises(ValueError, match=f"--layout={layout}: the critic {message}"):
        write_layout(tmp_path / "critic", critic.model, tokenizer, layout)
    assert not any(tmp_path.iterdir())


def test_transformers_4_finds_the_position_embedding_and_the_tokenizer(
    critic: Critic, tmp_path: Path
) -> None:
    tokenizer = default_tokenizer(320)
    config = critic.model.config
    before = config.rope_parameters
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    try:
        write_layout(tmp_path, critic.model, tokenizer, "verl")
    finally:
        config.rope_parameters = before
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 5e5
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert written["torch_dtype"] == "float32"
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == written["rope_parameters"]
    same = AutoTokenizer.from_pretrained(tmp_path)
    assert same("Find 47 + 82.").input_ids == tokenizer("Find 47 + 82.").input_ids
    described = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert described["tokenizer_class"] == "PreTrainedTokenizerFast"
