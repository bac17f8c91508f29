"""Adapt the strategies of Lightning to two networks that are trained in turn.

* DDP wraps them apart, and sums the gradients of the network that is updated (ddp.py).
* FSDP2 shards (fsdp2.py), with three consequences. Running a part of a network must be wrapped as a
  forward pass (`as_forward`). Sampling, with many small passes that differ between ranks, gathers
  the weights once (`gathered`). Code that needs unsharded tensors calls `full_state_dict`.
* Other strategies cannot work, and are refused with the reason (`refuse_strategy`).

With unsharded weights, all these functions do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

Result = TypeVar("Result")
AS_FORWARD = "as_forward"
"""Name of the method of a sharded network that runs a function as a forward pass."""


class HasOwnShards(nn.Module):
    """A network with modules that are sharded apart from their transformer layer."""

    def own_shards(self) -> list[nn.Module]:
        """Return these modules."""
        raise NotImplementedError


def is_sharded(network: nn.Module) -> bool:
    """Return whether a rank has only a part of the weights now; False while they are `gathered`."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def as_forward(network: nn.Module, compute: Callable[[], Result]) -> Result:
    """Run `compute` as if it were the forward pass of `network`.

    A sharded network gathers its embedding and head only for its own forward pass, not when a part
    of it is called.
    """
    if isinstance(network, FSDPModule):
        return cast(Result, getattr(network, AS_FORWARD)(compute))
    return compute()


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Hold all weights of a network on every rank, for passes that differ between ranks.

    Every rank must call it. The weights are in the type in which the strategy computes; changes to
    them are lost.
    """
    if not is_sharded(network):
        yield
        return
    units = [module for module in network.modules() if isinstance(module, FSDPModule)]
    with torch.inference_mode(False), torch.no_grad():  # training uses the same memory later
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def full_state_dict(network: nn.Module) -> dict[str, Any]:
    """Return all weights of a network; if it is sharded, only on the first rank, on its host.

    Every rank must call it; with a sharded network the other ranks get an empty dict.
    """
    if not is_sharded(network):
        return dict(network.state_dict())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(network, options=options)
    names: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        tied = names.setdefault(id(parameter), name)
        if name in weights:
            weights[name] = weights[tied]
    return weights


def load_complete_or_sharded(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Tensor],
    state: dict[str, Any],
) -> None:
    """Load states of a network and its optimizer; states and network may be sharded or not.

    Args:
        network: A network, unsharded or sharded.
        optimizer: Optimizer of all its parameters.
        weights: State dict of the network, from this run or another.
        state: State dict of the optimizer.
    """
    own = network.state_dict()
    network.load_state_dict({key: _sharded_like(value, own[key]) for key, value in weights.items()})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    by_parameter = {
        i: {key: _sharded_like(value, parameters[i]) for key, value in values.items()}
        for i, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": by_parameter})


def _sharded_like(value: Any, parameter: Tensor) -> Any:
    """Shard a complete tensor like its sharded parameter; return anything else unchanged."""
    complete = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if isinstance(parameter, DTensor) and complete and value.shape == parameter.shape:
        value = value.to(parameter.device_mesh.device_type)
        return distribute_tensor(
            value, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return value


def full_scalar(value: Tensor) -> float:
    """Return a number that was computed from shards, on every rank."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
