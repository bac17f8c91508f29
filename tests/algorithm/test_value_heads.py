"""Shape suffixes: B sequences, T response tokens, K bins, E = K + 1 edges, N values."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_vcppo.algorithm.value_heads import (
    bce_loss,
    bounded_value,
    hl_gauss_edges,
    hl_gauss_loss,
    hl_gauss_target,
    hl_gauss_value,
    sigmoid_value,
)
from lightning_vcppo.settings import ValueSettings


def test_bounded_value_by_hand() -> None:
    z = torch.tensor([0.0, 1.0, -1.0, 1e30, -1e30, math.inf])
    expected = torch.tensor([1.0, 2.0, 0.0, 3.0, -1.0, 3.0])
    assert_close(bounded_value(z, -1.0, 3.0), expected)
    assert bounded_value(z.bfloat16(), -1.0, 3.0).dtype == torch.float32
    with pytest.raises(ValueError, match="value_min"):
        bounded_value(z, 1.0, 1.0)


def test_sigmoid_value_by_hand() -> None:
    z = torch.tensor([0.0, math.log(3.0), -math.log(3.0), math.inf, -math.inf])
    assert_close(sigmoid_value(z, -1.0, 3.0), torch.tensor([1.0, 2.0, 0.0, 3.0, -1.0]))
    assert sigmoid_value(z.bfloat16(), -1.0, 3.0).dtype == torch.float32
    with pytest.raises(ValueError, match="value_min"):
        sigmoid_value(z, 1.0, 1.0)


def test_bce_by_hand() -> None:
    # p = 3/4; R = 3 is y = 1, R = 0 is y = 1/4, R = 9 counts as 3, R = -5 as -1.
    logits_BT = torch.full((1, 4), math.log(3.0), dtype=torch.float64, requires_grad=True)
    returns_BT = torch.tensor([[3.0, 0.0, 9.0, -5.0]], dtype=torch.float64)
    mask_BT = torch.ones(1, 4, dtype=torch.bool)
    loss, diagnostics = bce_loss(logits_BT, returns_BT, mask_BT, low=-1.0, high=3.0)
    right, wrong = math.log(4 / 3), math.log(4)
    assert loss.item() == pytest.approx((2 * right + (right + 3 * wrong) / 4 + wrong) / 4)
    loss.backward()
    expected = torch.tensor([[-0.25, 0.5, -0.25, 0.75]], dtype=torch.float64) / 4
    assert_close(logits_BT.grad, expected)
    assert diagnostics["value_mean"].item() == pytest.approx(2.0)
    assert diagnostics["return_mean"].item() == pytest.approx(7 / 4)
    assert diagnostics["value_error"].item() == pytest.approx((1 + 2 + 7 + 7) / 4)


def test_bce_of_a_logit_without_bounds_is_finite() -> None:
    logits_BT = torch.tensor([[1e4, -1e4]], requires_grad=True)
    returns_BT, mask_BT = torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    loss, _ = bce_loss(logits_BT, returns_BT, mask_BT, low=-1.0, high=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert_close(logits_BT.grad, torch.tensor([[0.5, 0.0]]))


def test_bce_is_least_at_the_mean_of_the_returns() -> None:
    returns_BT = torch.tensor([[1.0, 1.0, 1.0, -1.0]], dtype=torch.float64)
    mask_BT = torch.ones(1, 4, dtype=torch.bool)
    z = torch.tensor(math.log(3.0), dtype=torch.float64, requires_grad=True)  # V = 1/2
    loss, _ = bce_loss(z.expand(1, 4), returns_BT, mask_BT, low=-1.0, high=1.0)
    loss.backward()
    assert_close(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("sigma_ratio", [0.75, 2.0, 3.5])
def test_edges_leave_four_sigmas_beyond_the_returns(sigma_ratio: float) -> None:
    edges_E = hl_gauss_edges(-1.0, 1.0, 51, sigma_ratio=sigma_ratio, dtype=torch.float64)
    width = (edges_E[1] - edges_E[0]).item()
    assert edges_E[-1].item() == pytest.approx(1.0 + 4 * sigma_ratio * width)
    target_NK = hl_gauss_target(
        torch.linspace(-1.0, 1.0, 41, dtype=torch.float64), edges_E, sigma_ratio=sigma_ratio
    )
    values_N = hl_gauss_value(target_NK.log(), edges_E)
    bias_N = values_N - torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    assert bias_N.abs().max() < 1e-3 * sigma_ratio * width
    with pytest.raises(ValueError, match="num_bins must be above 28"):
        hl_gauss_edges(-1.0, 1.0, 28, sigma_ratio=3.5)


def test_a_sigma_in_units_of_returns_is_that_of_hl_gauss_ppo() -> None:
    """101 bins on [-0.1, 1.1] with sigma 0.024, two bins, for rewards in [0, 1]."""
    value = ValueSettings(
        head="hl_gauss",
        num_bins=101,
        value_min=0.0,
        value_max=1.0,
        hl_gauss_sigma=0.024,
        sigma_unit="returns",
    )
    edges_E = hl_gauss_edges(0.0, 1.0, 101, sigma_ratio=value.sigma_ratio)
    assert value.sigma_ratio == pytest.approx(2.0, abs=0.04)
    assert edges_E[0].item() == pytest.approx(-0.1, abs=0.005)
    assert edges_E[-1].item() == pytest.approx(1.1, abs=0.005)
    assert value.sigma_ratio * (edges_E[1] - edges_E[0]).item() == pytest.approx(0.024)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"loss": "bce"}, "loss: bce .* head is scalar"),
        ({"loss": "bce", "head": "bounded"}, "loss: bce .* head is bounded"),
        ({"loss": "bce", "head": "sigmoid", "cliprange_value": 0.2}, "cliprange_value: "),
        ({"head": "hl_gauss", "cliprange_value": 0.2}, "cliprange_value: "),
        ({"hl_gauss_sigma": 0.0}, "hl_gauss_sigma: expected > 0"),
        ({"num_bins": 16, "hl_gauss_sigma": 2.0}, "num_bins: expected > 16, got 16"),
    ],
)
def test_heads_and_losses_that_do_not_fit_are_refused(changes: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line) as error:
        ValueSettings(**changes)
    assert "\n" not in str(error.value)


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
