"""Run DDP with one wrapper around each network instead of one around the module.

Actor and critic are updated in turn. One wrapper around both would exchange the gradients of both
in every update, although those of the other network are zeros: twice the traffic.

Lightning's strategy still does the launching and the collectives. Under manual optimization it
prepares its wrapper before each backward pass; here it prepares those of the updated networks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.overrides.distributed import prepare_for_backward
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override


class NetworksDDPStrategy(DDPStrategy):
    """A DDP strategy whose wrappers are around the networks of its module; see `wrap_apart`."""

    wrappers: dict[str, DistributedDataParallel]
    """Wrappers by the module's attribute; empty if there is one around the module."""
    _settle_types: Callable[[], None]
    _updated: tuple[DistributedDataParallel, ...] | None
    """Wrappers that exchange gradients in the next backward passes; None means all."""

    @override
    def configure_ddp(self) -> None:
        """Wrap each network, or the module if separate wrappers cannot replace its wrapper."""
        self._settle_types()
        self.wrappers, self._updated = {}, None
        module = self.lightning_module
        assert module is not None
        # The state of a communication hook counts the buckets of one wrapper.
        if self._ddp_comm_hook is not None or (networks := trained_apart(module)) is None:
            super().configure_ddp()
            return
        # torch warns if all parameters are used, as in most models.
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
        self.wrappers = {name: self._setup_model(network) for name, network in networks.items()}

    @override
    def pre_backward(self, closure_loss: Tensor) -> None:
        """Prepare the updated networks to exchange their gradients in the backward pass."""
        if not self.wrappers:
            super().pre_backward(closure_loss)
        for wrapper in self.wrappers.values():
            if self._updated is None or wrapper in self._updated:
                prepare_for_backward(wrapper, closure_loss)

    @contextmanager
    @override
    def block_backward_sync(self) -> Iterator[None]:
        """Accumulate gradients without an exchange; a later pass exchanges their sum."""
        with ExitStack() as stack:
            for wrapper in self.wrappers.values():
                stack.enter_context(wrapper.no_sync())
            if not self.wrappers:
                stack.enter_context(super().block_backward_sync())
            yield

    @contextmanager
    def exchanging(self, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
        """Exchange only the gradients of the parameters of these optimizers."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        stepped = {id(parameter) for group in groups for parameter in group["params"]}
        self._updated = tuple(
            wrapper
            for wrapper in self.wrappers.values()
            if any(id(parameter) in stepped for parameter in wrapper.module.parameters())
        )
        try:
            yield
        finally:
            self._updated = None

    @override
    def teardown(self) -> None:
        """Unwrap the networks."""
        self.wrappers = {}
        super().teardown()


def wrap_apart(strategy: DDPStrategy, settle_types: Callable[[], None]) -> None:
    """Make a strategy wrap the networks of its module one by one.

    Args:
        strategy: Any DDP strategy before its setup. Its class becomes a subclass of its own with
            `NetworksDDPStrategy`, because Lightning builds it from a flag before it has the module.
        settle_types: Function that converts parameters to the types in which they are trained; it
            is called before they are wrapped, because DDP stores the types.
    """
    kind = type(strategy)
    if not issubclass(kind, NetworksDDPStrategy):
        kind = type(kind.__name__, (NetworksDDPStrategy, kind), {})
        strategy.__class__ = kind
    assert isinstance(strategy, NetworksDDPStrategy)
    strategy.wrappers, strategy._updated = {}, None
    strategy._settle_types = settle_types


def trained_apart(module: LightningModule) -> dict[str, nn.Module] | None:
    """Return the trained parts of a module by attribute.

    None means that a trained parameter is in none of the parts, or in two of them.
    """
    found: dict[str, nn.Module] = {}
    trained: set[int] = set()
    for name, network in module.named_children():
        own = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
        if own & trained:
            return None
        if own:
            found[name] = network
        trained |= own
    everything = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    return found if trained == everything else None
