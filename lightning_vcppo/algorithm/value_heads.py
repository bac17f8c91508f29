"""Value heads other than a plain scalar: bounded to the range of returns, and HL-Gauss.

Shape suffixes: B sequences, T response tokens, K bins, E = K + 1 edges.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_vcppo.algorithm.checks import check_tokens
from lightning_vcppo.algorithm.loss_weights import token_weights, weighted_sum
from lightning_vcppo.algorithm.statistics import float_dtype

_MARGIN_BINS = 3


def bounded_value(z: Tensor, low: float, high: float) -> Tensor:
    """Map a head's output into the range of the returns (BPCO, arXiv 2608.23566).

    V = low + (high - low) (1/2 + atan(z)/pi).

    Args:
        z: Raw output of the head, any shape.
        low: Smallest return.
        high: Largest return.

    Returns:
        Values of the same shape, float32 or better.

    Raises:
        ValueError: If low is not below high.
    """
    _check_range(low, high)
    return low + (high - low) * (0.5 + torch.atan(z.to(float_dtype(z))) / math.pi)


def hl_gauss_edges(
    low: float,
    high: float,
    num_bins: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the edges of equal bins that cover the returns and three bins more on either side.

    A Gaussian around a return at the end of the range, as +1 and -1 are, would otherwise lose half
    of its mass and with it the property that its histogram has the return as its mean.

    Args:
        low: Smallest return.
        high: Largest return.
        num_bins: K, above 6.
        device: Of the result.
        dtype: Of the result.

    Returns:
        edges_E, ascending.

    Raises:
        ValueError: If low is not below high, or for too few bins.
    """
    _check_range(low, high)
    if num_bins <= 2 * _MARGIN_BINS:
        raise ValueError(f"num_bins must be above {2 * _MARGIN_BINS}, got {num_bins}")
    margin = _MARGIN_BINS * (high - low) / (num_bins - 2 * _MARGIN_BINS)
    return torch.linspace(low - margin, high + margin, num_bins + 1, device=device, dtype=dtype)


def hl_gauss_target(returns: Tensor, edges_E: Tensor, *, sigma_ratio: float = 0.75) -> Tensor:
    """Compute the histogram of a Gaussian around each return (HL-Gauss, arXiv 2403.03950).

    Args:
        returns: (...); clamped to the edges.
        edges_E: From `hl_gauss_edges`.
        sigma_ratio: Standard deviation in bins; 0.75 in the paper.

    Returns:
        Probabilities (..., K).

    Raises:
        ValueError: If sigma_ratio is not positive, or the edges are not (E,).
    """
    _check_edges(edges_E)
    if sigma_ratio <= 0:
        raise ValueError(f"sigma_ratio must be positive, got {sigma_ratio}")
    sigma = sigma_ratio * (edges_E[1] - edges_E[0])
    returns = returns.clamp(edges_E[0], edges_E[-1])
    cdf_E: Tensor = torch.special.ndtr((edges_E - returns[..., None]) / sigma)
    return cdf_E.diff(dim=-1) / (cdf_E[..., -1:] - cdf_E[..., :1])


def hl_gauss_value(logits: Tensor, edges_E: Tensor) -> Tensor:
    """Compute V = sum_i p_i c_i, the mean of the predicted histogram (arXiv 2403.03950).

    Args:
        logits: (..., K).
        edges_E: From `hl_gauss_edges`.

    Returns:
        Values (...), float32 or better.

    Raises:
        ValueError: If the logits have another number of bins than the edges.
    """
    _check_edges(edges_E, logits)
    centres_K = (edges_E[1:] + edges_E[:-1]) / 2
    return (logits.to(float_dtype(logits)).softmax(-1) * centres_K).sum(-1)


HL_GAUSS_DIAGNOSTICS = ("value_mean", "return_mean", "value_error")
"""What `hl_gauss_loss` returns beside the loss."""


def hl_gauss_loss(
    logits_BTK: Tensor,
    returns_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    edges_E: Tensor,
    sigma_ratio: float = 0.75,
    token_weights_BT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the cross-entropy to the Gaussian histogram of the return (arXiv 2403.03950).

    Args:
        logits_BTK: The critic's output before each token; the only input that gets a gradient.
        returns_BT: Value targets R.
        response_mask_BT: Boolean; True on the tokens of the loss. Other inputs are never read.
        edges_E: From `hl_gauss_edges`.
        sigma_ratio: Standard deviation of the target in bins.
        token_weights_BT: From `aggregation_weights`; None gives each token the same.

    Returns:
        The loss, and value_mean, return_mean, value_error (|V - R|), weighted as the loss is.

    Raises:
        ValueError: If sigma_ratio is not positive, or for a wrong shape or type of the mask.
    """
    check_tokens(response_mask_BT, returns_BT=returns_BT, token_weights_BT=token_weights_BT)
    _check_edges(edges_E, logits_BTK)
    if logits_BTK.shape[:-1] != response_mask_BT.shape:
        raise ValueError(
            f"logits_BTK must have shape (B, T, K) for response_mask_BT of shape "
            f"{tuple(response_mask_BT.shape)}, got {tuple(logits_BTK.shape)}"
        )
    mask_BT = response_mask_BT
    logits_BTK = torch.where(mask_BT[..., None], logits_BTK, 0.0).to(float_dtype(logits_BTK))
    returns_BT = torch.where(mask_BT, returns_BT, 0.0).detach()
    weights_BT = token_weights(mask_BT, token_weights_BT, logits_BTK.dtype)
    target_BTK = hl_gauss_target(returns_BT, edges_E, sigma_ratio=sigma_ratio)
    terms_BT = -(target_BTK * logits_BTK.log_softmax(-1)).sum(-1)

    values_BT = hl_gauss_value(logits_BTK.detach(), edges_E)
    return weighted_sum(terms_BT, mask_BT, weights_BT), {
        "value_mean": weighted_sum(values_BT, mask_BT, weights_BT),
        "return_mean": weighted_sum(returns_BT, mask_BT, weights_BT),
        "value_error": weighted_sum((values_BT - returns_BT).abs(), mask_BT, weights_BT),
    }


def _check_edges(edges_E: Tensor, logits: Tensor | None = None) -> None:
    if edges_E.ndim != 1 or len(edges_E) < 2:
        raise ValueError(f"edges_E must have shape (K + 1,), got {tuple(edges_E.shape)}")
    if logits is not None and (logits.ndim == 0 or logits.shape[-1] != len(edges_E) - 1):
        raise ValueError(
            f"logits must have shape (..., {len(edges_E) - 1}) for edges_E of shape "
            f"{tuple(edges_E.shape)}, got {tuple(logits.shape)}"
        )


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"value_min must be below value_max, got {low} and {high}")
