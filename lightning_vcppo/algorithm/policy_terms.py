"""Compute the parts of policy losses: checked tokens, ratios, terms, and their sum.

Shape suffixes: B sequences, T response tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vcppo.algorithm.checks import check_tokens
from lightning_vcppo.algorithm.importance import log_ratio, masked
from lightning_vcppo.algorithm.loss_weights import token_weights, weighted_sum
from lightning_vcppo.algorithm.losses import Diagnostics, sum_diagnostics

POLICY_DIAGNOSTICS = (
    "approx_kl",
    "ratio_mean",
    "ratio_min",
    "ratio_max",
    "clipfrac",
    "clipfrac_low",
    "clipfrac_high",
    "clipfrac_c",
)
"""Names of the diagnostics of every policy loss.

approx_kl is k3 of pi_old to pi. clipfrac is the share of tokens whose gradient a bound removes or,
in CISPO, limits; clipfrac_low, clipfrac_high and clipfrac_c are its parts, by the bound. ratio_min
and ratio_max are the extremes of 1 and the ratios of tokens with a weight.
"""


class PolicyTokens(NamedTuple):
    """The checked inputs of a policy loss, 0 outside the mask.

    Attributes:
        mask_BT: True on the tokens of the loss.
        log_ratio_BT: log(pi / pi_old), with gradient.
        ratio_BT: Exponential of `log_ratio_BT`.
        advantages_BT: Advantage A.
        importance_weights_BT: Factor of each token's loss, or None.
        weights_BT: Weight of each token.
    """

    mask_BT: Tensor
    log_ratio_BT: Tensor
    ratio_BT: Tensor
    advantages_BT: Tensor
    importance_weights_BT: Tensor | None
    weights_BT: Tensor


def read_tokens(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clips: tuple[float, float, float | None],
    importance_weights_BT: Tensor | None,
    token_weights_BT: Tensor | None,
) -> PolicyTokens:
    """Check the arguments of a policy loss and compute the ratio."""
    check_tokens(
        mask_BT,
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=old_logprobs_BT,
        advantages_BT=advantages_BT,
        importance_weights_BT=importance_weights_BT,
        token_weights_BT=token_weights_BT,
    )
    low, high, c = clips
    if not (low >= 0 and high >= 0):  # also refuses NaN
        raise ValueError(
            f"clip_ratio_low and clip_ratio_high must not be negative, got {low} and {high}"
        )
    if c is not None and not c > 1:
        raise ValueError(f"clip_ratio_c must be above 1, got {c}")
    logprobs_BT = masked(logprobs_BT, mask_BT)
    log_ratio_BT = log_ratio(logprobs_BT, masked(old_logprobs_BT, mask_BT).detach())
    if importance_weights_BT is not None:
        importance_weights_BT = masked(importance_weights_BT, mask_BT).detach()
    return PolicyTokens(
        mask_BT,
        log_ratio_BT,
        log_ratio_BT.exp(),
        masked(advantages_BT, mask_BT).detach(),
        importance_weights_BT,
        token_weights(mask_BT, token_weights_BT, logprobs_BT.dtype),
    )


def clipped_loss(
    tokens: PolicyTokens, ratio_BT: Tensor, low: float, high: float, c: float | None = None
) -> tuple[Tensor, Diagnostics]:
    """Return max(-A r, -A clip(r, 1 - low, 1 + high)), at most -A c for A < 0."""
    advantages_BT = tokens.advantages_BT
    clipped_BT = ratio_BT.clamp(1.0 - low, 1.0 + high)
    terms_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_BT)
    low_BT = (advantages_BT < 0) & (ratio_BT < 1.0 - low)
    high_BT = (advantages_BT > 0) & (ratio_BT > 1.0 + high)
    bounded_BT = None
    if c is not None:
        bounded_BT = (advantages_BT < 0) & (ratio_BT > c)
        terms_BT = torch.where(bounded_BT, -advantages_BT * c, terms_BT)
    return sum_terms(tokens, terms_BT, ratio_BT, low_BT, high_BT, bounded_BT)


def with_bounded_gradient(tokens: PolicyTokens, low: float, high: float) -> Tensor:
    """Return the function of r whose gradient is clip(r, low, high) grad log pi.

    It is r between the bounds, and beyond a bound b it is b (1 + log(r / b)).
    """
    value_BT, log_ratio_BT = tokens.ratio_BT, tokens.log_ratio_BT
    if low > 0:
        below_BT = low * (1.0 + log_ratio_BT - math.log(low))
        value_BT = torch.where(tokens.ratio_BT < low, below_BT, value_BT)
    if high < math.inf:
        above_BT = high * (1.0 + log_ratio_BT - math.log(high))
        value_BT = torch.where(tokens.ratio_BT > high, above_BT, value_BT)
    return value_BT


def sum_terms(
    tokens: PolicyTokens,
    terms_BT: Tensor,
    ratio_BT: Tensor,
    low_BT: Tensor,
    high_BT: Tensor,
    bounded_BT: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Weight the terms and the diagnostics, and sum them."""
    mask_BT, weights_BT = tokens.mask_BT, tokens.weights_BT
    if tokens.importance_weights_BT is not None:
        terms_BT = terms_BT * tokens.importance_weights_BT
    if bounded_BT is None:
        bounded_BT = torch.zeros_like(mask_BT)
    diagnostics_BT = {
        "approx_kl": torch.expm1(tokens.log_ratio_BT) - tokens.log_ratio_BT,
        "ratio_mean": ratio_BT,
        "clipfrac": low_BT | high_BT | bounded_BT,
        "clipfrac_low": low_BT,
        "clipfrac_high": high_BT,
        "clipfrac_c": bounded_BT,
    }
    diagnostics = sum_diagnostics(diagnostics_BT, mask_BT, weights_BT)
    counts_BT = mask_BT & (weights_BT != 0)
    ratios = F.pad(torch.where(counts_BT, ratio_BT.detach(), 1.0).flatten(), (0, 1), value=1.0)
    diagnostics |= {"ratio_min": ratios.min(), "ratio_max": ratios.max()}
    return weighted_sum(terms_BT, mask_BT, weights_BT), diagnostics
