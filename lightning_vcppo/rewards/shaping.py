"""Compute terms that are added to the reward of the verifier."""

from __future__ import annotations

import torch
from torch import Tensor


def overlong_penalty(
    lengths_B: Tensor,
    *,
    max_response_length: int,
    overlong_buffer_len: int,
    penalty_factor: float = 1.0,
) -> Tensor:
    """Compute a soft penalty on the last tokens before the length limit (DAPO, equation 13).

    Zero up to `max_response_length - overlong_buffer_len`, from there linearly down to -1 at
    `max_response_length`, -1 beyond; times the factor. It is added to the reward.

    Args:
        lengths_B: Number of tokens of each response, (B,).
        max_response_length: Number of tokens after which a response is truncated.
        overlong_buffer_len: Number of tokens over which the penalty grows; 0 switches it off.
        penalty_factor: The penalty at the limit.

    Returns:
        Penalties (B,), float32, in [-penalty_factor, 0].

    Raises:
        ValueError: If the buffer is negative or longer than the limit.
    """
    if not 0 <= overlong_buffer_len <= max_response_length:
        raise ValueError(
            f"overlong_buffer_len: expected 0..max_response_length ({max_response_length}), "
            f"got {overlong_buffer_len}"
        )
    lengths_B = lengths_B.to(torch.float32)
    if overlong_buffer_len == 0:
        return torch.zeros_like(lengths_B)
    free = max_response_length - overlong_buffer_len
    return penalty_factor * ((free - lengths_B) / overlong_buffer_len).clamp(-1.0, 0.0)
