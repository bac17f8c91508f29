"""Which parts of a module DDP wraps; what it then exchanges is in integration/test_ranks.py."""

from datetime import timedelta

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy

from lightning_vcppo.distributed.ddp import NetworksDDPStrategy, trained_apart, wrap_apart


class TwoNetworks(LightningModule):
    """An actor and a critic of one layer each, and a frozen reference."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.reference = torch.nn.Linear(2, 2).requires_grad_(False)


def test_the_networks_that_are_trained_are_wrapped_apart():
    module = TwoNetworks()
    assert trained_apart(module) == {"actor": module.actor, "critic": module.critic}


def test_a_frozen_part_may_belong_to_both():
    module = TwoNetworks()
    module.actor.weight.requires_grad_(False)
    module.critic.weight = module.actor.weight
    assert trained_apart(module).keys() == {"actor", "critic"}


def test_what_is_trained_in_both_networks_or_in_none_keeps_one_wrapper():
    module = TwoNetworks()
    module.critic.weight = module.actor.weight
    assert trained_apart(module) is None
    module = TwoNetworks()
    module.scale = torch.nn.Parameter(torch.ones(1))
    assert trained_apart(module) is None


def test_a_strategy_stays_of_its_own_kind():
    class Mine(DDPStrategy):
        pass

    strategy = Mine(timeout=timedelta(seconds=7), gradient_as_bucket_view=True)
    for _ in range(2):  # a second fit with the same Trainer
        wrap_apart(strategy, lambda: None)
    assert isinstance(strategy, Mine) and isinstance(strategy, NetworksDDPStrategy)
    assert type(strategy).__mro__[1:3] == (NetworksDDPStrategy, Mine)
    assert strategy._timeout.seconds == 7 and strategy._ddp_kwargs["gradient_as_bucket_view"]
