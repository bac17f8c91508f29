"""Train low-rank adapters (LoRA, arXiv 2106.09685) on one frozen base, through peft.

1. Each network has its own modules with its own adapters: none is switched on or off, so one
   network's loss cannot reach the other's adapters.
2. The frozen weights under them are the same tensors in actor, critic and reference if they are
   equal when they are loaded (`share_weights`).
3. B starts at 0: a newly adapted network has exactly the outputs of its base.
4. Exports, vLLM and the decoder need an ordinary network and read `plain_weights` or
   `merged_linear`: the base with merged adapters, in new tensors. The base is never written to.

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
"""Name of a network's only adapter in peft."""


def adapt(model: PreTrainedModel, settings: LoRASettings, seed: int) -> None:
    """Freeze a model and add adapters to the linear layers of its backbone.

    Args:
        model: A decoder with a head; the head is also frozen, and gets no adapter.
        settings: LoRA settings with a rank.
        seed: Seed of the adapters' initial weights.

    Raises:
        ValueError: If peft is not installed, or the target modules are not linear layers of the
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
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a factor, integer or not
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=0.0,  # importance ratios need the same policy twice
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "fan_in_fan_out")  # is set as the layer requires
                inject_adapter_in_model(config, model.base_model, NAME)
        except ValueError as error:
            raise ValueError(f"--model.lora.target_modules: {error}") from error
    names = [name for name, layer in model.named_modules() if hasattr(layer, "lora_A")]
    others = [name for name in names if not is_adapted(model.get_submodule(name))]
    if others:
        raise ValueError(f"--model.lora.target_modules: {others[0]} is not a linear layer")


def is_adapted(layer: nn.Module) -> bool:
    """Return whether a layer is a linear layer with an adapter."""
    return NAME in getattr(layer, "lora_A", ())


def merged_weight(layer: Any, base: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """Return the weight of an adapted layer with its adapter merged, in the base's type."""
    delta_OI = lora_B @ lora_A
    delta = (delta_OI.T if layer.fan_in_fan_out else delta_OI) * layer.scaling[NAME]
    precise = torch.promote_types(base.dtype, delta.dtype)
    merged: Tensor = (base.to(precise) + delta.to(precise)).to(base.dtype)
    return merged


def merged_linear(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return weight and bias of a linear layer with its adapter merged, or None.

    None is for other layers, and for adapters where products are in bfloat16 or TF32: rounded, a
    merged weight loses an adapter's change of less than 1/512 (bfloat16) of the weight.
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
    """Yield the weights of an equivalent model without adapters and shards.

    Adapters are merged into them, under the base's names. Sharded weights are gathered one at a
    time, so every rank must exhaust the iterator.

    Args:
        model: A model with or without adapters.
        state: Its state dict, which has buffers too, or one that is gathered already; None means
            its parameters.
        tied: Whether tied weights are yielded under each of their names.
    """
    state = dict(model.named_parameters(remove_duplicate=False)) if state is None else state
    seen: set[int] = set()
    for name, weight in state.items():
        if ".lora_" in name or (not tied and id(weight) in seen):
            continue
        seen.add(id(weight))
        owner, found, leaf = name.rpartition(".base_layer.")
        if found and leaf == "weight":
            adapter = (complete(state[f"{owner}.lora_{x}.{NAME}.weight"]) for x in "AB")
            merged = merged_weight(model.get_submodule(owner), complete(weight), *adapter)
            yield plain_name(name), merged
        else:
            yield plain_name(name), complete(weight.detach())


def complete(weight: Tensor) -> Tensor:
    """Return a weight gathered from all shards; every rank must call it."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def share_weights(model: nn.Module, base: nn.Module) -> None:
    """Replace frozen tensors of `model` by those of `base` if they are equal and both frozen.

    Shards are not replaced, because each network is gathered separately.
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
    """Return the name of a weight of the base without adapters."""
    return name.replace(".base_layer.", ".")


def save_only_trained(module: nn.Module) -> None:
    """Restrict the state dict of a module to trained weights; frozen ones may be missing.

    References never change, and the base of adapters is loaded from its source again. A critic with
    a frozen part (`value.freeze`) is saved completely, because its source may be gone.
    """
    module.register_state_dict_post_hook(_drop_frozen)
    module.register_load_state_dict_post_hook(_ignore_missing_frozen)


def _drop_frozen(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for name in _frozen_names(module):
        state.pop(prefix + name, None)


def _ignore_missing_frozen(module: nn.Module, keys: Any) -> None:
    frozen = _frozen_names(module)
    keys.missing_keys[:] = [key for key in keys.missing_keys if key not in frozen]


def _frozen_names(module: nn.Module) -> set[str]:
    """Return the names of frozen weights that are loaded from their source when a run resumes."""
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
    """Return the part of a state dict that is in float32 whatever the Trainer's precision.

    These are value head and adapters: few weights, whose small updates bfloat16 would round away.
    """
    return {k: v for k, v in state.items() if ".lora_" in k or k.startswith("critic.model.score.")}


@torch.no_grad()
def keep_precise(module: nn.Module, restored: dict[str, Tensor]) -> None:
    """Cast value head and adapters back to float32 after precision "bf16-true" has cast all.

    Args:
        module: Module with its critic in `critic`.
        restored: Their values in a checkpoint, before they were cast; emptied.
    """
    for name, parameter in precise(dict(module.named_parameters())).items():
        if parameter.dtype.itemsize >= 4:
            continue
        value = restored.get(name, parameter.data).to(parameter.device, torch.float32)
        if isinstance(parameter, DTensor):  # setting its `data` would not change the shard
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, nn.Parameter(value))
        else:
            parameter.data = value
    restored.clear()


def record(settings: LoRASettings, bases: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | None:
    """Return the record of adapters that a checkpoint needs to restore them; None without any.

    Args:
        settings: Settings of the adapters.
        bases: Source and fingerprint of the base, by network.
    """
    if settings.rank is None:
        return None
    return {"settings": asdict(settings), "bases": {k: dict(v) for k, v in bases.items()}}


def require_same(saved: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> None:
    """Refuse a checkpoint whose adapters have other settings or another base.

    Raises:
        ValueError: If so; the message names the flags to change.
    """
    if saved is None or own is None:
        require(
            saved == own,
            "the checkpoint has adapters; give the run's --model.lora.rank again"
            if own is None
            else "the checkpoint has all weights and no adapters; omit --model.lora",
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
