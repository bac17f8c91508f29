"""Refuse or prepare Lightning's strategies for two networks that are trained in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch.optim import Optimizer

from lightning_vcppo.checkpointing.format import is_sharded_checkpoint
from lightning_vcppo.common.errors import require
from lightning_vcppo.common.lightning_compat import look_for_unused_parameters
from lightning_vcppo.distributed.ddp import NetworksDDPStrategy, wrap_apart

REFUSED = {
    "deepspeed": (
        "Lightning's DeepSpeed strategy supports one optimizer, and actor and critic have one each"
    ),
    "fsdp": "FSDP1 does not work with two networks in one module",
    "model_parallel": "this strategy leaves the sharding to the module, and fsdp2 does it",
}
"""Strategies that cannot train two networks with two optimizers, and why."""
_CLASSES = {
    DeepSpeedStrategy: "deepspeed",
    FSDPStrategy: "fsdp",
    ModelParallelStrategy: "model_parallel",
}


def refuse_strategy(strategy: object) -> None:
    """Refuse a strategy by its name, before Lightning looks for its library or for a GPU.

    Args:
        strategy: A registered name, the path of a class, or a strategy.

    Raises:
        ValueError: For the strategies of `REFUSED` and their variants (`deepspeed_stage_2`).
    """
    if isinstance(strategy, Strategy):
        name = _CLASSES.get(type(strategy), "")
    else:
        name = str(strategy).rpartition(".")[2]
        names = {known.__name__: refused for known, refused in _CLASSES.items()}
        name = "" if _is_fsdp2(strategy) else names.get(name, name)
    for refused, reason in REFUSED.items():
        instead = "ddp, or fsdp2 to shard the weights" if refused != "model_parallel" else "fsdp2"
        require(
            not name.startswith(refused),
            f"--trainer.strategy={name}: {reason}; use --trainer.strategy={instead}",
        )


def refuse_checkpoint(path: object, strategy: object) -> None:
    """Refuse a sharded checkpoint under another strategy than `fsdp2`.

    Args:
        path: Path of a checkpoint, if any.
        strategy: A registered name or the path of a class.

    Raises:
        ValueError: If the checkpoint is a directory of `fsdp2` and the strategy another.
    """
    require(
        path is None or not is_sharded_checkpoint(Path(str(path))) or _is_fsdp2(strategy),
        f"{path}: a sharded checkpoint; resume with --trainer.strategy=fsdp2, on any number of "
        "processes",
    )


def _is_fsdp2(strategy: object) -> bool:
    return str(strategy).rpartition(".")[2].lower().startswith("fsdp2")


def prepare_strategy(strategy: Strategy, settle_types: Callable[[], None]) -> None:
    """Prepare a strategy for actor and critic.

    By default DDP expects every parameter in every backward pass. Here it wraps actor and critic
    apart, and must look for unused parameters: with one wrapper around both, those of the other
    network. It stores the type of each parameter when it wraps, so parameters of another type than
    the precision's must be cast before.

    Args:
        strategy: A strategy before its setup.
        settle_types: Casts parameters to the types in which they are trained; may be called twice.
    """
    if isinstance(strategy, DDPStrategy):
        look_for_unused_parameters(strategy)
        wrap_apart(strategy, settle_types)


def sum_gradients_once(
    strategy: Strategy, optimizers: Sequence[Optimizer], *, is_last: bool
) -> AbstractContextManager[None]:
    """Return the context of one of several backward passes whose gradients add up.

    DDP sums them over ranks in the last pass, for the networks of the optimizers. Shards are summed
    in each pass, because a rank has no memory for complete gradients.
    """
    if isinstance(strategy, DDPStrategy) and not is_last:
        return strategy.block_backward_sync()
    if isinstance(strategy, NetworksDDPStrategy):
        return strategy.exchanging(optimizers)
    return nullcontext()
