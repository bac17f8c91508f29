"""Compute values and losses of other heads than a scalar: bounded, sigmoid, and HL-Gauss.

Shape suffixes: B sequences, T response tokens, K bins, E = K + 1 edges.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vcppo.algorithm.checks import check_tokens
from lightning_vcppo.algorithm.importance import masked
from lightning_vcppo.algorithm.loss_weights import token_weights, weighted_sum
from lightning_vcppo.algorithm.statistics import float_dtype

_MARGIN_SIGMAS = 4


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


def sigmoid_value(z: Tensor, low: float, high: float) -> Tensor:
    """Map a head's output into the range of the returns by a sigmoid (PACT, arXiv 2609.26355).

    V = low + (high - low) sigmoid(z): with rewards of 0 and 1, the probability of success.

    Args:
        z: Raw output of the head, a logit, any shape.
        low: Smallest return.
        high: Largest return.

    Returns:
        Values of the same shape, float32 or better.

    Raises:
        ValueError: If low is not below high.
    """
    _check_range(low, high)
    return low + (high - low) * torch.sigmoid(z.to(float_dtype(z)))


CROSS_ENTROPY_DIAGNOSTICS = ("value_mean", "return_mean", "value_error")
"""Names of the diagnostics of `bce_loss` and `hl_gauss_loss`."""


def bce_loss(
    logits_BT: Tensor,
    returns_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    low: float,
    high: float,
    token_weights_BT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the binary cross-entropy to the return mapped to [0, 1] (PACT, arXiv 2609.26355).

    -y log p - (1 - y) log(1 - p), with y = (R - low) / (high - low) and p = sigmoid(z). Its
    gradient in z is p - y: unlike that of a squared error, it does not vanish if p is near the
    wrong end. The minimum is at p = y, where the loss is the entropy of y.

    Args:
        logits_BT: z before each token; the only input that gets a gradient.
        returns_BT: Value targets R; clamped to [low, high].
        response_mask_BT: Boolean; True on the tokens of the loss. Other inputs are never read.
        low: Smallest return.
        high: Largest return.
        token_weights_BT: From `aggregation_weights`; None gives all tokens equal weights.

    Returns:
        The loss in nats, and value_mean, return_mean, value_error (|V - R|), with the same weights.

    Raises:
        ValueError: If low is not below high, or for a wrong shape or type of the mask.
    """
    _check_range(low, high)
    check_tokens(
        response_mask_BT,
        logits_BT=logits_BT,
        returns_BT=returns_BT,
        token_weights_BT=token_weights_BT,
    )
    mask_BT = response_mask_BT
    logits_BT = masked(logits_BT, mask_BT)
    returns_BT = masked(returns_BT, mask_BT).detach()
    weights_BT = token_weights(mask_BT, token_weights_BT, logits_BT.dtype)
    target_BT = ((returns_BT - low) / (high - low)).clamp(0.0, 1.0).to(logits_BT.dtype)
    terms_BT = F.binary_cross_entropy_with_logits(logits_BT, target_BT, reduction="none")
    values_BT = sigmoid_value(logits_BT.detach(), low, high)
    return weighted_sum(terms_BT, mask_BT, weights_BT), _diagnostics(
        values_BT, returns_BT, mask_BT, weights_BT
    )


def hl_gauss_edges(
    low: float,
    high: float,
    num_bins: int,
    *,
    sigma_ratio: float = 0.75,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the edges of equal bins that cover the returns and four more sigmas on each side.

    Otherwise a Gaussian around a return at the end of the range, such as +1 or -1, would lose half
    of its mass, and the mean of its histogram would not be the return. At the default sigma the
    margin is three bins.

    Args:
        low: Smallest return.
        high: Largest return.
        num_bins: Number of bins K, above 8 sigma_ratio.
        sigma_ratio: Standard deviation of the targets, in bins.
        device: Device of the result.
        dtype: Type of the result.

    Returns:
        edges_E, ascending.

    Raises:
        ValueError: If low is not below high, sigma_ratio is not positive, or for too few bins.
    """
    _check_range(low, high)
    _check_sigma(sigma_ratio)
    margin_bins = _MARGIN_SIGMAS * sigma_ratio
    if num_bins <= 2 * margin_bins:
        raise ValueError(f"num_bins must be above {2 * margin_bins:g}, got {num_bins}")
    margin = margin_bins * (high - low) / (num_bins - 2 * margin_bins)
    return torch.linspace(low - margin, high + margin, num_bins + 1, device=device, dtype=dtype)


def hl_gauss_target(returns: Tensor, edges_E: Tensor, *, sigma_ratio: float = 0.75) -> Tensor:
    """Compute the histogram of a Gaussian around each return (HL-Gauss, arXiv 2403.03950).

    Args:
        returns: Returns (...), clamped to the edges.
        edges_E: From `hl_gauss_edges`.
        sigma_ratio: Standard deviation, in bins; 0.75 in the paper.

    Returns:
        Probabilities (..., K).

    Raises:
        ValueError: If sigma_ratio is not positive, or the edges are not (E,).
    """
    _check_edges(edges_E)
    _check_sigma(sigma_ratio)
    sigma = sigma_ratio * (edges_E[1] - edges_E[0])
    returns = returns.clamp(edges_E[0], edges_E[-1])
    cdf_E: Tensor = torch.special.ndtr((edges_E - returns[..., None]) / sigma)
    return cdf_E.diff(dim=-1) / (cdf_E[..., -1:] - cdf_E[..., :1])


def hl_gauss_value(logits: Tensor, edges_E: Tensor) -> Tensor:
    """Compute V = sum_i p_i c_i, the mean of the predicted histogram (arXiv 2403.03950).

    Args:
        logits: Logits (..., K).
        edges_E: From `hl_gauss_edges`.

    Returns:
        Values (...), float32 or better.

    Raises:
        ValueError: If the logits have another number of bins than the edges.
    """
    _check_edges(edges_E, logits)
    centres_K = (edges_E[1:] + edges_E[:-1]) / 2
    return (logits.to(float_dtype(logits)).softmax(-1) * centres_K).sum(-1)


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
        sigma_ratio: Standard deviation of the target, in bins.
        token_weights_BT: From `aggregation_weights`; None gives all tokens equal weights.

    Returns:
        The loss, and value_mean, return_mean, value_error (|V - R|), with the same weights.

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
    return weighted_sum(terms_BT, mask_BT, weights_BT), _diagnostics(
        values_BT, returns_BT, mask_BT, weights_BT
    )


def _diagnostics(
    values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, weights_BT: Tensor
) -> dict[str, Tensor]:
    """Return `CROSS_ENTROPY_DIAGNOSTICS` of detached values."""
    return {
        "value_mean": weighted_sum(values_BT, mask_BT, weights_BT),
        "return_mean": weighted_sum(returns_BT, mask_BT, weights_BT),
        "value_error": weighted_sum((values_BT - returns_BT).abs(), mask_BT, weights_BT),
    }


def _check_sigma(sigma_ratio: float) -> None:
    if not sigma_ratio > 0:  # also refuses NaN
        raise ValueError(f"sigma_ratio must be positive, got {sigma_ratio}")


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
