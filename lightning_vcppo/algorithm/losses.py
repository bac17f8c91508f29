"""Losses of actor and critic, KL estimates, and weights against the sampler's mismatch.

Every loss is a weighted sum over response tokens. With `token_weights_BT` from
`aggregation_weights`, made once for the mini-batch, the losses of its micro-batches add up to that
of the mini-batch, whatever the cut. Without them each token of the call has the same weight.

Each returns `(loss, diagnostics)`: a scalar, and detached scalars that are weighted with the same
weights and add up over micro-batches too. With the two mean modes they are means over tokens.

Inputs where `response_mask_BT` is False may be NaN or infinite: they reach neither the loss nor a
gradient. Log-ratios are clamped to +-20, so that exp cannot overflow.

Shape suffixes: B sequences, T response tokens.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vcppo.algorithm.checks import (
    check_mask,
    check_same_shape,
    check_sequences,
    check_tokens,
)
from lightning_vcppo.algorithm.loss_weights import prompt_noise_weights as prompt_noise_weights
from lightning_vcppo.algorithm.loss_weights import token_weights, weighted_sum
from lightning_vcppo.algorithm.statistics import Reduce, float_dtype, identity

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]
Diagnostics: TypeAlias = dict[str, Tensor]

POLICY_DIAGNOSTICS = (
    "approx_kl",
    "ratio_mean",
    "clipfrac",
    "clipfrac_low",
    "clipfrac_high",
    "clipfrac_c",
)
"""What `policy_loss` returns beside the loss."""
VALUE_DIAGNOSTICS = ("value_mean", "return_mean", "value_error", "value_clipfrac")
"""What `value_loss` returns beside the loss."""
NLL_DIAGNOSTICS = ("positive_tokens",)
"""What `positive_example_nll` returns beside the loss."""
KL_DIAGNOSTICS = ("kl",)
"""What `kl_penalty` returns beside the loss."""

_MAX_LOG_RATIO = 20.0


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_c: float | None = None,
    importance_weights_BT: Tensor | None = None,
    token_weights_BT: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Compute PPO's clipped loss, max(-A r, -A clip(r, 1 - low, 1 + high)), r = pi / pi_old.

    VC-PPO (arXiv 2503.01491) clips at 0.2; clip-higher (DAPO, VAPO) is clip_ratio_high = 0.28.

    Args:
        logprobs_BT: log pi of the response tokens; the only input that gets a gradient.
        old_logprobs_BT: log pi_old, the trainer's policy at the start of the update.
        advantages_BT: A.
        response_mask_BT: Boolean; True on the tokens of the loss.
        clip_ratio_low: Lower clip of the ratio.
        clip_ratio_high: Upper clip of the ratio.
        clip_ratio_c: Dual clip (arXiv 1912.09729): for A < 0 the loss is at most -A c; > 1.
        importance_weights_BT: Factor of each token's clipped loss, from
            `truncated_importance_weights`.
        token_weights_BT: From `aggregation_weights`; None gives each token the same.

    Returns:
        The loss, and approx_kl (k3 of pi_old to pi), ratio_mean, clipfrac (tokens that a clip
        deprives of their gradient), its parts clipfrac_low and clipfrac_high, and clipfrac_c.

    Raises:
        ValueError: For a clip outside its range, or a wrong shape or type of the mask.
    """
    check_tokens(
        response_mask_BT,
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=old_logprobs_BT,
        advantages_BT=advantages_BT,
        importance_weights_BT=importance_weights_BT,
        token_weights_BT=token_weights_BT,
    )
    if clip_ratio_low < 0 or clip_ratio_high < 0:
        given = f"{clip_ratio_low} and {clip_ratio_high}"
        raise ValueError(f"clip_ratio_low and clip_ratio_high must not be negative, got {given}")
    if clip_ratio_c is not None and clip_ratio_c <= 1:
        raise ValueError(f"clip_ratio_c must be above 1, got {clip_ratio_c}")
    mask_BT = response_mask_BT
    logprobs_BT = _masked(logprobs_BT, mask_BT)
    weights_BT = token_weights(mask_BT, token_weights_BT, logprobs_BT.dtype)
    advantages_BT = _masked(advantages_BT, mask_BT).detach()

    log_ratio_BT = _log_ratio(logprobs_BT, _masked(old_logprobs_BT, mask_BT).detach())
    ratio_BT = log_ratio_BT.exp()
    clipped_BT = ratio_BT.clamp(1.0 - clip_ratio_low, 1.0 + clip_ratio_high)
    terms_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_BT)
    low_BT = (advantages_BT < 0) & (ratio_BT < 1.0 - clip_ratio_low)
    high_BT = (advantages_BT > 0) & (ratio_BT > 1.0 + clip_ratio_high)
    bounded_BT = torch.zeros_like(mask_BT)
    if clip_ratio_c is not None:
        bounded_BT = (advantages_BT < 0) & (ratio_BT > clip_ratio_c)
        terms_BT = torch.where(bounded_BT, -advantages_BT * clip_ratio_c, terms_BT)
    if importance_weights_BT is not None:
        terms_BT = terms_BT * _masked(importance_weights_BT, mask_BT).detach()

    diagnostics_BT = {
        "approx_kl": torch.expm1(log_ratio_BT) - log_ratio_BT,
        "ratio_mean": ratio_BT,
        "clipfrac": low_BT | high_BT | bounded_BT,
        "clipfrac_low": low_BT,
        "clipfrac_high": high_BT,
        "clipfrac_c": bounded_BT,
    }
    loss = weighted_sum(terms_BT, mask_BT, weights_BT)
    return loss, _diagnostics(diagnostics_BT, mask_BT, weights_BT)


