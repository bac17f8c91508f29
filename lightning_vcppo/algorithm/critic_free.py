"""Compute advantages without a critic: a response's score against those of other responses.

They are constants of the losses, one per response, to be broadcast over its tokens.

Shape suffixes: B sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vcppo.algorithm.checks import check_sequences, check_tokens
from lightning_vcppo.algorithm.statistics import Reduce, float_dtype, group_moments, identity


@torch.no_grad()
def group_advantages(
    rewards_B: Tensor, group_ids_B: Tensor, *, normalize_std: bool = True, eps: float = 1e-6
) -> Tensor:
    """Compute the critic-free advantage of each response in its group (GRPO; DAPO, 2503.14476).

    (R_i - mean R) / (std R + eps) over the responses to the same prompt, with the sample standard
    deviation. A group of one has no baseline and a group of equal rewards no signal: both
    give 0. Groups must be complete: a group that is spread over ranks counts as several.

    Args:
        rewards_B: Reward of each response.
        group_ids_B: Integers, equal for the responses to one prompt, in any order.
        normalize_std: If False, only the mean is subtracted.
        eps: Added to the standard deviation.

    Returns:
        advantages_B, detached, to be broadcast over the tokens of each response.

    Raises:
        ValueError: If the shapes are not (B,), or the group ids not integers.
    """
    mean_B, std_B, _ = group_moments(rewards_B, group_ids_B)
    advantages_B = rewards_B.double() - mean_B
    if normalize_std:
        advantages_B = advantages_B / (std_B + eps)
    return advantages_B.to(float_dtype(rewards_B))


@torch.no_grad()
def leave_one_out_advantages(rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Compute a response's score minus the mean score of the others in its group (RLOO).

    R_i - mean_{j != i} R_j (Kool et al. 2019; for language models arXiv 2402.14740): the baseline
    does not depend on the response, so the gradient has no bias. It is n / (n - 1) times the
    advantage from the mean of all n. A group of one has no baseline and gets 0. Groups must be
    complete: a group that is spread over ranks counts as several.

    Args:
        rewards_B: Reward of each response.
        group_ids_B: Integers, equal for the responses to one prompt, in any order.

    Returns:
        advantages_B, detached, to be broadcast over the tokens of each response.

    Raises:
        ValueError: If the shapes are not (B,), or the group ids not integers.
    """
    mean_B, _, count_B = group_moments(rewards_B, group_ids_B)
    others_B = (count_B - 1.0).clamp(min=1.0)
    advantages_B = (rewards_B.double() - mean_B) * count_B / others_B
    return advantages_B.to(float_dtype(rewards_B))


@torch.no_grad()
def batch_advantages(
    scores_B: Tensor, response_mask_BT: Tensor, *, reduce: Reduce = identity
) -> Tensor:
    """Compute the critic-free advantage of each response in its batch: REINFORCE with a baseline.

    R_i - mean R over all responses of all ranks, its own included: with n responses the advantage
    is (n - 1) / n times that with a leave-one-out baseline.

    Args:
        scores_B: Total reward of each response.
        response_mask_BT: Boolean; True on the tokens that count. A row without any does not count.
        reduce: Sums a small tensor over ranks.

    Returns:
        advantages_B, detached, to be broadcast over the tokens of each response; 0 for rows that do
        not count.

    Raises:
        ValueError: If a shape or the mask's type is wrong.
    """
    check_tokens(response_mask_BT)
    check_sequences(response_mask_BT, scores_B=scores_B)
    counts_B = response_mask_BT.any(-1)
    counted_B = torch.where(counts_B, scores_B.double(), 0.0)
    total, count = reduce(torch.stack([counted_B.sum(), counts_B.sum().double()]))
    centred_B = torch.where(counts_B, counted_B - total / count.clamp(min=1.0), 0.0)
    return centred_B.to(float_dtype(scores_B))
