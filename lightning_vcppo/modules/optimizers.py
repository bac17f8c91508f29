"""The optimizer that the settings name, and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_vcppo.settings import OptimizerSettings


def build_optimizer(
    settings: OptimizerSettings, parameters: Iterable[Tensor]
) -> torch.optim.Optimizer:
    """Build the optimizer that the settings name, of the parameters that are not frozen.

    Raises:
        ValueError: if there is no such class or it refuses an argument.
    """
    module_name, _, class_name = settings.class_path.rpartition(".")
    try:
        optimizer_class = getattr(__import__(module_name, fromlist=[class_name]), class_name)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        optimizer = optimizer_class(trained, lr=settings.lr, **settings.init_args)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"class_path: {error}; got {settings.class_path}") from error
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def warmed_up_lr(settings: OptimizerSettings, updates_done: int) -> float:
    """Return the learning rate of the next update: a linear rise, then constant."""
    if settings.warmup_updates == 0:
        return settings.lr
    return settings.lr * min(1.0, (updates_done + 1) / settings.warmup_updates)
