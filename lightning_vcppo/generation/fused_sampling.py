"""Choose the Triton kernel for sampling: on CUDA, if a trial agrees with torch."""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

SWITCH = "VCPPO_FUSED_SAMPLING"
"""Environment variable that switches the kernel off if it is 0."""


def fused_kernel(logits_RV: Tensor) -> ModuleType | None:
    """Return the module of the kernel for these logits, or None for torch's operations."""
    if not logits_RV.is_cuda or logits_RV.dtype == torch.float64 or logits_RV.stride(1) != 1:
        return None
    return None if os.environ.get(SWITCH) == "0" else _tried(logits_RV.device)


@cache
def _tried(device: torch.device) -> ModuleType | None:
    try:
        from lightning_vcppo.generation import triton_sampling

        reason = disagreement(triton_sampling, device)
    except Exception as error:  # any error of the compiler: fall back to torch
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if reason:
        rank_zero_info(f"sampling: torch's operations, no fused kernel ({reason})")
        return None
    rank_zero_info("sampling: a fused kernel (Triton)")
    return triton_sampling


def disagreement(kernel: ModuleType, device: torch.device) -> str:
    """Return how a kernel differs from torch on sharp and flat rows, or ""."""
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(64, 10_000, generator=generator).to(device)
    logits_RV = logits_RV * torch.linspace(0.1, 8, 64, device=device)[:, None]
    logits_RV[::7, ::3] = float("-inf")
    uniform_R = torch.linspace(0, 0.999, 64, device=device)
    token_R, logprob_R, entropy_R = kernel.sample(logits_RV, uniform_R, 0.7)
    wanted_RV = (logits_RV.double() / 0.7).log_softmax(-1)
    probs_RV = wanted_RV.exp()
    entropy_gap = entropy_R + (probs_RV * wanted_RV.clamp_min(-1e4)).sum(-1)
    picked_R1 = token_R[:, None]
    logprob_gap = logprob_R - wanted_RV.gather(1, picked_R1)[:, 0]
    # A token is right if its interval of the cumulative distribution contains the uniform number.
    above_R = probs_RV.cumsum(-1).gather(1, picked_R1)[:, 0]
    below_R = above_R - probs_RV.gather(1, picked_R1)[:, 0]
    outside = (uniform_R < below_R - 1e-5) | (uniform_R > above_R + 1e-5)
    gap = float(torch.stack([entropy_gap, logprob_gap]).abs().max())
    if bool(outside.any()):
        return f"{int(outside.sum())} of 64 tokens differ"
    return "" if gap < 1e-4 else f"off by {gap:.2g}"
