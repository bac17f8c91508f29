"""A ladder on the actor's activations: what it reads, what it leaves alone, where it is refused."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_vcppo import VCPPOModule
from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.cli.commands.export import export
from lightning_vcppo.models import loading
from lightning_vcppo.models.critic import load_critic
from lightning_vcppo.models.forward import response_layers
from lightning_vcppo.models.side_critic import build_side_critic
from lightning_vcppo.settings import AdvantageSettings, UpdateSettings, ValueSettings
from tests.support.critics import IDS_BL, MASK_BT, PROMPT_LENGTHS_B, values_of
from tests.support.decoders import ROUNDING, decoder
from tests.support.tiny_runs import TINY_QWEN2
from tests.support.training import LORA, SaveAfter, fit, make_module, weights

SIDE = ValueSettings(architecture="side", side_taps=2, side_width=16)
FREE = AdvantageSettings(lambda_actor=1.0, whiten=False)
TOGETHER = UpdateSettings(order="together", ppo_mini_batch_size=4, ppo_epochs=2)


def train(actor, directory, ckpt_path=None, **settings):
    seed_everything(0)
    module = make_module(actor, **{"value": SIDE, "update": TOGETHER} | settings)
    pretraining = ValuePretraining(max_rollouts=1, held_out_share=0.5, dirpath=str(directory))
    saving = [SaveAfter(1, directory / "early.ckpt"), SaveAfter(3, directory / "late.ckpt")]
    saving = [] if ckpt_path else saving
    return module, fit(module, 3, pretraining, *saving, ckpt_path=ckpt_path)


@pytest.fixture(scope="module")
def trained(tiny_actor, tmp_path_factory):
    directory = tmp_path_factory.mktemp("side")
    return *train(tiny_actor, directory), directory


def test_what_is_tapped_are_the_states_behind_the_layers(tiny_actor):
    backbone = loading.load_actor(str(tiny_actor)).double().base_model
    tapped_NKH = response_layers(backbone, IDS_BL, PROMPT_LENGTHS_B, MASK_BT, [1, 2])
    assert not any(layer._forward_hooks for layer in backbone.layers)
    for row, places, part in ((0, [1, 2, 3], slice(0, 3)), (1, [0, 1], slice(3, 5))):
        length = int(PROMPT_LENGTHS_B[row] + MASK_BT[row].sum())
        alone = backbone(IDS_BL[row : row + 1, :length], output_hidden_states=True)
        expected = alone.hidden_states[1][0, places]
        torch.testing.assert_close(tapped_NKH[part, 0], expected, atol=ROUNDING, rtol=ROUNDING)
        normed = backbone.norm(tapped_NKH[part, 1])
        last = alone.last_hidden_state[0, places]
        torch.testing.assert_close(normed, last, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("head", ["scalar", "bounded", "sigmoid", "hl_gauss"])
def test_a_fresh_ladder_is_the_same_for_a_seed_and_says_the_same_everywhere(tiny_actor, head):
    actor = loading.load_actor(str(tiny_actor))
    settings = replace(SIDE, head=head)
    critic, same, other = (build_side_critic(actor, settings, seed) for seed in (1, 1, 2))
    states = [c.state_dict() for c in (critic, same, other)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])
    assert values_of(critic).abs().max() < 1e-6
    assert all(name.startswith("model.") for name in states[0])  # and nothing of the actor


def test_a_ladder_by_hand(tiny_actor):
    critic = build_side_critic(loading.load_actor(str(tiny_actor)), SIDE, 0).double()
    tapped_NKH = torch.randn(3, 2, 32, dtype=torch.float64)

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    state = torch.zeros(3, 16, dtype=torch.float64)
    for k, rung in enumerate(critic.model.rungs):
        state = (state + norm(tapped_NKH[:, k]) @ rung.down.weight.T) / 2
        inner = norm(state) @ rung.mlp_up.weight.T
        state = state + inner * inner.sigmoid() @ rung.mlp_down.weight.T
    torch.testing.assert_close(critic.model(tapped_NKH), norm(state))


def test_its_loss_reaches_the_ladder_and_not_the_actor(tiny_actor):
    actor = loading.load_actor(str(tiny_actor))
    critic = build_side_critic(actor, replace(SIDE, head_init="normal"), 0)
    critic(IDS_BL, PROMPT_LENGTHS_B, MASK_BT).square().sum().backward()
    assert all(p.grad is None for p in actor.parameters())
    assert all(p.grad is not None and p.grad.any() for p in critic.model.rungs.parameters())


def test_the_actor_is_that_of_a_run_without_it_to_the_last_bit(tiny_actor):
    """The first values are 0 of both critics, so both actors learn from the same advantages."""
    actors = []
    for value in (SIDE, ValueSettings()):
        seed_everything(0)
        record = fit(make_module(tiny_actor, value=value, advantage=FREE), 1)
        actors.append(record.actors[0])
        assert record.critics[0].abs().sum() > 0
    assert torch.equal(*actors)


def test_value_pretraining_trains_it_alone(trained, tiny_actor):
    _, record, _ = trained
    assert torch.equal(record.actors[0], weights(loading.load_actor(str(tiny_actor))))
    assert not torch.equal(record.critics[0], record.critics[1])
    assert not torch.equal(record.actors[0], record.actors[1])


def test_a_resumed_run_equals_an_uninterrupted_one(trained, tiny_actor, tmp_path):
    _, record, directory = trained
    _, again = train(tiny_actor, tmp_path, directory / "early.ckpt")
    assert torch.equal(again.critics[-1], record.critics[-1])
    assert torch.equal(again.actors[-1], record.actors[-1])
    with pytest.raises(ValueError, match=r"value\.architecture: .* has side, got backbone"):
        other = {"value": ValueSettings(), "update": UpdateSettings()}
        train(tiny_actor, tmp_path, directory / "early.ckpt", **other)


def test_a_checkpoint_is_loaded_with_the_same_ladder_and_no_other(trained, tiny_actor):
    module, _, directory = trained
    again = VCPPOModule.load_from_checkpoint(
        directory / "late.ckpt", actor=str(tiny_actor), value=SIDE, update=TOGETHER
    )
    assert torch.equal(weights(again.critic), weights(module.critic))
    assert torch.equal(weights(again.actor), weights(module.actor))
    assert again.critic.reader is again.actor
    for name, saved, given in (("side_taps", 2, 1), ("side_width", 16, 8)):
        value = replace(SIDE, **{name: given})
        line = rf"--model\.value\.{name}: .* has {saved}, got {given}$"
        with pytest.raises(ValueError, match=line):
            VCPPOModule.load_from_checkpoint(
                directory / "late.ckpt", actor=str(tiny_actor), value=value
            )
        with pytest.raises(ValueError, match=line):
            train(tiny_actor, directory, directory / "early.ckpt", value=value)


@pytest.mark.parametrize("lora", [None, LORA])
def test_its_directory_is_read_back(trained, tiny_actor, tmp_path, lora):
    module, record, _ = trained
    if lora:
        module, record = train(tiny_actor, tmp_path, lora=lora)
    record.trainer.save_checkpoint(tmp_path / "last.ckpt")
    export(str(tmp_path / "last.ckpt"), str(tmp_path / "exported"))
    module.export_critic(tmp_path / "critic")
    for directory in (tmp_path / "exported" / "critic", tmp_path / "critic"):
        again = load_critic(str(directory), SIDE).attach(module.actor)
        for name, weight in module.critic.state_dict().items():
            assert torch.equal(again.state_dict()[name], weight), name
        torch.testing.assert_close(values_of(again), values_of(module.critic))  # sums are rounded
    other = decoder("llama")
    other.config.hidden_size = 48
    with pytest.raises(ValueError, match="2 layers of size 32, got 2 of 48"):
        again.attach(other)


def test_what_does_not_go_together_is_refused_in_one_line(tiny_actor):
    for changes in ({"critic": str(tiny_actor)}, {"critic": TINY_QWEN2}):
        with pytest.raises(ValueError, match=r"critic: a side critic .* --model\.critic null"):
            make_module(tiny_actor, value=SIDE, **changes)
    for name, value in (("freeze", "attention"), ("privileged_prompt", "answer")):
        with pytest.raises(ValueError, match=f"{name}: a side critic has no backbone"):
            replace(SIDE, **{name: value})
    with pytest.raises(ValueError, match="gpt2 has none"):
        build_side_critic(decoder("gpt2"), SIDE, 0)
