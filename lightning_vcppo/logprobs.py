"""Log-probabilities and entropy of given tokens without the N x V logits.

With a vocabulary of 150,000 the logits of one long response are larger than the model. So:

1. Tokens go through the head a chunk at a time; only two numbers a token are kept for backward, the
   logarithm of the softmax's denominator and the entropy. Backward computes the logits again.
2. With p = softmax(logits / temperature), H its entropy and y the token,
   d log p_y / d logit_v = ([v = y] - p_v) / temperature,
   d H / d logit_v = -p_v (log p_v + H) / temperature.
3. In bfloat16 the products are the model's own; softmax and weight gradient are summed in float32.

Shape suffixes: N tokens, V vocabulary, H hidden, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_vcppo.microbatch import float_dtype


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
) -> tuple[Tensor, Tensor]:
    """Compute log pi of each target token and the entropy of pi at its position.

    pi = softmax(hidden @ weight^T / temperature). Differentiable in hidden and weight, through both
    outputs, once. Under autocast the products are done in autocast's type.

    Args:
        hidden_NH: Last hidden states.
        weight_VH: Weight of the head, tied to the embedding or not.
        targets_N: Token ids in [0, V).
        temperature: Positive; that of the sampler, so that pi is what was sampled from.
        chunk_size: Tokens at a time; memory is about 2 x chunk_size x V float32.

    Returns:
        (logprobs_N, entropy_N) in nats, float32 (float64 if hidden or weight is).

    Raises:
        ValueError: For shapes that do not fit, or a temperature or chunk size that is not positive.
    """
    if hidden_NH.ndim != 2 or weight_VH.ndim != 2 or hidden_NH.shape[1] != weight_VH.shape[1]:
        shapes = f"{tuple(hidden_NH.shape)} and {tuple(weight_VH.shape)}"
        raise ValueError(f"hidden and weight must be (N, H) and (V, H), got {shapes}")
    if targets_N.shape != hidden_NH.shape[:1]:
        raise ValueError(f"targets must be ({len(hidden_NH)},), got {tuple(targets_N.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    device = hidden_NH.device.type
    dtype = torch.promote_types(hidden_NH.dtype, weight_VH.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        logprobs_N, entropy_N = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden_NH.to(dtype), weight_VH.to(dtype), targets_N, temperature, chunk_size
        )
    return logprobs_N, entropy_N


class _TokenLogprobs(torch.autograd.Function):
    """The computation of `token_logprobs` on inputs of one type."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        temperature: float,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = float_dtype(hidden_NH)
        logprobs_N, entropy_N, logsumexp_N = hidden_NH.new_empty(3, len(hidden_NH), dtype=dtype)
        for chunk in _chunks(len(hidden_NH), chunk_size):
            logits_CV = _logits(hidden_NH[chunk], weight_VH, temperature)
            logsumexp_N[chunk] = torch.logsumexp(logits_CV, dim=-1)
            logp_CV = logits_CV.sub_(logsumexp_N[chunk, None])
            logprobs_N[chunk] = logp_CV.gather(1, targets_N[chunk, None]).squeeze(1)
            entropy_N[chunk] = -logp_CV.exp().mul_(logp_CV).sum(-1)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, logsumexp_N, entropy_N)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_NH, weight_VH, targets_N, logsumexp_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        if grad_logprobs_N is None and grad_entropy_N is None:
            return None, None, None, None, None
        grad_hidden_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_weight_VH = (
            torch.zeros_like(weight_VH, dtype=logsumexp_N.dtype) if needs_weight else None
        )
        for chunk in _chunks(len(hidden_NH), ctx.chunk_size):
            logits_CV = _logits(hidden_NH[chunk], weight_VH, ctx.temperature)
            grad_CV = _grad_logits(
                logits_CV.sub_(logsumexp_N[chunk, None]),
                targets_N[chunk],
                entropy_N[chunk],
                None if grad_logprobs_N is None else grad_logprobs_N[chunk],
                None if grad_entropy_N is None else grad_entropy_N[chunk],
            )
            grad_CV = grad_CV.div_(ctx.temperature).to(hidden_NH.dtype)
            if grad_hidden_NH is not None:
                torch.mm(grad_CV, weight_VH, out=grad_hidden_NH[chunk])
            if grad_weight_VH is not None:
                grad_weight_VH += grad_CV.T @ hidden_NH[chunk]
        return grad_hidden_NH, grad_weight_VH, None, None, None


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def _logits(hidden_CH: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    """Compute a chunk of logits, a fresh tensor in float32 or better."""
    logits_CV = hidden_CH @ weight_VH.T
    return logits_CV.to(float_dtype(logits_CV)).div_(temperature)


def _grad_logits(
    logp_CV: Tensor,
    targets_C: Tensor,
    entropy_C: Tensor,
    grad_logprobs_C: Tensor | None,
    grad_entropy_C: Tensor | None,
) -> Tensor:
    """Compute the gradient of the scaled logits, by the formulas above; overwrites `logp_CV`."""
    if grad_entropy_C is None:
        assert grad_logprobs_C is not None
        grad_CV = logp_CV.exp_().mul_(-grad_logprobs_C[:, None])
    else:
        p_CV = logp_CV.exp()
        grad_CV = logp_CV.add_(entropy_C[:, None]).mul_(-grad_entropy_C[:, None])
        if grad_logprobs_C is not None:
            grad_CV.sub_(grad_logprobs_C[:, None])
        grad_CV.mul_(p_CV)
    if grad_logprobs_C is not None:
        grad_CV.scatter_add_(1, targets_C[:, None], grad_logprobs_C[:, None])
    return grad_CV
