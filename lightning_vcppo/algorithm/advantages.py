"""Compute advantages and value targets with a critic: decoupled GAE, adaptive lambda, EV gate.

How this differs from the usual loop over tokens:

1. The recursion runs over the return, R_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda R_{t+1}),
   and the advantage is R_t - V_t. It is the same GAE, but with lambda = 1 the values drop out of
      the recursion, so that Monte-Carlo targets are independent of the critic bit for bit.
2. It is a scan, in blocks of matrix products and in float64, instead of a loop over T.
3. A token where `response_mask_BT` is False is skipped: the recursion passes it without a
   discount, its reward and value are ignored, and the outputs on it are 0.

Nothing here is differentiable: advantages and value targets are constants of the losses.

Shape suffixes: B sequences, T response tokens, M blocks of C tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vcppo.algorithm.checks import check_sequences, check_tokens
from lightning_vcppo.algorithm.critic_free import batch_advantages
from lightning_vcppo.algorithm.statistics import (
    Reduce,
    explained_variance,
    float_dtype,
    identity,
)

_BLOCK = 32  # tokens; the fastest of 16 to 128 at 64 x 16,384
_TOKENS_AT_ONCE = 2**17  # larger temporaries cost more time to allocate than to compute


@torch.no_grad()
def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    gamma: float = 1.0,
    lam: float | Tensor,
    bootstrap_B: Tensor | None = None,
) -> Tensor:
    """Compute generalised advantage estimates.

    A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t (arXiv 1506.02438).

    Args:
        rewards_BT: Reward of each token.
        values_BT: V before each token.
        response_mask_BT: Boolean; True on the tokens that the model generated and that count.
        gamma: Discount of one token, in [0, 1].
        lam: Lambda in [0, 1], a number or one for each sequence (B,).
        bootstrap_B: V after the last token that counts; 0 if None, as for finished responses.

    Returns:
        advantages_BT, detached, float32 (float64 if an input is), 0 outside the mask.

    Raises:
        ValueError: If gamma or lambda is outside [0, 1], or a shape or the mask's type is wrong.
    """
    (returns_BT,) = _lambda_returns(
        rewards_BT, values_BT, response_mask_BT, gamma, {"lam": lam}, bootstrap_B
    )
    return returns_BT.sub_(values_BT).masked_fill_(~response_mask_BT, 0.0)


@torch.no_grad()
def decoupled_gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    gamma: float = 1.0,
    lambda_actor: float | Tensor,
    lambda_critic: float | Tensor = 1.0,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute advantages with one lambda and value targets with another.

    Decoupled GAE (VC-PPO, arXiv 2503.01491, Algorithm 1): A_t(lambda_actor) for the policy and
    R_t(lambda_critic) = A_t(lambda_critic) + V_t for the critic. With lambda_critic = 1 the targets
    are the Monte-Carlo returns and do not depend on `values_BT` at all.

    Args:
        rewards_BT: Reward of each token.
        values_BT: V before each token.
        response_mask_BT: Boolean; True on the tokens that the model generated and that count.
        gamma: Discount of one token, in [0, 1].
        lambda_actor: Lambda of the advantages in [0, 1], a number or one for each sequence (B,).
        lambda_critic: Lambda of the value targets, likewise.
        bootstrap_B: V after the last token that counts; 0 if None, as for finished responses.

    Returns:
        (advantages_BT, returns_BT), detached, float32 (float64 if an input is), 0 outside the mask.

    Raises:
        ValueError: If gamma or a lambda is outside [0, 1], or a shape or the mask's type is wrong.
    """
    lambdas = {"lambda_actor": lambda_actor, "lambda_critic": lambda_critic}
    advantages_BT, returns_BT = _lambda_returns(
        rewards_BT, values_BT, response_mask_BT, gamma, lambdas, bootstrap_B
    )
    return advantages_BT.sub_(values_BT).masked_fill_(~response_mask_BT, 0.0), returns_BT


@torch.no_grad()
def monte_carlo_returns(
    rewards_BT: Tensor, response_mask_BT: Tensor, *, gamma: float = 1.0
) -> Tensor:
    """Compute sum_l gamma^l r_{t+l}, the targets of the critic with lambda_critic = 1.

    Args:
        rewards_BT: Reward of each token.
        response_mask_BT: Boolean; True on the tokens that the model generated and that count.
        gamma: Discount of one token, in [0, 1].

    Returns:
        returns_BT, detached, float32 (float64 if the rewards are), 0 outside the mask.

    Raises:
        ValueError: If gamma is outside [0, 1], or a shape or the mask's type is wrong.
    """
    no_values_BT = torch.zeros_like(rewards_BT)
    (returns_BT,) = _lambda_returns(
        rewards_BT, no_values_BT, response_mask_BT, gamma, {"lambda": 1.0}, None
    )
    return returns_BT


