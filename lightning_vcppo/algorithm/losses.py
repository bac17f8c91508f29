"""Compute the critic's loss, and terms of the policy loss: KL and NLL of correct responses.

Policy losses are in `policy_losses.py`. Every loss is a weighted sum over response tokens. With
`token_weights_BT` from `aggregation_weights`, computed once for the mini-batch, the losses of its
micro-batches add up to that of the mini-batch, however it is cut. Without them each token of the
call has the same weight.

Each returns `(loss, diagnostics)`: a scalar, and detached scalars that are weighted with the same
weights and also add up over micro-batches, see `combine`. With the two mean modes they are means
over tokens.

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
    check_real,
    check_same_shape,
    check_sequences,
    check_tokens,
)
from lightning_vcppo.algorithm.importance import log_ratio, masked
from lightning_vcppo.algorithm.loss_weights import token_weights, weighted_sum
from lightning_vcppo.algorithm.statistics import float_dtype

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]
Diagnostics: TypeAlias = dict[str, Tensor]

VALUE_DIAGNOSTICS = ("value_mean", "return_mean", "value_error", "value_clipfrac")
"""Names of the diagnostics of `value_loss`."""
NLL_DIAGNOSTICS = ("positive_tokens",)
"""Names of the diagnostics of `positive_example_nll`."""
KL_DIAGNOSTICS = ("kl",)
"""Names of the diagnostics of `kl_penalty`."""


def is_extreme(name: str) -> bool:
    """Return whether a diagnostic is an extreme by its name; all others add up."""
    return name.endswith(("_min", "_max"))


def combine(name: str, first: Tensor, second: Tensor) -> Tensor:
    """Combine the diagnostics of two parts of a mini-batch, such as micro-batches.

    Args:
        name: Name of the diagnostic.
        first: Its value in one part.
        second: Its value in the other.
    """
    if not is_extreme(name):
        return first + second
    return torch.minimum(first, second) if name.endswith("_min") else torch.maximum(first, second)


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
        huber_delta: Threshold of "huber", in units of the return.
        old_values_BT: V at the start of the update, needed for clipping.
        cliprange_value: If given, the larger of the losses of V and of V clipped to
            old V +- cliprange_value (PPO2). The paper does not clip.
        token_weights_BT: From `aggregation_weights`; None gives all tokens equal weights.

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
    if not huber_delta > 0:  # also refuses NaN
        raise ValueError(f"huber_delta must be positive, got {huber_delta}")
    mask_BT = response_mask_BT
    values_BT = masked(values_BT, mask_BT)
    returns_BT = masked(returns_BT, mask_BT).detach()
    weights_BT = token_weights(mask_BT, token_weights_BT, values_BT.dtype)

    def terms(prediction_BT: Tensor) -> Tensor:
        if loss == "huber":
            return F.huber_loss(prediction_BT, returns_BT, reduction="none", delta=huber_delta)
        return 0.5 * (prediction_BT - returns_BT).square()

    terms_BT = terms(values_BT)
    clipped_BT = torch.zeros_like(mask_BT)
    if cliprange_value is not None:
        if not cliprange_value > 0 or old_values_BT is None:
            raise ValueError("cliprange_value must be positive and needs old_values_BT")
        old_values_BT = masked(old_values_BT, mask_BT).detach()
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
    return total, sum_diagnostics(diagnostics_BT, mask_BT, weights_BT)


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
        The loss, and positive_tokens, the number of those tokens.

    Raises:
        ValueError: For a wrong shape or type.
    """
    check_tokens(response_mask_BT, logprobs_BT=logprobs_BT, token_weights_BT=token_weights_BT)
    check_sequences(response_mask_BT, correct_B=correct_B)
    check_mask("correct_B", correct_B)
    mask_BT = response_mask_BT & correct_B[:, None]
    logprobs_BT = masked(logprobs_BT, mask_BT)
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
        One estimate per token, in nats.

    Raises:
        ValueError: For an unknown estimator, or shapes that differ.
    """
    check_same_shape("logprobs_BT", logprobs_BT, ref_logprobs_BT=ref_logprobs_BT)
    check_real(logprobs_BT, logprobs_BT=logprobs_BT, ref_logprobs_BT=ref_logprobs_BT)
    if estimator not in get_args(KLEstimator):
        raise ValueError(f"kl_estimator must be one of {get_args(KLEstimator)}, got {estimator!r}")
    log_ratio_BT = log_ratio(logprobs_BT, ref_logprobs_BT)
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
    of k2 is that of KL(pi || ref), of k3 that of KL(ref || pi), and of k1 it is zero: use k1 only
    in the reward.

    Args:
        logprobs_BT: log pi of the response tokens; the only input that gets a gradient.
        ref_logprobs_BT: log ref of the same tokens.
        response_mask_BT: Boolean; True on the tokens of the loss.
        estimator: k1, k2 or k3, see `kl_estimate`.
        token_weights_BT: From `aggregation_weights`; None gives all tokens equal weights.

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
    logprobs_BT = masked(logprobs_BT, mask_BT)
    weights_BT = token_weights(mask_BT, token_weights_BT, logprobs_BT.dtype)
    kl_BT = kl_estimate(logprobs_BT, masked(ref_logprobs_BT, mask_BT).detach(), estimator)
    loss = weighted_sum(kl_BT, mask_BT, weights_BT)
    return loss, {"kl": loss.detach()}


@torch.no_grad()
def sum_diagnostics(
    terms_BT: dict[str, Tensor], mask_BT: Tensor, weights_BT: Tensor
) -> Diagnostics:
    """Sum detached terms with the weights of the loss."""
    return {
        name: weighted_sum(term_BT.detach().to(float_dtype(term_BT)), mask_BT, weights_BT)
        for name, term_BT in terms_BT.items()
    }
