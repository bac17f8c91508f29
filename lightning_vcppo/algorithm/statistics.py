"""Compute masked statistics that do not depend on batching.

A mini-batch is cut into micro-batches, and spread over ranks, only to fit into memory. Normalizing
within a micro-batch or a rank would make the loss depend on that cut. Two rules prevent it:

1. Every loss is a weighted *sum* over tokens. Its weights are computed once for the mini-batch
   (`aggregation_weights`), before it is cut, so micro-batch losses and gradients add up.
2. Every statistic is computed from sums. A function with `reduce` passes it a small float64 tensor
   of sums and gets their total over ranks; every rank must call it equally often.

With data-parallel ranks the loss of the mini-batch is also a sum over ranks. For a strategy that
averages gradients over ranks it must be multiplied by their number.

Masks are True on elements that count. Values where a mask is False are never read: they may be NaN
or infinite.

Shape suffixes: B sequences, T response tokens, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_vcppo.algorithm.checks import check_mask, check_same_shape

Reduce: TypeAlias = Callable[[Tensor], Tensor]


def identity(statistics: Tensor) -> Tensor:
    """Return the statistics unchanged: the `reduce` of a single rank."""
    return statistics


def masked_mean(values: Tensor, mask: Tensor, *, reduce: Reduce = identity) -> Tensor:
    """Compute the mean of `values` over the elements where `mask` is True.

    Args:
        values: Any shape.
        mask: Boolean, same shape as `values`; True on the elements that count.
        reduce: Sums a small tensor over ranks.

    Returns:
        A scalar; 0 if no element counts.

    Raises:
        ValueError: If the shapes differ, or the mask is not boolean.
    """
    check_mask("mask", mask)
    check_same_shape("values", values, mask=mask)
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

    Raises:
        ValueError: If the shapes differ, or the mask is not boolean.
    """
    check_mask("mask", mask)
    check_same_shape("values", values, mask=mask)
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

    Raises:
        ValueError: If the shapes differ, or the mask is not boolean.
    """
    check_mask("mask", mask)
    check_same_shape("values", values, mask=mask)
    mean, var = _mean_and_var(values, mask, reduce)
    centred = torch.where(mask, values, mean) - mean
    return (centred * torch.rsqrt(var + eps)).to(float_dtype(values))


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Reduce = identity
) -> Tensor:
    """Compute the share of the variance of the returns that the critic explains.

    EV = 1 - Var(R - V) / Var(R) (EVPO, arXiv 2604.19485). 1 is a perfect critic up to a constant, 0
    as good as a constant, negative worse than one. A constant bias of V does not change it: see
    `r_squared`.

    Args:
        values: Critic values V, any shape.
        returns: Returns R, same shape.
        mask: Boolean, same shape; True on the elements that count.
        reduce: Sums a small tensor over ranks.

    Returns:
        A scalar; NaN if the returns do not vary, because then there is nothing to explain. A
        comparison must treat NaN as "not positive", as `ev > 0` does.

    Raises:
        ValueError: If the shapes differ, or the mask is not boolean.
    """
    _, error_var, return_var = _errors(values, returns, mask, reduce)
    return (1.0 - error_var / return_var).to(_common_dtype(values, returns))


def r_squared(
    values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Reduce = identity
) -> Tensor:
    """Compute the coefficient of determination of the returns by the critic.

    R^2 = 1 - mean((R - V)^2) / Var(R). 1 is a perfect critic, 0 as good as the mean return,
    negative worse than that. It is explained variance minus mean(R - V)^2 / Var(R), so a
    critic whose values are all off by a constant is not judged good.

    Args:
        values: Critic values V, any shape.
        returns: Returns R, same shape.
        mask: Boolean, same shape; True on the elements that count.
        reduce: Sums a small tensor over ranks.

    Returns:
        A scalar; NaN if the returns do not vary.

    Raises:
        ValueError: If the shapes differ, or the mask is not boolean.
    """
    error_mean, error_var, return_var = _errors(values, returns, mask, reduce)
    ratio = (error_var + error_mean**2) / return_var
    return (1.0 - ratio).to(_common_dtype(values, returns))


def _errors(
    values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance of R - V, and the variance of R, NaN if R does not vary."""
    check_mask("mask", mask)
    check_same_shape("values", values, returns=returns, mask=mask)
    pair = torch.stack([returns.double(), returns.double() - values.double()])
    mean, var = _mean_and_var(pair, mask, reduce, dims=tuple(range(1, pair.ndim)))
    varies = var[0] > torch.finfo(torch.float64).eps * mean[0] ** 2
    return mean[1], var[1], torch.where(varies, var[0], torch.nan)


def _common_dtype(values: Tensor, returns: Tensor) -> torch.dtype:
    return torch.promote_types(float_dtype(values), float_dtype(returns))


def group_moments(values_B: Tensor, group_ids_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean, sample standard deviation and size of the group of each sequence.

    Groups must be complete: a group that is spread over ranks counts as several.

    Args:
        values_B: One value per sequence.
        group_ids_B: Integers, equal within a group, in any order.

    Returns:
        (mean_B, std_B, count_B) in float64; the deviation (n - 1) of a group of one is 0.

    Raises:
        ValueError: If the shapes are not (B,), or the group ids not integers.
    """
    if values_B.ndim != 1 or values_B.shape != group_ids_B.shape:
        shapes = f"{tuple(values_B.shape)} and {tuple(group_ids_B.shape)}"
        raise ValueError(f"values and group ids must have the same shape (B,), got {shapes}")
    if group_ids_B.is_floating_point() or group_ids_B.dtype == torch.bool:
        raise ValueError(f"group_ids_B must be integers, got {group_ids_B.dtype}")
    _, group_B, count_G = torch.unique(group_ids_B, return_inverse=True, return_counts=True)
    values_B = values_B.double()
    zeros_G = values_B.new_zeros(len(count_G))
    mean_B = (zeros_G.index_add(0, group_B, values_B) / count_G)[group_B]
    square_G = zeros_G.index_add(0, group_B, (values_B - mean_B).square())
    std_G = (square_G / (count_G - 1).clamp(min=1)).sqrt()
    return mean_B, std_G[group_B], count_G[group_B].double()


def float_dtype(values: Tensor) -> torch.dtype:
    """Return the type of results: that of `values`, but at least float32."""
    return torch.promote_types(values.dtype, torch.float32)


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