def length_adaptive_lambda(lengths_B: Tensor, alpha: float) -> Tensor:
    """Compute lambda_actor = 1 - 1/(alpha l), clamped to [0, 1] (VAPO, arXiv 2504.05118).

    Without the clamp it would be negative for responses of fewer than 1/alpha tokens; they get 0.

    Args:
        lengths_B: Response lengths l in tokens.
        alpha: Positive; 0.05 in VAPO, 1.5 in SAO.

    Returns:
        lam_B, for `gae` and `decoupled_gae`.

    Raises:
        ValueError: If alpha is not positive, or the lengths are not (B,).
    """
    if not alpha > 0:
        raise ValueError(f"length_adaptive_alpha must be positive, got {alpha}")
    if lengths_B.ndim != 1:
        raise ValueError(f"lengths_B must have shape (B,), got {tuple(lengths_B.shape)}")
    return (1.0 - 1.0 / (alpha * lengths_B)).clamp(0.0, 1.0)


@torch.no_grad()
def explained_variance_gate(
    advantages_BT: Tensor,
    returns_BT: Tensor,
    values_BT: Tensor,
    scores_B: Tensor,
    response_mask_BT: Tensor,
    *,
    reduce: Reduce = identity,
) -> tuple[Tensor, Tensor]:
    """Use the critic's advantages only while the critic explains the returns (EVPO, 2604.19485).

    EV > 0: the critic's advantages, unchanged. EV <= 0 or undefined: each response's score minus
    the mean score of the batch, on all of its tokens.

    Args:
        advantages_BT: The critic's advantages.
        returns_BT: Value targets.
        values_BT: The values from which the advantages were computed.
        scores_B: Total reward of each response.
        response_mask_BT: Boolean; True on the tokens that count. A row without any does not count.
        reduce: Sums a small tensor over ranks, so that all of them decide alike.

    Returns:
        (advantages_BT, gate_open): 0 outside the mask; a boolean scalar, True for the critic's.

    Raises:
        ValueError: If a shape or the mask's type is wrong.
    """
    check_tokens(
        response_mask_BT, advantages_BT=advantages_BT, returns_BT=returns_BT, values_BT=values_BT
    )
    check_sequences(response_mask_BT, scores_B=scores_B)
    gate_open = explained_variance(values_BT, returns_BT, response_mask_BT, reduce=reduce) > 0
    centred_B = batch_advantages(scores_B, response_mask_BT, reduce=reduce)
    advantages_BT = advantages_BT.to(float_dtype(advantages_BT))
    chosen_BT = torch.where(gate_open, advantages_BT, centred_B[:, None].to(advantages_BT.dtype))
    return torch.where(response_mask_BT, chosen_BT, 0.0), gate_open


