"""Compute `token_logprobs` with Triton kernels that read a block of logits once per pass.

Eager operations read and write the block about nine times. The formulas are those of logprobs.py.
Chosen by fused_logprobs.py; only that file imports this one, because Triton may be missing.
"""

# Triton reads annotations as code: only compile-time constants of a kernel have one.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

COLUMNS = 2048
"""Number of token ids that a program reads at a time."""


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _sum_kernel(
    logits,
    targets,
    maxima,
    sums,
    shifted_sums,
    found,
    start,
    columns,
    stride,
    scale,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    m = tl.load(maxima + row)
    s = tl.load(sums + row)
    t = tl.load(shifted_sums + row)
    first = 0
    while first < columns:
        column = first + tl.arange(0, BLOCK)
        x = tl.load(base + column, mask=column < columns, other=-float("inf")) * scale
        new = tl.maximum(m, tl.max(x, 0))
        e = tl.exp(x - new)
        old = tl.exp(m - new)
        t = old * (t + (m - new) * s) + tl.sum(tl.where(e > 0, e * (x - new), 0.0), 0)
        s = old * s + tl.sum(e, 0)
        m = new
        first += BLOCK
    tl.store(maxima + row, m)
    tl.store(sums + row, s)
    tl.store(shifted_sums + row, t)
    target = tl.load(targets + row) - start
    inside = (target >= 0) & (target < columns)
    tl.store(found + row, tl.load(base + target, mask=inside, other=0.0) * scale, mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _gradient_kernel(
    logits,
    gradient,
    targets,
    logsumexp,
    entropy,
    slope,
    entropy_slope,
    start,
    columns,
    stride,
    scale,
    WITH_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(logits + row * stride + column, mask=inside, other=-float("inf")) * scale
    logp = x - tl.load(logsumexp + row)
    p = tl.exp(logp)
    slope_of_row = tl.load(slope + row)
    g = -slope_of_row * p
    if WITH_ENTROPY:
        away = tl.where(p > 0, p * (logp + tl.load(entropy + row)), 0.0)
        g -= tl.load(entropy_slope + row) * away
    target = tl.load(targets + row) - start
    g += tl.where(column == target, slope_of_row, 0.0)
    place = gradient + row * stride + column
    tl.store(place, g.to(gradient.dtype.element_ty), mask=inside)


def sum_block(
    logits_NB: Tensor,
    targets_N: Tensor,
    start: int,
    temperature: float,
    sums: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Add a block of the vocabulary to the running sums, in place.

    Args:
        logits_NB: Logits before the temperature, float32.
        targets_N: Token ids.
        start: First token id of the block.
        temperature: Divides the logits.
        sums: Largest logit, sum exp(l - m), sum exp(l - m) (l - m), target's logit, (N,) each.
    """
    rows, columns = logits_NB.shape
    _sum_kernel[(rows,)](
        logits_NB,
        targets_N,
        *sums,
        start,
        columns,
        logits_NB.stride(0),
        1 / temperature,
        BLOCK=COLUMNS,
        num_warps=8,
    )


def gradient_block(
    logits_NB: Tensor,
    targets_N: Tensor,
    start: int,
    temperature: float,
    of_rows: tuple[Tensor, Tensor, Tensor, Tensor | None],
    dtype: torch.dtype,
) -> Tensor:
    """Return the gradient of a block of logits, before the temperature.

    Args:
        logits_NB: Logits before the temperature, float32.
        targets_N: Token ids.
        start: First token id of the block.
        temperature: Divides the logits.
        of_rows: Log of the sum, entropy, and the slopes of log-probability and entropy, (N,) each.
        dtype: Type of the result.

    Returns:
        (N, B).
    """
    logsumexp_N, entropy_N, slope_N, entropy_slope_N = of_rows
    rows, columns = logits_NB.shape
    gradient_NB = torch.empty_like(logits_NB, dtype=dtype)
    _gradient_kernel[(rows, triton.cdiv(columns, COLUMNS))](
        logits_NB,
        gradient_NB,
        targets_N,
        logsumexp_N,
        entropy_N,
        slope_N,
        slope_N if entropy_slope_N is None else entropy_slope_N,
        start,
        columns,
        logits_NB.stride(0),
        1 / temperature,
        WITH_ENTROPY=entropy_slope_N is not None,
        BLOCK=COLUMNS,
        num_warps=8,
    )
    return gradient_NB
