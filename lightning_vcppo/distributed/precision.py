"""Apply the Trainer's precision outside its steps, and check what it rounds away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_vcppo.common.lightning_compat import is_attached

Float32Matmul: TypeAlias = Literal["auto", "highest", "high", "medium"]
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


def multiplies_precisely(weight: Tensor) -> bool:
    """Return whether matrix products with a weight are in float32 or better, now.

    They are not under autocast, nor on CUDA where float32 is multiplied in TF32.
    """
    if weight.dtype.itemsize < 4 or torch.is_autocast_enabled(weight.device.type):
        return False
    return weight.dtype != torch.float32 or not (weight.is_cuda and multiplies_in_tf32())


def multiplies_in_tf32() -> bool:
    """Return whether CUDA rounds the inputs of float32 products to 10 bits in this process."""
    cublas = torch.backends.cuda.matmul
    kind = getattr(cublas, "fp32_precision", None)  # since torch 2.9
    return bool(cublas.allow_tf32) if kind is None else kind == "tf32"


@contextmanager
def float32_products(choice: Float32Matmul, trainer: Trainer) -> Iterator[None]:
    """Set how CUDA multiplies float32 matrices during a run.

    Args:
        choice: One of torch's names, for any run; "auto" is "high", TF32, for a run on CUDA that
            has float32 throughout, unless the process has chosen something itself.
        trainer: Of the run; on a CPU nothing changes.
    """
    before = _matmul_precision()
    is_float32 = str(trainer.precision) == "32-true"
    if choice == "auto":
        choice = "high" if is_float32 and before == "highest" else "auto"
    if choice == "auto" or before is None or trainer.strategy.root_device.type != "cuda":
        yield
        return
    torch.set_float32_matmul_precision(choice)
    if is_float32 and multiplies_in_tf32():
        rank_zero_info(
            "float32 products are in TF32, whose inputs have 10 bits; "
            "--float32_matmul_precision=highest keeps all 23"
        )
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _matmul_precision() -> str | None:
    """Return torch's name of the present choice; None if it was made by the newer flags."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch does not translate them
        return None


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
