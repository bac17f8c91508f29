"""Compute policy losses, one function each: PPO, DIS, DPPO-TV, CISPO and GSPO.

They have the same signature, and differ for a token whose probability has changed:

| | if the ratio r = pi / pi_old is outside its bounds |
|---|---|
| PPO | no gradient, if it is outside in the direction of the advantage |
| DIS | no gradient, whatever the advantage |
| DPPO-TV | as PPO, with bounds on pi - pi_old instead of r |
| CISPO | a gradient with the ratio at the bound |
| GSPO | as PPO, with one ratio for all tokens of a response |

Some sources write -sg(w) A log pi, a weight without gradient times log pi. Here each loss except
GSPO's is the function of r with the same gradient (grad r = r grad log pi). Its value is -A where
pi = pi_old, like PPO's, not a multiple of log pi, so that values can be compared.

Losses and diagnostics are weighted sums, as in `losses.py`, where `Diagnostics` are defined.

Shape suffixes: B sequences, T response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_vcppo.algorithm.importance import masked
from lightning_vcppo.algorithm.losses import Diagnostics
from lightning_vcppo.algorithm.policy_terms import (
    clipped_loss,
    read_tokens,
    sum_terms,
    with_bounded_gradient,
)


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
        old_logprobs_BT: log pi_old, the policy at the start of the update.
        advantages_BT: A.
        response_mask_BT: Boolean; True on the tokens of the loss.
        clip_ratio_low: Lower clip of the ratio.
        clip_ratio_high: Upper clip of the ratio.
        clip_ratio_c: Dual clip (arXiv 1912.09729): for A < 0 the loss is at most -A c; > 1.
        importance_weights_BT: Factor of each token's clipped loss, from
            `truncated_importance_weights`.
        token_weights_BT: From `aggregation_weights`; None gives all tokens equal weights.

    Returns:
        The loss, and `POLICY_DIAGNOSTICS`.

    Raises:
        ValueError: For a clip outside its range, or a wrong shape or type of the mask.
    """
    tokens = read_tokens(
        logprobs_BT,
        old_logprobs_BT,
        advantages_BT,
        response_mask_BT,
        (clip_ratio_low, clip_ratio_high, clip_ratio_c),
        importance_weights_BT,
        token_weights_BT,
    )
    return clipped_loss(tokens, tokens.ratio_BT, clip_ratio_low, clip_ratio_high, clip_ratio_c)


def dis_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    clip_ratio_low: float = 0.3,
    clip_ratio_high: float = 5.0,
    importance_weights_BT: Tensor | None = None,
    token_weights_BT: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Compute SAO's double-sided importance sampling, -A r within a band and 0 outside of it.

    SAO (arXiv 2607.07508, equations 1 to 3): -f(r) A log pi with f(r) = r if
    1 - low < r < 1 + high, else 0, and r = pi / mu with the sampler mu. A token outside the band
    still counts in the denominator of the loss.

    Args:
        logprobs_BT: log pi of the response tokens; the only input that gets a gradient.
        old_logprobs_BT: log mu; SAO uses the sampler's own.
        advantages_BT: A.
        response_mask_BT: Boolean; True on the tokens of the loss.
        clip_ratio_low: The band begins at 1 - clip_ratio_low. SAO: 0.3 for maths, 0.8 for code.
        clip_ratio_high: The band ends at 1 + clip_ratio_high. SAO: 5 for maths, 3 for code.
        importance_weights_BT: Factor of each token's loss.
        token_weights_BT: From `aggregation_weights`; None gives all tokens equal weights.

    Returns:
        The loss, and `POLICY_DIAGNOSTICS`.

    Raises:
        ValueError: For a negative clip, or a wrong shape or type of the mask.
    """
    tokens = read_tokens(
        logprobs_BT,
        old_logprobs_BT,
        advantages_BT,
        response_mask_BT,
        (clip_ratio_low, clip_ratio_high, None),
        importance_weights_BT,
        token_weights_BT,
    )
    ratio_BT = tokens.ratio_BT
    low_BT, high_BT = ratio_BT <= 1.0 - clip_ratio_low, ratio_BT >= 1.0 + clip_ratio_high
    terms_BT = torch.where(low_BT | high_BT, 0.0, -tokens.advantages_BT * ratio_BT)
    return sum_terms(tokens, terms_BT, ratio_BT, low_BT, high_BT)


def dppo_tv_loss(
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
    """Compute DPPO's loss with the binary total variation, -A r where pi - mu is within bounds.

    DPPO (arXiv 2602.04879), the loss of BPCO (2608.23566): a token has no gradient where A > 0 and
    pi - mu > high, or A < 0 and pi - mu < -low. It bounds the change of the probability: for
    the ratio that is 1 +- eps / mu, wide for a rare token and narrow for a likely one.

    Args:
        logprobs_BT: log pi of the response tokens; the only input that gets a gradient.
        old_logprobs_BT: log mu; BPCO uses the sampler's own.
        advantages_BT: A.
        response_mask_BT: Boolean; True on the tokens of the loss.
        clip_ratio_low: Largest fall of the probability, for A < 0.
        clip_ratio_high: Largest rise of the probability, for A > 0.
        clip_ratio_c: Bound of the ratio as the weight of a token's gradient; > 1.
        importance_weights_BT: Factor of each token's loss.
        token_weights_BT: From `aggregation_weights`; None gives all tokens equal weights.

    Returns:
        The loss, and `POLICY_DIAGNOSTICS`.

    Raises:
        ValueError: For a clip outside its range, or a wrong shape or type of the mask.
    """
    tokens = read_tokens(
        logprobs_BT,
        old_logprobs_BT,
        advantages_BT,
        response_mask_BT,
        (clip_ratio_low, clip_ratio_high, clip_ratio_c),
        importance_weights_BT,
        token_weights_BT,
    )
    old_logprobs_BT = masked(old_logprobs_BT, tokens.mask_BT).detach()
    change_BT = old_logprobs_BT.exp() * torch.expm1(tokens.log_ratio_BT.detach())  # pi - mu
    low_BT = (tokens.advantages_BT < 0) & (change_BT < -clip_ratio_low)
    high_BT = (tokens.advantages_BT > 0) & (change_BT > clip_ratio_high)
    bound = math.inf if clip_ratio_c is None else clip_ratio_c
    bounded_BT = ~(low_BT | high_BT) & (tokens.ratio_BT > bound)
    weight_BT = with_bounded_gradient(tokens, 0.0, bound)
    terms_BT = torch.where(low_BT | high_BT, 0.0, -tokens.advantages_BT * weight_BT)
    return sum_terms(tokens, terms_BT, tokens.ratio_BT, low_BT, high_BT, bounded_BT)


def cispo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    clip_ratio_low: float = 1.0,
    clip_ratio_high: float = 0.28,
    importance_weights_BT: Tensor | None = None,
    token_weights_BT: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Compute CISPO's loss: the importance weight is clipped, and all tokens keep a gradient.

    CISPO (MiniMax-M1, arXiv 2506.13585, equation 4): -sg(clip(r, 1 - low, 1 + high)) A log pi.

    Args:
        logprobs_BT: log pi of the response tokens; the only input that gets a gradient.
        old_logprobs_BT: log pi_old, the policy at the start of the update.
        advantages_BT: A.
        response_mask_BT: Boolean; True on the tokens of the loss.
        clip_ratio_low: Lower clip of the weight; at 1, as in the paper, there is none.
        clip_ratio_high: Upper clip of the weight.
        importance_weights_BT: Factor of each token's loss.
        token_weights_BT: From `aggregation_weights`; None gives all tokens equal weights.

    Returns:
        The loss, and `POLICY_DIAGNOSTICS`.

    Raises:
        ValueError: For a negative clip, or a wrong shape or type of the mask.
    """
    tokens = read_tokens(
        logprobs_BT,
        old_logprobs_BT,
        advantages_BT,
        response_mask_BT,
        (clip_ratio_low, clip_ratio_high, None),
        importance_weights_BT,
        token_weights_BT,
    )
    low, high = 1.0 - clip_ratio_low, 1.0 + clip_ratio_high
    terms_BT = -tokens.advantages_BT * with_bounded_gradient(tokens, low, high)
    ratio_BT = tokens.ratio_BT
    return sum_terms(tokens, terms_BT, ratio_BT, ratio_BT < low, ratio_BT > high)


