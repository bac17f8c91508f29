"""Offload unused networks and optimizer states to the host (`--model.offload`).

    reference        the frozen reference policy, except while it is read
    idle_optimizer   the state of an optimizer, except while its network is updated
    idle_network     actor or critic, except while it is sampled from, read or updated

1. A hook moves a network to the device before each of its forward passes. The others move to the
   host, and so do states of optimizers: all of them for a pass without gradients.
2. The state of an optimizer moves to the device before its step, and stays for the other steps of
   the update.
3. Parameters and states remain the same objects, and only their data moves. Optimizers, DDP and
   checkpoints are not affected, and no bit changes.
4. The memory on the host is page-locked if the device is a GPU, and reused.

On a CPU, device and host are the same, but data is copied nevertheless, so that it can be tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.lists import as_list
from lightning_vcppo.distributed.fsdp2 import FSDP2Strategy
from lightning_vcppo.models.critic import Critic
from lightning_vcppo.models.value_network import ValueNetwork
from lightning_vcppo.modules.master_weights import PreciseOptimizer
from lightning_vcppo.settings import AdvantageSettings, Offload, PolicySettings, ValueSettings


def require_offload(
    kinds: Sequence[Offload],
    policy: PolicySettings,
    advantage: AdvantageSettings,
    value: ValueSettings,
    strategy: Strategy,
) -> None:
    """Refuse to offload parts that do not exist, or that a strategy places itself.

    Raises:
        ValueError: If that is so for a part; the message names the setting to change.
    """
    flag = "--model.offload"
    require(
        not kinds or not isinstance(strategy, FSDP2Strategy),
        f"{flag}: fsdp2 places its shards itself; use --trainer.strategy=fsdp2_offload, which "
        "keeps all unused shards on the host, and omit this flag",
    )
    require(
        "reference" not in kinds or policy.kl_coef != 0,
        f"{flag}: reference: there is no reference policy, because policy.kl_coef is 0; omit it",
    )
    require(
        "idle_network" not in kinds
        or (advantage.needs_critic and value.architecture == "backbone"),
        f"{flag}: idle_network: there is no critic with a backbone, so the actor is never idle; "
        "omit it",
    )


@dataclass(frozen=True)
class _Place:
    """A tensor that has been on the host, and its host memory."""

    tensor: Tensor
    on_host: Tensor

    @property
    def is_on_host(self) -> bool:
        """Whether the tensor's data is on the host now."""
        return self.tensor.data_ptr() == self.on_host.data_ptr()


class Movable:
    """Tensors that move together between the device and the host.

    Args:
        tensors: Function that returns the current tensors, because an optimizer's state changes.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]) -> None:
        """Store the function; nothing moves yet."""
        self._tensors = tensors
        self._places: dict[int, _Place] = {}

    @property
    def is_away(self) -> bool:
        """Whether some of them are on the host."""
        return any(place.is_on_host for place in self._places.values())

    def leave(self, device: torch.device) -> None:
        """Move the tensors that are on the device to the host."""
        known, self._places = self._places, {}
        moved = []
        for tensor in self._tensors():
            place = known.get(id(tensor))
            if place is None and tensor.device != device:
                continue  # never on the device, such as the step count of Adam
            if place is None or place.on_host.shape != tensor.shape:
                on_host = torch.empty_like(
                    tensor.data, device="cpu", pin_memory=device.type == "cuda"
                )
                place = _Place(tensor, on_host)
            self._places[id(tensor)] = place
            if not place.is_on_host:
                place.on_host.copy_(tensor.data, non_blocking=True)
                moved.append(place)
        if moved and device.type == "cuda":
            torch.cuda.synchronize(device)  # readers on the host do not wait for the copy
        for place in moved:
            place.tensor.data = place.on_host

    def come(self, device: torch.device) -> None:
        """Move the tensors that are on the host to the device."""
        for place in self._places.values():
            if place.is_on_host:
                place.tensor.data = place.on_host.to(device, non_blocking=True, copy=True)


class Offloader:
    """Moves networks and optimizer states between device and host.

    Args:
        kinds: Parts that are on the host while they are not in use, one or several; nothing moves
            without any.
        device: Function that returns the device.
    """

    def __init__(
        self, kinds: Sequence[Offload] | Offload, device: Callable[[], torch.device]
    ) -> None:
        """Collect the settings; nothing moves yet."""
        self.kinds = tuple(as_list(kinds))
        self._device, self._watches = device, False
        self._networks: dict[str, Movable] = {}
        self._states: dict[str, Movable] = {}

    @property
    def away(self) -> list[str]:
        """Names of the parts on the host now; that of a state is its network's and "optimizer"."""
        states = {f"{name} optimizer": state for name, state in self._states.items()}
        return sorted(name for name, part in (self._networks | states).items() if part.is_away)

    def watch_networks(
        self,
        actor: PreTrainedModel,
        critic: ValueNetwork | None,
        reference: PreTrainedModel | None,
    ) -> None:
        """Move these networks from now on, as the settings require."""
        if not self.kinds or self._watches:
            return
        self._watches = True
        models = {"actor": actor}
        if isinstance(critic, Critic):  # a side critic is small and read with the actor
            models["critic"] = critic.model
        if reference is not None:
            models["reference"] = reference
        for name, model in models.items():
            if ("reference" if name == "reference" else "idle_network") in self.kinds:
                others = [other for other in models.values() if other is not model]
                self._networks[name] = Movable(_constant(_own_tensors(model, others)))
            model.base_model.register_forward_pre_hook(self._before_reading(name))

    def watch_optimizers(
        self, actor: torch.optim.Optimizer, critic: torch.optim.Optimizer | None = None
    ) -> None:
        """Move the states of these optimizers from now on, if the settings require it."""
        if "idle_optimizer" not in self.kinds:
            return
        for name, optimizer in {"actor": actor, "critic": critic}.items():
            if optimizer is not None:
                self._states[name] = Movable(_states_of(optimizer))
                optimizer.register_step_pre_hook(self._before_step(name))

    def bring(self, network: str) -> None:
        """Move a network to the device, and parts that are not used with it to the host."""
        device = self._device()
        updated = network if torch.is_grad_enabled() else None
        for name, part in self._networks.items():
            if name != network:
                part.leave(device)
        for name, state in self._states.items():
            if name != updated:
                state.leave(device)
        if network in self._networks:
            self._networks[network].come(device)

    @torch.no_grad()
    def make_room(self) -> None:
        """Leave only the actor on the device, for sampling."""
        if self.kinds:
            self.bring("actor")

    def _before_reading(self, name: str) -> Callable[..., None]:
        return lambda *_: self.bring(name)

    def _before_step(self, name: str) -> Callable[..., None]:
        return lambda *_: self._states[name].come(self._device())


def _own_tensors(model: nn.Module, others: Iterable[nn.Module]) -> list[Tensor]:
    """Return the weights and buffers of a model that no other model shares."""
    shared = {id(tensor) for other in others for tensor in _tensors_of(other)}
    return [tensor for tensor in _tensors_of(model) if id(tensor) not in shared]


def _tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _constant(tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
    return lambda: tensors


def _states_of(optimizer: torch.optim.Optimizer) -> Callable[[], list[Tensor]]:
    """Return a function that returns the tensors of an optimizer's state."""

    def tensors() -> list[Tensor]:
        states: Sequence[Any] = [optimizer.state]
        if isinstance(optimizer, PreciseOptimizer):
            states = optimizer.states
        kept = [of_parameter for state in states for of_parameter in state.values()]
        return [x for each in kept for x in each.values() if isinstance(x, Tensor)]

    return tensors
