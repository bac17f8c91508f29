"""What a step does not use is on the host, and no number of the run changes.

Here device and host are the same: a tensor that is away has its data in other memory.
"""

from copy import deepcopy

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn
from transformers import PreTrainedModel

from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.models.packing import reads_packed_rows
from lightning_vcppo.modules.offload import Movable
from lightning_vcppo.settings import AdvantageSettings, LoRASettings, PolicySettings, ValueSettings
from tests.support.rows import every
from tests.support.training import EVERYTHING, SaveAfter, fit, make_module, weights

CPU = torch.device("cpu")
ALL = ("reference", "idle_optimizer", "idle_network")


def run(actor, directory, offload, *callbacks, module=None, **changes):
    """Do two rollouts of value pretraining and two of the policy, with all losses on."""
    seed_everything(0)
    module = module or make_module(actor, offload=offload, **EVERYTHING | changes)
    pretraining = ValuePretraining(max_rollouts=2, held_out_share=0.5, dirpath=str(directory))
    return fit(module, 4, pretraining, *callbacks, prompts=6)


@pytest.fixture(scope="module")
def plain(tiny_actor, tmp_path_factory):
    """Return the run in which nothing moves."""
    return run(tiny_actor, tmp_path_factory.mktemp("plain"), ())


class Diary(Callback):
    """Note what is on the host when a network is read, and when an optimizer steps."""

    def __init__(self):
        self.reads, self.steps, self.identities = set(), set(), []

    def on_train_start(self, trainer, pl_module):
        self.module = pl_module
        models = {"actor": pl_module.actor, "critic": pl_module.critic.model}
        models["reference"] = pl_module.reference
        for name, model in models.items():
            model.base_model.register_forward_pre_hook(self.noting(self.reads, name))
        for name, optimizer in zip(("actor", "critic"), trainer.optimizers, strict=True):
            optimizer.register_step_pre_hook(self.noting(self.steps, name))

    def noting(self, notes, name):
        def note(*_):
            reading = not torch.is_grad_enabled()
            away = tuple(self.module.offloader.away)
            notes.add((self.module.rollouts_done, name, reading, away))

        return note

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        states = [trainer.optimizers[1].state[p] for p in pl_module.critic.parameters()]
        self.identities.append([id(state["exp_avg"]) for state in states])


