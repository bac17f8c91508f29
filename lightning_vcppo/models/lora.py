"""Low-rank adapters (LoRA, arXiv 2106.09685) on one frozen base, through peft.

1. Each network has adapters of its own, in modules of its own: nothing is switched on or off, so
   one network's loss cannot reach the other's adapters.
2. The frozen weights under them are the same tensors in actor, critic and reference, wherever they
   are equal when they are loaded (`share_weights`).
3. B starts at 0: an adapted network is, to the last bit, the network that it adapts.
4. Whoever wants an ordinary network, as folders, vLLM and the decoder do, reads `plain_weights` or
   `merged_linear`: the base with the adapters added, in new tensors. The base is never written to.

Shapes: O outputs, I inputs of a linear layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightning_vcppo.common.errors import require
from lightning_vcppo.distributed.precision import multiplies_precisely
from lightning_vcppo.models.value_network import ValueNetwork
from lightning_vcppo.settings import LoRASettings

NAME = "default"
"""Of the only adapter of a network, as peft calls it."""


def adapt(model: PreTrainedModel, settings: LoRASettings, seed: int) -> None:
    """Freeze a model and put adapters beside the linear layers of its backbone.

    Args:
        model: A decoder with a head; the head is frozen, too, and gets no adapter.
        settings: With a rank.
        seed: Of the adapters' first weights.

    Raises:
        ValueError: if peft is not installed, or the target modules are not linear layers of the
            backbone.
    """
    assert settings.rank is not None
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("--model.lora: needs `pip install 'lightning-vcppo[lora]'`") from error

    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a factor, whole or not
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=0.0,  # importance ratios need the same policy twice
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "fan_in_fan_out")  # is set as the layer needs it
                inject_adapter_in_model(config, model.base_model, NAME)
        except ValueError as error:
            raise ValueError(f"--model.lora.target_modules: {error}") from error
    names = [name for name, layer in model.named_modules() if hasattr(layer, "lora_A")]
    others = [name for name in names if not is_adapted(model.get_submodule(name))]
    if others:
        raise ValueError(f"--model.lora.target_modules: {others[0]} is not a linear layer")


def is_adapted(layer: nn.Module) -> bool:
    """Return whether a layer is a linear one with an adapter."""
    return NAME in getattr(layer, "lora_A", ())


def merged_weight(layer: Any, base: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """Return what the weight of an adapted layer becomes with its adapter, in the base's type."""
    delta_OI = lora_B @ lora_A
    delta = (delta_OI.T if layer.fan_in_fan_out else delta_OI) * layer.scaling[NAME]
    precise = torch.promote_types(base.dtype, delta.dtype)
    merged: Tensor = (base.to(precise) + delta.to(precise)).to(base.dtype)
    return merged


