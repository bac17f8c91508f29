"""Apply the Trainer's precision outside its steps, and check whether it keeps small updates."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_vcppo.common.lightning_compat import is_attached

LOST_SHARE = 0.5
"""Share of the weights that may lose their updates without a warning."""


def step_precision(module: LightningModule) -> AbstractContextManager[None]:
    """Return the context in which a module's steps run: autocast under bf16-mixed.

    Lightning enters it for its own steps. Callbacks that run a network enter it themselves;
    otherwise they would compute in float32, at several times the cost.

    Args:
        module: A module; without a Trainer the context does nothing.
    """
    if not is_attached(module):
        return nullcontext()
    context: AbstractContextManager[None] = module.trainer.precision_plugin.forward_context()
    return context


@torch.no_grad()
def lost_share(parameters: Iterable[Tensor], lr: float) -> float:
    """Return the share of bfloat16 weights that a step of size `lr` does not change.

    Adam's steps are about as large as the learning rate. A bfloat16 number has 8 bits, so a step
    is rounded away if it is less than 2^-9 of the weight.

    Args:
        parameters: Trained parameters; only matrices count, with 10,000 entries of each, and of a
            sharded matrix only this rank's part.
        lr: Learning rate.
    """
    lost = looked_at = 0
    for parameter in parameters:
        if parameter.dtype != torch.bfloat16 or parameter.ndim < 2:
            continue
        mine = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        some = mine.flatten()[:: max(1, mine.numel() // 10_000)]
        lost += int((some.float().abs() * 2**-9 > lr).sum())
        looked_at += some.numel()
    return lost / looked_at if looked_at else 0.0
