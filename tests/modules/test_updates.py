"""Updates of two networks in one pass: a side critic that reads the policy's own forward passes."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from lightning_vcppo import VCPPOModule
from lightning_vcppo.modules.updates import Backend, Learner, run_updates
from lightning_vcppo.settings import (
    AdvantageSettings,
    OptimizerSettings,
    PolicySettings,
    UpdateSettings,
    ValueSettings,
)
from tests.support.decoders import ROUNDING
from tests.support.rows import every
from tests.support.training import EVERYTHING, SAMPLING, fit

SIDE = ValueSettings(architecture="side", side_taps=2, side_width=16)
SWITCHES = EVERYTHING | {
    "value": replace(EVERYTHING["value"], architecture="side", side_taps=2, side_width=16)
}
READ_ANEW = PolicySettings(old_logprobs="recomputed")


def update(max_tokens=10_000, order="together", size=4):
    return UpdateSettings(
        order=order, ppo_epochs=2, ppo_mini_batch_size=size, ppo_max_token_len_per_gpu=max_tokens
    )


class Module(VCPPOModule):
    """The module as it is, with settings under which a single mistake shows."""

    attention = None

    def __init__(self, actor, **settings):
        super().__init__(
            str(actor),
            **{
                "reward": "tests.support.training.random_reward",
                "sampling": SAMPLING,
                "value": SIDE,
                "actor_optimizer": OptimizerSettings(lr=1e-3, warmup_updates=3, max_grad_norm=0.5),
                "critic_optimizer": OptimizerSettings(lr=1e-2, max_grad_norm=0.2),
            }
            | settings,
        )

    def load_actor(self):
        actor = super().load_actor()
        if self.attention:
            actor.set_attn_implementation(self.attention)
        return actor


class Padded(Module):
    """One whose actor reads rows with padding."""

    attention = "sdpa"


class InTurn(Module):
    """Update first the critic and then the actor on each mini-batch, each in passes of its own."""

    def update_network(self, network, rollout, epochs=None, also=()):
        assert (network, also) == ("policy", ["critic"])
        backend, seed = Backend.of(self, self.ranks), (self.run_seed, self.rollouts_done)
        policy = self.updaters["policy"]
        mini_batches = [*policy.mini_batches(rollout, seed, range(policy.passes), backend)]
        for updater in self.updaters.values():
            updater.mini_batch_size = 1000
        for mini_batch in mini_batches:
            for name in ("critic", "policy"):
                learner = Learner(self.updaters[name], self.objectives[name], self._optimizer(name))
                found = run_updates(
                    [learner], mini_batch, self.scorer, backend, seed=seed, epochs=[0]
                )
                self.update_metrics |= found
        policy.mini_batch_size = self.update.ppo_mini_batch_size


def trained(kind, actor, rollouts=2, **settings):
    seed_everything(0)
    record = fit(kind(actor, **settings), rollouts, precision="64-true")
    assert record.actors[-1].dtype == torch.float64
    return record


def assert_same(record, other):
    for found, expected in (
        (record.actors[-1], other.actors[-1]),
        (record.critics[-1], other.critics[-1]),
    ):
        torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.fixture(scope="module")
def in_turn(tiny_actor):
    return trained(InTurn, tiny_actor, update=update(), **SWITCHES)


@pytest.mark.parametrize(
    ("kind", "settings"),
    every(
        2,
        [
            (Module, {"update": update()}),
            (Module, {"update": update(60)}),
            (Padded, {"update": update(60)}),
            (Module, {"update": update(60), "activation_checkpointing": True}),
        ],
    ),
    ids=["whole", "micro-batches", "padded", "checkpointing"],
)
def test_in_one_pass_both_learn_what_they_learn_in_turn(tiny_actor, in_turn, kind, settings):
    record = trained(kind, tiny_actor, **settings, **SWITCHES)
    assert record.trainer.lightning_module.updates_done == {"policy": 8, "critic": 8}
    assert_same(record, in_turn)
    assert record.rollouts[-1].responses == in_turn.rollouts[-1].responses


def test_with_one_update_a_rollout_it_does_not_matter_who_is_first(tiny_actor):
    settings = {"ppo_mini_batch_size": 8}
    orders = [UpdateSettings(order=order, **settings) for order in ("together", "critic_first")]
    one, other = (trained(Module, tiny_actor, 3, update=order) for order in orders)
    assert_same(one, other)
    assert one.metrics[-1].keys() == other.metrics[-1].keys()
    for key, value in one.metrics[-1].items():
        if not key.startswith(("time/", "rollout/tokens_per_second")):
            assert value == pytest.approx(other.metrics[-1][key], rel=1e-9), key


class Passes(Callback):
    """Count the forward passes of the actor's first layer."""

    count = 0

    def on_train_start(self, trainer, pl_module):
        pl_module.actor.base_model.layers[0].register_forward_hook(self._add)

    def _add(self, *_):
        self.count += 1


@pytest.mark.parametrize("policy", [PolicySettings(), READ_ANEW], ids=["exact", "read anew"])
def test_the_actor_makes_as_many_passes_as_without_a_critic(tiny_actor, policy):
    counts = []
    for value in ({"advantage": AdvantageSettings(estimator="group")}, {"update": update()}):
        seed_everything(0)
        passes = Passes()
        fit(
            Module(
                tiny_actor, **{"update": update(order="critic_first"), "policy": policy} | value
            ),
            1,
            passes,
        )
        counts.append(passes.count)
    to_score = int(policy == PolicySettings())  # log-probs are known, values have to be read
    assert counts[1] == counts[0] + to_score


def test_one_forward_pass_tells_what_two_do(tiny_actor):
    record = trained(Module, tiny_actor, update=update(60), policy=READ_ANEW)
    module, rollout = record.trainer.lightning_module, record.rollouts[-1]
    separate = (
        *module.read(module.scorer.actor_logprobs, rollout),
        *module.read(module.scorer.critic_values, rollout),
    )
    assert separate[2].abs().max() > 0
    for found, expected in zip(
        module.read(module.scorer.actor_outputs, rollout), separate, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)
    assert not any(layer._forward_hooks for layer in module.actor.base_model.layers)


class Broken(Module):
    """Its critic's loss is never finite."""

    def build_objectives(self):
        objectives = super().build_objectives()
        loss = objectives["critic"].loss

        def infinite(micro_batch):
            value, parts = loss(micro_batch)
            return value * float("inf"), parts

        objectives["critic"].loss = infinite
        return objectives


def test_a_critic_that_is_lost_takes_nothing_of_the_actor_with_it(tiny_actor):
    advantage = AdvantageSettings(lambda_actor=1.0)
    record, whole = (
        trained(kind, tiny_actor, 1, update=update(), advantage=advantage)
        for kind in (Broken, Module)
    )
    assert torch.equal(record.actors[0], whole.actors[0])  # V is 0 in the first rollout
    assert record.metrics[0]["update/skipped_critic"] == 4
    assert record.metrics[0]["update/skipped_policy"] == 0
    assert record.trainer.lightning_module.updates_done == {"policy": 4, "critic": 0}
