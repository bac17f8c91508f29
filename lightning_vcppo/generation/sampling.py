"""Sample tokens from logits, with one random stream per sequence.

Shapes: B sequences, R rows of a decoding step, T response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vcppo.algorithm.statistics import float_dtype
from lightning_vcppo.common.seeding import stream
from lightning_vcppo.generation.fused_sampling import fused_kernel
from lightning_vcppo.settings import SamplingSettings


def sample_tokens(
    logits_RV: Tensor, uniform_R: Tensor, settings: SamplingSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn one uniform number per row into a token, by the inverse cumulative distribution.

    Args:
        logits_RV: Logits of the next token.
        uniform_R: Numbers in [0, 1).
        settings: Temperature (0: the most probable token) and top-p.

    Returns:
        Tokens (R,), their log-probabilities at the temperature and the entropy of the distribution
        in nats, both before top-p (R,), float32 or better.
    """
    if settings.temperature > 0 and settings.top_p == 1 and (kernel := fused_kernel(logits_RV)):
        sampled: tuple[Tensor, Tensor, Tensor]
        sampled = kernel.sample(logits_RV, uniform_R, settings.temperature)
        return sampled
    with torch.autocast(logits_RV.device.type, enabled=False):  # it would round products
        return _sample(logits_RV.to(float_dtype(logits_RV)), uniform_R, settings)


def _sample(
    logits_RV: Tensor, uniform_R: Tensor, settings: SamplingSettings
) -> tuple[Tensor, Tensor, Tensor]:
    if settings.temperature not in (0, 1):
        logits_RV = logits_RV / settings.temperature
    logprobs_RV = logits_RV.log_softmax(-1)
    probs_RV = logprobs_RV.exp()
    entropy_R = -torch.linalg.vecdot(probs_RV, logprobs_RV.clamp_min(-1e4))  # 0 x -inf is 0 here
    if settings.temperature == 0:
        token_R = logits_RV.argmax(-1)
    else:
        if settings.top_p < 1:
            probs_RV = _nucleus(probs_RV, settings.top_p)
        cumulative_RV = probs_RV.cumsum(-1)
        threshold_R1 = uniform_R[:, None] * cumulative_RV[:, -1:]
        token_R = torch.searchsorted(cumulative_RV, threshold_R1, right=True)[:, 0]
        token_R = token_R.clamp_max(logits_RV.shape[-1] - 1)
        if settings.top_p < 1:
            token_R = within_nucleus(token_R, probs_RV)
    return token_R, logprobs_RV.gather(-1, token_R[:, None])[:, 0], entropy_R


def within_nucleus(token_R: Tensor, probs_RV: Tensor) -> Tensor:
    """Replace tokens of probability 0 by the most probable token.

    A parallel cumulative sum need not be monotonic: rounding may raise it slightly in the tail,
    where the probabilities are 0.
    """
    possible_R = probs_RV.gather(-1, token_R[:, None])[:, 0] > 0
    return torch.where(possible_R, token_R, probs_RV.argmax(-1))


def uniform_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """Return (B, count) uniform numbers, each row from its own stream."""
    return torch.stack(
        [torch.rand(count, generator=stream("tokens", seed), dtype=torch.float32) for seed in seeds]
    )


def _nucleus(probs_RV: Tensor, top_p: float) -> Tensor:
    """Zero the tail outside the smallest set of tokens whose probabilities reach top_p."""
    ordered_RV, order_RV = probs_RV.sort(dim=-1, descending=True)
    tail_RV = ordered_RV.cumsum(-1) - ordered_RV >= top_p
    return probs_RV.scatter(-1, order_RV, ordered_RV.masked_fill(tail_RV, 0.0))
