"""Check arguments, because a tensor that broadcasts by accident gives wrong numbers without error.

Every public function of this package checks shapes and types before it computes, and raises a
ValueError that names both shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_real(like: Tensor, **tensors: Tensor | None) -> None:
    """Refuse tensors that do not hold real numbers, or are on another device than `like`.

    Raises:
        ValueError: If so; the message states the type, or both devices.
    """
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype == torch.bool or tensor.is_complex():
            raise ValueError(f"{name} must hold real numbers, got {tensor.dtype}")
        if tensor.device != like.device:
            raise ValueError(f"{name} must be on {like.device}, got {tensor.device}")


def check_mask(name: str, mask: Tensor) -> None:
    """Refuse a mask that is not boolean.

    Raises:
        ValueError: If so; the message states its type.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be boolean, got {mask.dtype}")


def check_same_shape(name: str, like: Tensor, **others: Tensor | None) -> None:
    """Refuse tensors of another shape than `like`; skip None.

    Raises:
        ValueError: If so; the message states both shapes.
    """
    for other, tensor in others.items():
        if tensor is not None and tensor.shape != like.shape:
            raise ValueError(
                f"{other} and {name} must share a shape, got {tuple(tensor.shape)} and "
                f"{tuple(like.shape)}"
            )


def check_tokens(response_mask_BT: Tensor, **tensors_BT: Tensor | None) -> None:
    """Refuse a response mask that is not boolean and (B, T), and tensors of another shape.

    Raises:
        ValueError: If so; the message states the type, or both shapes.
    """
    check_mask("response_mask_BT", response_mask_BT)
    if response_mask_BT.ndim != 2:
        raise ValueError(
            f"response_mask_BT must have shape (B, T), got {tuple(response_mask_BT.shape)}"
        )
    check_same_shape("response_mask_BT", response_mask_BT, **tensors_BT)
    check_real(response_mask_BT, **tensors_BT)


def check_sequences(response_mask_BT: Tensor, **tensors_B: Tensor | None) -> None:
    """Refuse tensors that do not have one element for each row of the mask.

    Raises:
        ValueError: If so; the message states both shapes.
    """
    for name, tensor in tensors_B.items():
        if tensor is not None and tensor.shape != response_mask_BT.shape[:1]:
            raise ValueError(
                f"{name} must have shape (B,) = {tuple(response_mask_BT.shape[:1])} for "
                f"response_mask_BT of shape {tuple(response_mask_BT.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
