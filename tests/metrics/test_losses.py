"""The names of the losses' diagnostics: what the losses return, whatever the data."""

import itertools

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_vcppo.metrics.losses import loss_metrics
from lightning_vcppo.modules.actor_critic import Phase
from lightning_vcppo.settings import PolicySettings, ValueSettings
from tests.support.rollouts import make_rollout
from tests.support.training import make_module

POLICIES = [
    PolicySettings(kl_coef=kl, positive_example_nll_weight=nll)
    for kl, nll in itertools.product((0.0, 0.1), repeat=2)
]
VALUES = [
    ValueSettings(),
    ValueSettings(loss="huber", cliprange_value=0.2),
    ValueSettings(head="hl_gauss"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value.head}-{value.loss}")
@pytest.mark.parametrize(
    "policy", POLICIES, ids=lambda p: f"kl{p.kl_coef}-nll{p.positive_example_nll_weight}"
)
def test_losses_return_what_the_settings_say(tiny_actor, policy, value):
    seed_everything(0)
    module = make_module(tiny_actor, policy=policy, value=value)
    module.configure_model()
    ones_BT = torch.ones(2, 2)
    rollout = make_rollout([[5], [6]], [[7, 8], [9, 10]]).with_(
        old_logprobs_BT=-ones_BT, advantages_BT=ones_BT, returns_BT=ones_BT, values_BT=ones_BT
    )
    if policy.kl_coef:
        rollout = rollout.with_(ref_logprobs_BT=-ones_BT)
    module.phase, module.sum_over_ranks = Phase.POLICY_OPTIMIZATION, lambda tensor: tensor
    for network, loss in (("policy", module.policy_loss), ("critic", module.critic_loss)):
        _, parts = loss(module.weigh_tokens(network, rollout))
        assert tuple(sorted(parts)) == loss_metrics(network, policy, value)
