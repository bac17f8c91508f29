"""Shard every network over the ranks, one transformer layer per unit: strategy `fsdp2`.

1. Networks are built on the meta device, sharded, and filled from the first rank, tensor by tensor.
2. A network gathers each layer when it is used and frees it at once, in the forward and in the
   backward pass (ZeRO-3). Gradients and optimizer state are sharded like the weights.
3. Checkpoints are directories of torch.distributed.checkpoint; any number of ranks can resume.

Lightning's ModelParallelStrategy launches processes and runs collectives.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Replicate, Shard, zeros
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vcppo.checkpointing.format import (
    META_FILE,
    Keys,
    is_sharded_checkpoint,
    reading_shards,
)
from lightning_vcppo.checkpointing.safe_loading import refuse_code_in
from lightning_vcppo.common.errors import require
from lightning_vcppo.distributed.sharding import AS_FORWARD, HasOwnShards
from lightning_vcppo.distributed.standstill import TIMEOUT

Network = TypeVar("Network", bound=nn.Module)

PRECISIONS = {
    "32-true": MixedPrecisionPolicy(),
    "64-true": MixedPrecisionPolicy(),
    "bf16-true": MixedPrecisionPolicy(reduce_dtype=torch.float32),
    "bf16-mixed": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
}
"""Types in which weights are gathered and gradients summed, by the Trainer's precision."""
_KEPT = "sharded tensor"


