"""Shape suffixes: B sequences, T response tokens, K bins, E = K + 1 edges, N values."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_vcppo.algorithm.value_heads import (
    bounded_value,
    hl_gauss_edges,
    hl_gauss_loss,
    hl_gauss_target,
    hl_gauss_value,
)


def test_bounded_value_by_hand() -> None:
    z = torch.tensor([0.0, 1.0, -1.0, 1e30, -1e30, math.inf])
    expected = torch.tensor([1.0, 2.0, 0.0, 3.0, -1.0, 3.0])
    assert_close(bounded_value(z, -1.0, 3.0), expected)
    assert bounded_value(z.bfloat16(), -1.0, 3.0).dtype == torch.float32
    with pytest.raises(ValueError, match="value_min"):
        bounded_value(z, 1.0, 1.0)


def test_edges_leave_three_bins_beyond_the_returns() -> None:
    edges_E = hl_gauss_edges(-1.0, 1.0, 10, dtype=torch.float64)
    assert_close(edges_E, torch.linspace(-2.5, 2.5, 11, dtype=torch.float64))
    with pytest.raises(ValueError, match="num_bins"):
        hl_gauss_edges(-1.0, 1.0, 6)
    with pytest.raises(ValueError, match="value_min"):
        hl_gauss_edges(1.0, -1.0, 10)


def test_histogram_of_a_return_in_the_middle_of_a_bin_by_hand() -> None:
    edges_E = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64)
    target_K = hl_gauss_target(torch.zeros((), dtype=torch.float64), edges_E, sigma_ratio=1.0)
    inner, outer = math.erf(0.5 / math.sqrt(2)), math.erf(1.5 / math.sqrt(2))
    side = (outer - inner) / 2
    expected_K = torch.tensor([side, inner, side], dtype=torch.float64) / outer
    assert_close(target_K, expected_K)


@pytest.mark.parametrize("num_bins", [7, 21, 51, 101])
def test_the_mean_of_the_histogram_is_the_return(num_bins: int) -> None:
    edges_E = hl_gauss_edges(-1.0, 1.0, num_bins, dtype=torch.float64)
    returns_N = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    target_NK = hl_gauss_target(returns_N, edges_E)
    width = (edges_E[1] - edges_E[0]).item()
    assert_close(target_NK.sum(-1), torch.ones(41, dtype=torch.float64))
    assert_close(hl_gauss_value(target_NK.log(), edges_E), returns_N, rtol=0.0, atol=1e-3 * width)


def test_returns_outside_the_edges_count_as_the_edge() -> None:
    edges_E = hl_gauss_edges(-1.0, 1.0, 21)
    far_N = hl_gauss_target(torch.tensor([-1e9, 1e9]), edges_E)
    assert_close(far_N, hl_gauss_target(edges_E[[0, -1]], edges_E))
    assert_close(far_N.sum(-1), torch.ones(2))


def test_loss_is_least_at_the_target() -> None:
    torch.manual_seed(0)
    edges_E = hl_gauss_edges(-1.0, 1.0, 21, dtype=torch.float64)
    returns_BT = torch.tensor([[1.0, -0.3]], dtype=torch.float64)
    mask_BT = torch.ones(1, 2, dtype=torch.bool)
    target_BTK = hl_gauss_target(returns_BT, edges_E)
    logits_BTK = target_BTK.clamp(min=1e-300).log().requires_grad_()
    loss, diagnostics = hl_gauss_loss(logits_BTK, returns_BT, mask_BT, edges_E=edges_E)
    loss.backward()
    entropy = torch.special.entr(target_BTK).sum(-1).mean()
    assert_close(loss, entropy)
    assert_close(logits_BTK.grad, torch.zeros_like(logits_BTK))
    assert diagnostics["value_error"] < 1e-3
    other, _ = hl_gauss_loss(
        logits_BTK + torch.randn_like(logits_BTK), returns_BT, mask_BT, edges_E=edges_E
    )
    assert other > loss


def test_sigma_must_be_positive() -> None:
    with pytest.raises(ValueError, match="sigma_ratio"):
        hl_gauss_target(torch.zeros(1), hl_gauss_edges(-1.0, 1.0, 21), sigma_ratio=0.0)
