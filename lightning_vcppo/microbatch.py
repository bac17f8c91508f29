"""Masked statistics, loss weights and micro-batches: everything that must not depend on batching.

A mini-batch is cut into micro-batches, and spread over ranks, only to fit into memory. Normalising
inside a micro-batch or a rank would let that cut change the loss. Two rules prevent it:

1. Every loss is a weighted *sum* over tokens. Its weights are computed once for the mini-batch
   (`aggregation_weights`), before it is cut, so micro-batch losses and gradients simply add up.
2. Every statistic is made of sums. A function that takes `reduce` passes it a small float64 tensor
   of sums and gets back their total over ranks; every rank calls it equally often.

With data-parallel ranks the loss of the mini-batch is the sum over ranks too. A strategy that
averages gradients over ranks needs it multiplied by their number.

Masks are True on what counts. Values where a mask is False are never read: they may be NaN or
infinite.

Shape suffixes: B sequences, T response tokens, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Reduce: TypeAlias = Callable[[Tensor], Tensor]
LossAggMode: TypeAlias = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]


def identity(statistics: Tensor) -> Tensor:
    """Return the statistics as they are: the `reduce` of a single rank."""
    return statistics


def masked_mean(values: Tensor, mask: Tensor, *, reduce: Reduce = identity) -> Tensor:
    """Compute the mean of `values` over the elements where `mask` is True.

    Args:
        values: Any shape.
        mask: Boolean, same shape as `values`; True on the elements that count.
        reduce: Sums a small tensor over ranks.

    Returns:
        A scalar; 0 if no element counts.
    """
    mean, _ = _mean_and_var(values, mask, reduce)
    return mean.to(float_dtype(values))


def masked_var(values: Tensor, mask: Tensor, *, reduce: Reduce = identity) -> Tensor:
    """Compute the population variance of `values` over the elements where `mask` is True.

    Args:
        values: Any shape.
        mask: Boolean, same shape as `values`; True on the elements that count.
        reduce: Sums a small tensor over ranks.

    Returns:
        A scalar; 0 if no element counts.
    """
    _, var = _mean_and_var(values, mask, reduce)
    return var.to(float_dtype(values))


def whiten(
    values: Tensor,
    mask: Tensor,
    *,
    reduce: Reduce = identity,
    eps: float = 1e-8,
) -> Tensor:
    """Scale `values` to unit variance, and to zero mean, over the elements where `mask` is True.

    Over several ranks the result equals whitening of the concatenated data.

    Args:
        values: Any shape.
        mask: Boolean, same shape as `values`; True on the elements that count.
        reduce: Sums a small tensor over ranks.
        eps: Added to the variance.

    Returns:
        The whitened values, 0 where `mask` is False; all 0 if the values are constant.
    """
    mean, var = _mean_and_var(values, mask, reduce)
    centred = torch.where(mask, values, mean) - mean
    return (centred * torch.rsqrt(var + eps)).to(float_dtype(values))


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Reduce = identity
) -> Tensor:
    """Compute the share of the variance of the returns that the critic explains.

    EV = 1 - Var(R - V) / Var(R) (EVPO, arXiv 2604.19485). 1 is a perfect critic up to a constant, 0
    as good as a constant, negative worse than one.

    Args:
        values: Critic values V, any shape.
        returns: Returns R, same shape.
        mask: Boolean, same shape; True on the elements that count.
        reduce: Sums a small tensor over ranks.

    Returns:
        A scalar; NaN where the returns do not vary, for then nothing is there to explain. Whoever
        compares it must treat NaN as "not positive", which `ev > 0` does.
    """
    pair = torch.stack([returns.double(), returns.double() - values.double()])
    mean, var = _mean_and_var(pair, mask, reduce, dims=tuple(range(1, pair.ndim)))
    return_var, error_var = var.unbind()
    varies = return_var > torch.finfo(torch.float64).eps * mean[0] ** 2
    ratio = error_var / torch.where(varies, return_var, torch.nan)
    return (1.0 - ratio).to(torch.promote_types(float_dtype(values), float_dtype(returns)))


def group_moments(values_B: Tensor, group_ids_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean, sample standard deviation and size of the group of each sequence.

    Groups must be whole: one that is spread over ranks is seen as several.

    Args:
        values_B: One value a sequence.
        group_ids_B: Integers, equal within a group, in any order.

    Returns:
        (mean_B, std_B, count_B) in float64; the deviation (n - 1) of a group of one is 0.

    Raises:
        ValueError: If the shapes differ.
    """
    if values_B.ndim != 1 or values_B.shape != group_ids_B.shape:
        shapes = f"{tuple(values_B.shape)} and {tuple(group_ids_B.shape)}"
        raise ValueError(f"values and group ids must have the same shape (B,), got {shapes}")
    _, group_B, count_G = torch.unique(group_ids_B, return_inverse=True, return_counts=True)
    values_B = values_B.double()
    zeros_G = values_B.new_zeros(len(count_G))
    mean_B = (zeros_G.index_add(0, group_B, values_B) / count_G)[group_B]
    square_G = zeros_G.index_add(0, group_B, (values_B - mean_B).square())
    std_G = (square_G / (count_G - 1).clamp(min=1)).sqrt()
    return mean_B, std_G[group_B], count_G[group_B].double()


