"""Critics of which a part keeps its weights: what trains, what is saved, what is refused."""

import pytest
import torch
from lightning.pytorch import seed_everything
from safetensors.torch import load_file

from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.cli.commands.export import export
from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.models.freezing import freeze
from lightning_vcppo.settings import ValueSettings
from tests.support.decoders import decoder
from tests.support.tiny_runs import TINY_QWEN2
from tests.support.training import LORA, SaveAfter, fit, make_module

RANDOM = TINY_QWEN2 | {"vocab_size": 330}
ATTENTION = ValueSettings(freeze="attention")


def frozen(network):
    return {name for name, p in network.named_parameters() if not p.requires_grad}


def copied(network):
    return {name: p.detach().clone() for name, p in network.named_parameters()}


@pytest.fixture(scope="module")
def trained(tiny_actor, tmp_path_factory):
    """A run whose critic starts at random: a rollout of value pretraining, two of the policy."""
    directory = tmp_path_factory.mktemp("frozen")
    seed_everything(0)
    module = make_module(tiny_actor, critic=RANDOM, value=ATTENTION)
    module.configure_model()
    before = copied(module.critic)
    pretraining = ValuePretraining(max_rollouts=1, held_out_share=0.5, dirpath=str(directory))
    record = fit(module, 3, pretraining, SaveAfter(1, directory / "early.ckpt"))
    record.trainer.save_checkpoint(directory / "last.ckpt")
    return module, record, directory, before


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_attention_is_frozen_and_its_norms_are_not(kind):
    model = decoder(kind)
    freeze(model, "attention")
    names = frozen(model)
    expected = {n for n, _ in model.named_parameters() if "_proj." in n and "self_attn" in n}
    assert names == expected and len(names) >= 8
    assert not any("norm" in name for name in names)


def test_embeddings_are_frozen_alone(tiny_actor):
    critic = load_critic(str(tiny_actor), ValueSettings(freeze="embeddings"))
    assert frozen(critic.model) == {"model.embed_tokens.weight"}


def test_a_model_without_the_part_is_refused_in_one_line(tiny_actor):
    model = load_critic(str(tiny_actor), ValueSettings()).model
    for layer in model.base_model.layers:
        layer.self_attn = torch.nn.Linear(1, 1)
    with pytest.raises(
        ValueError, match="freeze: found no attention in a model of type qwen2"
    ) as error:
        freeze(model, "attention")
    assert "\n" not in str(error.value)


def test_what_is_frozen_keeps_its_weights_and_has_no_moments(trained):
    module, _, _, before = trained
    names = frozen(module.critic)
    assert len(names) == 2 * 7  # four matrices and three biases a layer
    for name, parameter in module.critic.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in names), name
        assert parameter.requires_grad == (name not in names)
    optimizer = module.optimizers()[1]
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained_ones = [p for p in module.critic.parameters() if p.requires_grad]
    assert owned == {id(p) for p in trained_ones} and len(optimizer.state) == len(trained_ones)


def test_checkpoints_and_directories_hold_what_is_frozen(trained):
    module, _, directory, before = trained
    state = torch.load(directory / "last.ckpt", weights_only=True)["state_dict"]
    for name in frozen(module.critic):
        assert torch.equal(state[f"critic.{name}"], before[name])
    export(str(directory / "last.ckpt"), str(directory / "exported"))
    written = load_file(directory / "exported" / "critic" / "model.safetensors")
    assert all(torch.equal(written[n], p) for n, p in module.critic.model.state_dict().items())


def test_a_resumed_run_with_a_random_critic_equals_an_uninterrupted_one(trained, tiny_actor):
    _, record, directory, _ = trained
    seed_everything(0)
    torch.manual_seed(1)  # another random start, which the checkpoint replaces
    resumed = make_module(tiny_actor, critic=RANDOM, value=ATTENTION)
    again = fit(
        resumed,
        3,
        ValuePretraining(max_rollouts=1, held_out_share=0.5, dirpath=str(directory / "again")),
        ckpt_path=directory / "early.ckpt",
    )
    assert torch.equal(again.critics[-1], record.critics[-1])
    assert torch.equal(again.actors[-1], record.actors[-1])


def test_a_checkpoint_that_trained_other_weights_is_refused(trained, tiny_actor):
    _, _, directory, _ = trained
    module = make_module(tiny_actor, critic=RANDOM)
    with pytest.raises(ValueError, match=r"value\.freeze: .* has attention, got none"):
        fit(module, 3, ckpt_path=directory / "last.ckpt")


def test_adapters_and_a_frozen_part_are_refused_together(tiny_actor):
    with pytest.raises(ValueError, match=r"value\.freeze: attention .* adapters") as error:
        make_module(tiny_actor, value=ATTENTION, lora=LORA)
    assert "\n" not in str(error.value)
