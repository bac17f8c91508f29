"""Objectives: the diagnostics that a loss returns are those that it names, whatever the data."""

import itertools

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_vcppo.algorithm.statistics import identity
from lightning_vcppo.settings import PolicySettings, ValueSettings
from tests.support.rollouts import make_rollout
from tests.support.rows import every
from tests.support.training import make_module

POLICIES = [
    PolicySettings(kl_coef=kl, positive_example_nll_weight=nll)
    for kl, nll in itertools.product((0.0, 0.1), repeat=2)
]
POLICIES += [PolicySettings(loss=loss) for loss in ("dis", "dppo_tv", "cispo", "gspo")]
VALUES = [
    ValueSettings(),
    ValueSettings(loss="huber", cliprange_value=0.2),
    ValueSettings(head="hl_gauss"),
    ValueSettings(head="sigmoid", loss="bce"),
    ValueSettings(head="sigmoid"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value.head}-{value.loss}")
@pytest.mark.parametrize(
    "policy",
    every(2, POLICIES),
    ids=lambda p: f"{p.loss}-kl{p.kl_coef}-nll{p.positive_example_nll_weight}",
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
    for objective in module.objectives.values():
        _, parts = objective.loss(objective.weigh(rollout, identity))
        assert tuple(sorted(parts)) == objective.diagnostics