def _lambda_returns(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    lambdas: dict[str, float | Tensor],
    bootstrap_B: Tensor | None,
) -> list[Tensor]:
    """Compute R_t(lambda) for each of the named lambdas, 0 outside the mask."""
    _check(rewards_BT, values_BT, mask_BT, gamma, bootstrap_B)
    lambdas_B = [_per_sequence(name, lam, rewards_BT) for name, lam in lambdas.items()]
    dtype = torch.promote_types(float_dtype(rewards_BT), float_dtype(values_BT))
    results_BT = [torch.empty_like(rewards_BT, dtype=dtype) for _ in lambdas]
    batch, length = rewards_BT.shape
    if length == 0:
        return results_BT
    size = max(1, _TOKENS_AT_ONCE // length)
    for rows in (slice(start, start + size) for start in range(0, batch, size)):
        returns_BT = _lambda_returns_of_rows(
            rewards_BT[rows].to(dtype),
            values_BT[rows].to(dtype),
            mask_BT[rows],
            gamma,
            [lam_B[rows] for lam_B in lambdas_B],
            None if bootstrap_B is None else bootstrap_B[rows].to(dtype),
        )
        for result_BT, return_BT in zip(results_BT, returns_BT, strict=True):
            result_BT[rows] = return_BT
    return results_BT


def _lambda_returns_of_rows(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    lambdas_B: list[Tensor],
    bootstrap_B: Tensor | None,
) -> list[Tensor]:
    """Compute R_t(lambda) for each lambda, 0 outside the mask."""
    outside_BT = ~mask_BT
    rewards_BT = rewards_BT.masked_fill(outside_BT, 0.0)
    values_BT = values_BT.masked_fill(outside_BT, 0.0)
    if bootstrap_B is not None:
        rewards_BT = _add_to_last(rewards_BT, mask_BT, gamma * bootstrap_B)
    place_BT = _positions_without_gaps(mask_BT)
    if place_BT is not None:
        rewards_BT = _close_gaps(rewards_BT, mask_BT, place_BT)
        values_BT = _close_gaps(values_BT, mask_BT, place_BT)

    results_BT = []
    for lam_B in lambdas_B:
        if gamma == 1.0 and bool((lam_B == 1.0).all()):
            returns_BT = rewards_BT.flip(-1).cumsum(-1).flip(-1)
        else:
            steps_BT = rewards_BT.to(torch.float64, copy=True)
            # With lambda = 1 not even a value that is not finite counts, though 0 * NaN is NaN.
            next_BT = values_BT[:, 1:].masked_fill((lam_B == 1.0)[:, None], 0.0)
            steps_BT[:, :-1].addcmul_(gamma * (1.0 - lam_B)[:, None], next_BT)
            returns_BT = _discounted_reverse_cumsum(steps_BT, gamma * lam_B).to(rewards_BT.dtype)
        if place_BT is not None:
            returns_BT = returns_BT.gather(1, place_BT)
        results_BT.append(returns_BT.masked_fill_(outside_BT, 0.0))
    return results_BT


def _discounted_reverse_cumsum(x_BT: Tensor, decay_B: Tensor) -> Tensor:
    """Compute y_t = x_t + decay y_{t+1} in blocks of C tokens.

    The y at the head of each block follows from the next head by the same recursion, with decay^C
    and M = T/C tokens. Added to the last x of the block before, it makes the blocks independent.
    """
    if not bool(x_BT.sum().isfinite()):
        return _cumsum_with_non_finite(x_BT, decay_B)
    batch, length = x_BT.shape
    size = min(_BLOCK, length)
    exponent_C = torch.arange(size, device=x_BT.device)
    lag_CC = exponent_C[:, None] - exponent_C
    kernel_BCC = torch.where(lag_CC >= 0, decay_B[:, None, None] ** lag_CC.clamp(min=0), 0.0)

    if length % size:
        x_BT = F.pad(x_BT, (0, -length % size))
    x_BMC = x_BT.view(batch, -1, size)
    if x_BMC.shape[1] > 1:
        head_BM = (x_BMC @ kernel_BCC[:, :, :1]).squeeze(-1)
        head_BM = _discounted_reverse_cumsum(head_BM, decay_B**size)
        x_BMC[:, :-1, -1] += decay_B[:, None] * head_BM[:, 1:]
    return (x_BMC @ kernel_BCC).view(batch, -1)[:, :length]


def _cumsum_with_non_finite(x_BT: Tensor, decay_B: Tensor) -> Tensor:
    """Do the same with NaN and infinities, which must reach only the tokens before them.

    A matrix product would also multiply them by the zeros of later tokens.
    """
    finite_BT = x_BT.isfinite()
    y_BT = _discounted_reverse_cumsum(torch.where(finite_BT, x_BT, 0.0), decay_B)
    rest_BT = torch.where(finite_BT, 0.0, x_BT)
    before_BT = rest_BT.flip(-1).cumsum(-1).flip(-1)
    return y_BT + torch.where(decay_B[:, None] > 0, before_BT, rest_BT)


def _positions_without_gaps(mask_BT: Tensor) -> Tensor | None:
    """Return each token's position after closing gaps, or None if no row has a gap.

    Padding on the left or the right is not a gap, because it is never between two tokens.
    """
    starts_BT = mask_BT[:, 1:] & ~mask_BT[:, :-1]
    if bool((starts_BT.sum(-1, dtype=torch.int32) + mask_BT[:, 0] <= 1).all()):
        return None
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def _close_gaps(x_BT: Tensor, mask_BT: Tensor, place_BT: Tensor) -> Tensor:
    """Move the tokens of each row to its start, followed by zeros."""
    length = x_BT.shape[1]
    closed_BT = x_BT.new_zeros(x_BT.shape[0], length + 1)
    return closed_BT.scatter_(1, torch.where(mask_BT, place_BT, length), x_BT)[:, :length]


def _add_to_last(x_BT: Tensor, mask_BT: Tensor, increment_B: Tensor) -> Tensor:
    """Add to the last masked token of each row, if the row has one."""
    last_BT = mask_BT & (mask_BT.flip(-1).cumsum(-1).flip(-1) == 1)
    return torch.where(last_BT, x_BT + increment_B.to(x_BT.dtype)[:, None], x_BT)


def _per_sequence(name: str, lam: float | Tensor, like_BT: Tensor) -> Tensor:
    """Return one checked float64 lambda per sequence."""
    lam_B = torch.as_tensor(lam, dtype=torch.float64, device=like_BT.device)
    batch = like_BT.shape[0]
    if lam_B.ndim > 1 or (lam_B.ndim == 1 and lam_B.shape[0] != batch):
        raise ValueError(f"{name} must be a number or ({batch},), got {tuple(lam_B.shape)}")
    if not bool(((lam_B >= 0) & (lam_B <= 1)).all()):
        raise ValueError(f"{name} must be in [0, 1], got {lam}")
    return lam_B.expand(batch)


def _check(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    bootstrap_B: Tensor | None,
) -> None:
    """Raise ValueError for arguments of inconsistent shapes or ranges."""
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    check_tokens(mask_BT, rewards_BT=rewards_BT, values_BT=values_BT)
    check_sequences(mask_BT, bootstrap_B=bootstrap_B)