def value_loss(
    values_BT: Tensor,
    returns_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    loss: Literal["mse", "huber"] = "mse",
    huber_delta: float = 1.0,
    old_values_BT: Tensor | None = None,
    cliprange_value: float | None = None,
    token_weights_BT: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Compute the critic's loss 1/2 (V - R)^2 (VC-PPO, arXiv 2503.01491, Algorithm 1).

    Args:
        values_BT: V before each token; the only input that gets a gradient.
        returns_BT: Value targets R.
        response_mask_BT: Boolean; True on the tokens of the loss.
        loss: "mse", or "huber": linear where |V - R| exceeds `huber_delta`.
        huber_delta: In units of the return.
        old_values_BT: V at the start of the update, needed for clipping.
        cliprange_value: If given, the larger of the losses of V and of V clipped to
            old V +- cliprange_value (PPO2). The paper does not clip.
        token_weights_BT: From `aggregation_weights`; None gives each token the same.

    Returns:
        The loss, and value_mean, return_mean, value_error (|V - R|), value_clipfrac.

    Raises:
        ValueError: For an unknown loss, a range that is not positive, clipping without old values,
            or a wrong shape or type of the mask.
    """
    check_tokens(
        response_mask_BT,
        values_BT=values_BT,
        returns_BT=returns_BT,
        old_values_BT=old_values_BT,
        token_weights_BT=token_weights_BT,
    )
    if loss not in ("mse", "huber"):
        raise ValueError(f"loss must be 'mse' or 'huber', got {loss!r}")
    if huber_delta <= 0:
        raise ValueError(f"huber_delta must be positive, got {huber_delta}")
    mask_BT = response_mask_BT
    values_BT = _masked(values_BT, mask_BT)
    returns_BT = _masked(returns_BT, mask_BT).detach()
    weights_BT = token_weights(mask_BT, token_weights_BT, values_BT.dtype)

    def terms(prediction_BT: Tensor) -> Tensor:
        if loss == "huber":
            return F.huber_loss(prediction_BT, returns_BT, reduction="none", delta=huber_delta)
        return 0.5 * (prediction_BT - returns_BT).square()

    terms_BT = terms(values_BT)
    clipped_BT = torch.zeros_like(mask_BT)
    if cliprange_value is not None:
        if cliprange_value <= 0 or old_values_BT is None:
            raise ValueError("cliprange_value must be positive and needs old_values_BT")
        old_values_BT = _masked(old_values_BT, mask_BT).detach()
        # Old V plus a clipped change would round V where nothing is clipped.
        low_BT, high_BT = old_values_BT - cliprange_value, old_values_BT + cliprange_value
        clipped_terms_BT = terms(values_BT.clamp(low_BT, high_BT))
        clipped_BT = clipped_terms_BT > terms_BT
        terms_BT = torch.maximum(terms_BT, clipped_terms_BT)

    diagnostics_BT = {
        "value_mean": values_BT,
        "return_mean": returns_BT,
        "value_error": (values_BT - returns_BT).abs(),
        "value_clipfrac": clipped_BT,
    }
    total = weighted_sum(terms_BT, mask_BT, weights_BT)
    return total, _diagnostics(diagnostics_BT, mask_BT, weights_BT)


def positive_example_nll(
    logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    correct_B: Tensor,
    *,
    token_weights_BT: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Compute the language-model loss on correct responses (VAPO, arXiv 2504.05118).

    -(sum of log pi over the tokens of correct responses) / (number of those tokens); 0 if none is
    correct.

    Args:
        logprobs_BT: log pi of the response tokens.
        response_mask_BT: Boolean; True on the tokens of the loss.
        correct_B: Boolean; True for responses that the verifier accepts.
        token_weights_BT: From `aggregation_weights` of the mini-batch with the mask
            `response_mask_BT & correct_B[:, None]`.

    Returns:
        The loss, and positive_tokens, their number.

    Raises:
        ValueError: For a wrong shape or type.
    """
    check_tokens(response_mask_BT, logprobs_BT=logprobs_BT, token_weights_BT=token_weights_BT)
    check_sequences(response_mask_BT, correct_B=correct_B)
    check_mask("correct_B", correct_B)
    mask_BT = response_mask_BT & correct_B[:, None]
    logprobs_BT = _masked(logprobs_BT, mask_BT)
    weights_BT = token_weights(mask_BT, token_weights_BT, logprobs_BT.dtype)
    loss = -weighted_sum(logprobs_BT, mask_BT, weights_BT)
    return loss, {"positive_tokens": mask_BT.sum().to(logprobs_BT.dtype)}


def kl_estimate(
    logprobs_BT: Tensor, ref_logprobs_BT: Tensor, estimator: KLEstimator = "k1"
) -> Tensor:
    """Estimate KL(pi || ref) at each token sampled from pi (Schulman, joschu.net/blog/kl-approx).

    With d = log pi - log ref: k1 = d, unbiased; k2 = d^2 / 2, biased, low variance;
    k3 = exp(-d) - 1 + d, unbiased and never negative.

    Args:
        logprobs_BT: log pi of the response tokens.
        ref_logprobs_BT: log ref of the same tokens, same shape.
        estimator: k1, k2 or k3.

    Returns:
        One estimate a token, in nats.

    Raises:
        ValueError: For an unknown estimator, or shapes that differ.
    """
    check_same_shape("logprobs_BT", logprobs_BT, ref_logprobs_BT=ref_logprobs_BT)
    if estimator not in get_args(KLEstimator):
        raise ValueError(f"kl_estimator must be one of {get_args(KLEstimator)}, got {estimator!r}")
    log_ratio_BT = _log_ratio(logprobs_BT, ref_logprobs_BT)
    if estimator == "k1":
        return log_ratio_BT
    if estimator == "k2":
        return 0.5 * log_ratio_BT.square()
    return torch.expm1(-log_ratio_BT) + log_ratio_BT


def kl_penalty(
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    estimator: KLEstimator = "k1",
    token_weights_BT: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Compute the KL divergence from the reference policy as a loss.

    Estimators of the same value differ as losses. On tokens sampled from pi, the expected gradient
    of k2 is that of KL(pi || ref), of k3 that of KL(ref || pi), and of k1 it is zero: k1 belongs
    into the reward.

    Args:
        logprobs_BT: log pi of the response tokens; the only input that gets a gradient.
        ref_logprobs_BT: log ref of the same tokens.
        response_mask_BT: Boolean; True on the tokens of the loss.
        estimator: k1, k2 or k3, see `kl_estimate`.
        token_weights_BT: From `aggregation_weights`; None gives each token the same.

    Returns:
        The loss in nats, not yet multiplied by kl_coef, and the same as kl.

    Raises:
        ValueError: For an unknown estimator, or a wrong shape or type of the mask.
    """
    check_tokens(
        response_mask_BT,
        logprobs_BT=logprobs_BT,
        ref_logprobs_BT=ref_logprobs_BT,
        token_weights_BT=token_weights_BT,
    )
    mask_BT = response_mask_BT
    logprobs_BT = _masked(logprobs_BT, mask_BT)
    weights_BT = token_weights(mask_BT, token_weights_BT, logprobs_BT.dtype)
    kl_BT = kl_estimate(logprobs_BT, _masked(ref_logprobs_BT, mask_BT).detach(), estimator)
    loss = weighted_sum(kl_BT, mask_BT, weights_BT)
    return loss, {"kl": loss.detach()}


@torch.no_grad()
def truncated_importance_weights(
    old_logprobs_BT: Tensor,
    sampler_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    cap: float = 2.0,
    mode: Literal["truncate", "mask"] = "truncate",
    reduce: Reduce = identity,
) -> tuple[Tensor, Tensor, Diagnostics]:
    """Weigh tokens against the mismatch between the sampler mu and the trainer pi_old.

    Both have the same weights, but the sampler another engine or precision. For the policy loss
    only.

    Args:
        old_logprobs_BT: log pi_old, the trainer's.
        sampler_logprobs_BT: log mu, the sampler's.
        response_mask_BT: Boolean; True on the tokens that count.
        cap: C >= 1.
        mode: "truncate", w = min(pi_old / mu, C) (truncated importance sampling); "mask",
            w = pi_old / mu where 1/C <= pi_old / mu <= C, and no other token is kept.
        reduce: Sums a small tensor over ranks, for the diagnostics.

    Returns:
        (weights_BT, keep_mask_BT, diagnostics). Weights are detached and 0 outside the keep mask.
        With the mask as the `response_mask_BT` of `aggregation_weights`, tokens that are not kept
        leave the denominator of the loss as well. Diagnostics are means over tokens of all ranks:
        kl_k1 and kl_k3 of KL(mu || pi_old), weight_mean, ess (effective sample size as a share of
        the tokens), weight_clipped (share truncated or not kept); and weight_max, of this rank
        alone and before clipping.

    Raises:
        ValueError: For an unknown mode, a cap below 1, or a wrong shape or type of the mask.
    """
    check_tokens(
        response_mask_BT, old_logprobs_BT=old_logprobs_BT, sampler_logprobs_BT=sampler_logprobs_BT
    )
    if mode not in ("truncate", "mask"):
        raise ValueError(f"mode must be 'truncate' or 'mask', got {mode!r}")
    if cap < 1:
        raise ValueError(f"cap must be at least 1, got {cap}")
    mask_BT = response_mask_BT
    log_ratio_BT = _log_ratio(
        _masked(old_logprobs_BT, mask_BT), _masked(sampler_logprobs_BT, mask_BT)
    )
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


def _masked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the values in float32 or better, 0 outside the mask in value and gradient."""
    return torch.where(mask_BT, values_BT, 0.0).to(float_dtype(values_BT))


def _log_ratio(logprobs_BT: Tensor, other_logprobs_BT: Tensor) -> Tensor:
    return (logprobs_BT - other_logprobs_BT).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def _diagnostics(terms_BT: dict[str, Tensor], mask_BT: Tensor, weights_BT: Tensor) -> Diagnostics:
    """Sum detached terms with the weights of the loss."""
    return {
        name: weighted_sum(term_BT.detach(), mask_BT, weights_BT)
        for name, term_BT in terms_BT.items()
    }
