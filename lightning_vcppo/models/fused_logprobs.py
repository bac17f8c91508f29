"""Choose the Triton kernels for `token_logprobs`: on CUDA, if a trial agrees with torch."""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType

import torch
from lightning.pytorch.utilities import rank_zero_info

SWITCH = "VCPPO_FUSED_LOGPROBS"
"""Environment variable that switches the kernels off if it is 0."""


def fused_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """Return the module of kernels for logits on a device, or None for torch's operations.

    Args:
        device: Device of the logits.
        dtype: Type of the sums; the kernels support only float32.
    """
    if device.type != "cuda" or dtype != torch.float32 or os.environ.get(SWITCH) == "0":
        return None
    return _tried(device)


@cache
def _tried(device: torch.device) -> ModuleType | None:
    try:
        from lightning_vcppo.models import triton_logprobs

        gap = largest_gap(triton_logprobs, device)
        reason = "" if gap < 1e-4 else f"off by {gap:.2g}"
    except Exception as error:  # any error of the compiler: fall back to torch
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if reason:
        rank_zero_info(f"log-probabilities: torch's operations, no fused kernels ({reason})")
        return None
    rank_zero_info("log-probabilities: fused kernels (Triton)")
    return triton_logprobs


def largest_gap(kernels: ModuleType, device: torch.device) -> float:
    """Return the kernels' largest error against torch's log-softmax and gradient, in two blocks."""
    rows, vocabulary, first, temperature = 5, 5000, 3000, 0.7
    generator = torch.Generator().manual_seed(0)
    logits_NV = (torch.randn(rows, vocabulary, generator=generator) * 3).to(device)
    targets_N = torch.tensor([0, 2999, 3000, 4999, 17], device=device)
    slope_N, entropy_slope_N = torch.randn(2, rows, generator=generator).to(device)
    max_N, sum_N, shifted_N, found_N = logits_NV.new_zeros(4, rows)
    max_N = torch.full_like(sum_N, torch.finfo(torch.float32).min)
    blocks = [(0, logits_NV[:, :first].clone()), (first, logits_NV[:, first:].clone())]
    for start, logits_NB in blocks:
        sums = (max_N, sum_N, shifted_N, found_N)
        kernels.sum_block(logits_NB, targets_N, start, temperature, sums)
    logsumexp_N, entropy_N = max_N + sum_N.log(), sum_N.log() - shifted_N / sum_N
    of_rows = (logsumexp_N, entropy_N, slope_N, entropy_slope_N)
    parts = [
        kernels.gradient_block(part, targets_N, start, temperature, of_rows, torch.float32)
        for start, part in blocks
    ]
    logp_NV = (logits_NV / temperature).log_softmax(-1)
    p_NV = logp_NV.exp()
    wanted_entropy_N = -(p_NV * logp_NV).sum(-1)
    wanted_NV = -slope_N[:, None] * p_NV
    wanted_NV -= entropy_slope_N[:, None] * p_NV * (logp_NV + wanted_entropy_N[:, None])
    wanted_NV[torch.arange(rows, device=device), targets_N] += slope_N
    gaps = [
        found_N - logsumexp_N - logp_NV.gather(1, targets_N[:, None])[:, 0],
        entropy_N - wanted_entropy_N,
        torch.cat(parts, 1) - wanted_NV,
    ]
    return max(float(gap.abs().max()) for gap in gaps)