class FSDP2Strategy(ModelParallelStrategy):
    """Shard the weights, gradients and optimizer state of every network over the ranks.

    Args:
        shards: Number of ranks that share one copy of the weights; None means all. With fewer,
            such as the GPUs of a node, there is one copy for each group of ranks (HSDP).
        cpu_offload: Keep shards in the host's memory while they are not in use.
        process_group_backend: Backend of torch.distributed; None chooses by the device.
        timeout: Longest time that a collective waits for other ranks before the run ends.
    """

    def __init__(
        self,
        shards: int | None = None,
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = TIMEOUT,
    ) -> None:
        """Keep the sizes; the mesh is made once the processes are connected.

        Raises:
            ValueError: For a number of shards below 1.
        """
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        require(shards is None or shards >= 1, f"shards: expected >= 1 ranks, got {shards}")
        self._shards = shards
        self._cpu_offload = cpu_offload
        self._mesh: DeviceMesh | None = None

    # Lightning's hooks ---------------------------------------------------------------------------

    @override
    def setup_environment(self) -> None:
        """Form the mesh: copies x shards, or only shards.

        Raises:
            ValueError: If the number of ranks is not a multiple of the shards, or for a precision
                that does not support shards.
        """
        precision = str(self.precision_plugin.precision)
        require(
            precision in PRECISIONS,
            f"--trainer.precision={precision}: fsdp2 supports {', '.join(PRECISIONS)}",
        )
        ranks = self.world_size
        shards = ranks if self._shards is None else self._shards
        require(
            ranks % shards == 0,
            f"--trainer.strategy.shards={shards}: the {ranks} processes are not a multiple of it",
        )
        self._data_parallel_size, self._tensor_parallel_size = ranks, 1
        device = self.root_device.type
        if self._cpu_offload and device == "cuda" and self._process_group_backend is None:
            self._process_group_backend = "cpu:gloo,cuda:nccl"  # for gradient norms on the host
        super().setup_environment()
        self._mesh = (
            self.device_mesh["data_parallel"]
            if shards == ranks
            else init_device_mesh(
                device, (ranks // shards, shards), mesh_dim_names=("copies", "shards")
            )
        )
        for mesh in {self.device_mesh, self._mesh}:
            for group in mesh.get_all_groups():  # torch sets its own timeout
                _set_pg_timeout(self._timeout or TIMEOUT, group)

    @override
    def model_to_device(self) -> None:
        """Leave offloaded shards on the host."""
        if self._cpu_offload and self.lightning_module is not None:
            self.lightning_module._device = self.root_device  # which `.to` would have set
        else:
            super().model_to_device()

    def shard(self, build: Callable[[], Network]) -> Network:
        """Build a network of which each rank holds only its shard; every rank must call it.

        The first rank builds it on the host and sends each tensor to all ranks once. So all that
        `from_pretrained` supports works, and is read once. The other ranks build it on the meta
        device.

        Args:
            build: Returns the network; also called in the context of the meta device.

        Raises:
            ValueError: On every rank, if `build` raises it on the first.
        """
        assert self._mesh is not None
        source, failure = None, ""
        if self.is_global_zero:
            try:
                source = self.precision_plugin.convert_module(build())
            except ValueError as error:
                failure = str(error)
        failure = self.broadcast(failure)
        require(not failure, failure)  # on every rank: the others would wait for the weights
        with torch.device("meta"):
            network = cast(Network, self.precision_plugin.convert_module(build()))
        offload: OffloadPolicy = OffloadPolicy()
        if self._cpu_offload:
            offload = CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda")
        policy = PRECISIONS[str(self.precision_plugin.precision)]
        units: list[nn.Module] = [*layers(network), network]
        for unit in units:
            # The root also frees its weights after a forward pass: otherwise the stale gathered
            # weights would be used after an update.
            fully_shard(
                unit,
                mesh=self._mesh,
                reshard_after_forward=True,
                mp_policy=MixedPrecisionPolicy() if isinstance(unit, nn.Linear) else policy,
                offload_policy=offload,
            )
        setattr(network, AS_FORWARD, lambda compute: compute())
        register_fsdp_forward_method(network, AS_FORWARD)
        network.to_empty(device="cpu" if self._cpu_offload else self.root_device)
        self._fill(network, source)
        return network

    def _fill(self, network: nn.Module, source: nn.Module | None) -> None:
        """Send the weights and buffers of the first rank's `source` to the shards of all ranks."""
        weights: dict[str, Any] = {}
        if source is not None:  # including frozen weights, which a state dict may lack
            named = source.named_parameters(remove_duplicate=False)
            weights = {**source.state_dict(), **{name: w.detach() for name, w in named}}
        options = StateDictOptions(
            full_state_dict=True, broadcast_from_rank0=True, cpu_offload=self._cpu_offload
        )
        set_model_state_dict(network, dict(weights), options=options)
        buffers = {} if source is None else dict(source.named_buffers())
        for name, module in network.named_modules():
            if hasattr(module, "generation_config"):  # for example the tokens that end a response
                mine = None if source is None else source.get_submodule(name).generation_config
                module.generation_config = self.broadcast(mine)
        for path, module in network.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    full = buffer.to(self.root_device)
                    if source is not None:
                        full.copy_(buffers[f"{path}.{name}" if path else name])
                    dist.broadcast(full, 0)
                    module._buffers[name] = full

    # Checkpoints ---------------------------------------------------------------------------------

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return an optimizer's state by the names of parameters; empty before its first step.

        torch would create a state by a step, and count an update that was not made.
        """
        return super().optimizer_state(optimizer) if optimizer.state else {}

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a directory: the shards of each rank, and everything else in `meta.pt`.

        Sharded tensors anywhere in the checkpoint are written as shards.
        """
        path = Path(self.broadcast(filepath))
        path.mkdir(parents=True, exist_ok=True)
        if self.is_global_zero:
            (path / META_FILE).unlink(missing_ok=True)  # marks a complete checkpoint
        optimizers = enumerate(checkpoint.pop(Keys.OPTIMIZERS, []))
        sharded = {Keys.WEIGHTS: checkpoint.pop(Keys.WEIGHTS)}
        sharded |= {f"optimizer_{i}": state for i, state in optimizers if state}
        kept: dict[str, Tensor] = {}
        plain = _take_out(checkpoint, kept)
        save(sharded | ({"kept": kept} if kept else {}), checkpoint_id=path)
        if self.is_global_zero:
            torch.save(plain, path / META_FILE)

    @override
    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint of this strategy, of any number of ranks, or of an unsharded run."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        strict = self.lightning_module.strict_loading
        if path.is_file():
            return self._load_unsharded(path, strict, weights_only)
        require(is_sharded_checkpoint(path), f"{path}: expected a checkpoint, file or directory")
        refuse_code_in(path)
        with reading_shards(path):
            return self._load_parts(path, strict, weights_only)

    def _load_parts(self, path: Path, strict: bool, weights_only: bool | None) -> dict[str, Any]:
        """Load a checkpoint of this strategy."""
        assert self.model is not None
        saved = FileSystemReader(path).read_metadata().state_dict_metadata
        weights = {Keys.WEIGHTS: get_model_state_dict(self.model)}
        load(weights, checkpoint_id=path)
        self.model.load_state_dict(weights[Keys.WEIGHTS], strict=strict)
        for i, optimizer in enumerate(self.optimizers):
            if any(name.startswith(f"optimizer_{i}.") for name in saved):
                state = {f"optimizer_{i}": get_optimizer_state_dict(self.model, optimizer)}
                load(state, checkpoint_id=path)
                set_optimizer_state_dict(
                    self.model, optimizer, optim_state_dict=state[f"optimizer_{i}"]
                )
        plain: dict[str, Any] = torch.load(path / META_FILE, weights_only=weights_only)
        kept = {name: self._empty_like(saved[name]) for name in saved if name.startswith("kept.")}
        if kept:
            load(kept, checkpoint_id=path)
        return cast(dict[str, Any], _put_back(plain, kept))

    def _load_unsharded(
        self, path: Path, strict: bool, weights_only: bool | None
    ) -> dict[str, Any]:
        """Load a checkpoint file of DDP or of one process."""
        assert self.model is not None
        checkpoint: dict[str, Any] = torch.load(
            path, mmap=True, map_location="cpu", weights_only=weights_only
        )
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.model, checkpoint.pop(Keys.WEIGHTS), options=options)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        states = checkpoint.pop(Keys.OPTIMIZERS, [])
        for optimizer, state in zip(self.optimizers, states, strict=False):
            if state["state"]:
                of = [names[p] for group in optimizer.param_groups for p in group["params"]]
                groups = [
                    g | {"params": [of[i] for i in g["params"]]} for g in state["param_groups"]
                ]
                by_name = {of[i]: values for i, values in state["state"].items()}
                set_optimizer_state_dict(
                    self.model,
                    optimizer,
                    optim_state_dict={"state": by_name, "param_groups": groups},
                    options=StateDictOptions(full_state_dict=True),
                )
        return checkpoint

    def _empty_like(self, saved: Any) -> Tensor:
        """Return an empty tensor, sharded like parameters, for one of a checkpoint."""
        assert self._mesh is not None
        placements = [*[Replicate()] * (self._mesh.ndim - 1), Shard(0)]
        return zeros(
            saved.size,
            dtype=saved.properties.dtype,
            device_mesh=self._mesh,
            placements=placements,
        )


