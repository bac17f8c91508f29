"""Compute log-probabilities and entropy of given tokens without the N x V logits.

With a vocabulary of 150,000 the logits of one long response are larger than the model. So:

1. The logits of all tokens are computed for one block of the vocabulary at a time, with running
   sums of the softmax: with m the largest logit so far, s = sum exp(l - m) and t = sum exp(l - m)
   (l - m) are rescaled when m grows. In the end log p_y = l_y - m - log s, and the entropy is
   log s - t / s.
2. Two numbers per token are kept for backward, m + log s and the entropy; backward computes the
   logits again. With p = softmax(logits / temperature), H its entropy and y the token,
   d log p_y / d logit_v = ([v = y] - p_v) / temperature,
   d H / d logit_v = -p_v (log p_v + H) / temperature.
3. A block contains all tokens, so each row of the weight's gradient is one product, written once.
4. In bfloat16 all sums over the vocabulary are in float32, and on CUDA also the logits; on a CPU
   logits are rounded, as the model's own are.

With blocks of the vocabulary, the gradient to accumulate is that of the hidden states; with chunks
of tokens it would be that of the weight, which is larger.

Shape suffixes: N tokens, V vocabulary, H hidden, B token ids of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_vcppo.algorithm.statistics import float_dtype
from lightning_vcppo.models.fused_logprobs import fused_kernels

# Logits of a block. On a CPU 8 MB of float32 stay in its cache (measured); elsewhere a block should
# be large enough for kernels to take longer than their launch (reasoned, not measured).
_CPU_BLOCK_LOGITS, _BLOCK_LOGITS = 2**21, 2**26
_MIN_BLOCK = 256
_ALIGNED_BLOCK = 64
"""On a GPU blocks are multiples of this: for an odd number of columns cuBLAS takes kernels of older
cards, at a third of the rate (measured on an H100)."""


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    block_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute log pi of each target token and the entropy of pi at its position.

    pi = softmax(hidden @ weight^T / temperature). Differentiable in hidden and weight, through both
    outputs, once. Under autocast the products are done in autocast's type.

    Args:
        hidden_NH: Last hidden states.
        weight_VH: Weight of the head, tied to the embedding or not.
        targets_N: Token ids in [0, V).
        temperature: Temperature of the sampler, positive, so that pi is the sampled distribution.
        block_size: Token ids per block; memory is about 2 x N x block_size float32. None chooses it
            so that this is 16 MB on a CPU, or 2 kB per token for very many tokens.

    Returns:
        (logprobs_N, entropy_N) in nats, float32 (float64 if hidden or weight is).

    Raises:
        ValueError: For shapes that do not fit, a target outside the vocabulary, or a temperature or
            block size that is not positive.
    """
    if hidden_NH.ndim != 2 or weight_VH.ndim != 2 or hidden_NH.shape[1] != weight_VH.shape[1]:
        shapes = f"{tuple(hidden_NH.shape)} and {tuple(weight_VH.shape)}"
        raise ValueError(f"hidden and weight must be (N, H) and (V, H), got {shapes}")
    if targets_N.shape != hidden_NH.shape[:1]:
        raise ValueError(f"targets must be ({len(hidden_NH)},), got {tuple(targets_N.shape)}")
    if len(targets_N):
        lowest, highest = (int(x) for x in targets_N.aminmax())
        if lowest < 0 or highest >= len(weight_VH):
            raise ValueError(f"targets must be in [0, {len(weight_VH)}), got {lowest} to {highest}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    device = hidden_NH.device.type
    if block_size is None:
        block_size = _block_size(len(hidden_NH), device)
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    dtype = torch.promote_types(hidden_NH.dtype, weight_VH.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        logprobs_N, entropy_N = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden_NH.to(dtype), weight_VH.to(dtype), targets_N, temperature, block_size
        )
    return logprobs_N, entropy_N


def _block_size(tokens: int, device: str) -> int:
    """Return a number of token ids whose logits of all tokens are a block of good size."""
    if device == "cpu":
        return max(_CPU_BLOCK_LOGITS // max(tokens, 1), _MIN_BLOCK)
    columns = _BLOCK_LOGITS // max(tokens, 1)
    return max(columns - columns % _ALIGNED_BLOCK, _MIN_BLOCK)


class _TokenLogprobs(torch.autograd.Function):
    """The computation of `token_logprobs` on inputs of one type."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        temperature: float,
        block_size: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = float_dtype(hidden_NH)
        target_logit_N, sum_N, sum_shifted_N = hidden_NH.new_zeros(3, len(hidden_NH), dtype=dtype)
        max_N = torch.full_like(sum_N, torch.finfo(dtype).min)
        kernels = fused_kernels(hidden_NH.device, dtype)
        for block, logits_NB, exp_NB in _blocks(
            hidden_NH, weight_VH, temperature, block_size, raw=kernels is not None
        ):
            if kernels is not None:
                sums = (max_N, sum_N, sum_shifted_N, target_logit_N)
                kernels.sum_block(logits_NB, targets_N, block.start, temperature, sums)
                continue
            inside_N, column_N1 = _find(targets_N, block)
            found_N = logits_NB.gather(1, column_N1)[:, 0]
            target_logit_N = torch.where(inside_N, found_N, target_logit_N)

            old_max_N, max_N = max_N, torch.maximum(max_N, logits_NB.amax(1))
            shift_N = old_max_N - max_N
            shifted_NB = logits_NB.sub_(max_N[:, None])
            torch.exp(shifted_NB, out=exp_NB)
            scale_N = shift_N.exp()
            sum_shifted_N = scale_N * (sum_shifted_N + shift_N * sum_N)
            sum_N = scale_N * sum_N + exp_NB.sum(1)
            sum_shifted_N += exp_NB.mul_(shifted_NB).sum(1)
        logsumexp_N = max_N + sum_N.log()
        entropy_N = sum_N.log() - sum_shifted_N / sum_N
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, logsumexp_N, entropy_N)
        ctx.temperature, ctx.block_size = temperature, block_size
        ctx.set_materialize_grads(False)
        return target_logit_N - logsumexp_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_NH, weight_VH, targets_N, logsumexp_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        if grad_logprobs_N is None and grad_entropy_N is None:
            return None, None, None, None, None
        # From here on, gradients of the logits before the division by the temperature.
        slope_N = torch.zeros_like(entropy_N)
        if grad_logprobs_N is not None:
            slope_N = grad_logprobs_N / ctx.temperature
        entropy_slope_N = None if grad_entropy_N is None else grad_entropy_N / ctx.temperature
        grad_hidden_NH = torch.zeros_like(hidden_NH, dtype=slope_N.dtype) if needs_hidden else None
        grad_weight_VH = torch.empty_like(weight_VH) if needs_weight else None
        kernels = fused_kernels(hidden_NH.device, slope_N.dtype)
        of_rows = (logsumexp_N, entropy_N, slope_N, entropy_slope_N)
        for block, logits_NB, p_NB in _blocks(
            hidden_NH, weight_VH, ctx.temperature, ctx.block_size, raw=kernels is not None
        ):
            if kernels is not None:
                grad_NB = kernels.gradient_block(
                    logits_NB, targets_N, block.start, ctx.temperature, of_rows, hidden_NH.dtype
                )
            else:
                grad_NB = _gradient(logits_NB, p_NB, targets_N, block, of_rows)
                grad_NB = grad_NB.to(hidden_NH.dtype)
            if grad_hidden_NH is not None:
                _add_product(grad_hidden_NH, grad_NB, weight_VH[block])
            if grad_weight_VH is not None:
                torch.mm(grad_NB.T, hidden_NH, out=grad_weight_VH[block])
        if grad_hidden_NH is not None:
            grad_hidden_NH = grad_hidden_NH.to(hidden_NH.dtype)
        return grad_hidden_NH, grad_weight_VH, None, None, None


def _gradient(
    logits_NB: Tensor,
    p_NB: Tensor,
    targets_N: Tensor,
    block: slice,
    of_rows: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> Tensor:
    """Return the gradient of a block of logits, in place, with p_NB as scratch memory."""
    logsumexp_N, entropy_N, slope_N, entropy_slope_N = of_rows
    logp_NB = logits_NB.sub_(logsumexp_N[:, None])
    if entropy_slope_N is None:
        grad_NB = logp_NB.exp_().mul_(-slope_N[:, None])
    else:
        torch.exp(logp_NB, out=p_NB)
        grad_NB = logp_NB.add_(entropy_N[:, None]).mul_(-entropy_slope_N[:, None])
        grad_NB.sub_(slope_N[:, None]).mul_(p_NB)
    inside_N, column_N1 = _find(targets_N, block)
    return grad_NB.scatter_add_(1, column_N1, torch.where(inside_N, slope_N, 0.0)[:, None])


def _blocks(
    hidden_NH: Tensor, weight_VH: Tensor, temperature: float, block_size: int, *, raw: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of the vocabulary, each with its logits and scratch memory of the same size.

    Both tensors are float32 or better, and the next block overwrites them. `raw` logits are not
    divided by the temperature, and have no scratch memory.
    """
    dtype = float_dtype(hidden_NH)
    places = len(hidden_NH) * min(block_size, len(weight_VH))
    logits = hidden_NH.new_empty(places, dtype=dtype)
    room = logits if raw else torch.empty_like(logits)
    for start in range(0, len(weight_VH), block_size):
        block = slice(start, min(start + block_size, len(weight_VH)))
        shape = len(hidden_NH), block.stop - start
        logits_NB = logits[: shape[0] * shape[1]].view(shape)
        if hidden_NH.dtype == dtype:
            torch.mm(hidden_NH, weight_VH[block].T, out=logits_NB)
        else:
            float32_product(hidden_NH, weight_VH[block].T, out=logits_NB)
        if temperature != 1 and not raw:
            logits_NB.div_(temperature)
        yield block, logits_NB, room[: shape[0] * shape[1]].view(shape)


def float32_product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply 16-bit matrices into float32, without rounding the sums if possible.

    Args:
        left: (N, H), bfloat16 or float16.
        right: (H, B), of the same type.
        out: (N, B) float32, overwritten; None allocates it.
    """
    if left.is_cuda and _multiplies_into_float32(left.device):
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    product = left @ right
    return product.float() if out is None else out.copy_(product)


@cache
def _multiplies_into_float32(device: torch.device) -> bool:
    """Try the product: torch has it only for CUDA, and not for every GPU."""
    ones = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    try:
        return bool((torch.mm(ones, ones, out_dtype=torch.float32) == 16).all())
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def _find(targets_N: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Return which targets are in a block, and their columns in it, 0 for the others."""
    inside_N = (targets_N >= block.start) & (targets_N < block.stop)
    return inside_N, torch.where(inside_N, targets_N - block.start, 0)[:, None]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, which may be of a wider type."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
