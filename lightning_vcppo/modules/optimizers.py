"""Build the optimizer that the settings name, and compute its learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_vcppo.distributed.precision import LOST_SHARE, lost_share
from lightning_vcppo.modules.master_weights import PreciseOptimizer
from lightning_vcppo.settings import MasterWeights, OptimizerSettings


def build_optimizer(
    settings: OptimizerSettings,
    parameters: Iterable[nn.Parameter],
    master_weights: MasterWeights = "none",
    seed: int = 0,
) -> torch.optim.Optimizer:
    """Build the optimizer that the settings name, for the parameters that are not frozen.

    On CUDA torch's own Adam and AdamW are fused, unless `init_args` sets it. Warn if bfloat16
    weights are too coarse for the learning rate.

    Args:
        settings: Class, learning rate and arguments.
        parameters: Parameters of a network.
        master_weights: Way to keep small updates of bfloat16 weights.
        seed: Seed of stochastic rounding.

    Raises:
        ValueError: If there is no such class or it refuses an argument.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if master_weights != "none" and any(p.dtype.itemsize < 4 for p in trained):
        return PreciseOptimizer(trained, master_weights, partial(_build, settings), seed)
    optimizer = _build(settings, trained)
    if (share := lost_share(trained, settings.lr)) > LOST_SHARE:
        rank_zero_warn(
            f"{settings.class_path}: at a learning rate of {settings.lr:g}, {share:.0%} of the "
            "bfloat16 weights round a step away and do not train; set --trainer.precision="
            "bf16-mixed, or --model.master_weights=kahan"
        )
    return optimizer


def _build(settings: OptimizerSettings, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    module_name, _, class_name = settings.class_path.rpartition(".")
    try:
        optimizer_class = getattr(__import__(module_name, fromlist=[class_name]), class_name)
        options = _fused(optimizer_class, trained) | settings.init_args
        optimizer = optimizer_class(trained, lr=settings.lr, **options)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"class_path: {error}; got {settings.class_path}") from error
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def _fused(optimizer_class: type, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Return the argument that fuses a step into one kernel, if the optimizer has it."""
    known = optimizer_class in (torch.optim.Adam, torch.optim.AdamW)
    on_cuda = bool(parameters) and all(p.is_cuda and p.is_floating_point() for p in parameters)
    return {"fused": True} if known and on_cuda else {}


def warmed_up_lr(settings: OptimizerSettings, updates_done: int) -> float:
    """Return the learning rate of the next update: a linear rise, then constant."""
    if settings.warmup_updates == 0:
        return settings.lr
    return settings.lr * min(1.0, (updates_done + 1) / settings.warmup_updates)