def build(make: Callable[[], Network], strategy: Strategy | None) -> Network:
    """Build a network for a strategy, or without one: this rank's shard, or complete."""
    if isinstance(strategy, FSDP2Strategy):
        return strategy.shard(make)
    # Lightning restores weights before it converts them, so float64 must be set before.
    network = make()
    is_double = strategy and isinstance(strategy.precision_plugin, DoublePrecision)
    return network.double() if is_double else network


def layers(network: nn.Module) -> list[nn.Module]:
    """Return the units to gather: transformer layers, and modules that a network names itself.

    transformers lists the classes of layers as modules that are not split between devices.
    """
    models = [module for module in network.modules() if isinstance(module, PreTrainedModel)]
    kinds = {kind for model in models for kind in model._no_split_modules or ()}
    found = [module for module in network.modules() if type(module).__name__ in kinds]
    return [*found, *(network.own_shards() if isinstance(network, HasOwnShards) else [])]


def _take_out(value: Any, kept: dict[str, Tensor]) -> Any:
    """Move all sharded tensors of nested dicts and lists to `kept`, and leave names instead."""
    if isinstance(value, DTensor):
        name = str(len(kept))
        kept[name] = value
        return {_KEPT: f"kept.{name}"}
    if isinstance(value, dict):
        return {key: _take_out(item, kept) for key, item in value.items()}
    if isinstance(value, list):
        return [_take_out(item, kept) for item in value]
    return value


def _put_back(value: Any, kept: dict[str, Tensor]) -> Any:
    """Undo `_take_out`; the tensors are on the host."""
    if isinstance(value, dict):
        if _KEPT in value:
            return kept[value[_KEPT]].cpu()
        return {key: _put_back(item, kept) for key, item in value.items()}
    return [_put_back(item, kept) for item in value] if isinstance(value, list) else value


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="Weights sharded over all ranks")
StrategyRegistry.register(
    "fsdp2_offload", FSDP2Strategy, description="Also kept on the host", cpu_offload=True
)