def merged_linear(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return weight and bias that do what a linear layer does, or None.

    None is for layers of another kind, and for adapters where products are in bfloat16 or TF32:
    rounded to bfloat16, a sum with the base loses what they add, as long as that is less than 1/512
    of a weight.
    """
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    base = getattr(layer, "base_layer", None)
    if is_adapted(layer) and type(base) is nn.Linear and multiplies_precisely(base.weight):
        lora_A, lora_B = (getattr(layer, f"lora_{x}")[NAME].weight for x in "AB")
        return merged_weight(layer, base.weight, lora_A, lora_B), base.bias
    return None


@torch.no_grad()
def plain_weights(
    model: nn.Module, state: Mapping[str, Tensor] | None = None, *, tied: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield weights as the model would have them without adapters and on one device.

    What adapters have learnt is in them, under the base's names. Sharded weights are gathered one
    at a time, so every rank must exhaust the iterator.

    Args:
        model: With adapters or without.
        state: Its state, for buffers too, or one that has been gathered already; None takes the
            parameters.
        tied: Whether weights that are tied come under each of their names.
    """
    state = dict(model.named_parameters(remove_duplicate=False)) if state is None else state
    seen: set[int] = set()
    for name, weight in state.items():
        if ".lora_" in name or (not tied and id(weight) in seen):
            continue
        seen.add(id(weight))
        owner, found, leaf = name.rpartition(".base_layer.")
        if found and leaf == "weight":
            adapter = (whole(state[f"{owner}.lora_{x}.{NAME}.weight"]) for x in "AB")
            merged = merged_weight(model.get_submodule(owner), whole(weight), *adapter)
            yield plain_name(name), merged
        else:
            yield plain_name(name), whole(weight.detach())


def whole(weight: Tensor) -> Tensor:
    """Return a weight with all of its shards; every rank must call it."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def share_weights(model: nn.Module, base: nn.Module) -> None:
    """Let `model` hold the tensors of `base` wherever its own are equal and both are frozen.

    Shards are left alone: each network is gathered for itself.
    """
    owned = {plain_name(name): p for name, p in base.named_parameters(remove_duplicate=False)}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        twin = owned.get(plain_name(name))
        if twin is None or twin.requires_grad or parameter.requires_grad:
            continue
        if isinstance(twin, DTensor) or isinstance(parameter, DTensor):
            continue
        if twin.shape == parameter.shape and torch.equal(twin, parameter.to(twin)):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, twin)


def plain_name(name: str) -> str:
    """Return the name that a weight of the base has without adapters."""
    return name.replace(".base_layer.", ".")


def save_trained_alone(module: nn.Module) -> None:
    """Let the state of a module be what it trains: frozen weights are neither saved nor missed.

    References never change, and the base of adapters comes from where it came from before. A critic
    with a frozen part (`value.freeze`) is saved with it: it may have started from anything.
    """
    module.register_state_dict_post_hook(_leave_frozen_out)
    module.register_load_state_dict_post_hook(_miss_nothing_frozen)


def _leave_frozen_out(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for name in _frozen_names(module):
        state.pop(prefix + name, None)


def _miss_nothing_frozen(module: nn.Module, keys: Any) -> None:
    frozen = _frozen_names(module)
    keys.missing_keys[:] = [key for key in keys.missing_keys if key not in frozen]


def _frozen_names(module: nn.Module) -> set[str]:
    """Return the names of frozen weights that come from elsewhere when a run resumes."""
    named = module.named_parameters(remove_duplicate=False)
    complete = tuple(
        f"{path}." if path else ""
        for path, network in module.named_modules()
        if isinstance(network, ValueNetwork) and network.settings.freeze != "none"
    )
    return {
        name
        for name, parameter in named
        if not parameter.requires_grad and not name.startswith(complete)
    }


def precise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state that is in float32 whatever the Trainer's precision.

    Those are value head and adapters: few numbers, for which bfloat16 would round small updates
    away.
    """
    return {k: v for k, v in state.items() if ".lora_" in k or k.startswith("critic.model.score.")}


@torch.no_grad()
def keep_precise(module: nn.Module, restored: dict[str, Tensor]) -> None:
    """Give back float32 to what precision "bf16-true" has cast with all the rest.

    Args:
        module: With its critic in `critic`.
        restored: What a checkpoint has for it, before it was cast; emptied.
    """
    for name, parameter in precise(dict(module.named_parameters())).items():
        if parameter.dtype.itemsize >= 4:
            continue
        value = restored.get(name, parameter.data).to(parameter.device, torch.float32)
        if isinstance(parameter, DTensor):  # its `data` would leave the shard behind as it is
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, nn.Parameter(value))
        else:
            parameter.data = value
    restored.clear()


def record(settings: LoRASettings, bases: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | None:
    """Return what a checkpoint must say of adapters for them to be read back; None without any.

    Args:
        settings: Of the adapters.
        bases: By network, where its base has come from (`source`) and which it is (`fingerprint`).
    """
    if settings.rank is None:
        return None
    return {"settings": asdict(settings), "bases": {k: dict(v) for k, v in bases.items()}}


def require_same(saved: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> None:
    """Refuse a checkpoint whose adapters would not fit, or fit by chance.

    Raises:
        ValueError: with the flags that fit.
    """
    if saved is None or own is None:
        require(
            saved == own,
            "the checkpoint has adapters; give the run's --model.lora.rank again"
            if own is None
            else "the checkpoint has all weights and no adapters; leave --model.lora out",
        )
        return
    for name, value in saved["settings"].items():
        given = own["settings"][name]
        require(
            given == value,
            f"--model.lora.{name}: the checkpoint's adapters have {value}, not {given}",
        )
    for name in saved["bases"].keys() & own["bases"].keys():
        before, now = saved["bases"][name], own["bases"][name]
        require(
            before["fingerprint"] == now.get("fingerprint", before["fingerprint"]),
            f"--model.{name}: {now['source']} holds other weights than those on which the "
            f"checkpoint's adapters were trained ({before['source']})",
        )