def gspo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    clip_ratio_low: float = 3e-4,
    clip_ratio_high: float = 4e-4,
    importance_weights_BT: Tensor | None = None,
    token_weights_BT: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Compute GSPO's loss: PPO's loss with the ratio of the response instead of the token's.

    GSPO (arXiv 2507.18071), in its form for token advantages: s = exp(mean_t log(pi / pi_old)),
    and the ratio of token t is sg(s) pi_t / sg(pi_t). With one advantage per response and weights
    of "seq-mean-token-mean" it is the loss of the response. Its clips are a thousandth of PPO's.

    Args:
        logprobs_BT: log pi of the response tokens; the only input that gets a gradient.
        old_logprobs_BT: log pi_old, the policy at the start of the update.
        advantages_BT: A.
        response_mask_BT: Boolean; True on the tokens of the loss. Rows are complete responses.
        clip_ratio_low: Lower clip of the response's ratio.
        clip_ratio_high: Upper clip of the response's ratio.
        importance_weights_BT: Factor of each token's clipped loss.
        token_weights_BT: From `aggregation_weights`; None gives all tokens equal weights.

    Returns:
        The loss, and `POLICY_DIAGNOSTICS` with the response's ratio at each of its tokens.

    Raises:
        ValueError: For a negative clip, or a wrong shape or type of the mask.
    """
    tokens = read_tokens(
        logprobs_BT,
        old_logprobs_BT,
        advantages_BT,
        response_mask_BT,
        (clip_ratio_low, clip_ratio_high, None),
        importance_weights_BT,
        token_weights_BT,
    )
    lengths_B1 = tokens.mask_BT.sum(-1, keepdim=True).clamp(min=1)
    mean_B1 = tokens.log_ratio_BT.sum(-1, keepdim=True) / lengths_B1
    own_BT = tokens.log_ratio_BT - tokens.log_ratio_BT.detach()  # 0, with the token's gradient
    ratio_BT = (mean_B1.detach() + own_BT).exp()
    return clipped_loss(tokens, ratio_BT, clip_ratio_low, clip_ratio_high)


PolicyLoss: TypeAlias = Callable[..., tuple[Tensor, Diagnostics]]
POLICY_LOSSES: dict[str, PolicyLoss] = {
    "ppo": policy_loss,
    "dis": dis_loss,
    "dppo_tv": dppo_tv_loss,
    "cispo": cispo_loss,
    "gspo": gspo_loss,
}
"""Losses by their names in the settings."""