def aggregation_weights(
    response_mask_BT: Tensor,
    mode: LossAggMode = "token-mean",
    *,
    reduce: Reduce = identity,
    sequence_weights_B: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the weight of every token of a mini-batch in a loss that is a weighted sum.

    Call it once for the whole mini-batch, then cut the weights into micro-batches together with the
    data. A sequence without tokens does not count as a sequence.

    Args:
        response_mask_BT: Boolean; True on the tokens that enter the loss. A row to be left out of
            the denominator too must be False here.
        mode: "token-mean", 1 / tokens (DAPO, VAPO); "seq-mean-token-mean", 1 / (tokens of the
            sequence x sequences) (GRPO); "seq-mean-token-sum", 1 / sequences.
        reduce: Sums a small tensor over ranks.
        sequence_weights_B: Factor of each sequence. It changes the numerator only: the denominator
            stays that of the mask.
        dtype: Of the result.

    Returns:
        weights_BT, 0 where the mask is False; all 0 if no token counts.

    Raises:
        ValueError: For an unknown mode.
    """
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


def token_weights(
    response_mask_BT: Tensor, token_weights_BT: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the weights a loss was given, or equal ones of its own tokens if it was given none."""
    if token_weights_BT is not None:
        return token_weights_BT
    return aggregation_weights(response_mask_BT, dtype=dtype)


def weighted_sum(terms_BT: Tensor, response_mask_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Sum `weights_BT * terms_BT` over the response tokens.

    This is how every loss, and an entropy bonus, becomes a scalar.

    Args:
        terms_BT: One term a token.
        response_mask_BT: Boolean; terms and weights where it is False are never read.
        weights_BT: From `aggregation_weights`.

    Returns:
        A scalar.
    """
    terms_BT = torch.where(response_mask_BT, terms_BT, 0.0)
    return (terms_BT * torch.where(response_mask_BT, weights_BT, 0.0)).sum()


def token_balanced_micro_batches(
    lengths: Sequence[int],
    max_tokens: int,
    *,
    num_micro_batches: int | None = None,
    padded: bool = False,
) -> list[list[int]]:
    """Partition sequences into micro-batches of about equal, bounded size.

    The size of a micro-batch is the number of its tokens, or, where rows are padded to the longest
    of them, rows x longest row. Sequences are taken from the longest to the shortest, so that
    neighbours are alike and memory peaks at once. Of all such partitions into as few micro-batches
    as `max_tokens` allows, or into `num_micro_batches`, the one with the smallest largest
    micro-batch is returned.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Largest size of a micro-batch. A sequence that is longer gets a micro-batch of
            its own.
        num_micro_batches: At least this many are returned, the last ones empty if need be: the
            maximum over ranks, for ranks that must do the same number of backward passes.
        padded: Whether rows are padded to the longest of their micro-batch.

    Returns:
        Lists of indices into `lengths`; each index occurs once. The same input gives the same
        output.

    Raises:
        ValueError: For a negative length, or `max_tokens` or `num_micro_batches` below 1.
    """
    if min(lengths, default=0) < 0:
        raise ValueError("lengths must not be negative")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    if num_micro_batches is not None and num_micro_batches < 1:
        raise ValueError(f"num_micro_batches must be at least 1, got {num_micro_batches}")

    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    count = max(len(_cut(order, lengths, max_tokens, padded)), num_micro_batches or 0)
    too_small, enough = -1, max_tokens
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if len(_cut(order, lengths, middle, padded)) <= count:
            enough = middle
        else:
            too_small = middle
    micro_batches = _cut(order, lengths, enough, padded)
    return micro_batches + [[] for _ in range(count - len(micro_batches))]


def float_dtype(values: Tensor) -> torch.dtype:
    """Return the type results are given in: that of `values`, but float32 at least."""
    return torch.promote_types(values.dtype, torch.float32)


def _cut(
    order: Sequence[int], lengths: Sequence[int], max_tokens: int, padded: bool
) -> list[list[int]]:
    """Fill micro-batches one after the other with indices that come longest first."""
    micro_batches: list[list[int]] = []
    size = 0
    for index in order:
        size += lengths[micro_batches[-1][0] if padded and micro_batches else index]
        if micro_batches and size <= max_tokens:
            micro_batches[-1].append(index)
        else:
            micro_batches.append([index])
            size = lengths[index]
    return micro_batches


def _mean_and_var(
    values: Tensor, mask: Tensor, reduce: Reduce, dims: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """Compute mean and population variance over `dims` in float64, in two passes."""
    dims = tuple(range(values.ndim)) if dims is None else dims
    mask = mask.expand_as(values)
    values = torch.where(mask, values.double(), 0.0)
    total, count = reduce(torch.stack([values.sum(dims), mask.sum(dims).double()]))
    count = count.clamp(min=1.0)
    mean = total / count
    shape = [1 if dim in dims else size for dim, size in enumerate(values.shape)]
    centred = torch.where(mask, values - mean.view(shape), 0.0)
    var = reduce(centred.square().sum(dims)) / count
    return mean, var
