"""Sample with a Triton kernel that reads the logits twice; torch's operations need ten passes.

One program samples one row. Its first pass over the vocabulary sums the softmax, its second finds
the token at which the cumulative sum passes the uniform number.
Chosen by fused_sampling.py; only that file imports this one, because Triton may be missing.
"""

# Triton reads annotations as code: only compile-time constants of a kernel have one.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

COLUMNS = 4096
"""Number of token ids that a program reads at a time."""


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _sample_kernel(
    logits,
    uniform,
    tokens,
    logprobs,
    entropies,
    columns,
    stride,
    scale,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    m = tl.load(base).to(tl.float32) * scale
    m = tl.maximum(m, -3.0e38)
    s = 0.0
    t = 0.0
    first = 0
    while first < columns:
        column = first + tl.arange(0, BLOCK)
        x = tl.load(base + column, mask=column < columns, other=-float("inf"))
        x = x.to(tl.float32) * scale
        new = tl.maximum(m, tl.max(x, 0))
        e = tl.exp(x - new)
        old = tl.exp(m - new)
        t = old * (t + (m - new) * s) + tl.sum(tl.where(e > 0, e * (x - new), 0.0), 0)
        s = old * s + tl.sum(e, 0)
        m = new
        first += BLOCK
    threshold = tl.load(uniform + row) * s
    passed = 0
    before = 0.0
    first = 0
    while first < columns:
        column = first + tl.arange(0, BLOCK)
        inside = column < columns
        x = tl.load(base + column, mask=inside, other=-float("inf")).to(tl.float32) * scale
        e = tl.exp(x - m)
        cumulative = before + tl.cumsum(e, 0)
        passed += tl.sum(((cumulative <= threshold) & inside).to(tl.int32), 0)
        before += tl.sum(e, 0)
        first += BLOCK
    token = tl.minimum(passed, columns - 1)
    chosen = tl.load(base + token).to(tl.float32) * scale
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, chosen - m - tl.log(s))
    tl.store(entropies + row, tl.log(s) - t / s)


def sample(
    logits_RV: Tensor, uniform_R: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `sample_tokens` without top-p, at a positive temperature.

    Args:
        logits_RV: Logits of the next token, of any floating type and row stride.
        uniform_R: Numbers in [0, 1), float32.
        temperature: Divides the logits.
    """
    rows, columns = logits_RV.shape
    tokens_R = torch.empty(rows, dtype=torch.long, device=logits_RV.device)
    logprobs_R, entropies_R = (torch.empty_like(uniform_R) for _ in range(2))
    _sample_kernel[(rows,)](
        logits_RV,
        uniform_R,
        tokens_R,
        logprobs_R,
        entropies_R,
        columns,
        logits_RV.stride(0),
        1 / temperature,
        BLOCK=COLUMNS,
        num_warps=8,
    )
    return tokens_R, logprobs_R, entropies_R