def assert_same(one, other):
    """Compare the weights after each rollout, and all that was logged."""
    for name in ("actors", "critics"):
        for ours, theirs in zip(getattr(one, name), getattr(other, name), strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(one.metrics, other.metrics, strict=True):
        timed = ("time/", "rollout/tokens_per_second")
        assert {k: v for k, v in ours.items() if not k.startswith(timed)} == {
            k: v for k, v in theirs.items() if not k.startswith(timed)
        }


def test_a_network_on_the_host_is_not_asked_for_its_device(
    tiny_actor, tmp_path, plain, monkeypatch
):
    """On a GPU, what is built there would be on the host, and not where the network is read."""
    away = set()
    leave, come = Movable.leave, Movable.come

    def leaving(part, device):
        leave(part, device)
        away.update(map(id, part._tensors()))

    def coming(part, device):
        away.difference_update(map(id, part._tensors()))
        come(part, device)

    def where(model):
        return torch.device("meta" if id(next(model.parameters())) in away else "cpu")

    monkeypatch.setattr(Movable, "leave", leaving)
    monkeypatch.setattr(Movable, "come", coming)
    monkeypatch.setattr(PreTrainedModel, "device", property(where))
    module = make_module(tiny_actor, offload=ALL, **EVERYTHING)
    assert_same(run(tiny_actor, tmp_path, ALL, module=module), plain)
    assert away
    networks = (module.actor, module.critic.model, module.reference)
    assert all(map(reads_packed_rows, networks))


def test_no_bit_of_a_run_changes_and_only_what_is_used_is_there(tiny_actor, tmp_path, plain):
    diary = Diary()
    offloaded = run(tiny_actor, tmp_path, ALL, diary)
    assert_same(offloaded, plain)
    networks, states = {"actor", "critic", "reference"}, {"actor optimizer", "critic optimizer"}
    for rollout, name, reading, away in diary.reads:
        assert networks - {name} == set(away) & networks
        if rollout == 3:  # before, an optimizer may have no state yet
            others = states if reading else states - {f"{name} optimizer"}
            assert others <= set(away)
    assert {name for _, name, reading, _ in diary.reads if reading} == networks
    for rollout, name, _, away in diary.steps:
        assert f"{name} optimizer" not in away and networks - {name} == set(away) & networks
        assert rollout < 3 or states - {f"{name} optimizer"} <= set(away)
    # The second rollout has restored the best critic, and with it its optimizer's state.
    assert diary.identities[1] == diary.identities[2] == diary.identities[3]


@pytest.mark.parametrize("kind", every(3, ALL))
def test_each_kind_moves_what_it_says(tiny_actor, tmp_path, plain, kind):
    diary = Diary()
    assert_same(run(tiny_actor, tmp_path, (kind,), diary), plain)
    seen = {name for *_, away in diary.reads | diary.steps for name in away}
    assert (
        seen
        == {
            "reference": {"reference"},
            "idle_optimizer": {"actor optimizer", "critic optimizer"},
            "idle_network": {"actor", "critic"},
        }[kind]
    )


@pytest.mark.thorough
@pytest.mark.parametrize("saved_after", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_whether_it_moves_or_not(
    tiny_actor, tmp_path, plain, saved_after
):
    path = tmp_path / "saved.ckpt"
    run(tiny_actor, tmp_path, ALL, SaveAfter(saved_after, path))
    for offload in (ALL, ()):
        module = make_module(tiny_actor, offload=offload, **EVERYTHING)
        pretraining = ValuePretraining(max_rollouts=2, held_out_share=0.5, dirpath=str(tmp_path))
        resumed = fit(module, 4, pretraining, prompts=6, ckpt_path=path)
        assert torch.equal(resumed.actors[-1], plain.actors[-1])
        assert torch.equal(resumed.critics[-1], plain.critics[-1])


@pytest.mark.thorough
def test_a_second_fit_goes_on_from_wherever_the_first_has_left_its_tensors(tiny_actor, tmp_path):
    ends = []
    for offload in ((), ALL):
        module = make_module(tiny_actor, offload=offload, **EVERYTHING)
        for _ in range(2):
            record = run(tiny_actor, tmp_path, offload, module=module)
        ends.append(torch.cat([record.actors[-1], record.critics[-1]]))
    assert torch.equal(*ends)


def test_frozen_weights_that_networks_share_stay(tiny_actor):
    """Under adapters the reference has nothing of its own, and the actor only its adapters."""
    module = make_module(tiny_actor, offload=ALL, lora=LoRASettings(rank=2), **EVERYTHING)
    record = fit(module, 1)
    plain = fit(make_module(tiny_actor, lora=LoRASettings(rank=2), **EVERYTHING), 1)
    assert torch.equal(record.actors[-1], plain.actors[-1])
    module.offloader.bring("critic")
    for name, model in {"actor": module.actor, "reference": module.reference}.items():
        moved = module.offloader._networks[name]._places
        own = {id(p) for p in model.parameters() if p.requires_grad}
        assert {id(p) for p in model.parameters()} & moved.keys() == own


def test_tensors_keep_identity_and_bits_and_change_their_memory():
    layer = nn.Linear(3, 4)
    before, identities = deepcopy(layer.state_dict()), [id(p) for p in layer.parameters()]
    movable = Movable(lambda: list(layer.parameters()))
    homes = [p.data_ptr() for p in layer.parameters()]
    movable.leave(CPU)
    hosts = [p.data_ptr() for p in layer.parameters()]
    assert movable.is_away and not set(homes) & set(hosts)
    with torch.no_grad():
        layer.bias.add_(1)  # as who restores weights does
    movable.come(CPU)
    assert not movable.is_away and not set(hosts) & {p.data_ptr() for p in layer.parameters()}
    movable.leave(CPU)
    assert [p.data_ptr() for p in layer.parameters()] == hosts  # the memory there is kept
    assert [id(p) for p in layer.parameters()] == identities
    assert torch.equal(layer.weight, before["weight"])
    assert torch.equal(layer.bias, before["bias"] + 1)


def test_what_is_replaced_or_lives_elsewhere_is_let_go():
    tensors = [torch.ones(2), torch.ones(3)]
    movable = Movable(lambda: tensors)
    movable.leave(torch.device("meta"))  # they have never been on that device
    assert not movable.is_away
    movable.leave(CPU)
    movable.come(CPU)
    tensors[0] = torch.zeros(2)
    movable.leave(CPU)
    assert len(movable._places) == 2 and movable.is_away


def test_a_critic_is_restored_while_it_is_away(tiny_actor):
    module = make_module(tiny_actor, offload=ALL, **EVERYTHING)
    fit(module, 1)
    state, before = module.critic_state(), weights(module.critic)
    with torch.no_grad():
        for parameter in module.critic.parameters():
            parameter.zero_()
        module.offloader.make_room()
    module.restore_critic(state)
    assert torch.equal(weights(module.critic), before)
    assert "critic" not in module.offloader.away


def test_the_best_critic_is_kept_in_the_memory_of_the_last_one(tiny_actor):
    module = make_module(tiny_actor)
    fit(module, 1)
    first = module.critic_state()
    with torch.no_grad():
        for parameter in module.critic.parameters():
            parameter.add_(1)
    second, anew = module.critic_state(into=first), module.critic_state()
    for name, weight in second["weights"].items():
        assert weight is first["weights"][name]
        assert torch.equal(weight, anew["weights"][name])
        assert weight.data_ptr() != module.critic.state_dict()[name].data_ptr()
    moments = [kept["optimizer"]["state"][0]["exp_avg"] for kept in (second, first)]
    assert moments[0] is moments[1]
    second["weights"]["model.score.weight"] = torch.zeros(1)  # of another shape: made anew
    assert torch.equal(
        module.critic_state(into=second)["weights"]["model.score.weight"],
        anew["weights"]["model.score.weight"],
    )


@pytest.mark.parametrize(
    ("offload", "changes", "flags", "message"),
    [
        (ALL[1:], {}, {"strategy": "fsdp2"}, "use --trainer.strategy=fsdp2_offload"),
        (ALL[:1], {}, {}, "reference: there is no reference policy"),
        (
            ALL[2:],
            {"advantage": AdvantageSettings(estimator="batch")},
            {},
            "idle_network: there is",
        ),
        (ALL[2:], {"value": ValueSettings(architecture="side")}, {}, "idle_network: there is"),
    ],
)
def test_what_cannot_be_right_is_refused(tiny_actor, offload, changes, flags, message):
    with pytest.raises(ValueError, match=f"--model.offload: .*{message}"):
        fit(make_module(tiny_actor, offload=offload, **changes), 1, devices=1, **flags)


def test_without_a_critic_the_reference_and_the_state_move(tiny_actor):
    changes = {
        "policy": PolicySettings(kl_coef=0.1),
        "advantage": AdvantageSettings(estimator="batch"),
    }
    ends = [
        fit(make_module(tiny_actor, offload=offload, **changes), 2).actors[-1]
        for offload in ((), ALL[:2])
    ]
    assert torch.equal(*ends)
