"""Use Liger's kernels for norms, SwiGLU and rotation in a model's layers (`--model.kernels`).

Each needs one launch where transformers needs five to seven. The head's log-probabilities have our
own kernels (fused_logprobs.py), because Liger's cross-entropy returns no entropy.

Liger replaces norms and MLPs in the layers of one model. The rotation is a function of
transformers' module, so it is replaced for all models of that type in the process; for tensors that
are not on CUDA it falls back to transformers' own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_vcppo.common.errors import require
from lightning_vcppo.settings import Kernels

FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
"""Model types whose norms, SwiGLU and rotation are exactly those that Liger replaces."""
PARTS = {"rope": True, "rms_norm": True, "swiglu": True}
_ROTATED: set[str] = set()
"""Modules of transformers whose rotation has been replaced."""
Rotation: TypeAlias = Callable[..., Any]


def require_kernels(kernels: Kernels, device: torch.device) -> None:
    """Refuse kernels that are set explicitly and cannot run.

    Raises:
        ValueError: If the setting is Liger and it is not installed, or the device is not CUDA.
    """
    if kernels != "liger":
        return
    require(is_installed(), "--model.kernels=liger: needs `pip install 'lightning-vcppo[liger]'`")
    require(
        device.type == "cuda",
        f"--model.kernels=liger: runs on CUDA, not on {device.type}; set auto or none",
    )


def is_installed() -> bool:
    """Return whether Liger is installed."""
    return importlib.util.find_spec("liger_kernel") is not None


def use_kernels(model: PreTrainedModel, kernels: Kernels, device: torch.device) -> bool:
    """Replace norms, SwiGLU and rotation of a model; log the choice.

    Args:
        model: A decoder, with or without a head.
        kernels: The setting; "auto" uses Liger if it is installed.
        device: Device of the model.

    Returns:
        Whether the layers have been replaced.

    Raises:
        ValueError: As in `require_kernels`, or for a model type that was not tried with Liger.
    """
    require_kernels(kernels, device)
    kind = model.config.model_type
    known = kind in FAMILIES
    require(
        kernels != "liger" or known,
        f"--model.kernels=liger: supports {', '.join(sorted(FAMILIES))}, not {kind}; set auto or "
        "none",
    )
    if kernels == "none" or device.type != "cuda" or not (known and is_installed()):
        if kernels == "auto" and device.type == "cuda":
            reason = f"not tried with {kind}" if is_installed() else "Liger is not installed"
            rank_zero_info(f"kernels of {kind} layers: transformers' own ({reason})")
        return False
    replace_layers(model)
    rank_zero_info(f"kernels of {kind} layers: Liger's norms, SwiGLU and rotation")
    return True


def replace_layers(model: PreTrainedModel) -> None:
    """Replace the layers of a model of `FAMILIES` by Liger's."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    source: Any = sys.modules[_class_of_transformers(model).__module__]
    rotation = source.apply_rotary_pos_emb
    classes = {name: value for name, value in vars(source).items() if isinstance(value, type)}
    off = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    _apply_liger_kernel_to_instance(model=model, **PARTS, **off)
    for name, value in classes.items():  # leave models that are loaded later unchanged
        setattr(source, name, value)
    if source.__name__ not in _ROTATED:
        _ROTATED.add(source.__name__)
        rotation = on_cuda(source.apply_rotary_pos_emb, rotation)
    source.apply_rotary_pos_emb = rotation


def _class_of_transformers(model: PreTrainedModel) -> type:
    """Return the class of a model before sharding, which gives it one of torch's own making."""
    return next(x for x in type(model).__mro__ if not issubclass(x, FSDPModule))


def on_cuda(fused: Rotation, plain: Rotation) -> Rotation:
    """Return a rotation that uses the fused one only for tensors on CUDA.

    Under autocast queries are bfloat16 and angles float32. Both compute in float32; the fused one
    rounds its results to bfloat16, as attention would do next.
    """

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> Any:
        return (fused if query.is_cuda else plain)(query, key, cos, sin, **options)

    return rotate
