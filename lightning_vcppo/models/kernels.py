"""Liger's kernels for norms, SwiGLU and rotation of the layers of a model (`--model.kernels`).

They do in one launch each what transformers does in five to seven. The head's log-probabilities
have kernels of our own (fused_logprobs.py), for Liger's cross-entropy gives no entropy.

Liger replaces norms and MLPs in the layers of the model at hand. The rotation is a function of
transformers' module, so it is replaced for all models of that type in the process; it falls back to
transformers' own for tensors that are not on CUDA.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vcppo.common.errors import require
from lightning_vcppo.settings import Kernels

FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
"""Models whose layers are the RMS norms, SwiGLU and rotation that Liger replaces, with no more."""
PARTS = {"rope": True, "rms_norm": True, "swiglu": True}
_ROTATED: set[str] = set()
"""Modules of transformers whose rotation has been replaced."""
Rotation: TypeAlias = Callable[..., Any]


def require_kernels(kernels: Kernels, device: torch.device) -> None:
    """Refuse kernels that are asked for and cannot run.

    Raises:
        ValueError: If Liger is asked for and not installed, or the device is not CUDA.
    """
    if kernels != "liger":
        return
    require(is_installed(), "--model.kernels=liger: needs `pip install 'lightning-vcppo[liger]'`")
    require(
        device.type == "cuda",
        f"--model.kernels=liger: runs on CUDA, not on {device.type}; take auto or none",
    )


def is_installed() -> bool:
    """Return whether Liger is installed."""
    return importlib.util.find_spec("liger_kernel") is not None


def use_kernels(model: PreTrainedModel, kernels: Kernels, device: torch.device) -> bool:
    """Replace norms, SwiGLU and rotation of a model, with a head or without; log the choice.

    Args:
        model: A decoder with any head.
        kernels: The setting; "auto" takes what is installed.
        device: Where the model will run.

    Returns:
        Whether they have been replaced.

    Raises:
        ValueError: As in `require_kernels`, or for a kind of model that Liger is not tried with.
    """
    require_kernels(kernels, device)
    kind = model.config.model_type
    known = kind in FAMILIES
    require(
        kernels != "liger" or known,
        f"--model.kernels=liger: knows {', '.join(sorted(FAMILIES))}, not {kind}; take auto or "
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
    """Have Liger replace what it knows in a model of `FAMILIES`."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    source: Any = sys.modules[type(model).__module__]
    rotation = source.apply_rotary_pos_emb
    classes = {name: value for name, value in vars(source).items() if isinstance(value, type)}
    off = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    _apply_liger_kernel_to_instance(model=model, **PARTS, **off)
    for name, value in classes.items():  # models that are loaded later choose for themselves
        setattr(source, name, value)
    if source.__name__ not in _ROTATED:
        _ROTATED.add(source.__name__)
        rotation = on_cuda(source.apply_rotary_pos_emb, rotation)
    source.apply_rotary_pos_emb = rotation


def on_cuda(fused: Rotation, plain: Rotation) -> Rotation:
    """Return a rotation that takes the fused one for tensors on CUDA alone.

    Under autocast queries are bfloat16 and angles float32. Both compute in float32; the fused one
    rounds its results to bfloat16, as attention would at once.
    """

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> Any:
        return (fused if query.is_cuda else plain)(query, key, cos, sin, **options)

    return rotate
