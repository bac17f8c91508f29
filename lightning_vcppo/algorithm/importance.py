"""Compute importance ratios of two policies, and correct for their difference.

Corrections are weights for the sampler's mismatch, and value targets for an updated policy.

Shape suffixes: B sequences, T response tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vcppo.algorithm.checks import check_tokens
from lightning_vcppo.algorithm.statistics import Reduce, float_dtype, identity

_MAX_LOG_RATIO = 20.0


@torch.no_grad()
def truncated_importance_weights(
    old_logprobs_BT: Tensor,
    sampler_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    cap: float = 2.0,
    mode: Literal["truncate", "mask"] = "truncate",
    reduce: Reduce = identity,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weight tokens to correct the mismatch between the sampler mu and the trainer pi_old.

    Both have the same network weights, but the sampler uses another engine or precision. This is
    only for the policy loss.

    Args:
        old_logprobs_BT: log pi_old, the trainer's.
        sampler_logprobs_BT: log mu, the sampler's.
        response_mask_BT: Boolean; True on the tokens that count.
        cap: C >= 1.
        mode: "truncate", w = min(pi_old / mu, C) (truncated importance sampling); "mask",
            w = pi_old / mu where 1/C <= pi_old / mu <= C; other tokens are dropped.
        reduce: Sums a small tensor over ranks, for the diagnostics.

    Returns:
        (weights_BT, keep_mask_BT, diagnostics). Weights are detached and 0 outside the keep mask.
        With that mask as the `response_mask_BT` of `aggregation_weights`, tokens that are not kept
        do not count in the denominator of the loss. Diagnostics are means over tokens of all ranks:
        kl_k1 and kl_k3 of KL(mu || pi_old), weight_mean, ess (effective sample size as a share of
        the tokens), weight_clipped (share truncated or not kept); and weight_max, only of this
        rank and before clipping.

    Raises:
        ValueError: For an unknown mode, a cap below 1, or a wrong shape or type of the mask.
    """
    check_tokens(
        response_mask_BT, old_logprobs_BT=old_logprobs_BT, sampler_logprobs_BT=sampler_logprobs_BT
    )
    if mode not in ("truncate", "mask"):
        raise ValueError(f"mode must be 'truncate' or 'mask', got {mode!r}")
    if not cap >= 1:  # also refuses NaN
        raise ValueError(f"cap must be at least 1, got {cap}")
    mask_BT = response_mask_BT
    log_ratio_BT = log_ratio(masked(old_logprobs_BT, mask_BT), masked(sampler_logprobs_BT, mask_BT))
    ratio_BT = log_ratio_BT.exp()
    clipped_BT = mask_BT & (ratio_BT > cap)
    if mode == "mask":
        clipped_BT |= mask_BT & (ratio_BT < 1.0 / cap)
        keep_BT = mask_BT & ~clipped_BT
    else:
        keep_BT = mask_BT
    weights_BT = torch.where(keep_BT, ratio_BT.clamp(max=cap), 0.0)

    k3_BT = torch.expm1(log_ratio_BT) - log_ratio_BT  # 0 outside the mask, like log_ratio_BT
    terms = [mask_BT, -log_ratio_BT, k3_BT, weights_BT, weights_BT.square(), clipped_BT]
    sums = reduce(torch.stack([term.sum(dtype=torch.float64) for term in terms]))
    tokens = sums[0].clamp(min=1.0)
    _, k1, k3, weight, square, clipped = (sums / tokens).to(weights_BT.dtype)
    return (
        weights_BT,
        keep_BT,
        {
            "kl_k1": k1,
            "kl_k3": k3,
            "weight_mean": weight,
            "weight_max": F.pad(torch.where(mask_BT, ratio_BT, 0.0).flatten(), (0, 1)).max(),
            "ess": torch.where(square > 0, weight.square() / square, 0.0),
            "weight_clipped": clipped,
        },
    )


@torch.no_grad()
def importance_corrected_returns(
    returns_BT: Tensor,
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    low: float = 0.0,
    max_ratio: float = 6.0,
    reduce: Reduce = identity,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Correct value targets for an update of the policy between sampling and the critic's fit.

    PACT (arXiv 2609.26355): Y_t = rho_t R_t with rho_t = pi_new / pi_old of token t, for returns in
    [0, 1]. Its mean is the value of sampling token t from the new policy and all others from the
    old: the first factor of the exact correction, whose product over the rest of the response
    explodes. For other ranges, such as rewards of +-1, returns are shifted by `low`:
    Y_t = low + rho_t (R_t - low), so that the lowest return does not change.

    Args:
        returns_BT: R of each token.
        logprobs_BT: log pi_new, after the policy's update.
        old_logprobs_BT: log pi_old, before it.
        response_mask_BT: Boolean; True on the tokens that count.
        low: Lowest return.
        max_ratio: Tokens with a larger rho are dropped from the critic's loss; 6 in the paper.
        reduce: Sums a small tensor over ranks, for the diagnostics.

    Returns:
        (targets_BT, keep_mask_BT, diagnostics). Targets are detached and 0 outside the keep mask,
        which also drops tokens from the denominator of the loss. Diagnostics are means over
        tokens of all ranks: target_ratio_mean, and target_left_out, the share not kept.

    Raises:
        ValueError: For a max_ratio that is not above 1, or a wrong shape or type of the mask.
    """
    check_tokens(
        response_mask_BT,
        returns_BT=returns_BT,
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=old_logprobs_BT,
    )
    if not max_ratio > 1:
        raise ValueError(f"max_ratio must be above 1, got {max_ratio}")
    mask_BT = response_mask_BT
    ratio_BT = log_ratio(masked(logprobs_BT, mask_BT), masked(old_logprobs_BT, mask_BT)).exp()
    keep_BT = mask_BT & (ratio_BT <= max_ratio)
    targets_BT = low + ratio_BT * (masked(returns_BT, mask_BT) - low)

    terms = [mask_BT, torch.where(mask_BT, ratio_BT, 0.0), mask_BT & ~keep_BT]
    sums = reduce(torch.stack([term.sum(dtype=torch.float64) for term in terms]))
    _, mean, left_out = (sums / sums[0].clamp(min=1.0)).to(ratio_BT.dtype)
    diagnostics = {"target_ratio_mean": mean, "target_left_out": left_out}
    return torch.where(keep_BT, targets_BT, 0.0), keep_BT, diagnostics


def masked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the values in float32 or better, 0 outside the mask in value and gradient."""
    return torch.where(mask_BT, values_BT, 0.0).to(float_dtype(values_BT))


def log_ratio(logprobs_BT: Tensor, other_logprobs_BT: Tensor) -> Tensor:
    """Return the difference, clamped so that its exponential cannot overflow."""
    return (logprobs_BT - other_logprobs_BT).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
