"""Compute the weight of each token, and of each response, in a loss that is a weighted sum.

Shape suffixes: B sequences, T response tokens.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_vcppo.algorithm.checks import check_sequences, check_tokens
from lightning_vcppo.algorithm.statistics import Reduce, float_dtype, group_moments, identity

LossAggMode: TypeAlias = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]


def aggregation_weights(
    response_mask_BT: Tensor,
    mode: LossAggMode = "token-mean",
    *,
    reduce: Reduce = identity,
    sequence_weights_B: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the weight of every token of a mini-batch in a loss that is a weighted sum.

    Call it once for the complete mini-batch, then cut the weights into micro-batches with the
    data. A sequence without tokens does not count as a sequence.

    Args:
        response_mask_BT: Boolean; True on the tokens that enter the loss. A row that must not
            count in the denominator must be False here.
        mode: "token-mean", 1 / tokens (DAPO, VAPO); "seq-mean-token-mean", 1 / (tokens of the
            sequence x sequences) (GRPO); "seq-mean-token-sum", 1 / sequences.
        reduce: Sums a small tensor over ranks.
        sequence_weights_B: Factor of each sequence. It changes only the numerator: the denominator
            stays that of the mask.
        dtype: Type of the result.

    Returns:
        weights_BT, 0 where the mask is False; all 0 if no token counts.

    Raises:
        ValueError: For an unknown mode, or a wrong shape or type of the mask.
    """
    check_tokens(response_mask_BT)
    check_sequences(response_mask_BT, sequence_weights_B=sequence_weights_B)
    if mode not in get_args(LossAggMode):
        raise ValueError(f"loss_agg_mode must be one of {get_args(LossAggMode)}, got {mode!r}")
    lengths_B = response_mask_BT.sum(-1).double()
    tokens, sequences = reduce(torch.stack([lengths_B.sum(), (lengths_B > 0).sum().double()]))
    if mode == "token-mean":
        denominator_B = tokens.expand_as(lengths_B)
    elif mode == "seq-mean-token-mean":
        denominator_B = lengths_B * sequences
    else:
        denominator_B = sequences.expand_as(lengths_B)
    weights_B = denominator_B.clamp(min=1.0).reciprocal()
    if sequence_weights_B is not None:
        weights_B = weights_B * sequence_weights_B
    return torch.where(response_mask_BT, weights_B[:, None], 0.0).to(dtype)


def prompt_noise_weights(
    scores_B: Tensor,
    group_ids_B: Tensor,
    *,
    exponent: float = 0.5,
    floor: float = 0.25,
    reduce: Reduce = identity,
) -> Tensor:
    """Compute the weight of each prompt in the critic's loss, 1 / max(Var(R)^exponent, floor).

    EasyPPO (arXiv 2609.36802, and its code): returns of a prompt that is only sometimes solved are
    noisy. Weights are divided by their mean over prompts, so that the size of the loss does not
    depend on the noise. They are the `sequence_weights_B` of `aggregation_weights`.

    Args:
        scores_B: Return of each response.
        group_ids_B: Integers, equal for the responses to one prompt.
        exponent: Exponent of the population variance of a prompt's returns; 1/2: the deviation.
        floor: Lower bound of the power, which a prompt with equal returns, or only one, has.
        reduce: Sums a small tensor over ranks, for the mean.

    Returns:
        One weight per response, equal within a group.

    Raises:
        ValueError: If the shapes are not (B,), the group ids not integers, the exponent negative,
            or the floor not positive.
    """
    if not exponent >= 0:  # also refuses NaN
        raise ValueError(f"exponent must not be negative, got {exponent}")
    if not floor > 0:
        raise ValueError(f"floor must be positive, got {floor}")
    _, std_B, count_B = group_moments(scores_B, group_ids_B)
    var_B = std_B.square() * (count_B - 1.0) / count_B
    weights_B: Tensor = var_B.pow(exponent).clamp(min=floor).reciprocal()
    total, prompts = reduce(torch.stack([(weights_B / count_B).sum(), (1 / count_B).sum()]))
    weights_B = weights_B * prompts / torch.where(total > 0, total, 1.0)
    return weights_B.to(float_dtype(scores_B))


def token_weights(
    response_mask_BT: Tensor, token_weights_BT: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the given weights of a loss, or equal weights of its own tokens if there are none."""
    if token_weights_BT is not None:
        return token_weights_BT
    return aggregation_weights(response_mask_BT, dtype=dtype)


def weighted_sum(terms_BT: Tensor, response_mask_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Sum `weights_BT * terms_BT` over the response tokens.

    Every loss, and the entropy bonus, is reduced to a scalar in this way.

    Args:
        terms_BT: One term per token.
        response_mask_BT: Boolean; terms and weights where it is False are never read.
        weights_BT: Weights from `aggregation_weights`.

    Returns:
        A scalar.

    Raises:
        ValueError: For a wrong shape or type of the mask.
    """
    check_tokens(response_mask_BT, terms_BT=terms_BT, weights_BT=weights_BT)
    terms_BT = torch.where(response_mask_BT, terms_BT, 0.0)
    return (terms_BT * torch.where(response_mask_BT, weights_BT, 0.0)).sum()
