"""Policy losses token by token: value, gradient and what the bounds do, against plain arithmetic.

Shape suffixes: B sequences, T response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightning_vcppo.algorithm.policy_losses import (
    POLICY_LOSSES,
    cispo_loss,
    dis_loss,
    dppo_tv_loss,
    gspo_loss,
    policy_loss,
)
from lightning_vcppo.algorithm.policy_terms import POLICY_DIAGNOSTICS
from tests.support.losses import CISPO, DIS, DPPO_TV, GSPO, Batch

MU = (0.5, 0.02, 0.9, 0.3)
"""Probabilities of four tokens under the sampler."""


def inputs(ratios: list[float], advantages: list[float], mu: Any = MU) -> tuple[Tensor, ...]:
    """Return log pi, log mu, A and a mask of one response."""
    old_BT = torch.tensor([mu[: len(ratios)]], dtype=torch.float64).log()
    logprobs_BT = (old_BT + torch.tensor([ratios], dtype=torch.float64).log()).requires_grad_()
    advantages_BT = torch.tensor([advantages], dtype=torch.float64)
    return logprobs_BT, old_BT, advantages_BT, torch.ones(1, len(ratios), dtype=torch.bool)


def gradient_weights(loss: Callable[..., Any], *tensors: Tensor, **clips: Any) -> list[float]:
    """Return the factor of A grad log pi of each token, times the number of tokens."""
    value, _ = loss(*tensors, **clips)
    (gradient_BT,) = torch.autograd.grad(value, tensors[0])
    tokens = int(tensors[3].sum())
    return (-gradient_BT * tokens / tensors[2])[tensors[3]].tolist()


def test_dis_drops_a_token_outside_the_band_whatever_the_advantage() -> None:
    for sign in (1.0, -1.0):
        tensors = inputs([0.69, 0.71, 5.9, 6.1], [2.0 * sign] * 4)
        loss, diagnostics = dis_loss(*tensors)  # SAO's band for maths: 0.7 to 6
        assert loss.item() == pytest.approx(-sign * 2.0 * (0.71 + 5.9) / 4)  # dropped ones count
        assert gradient_weights(dis_loss, *tensors) == pytest.approx([0.0, 0.71, 5.9, 0.0])
        assert diagnostics["clipfrac"] == 0.5
        assert diagnostics["clipfrac_low"] == diagnostics["clipfrac_high"] == 0.25


def test_dis_has_the_gradient_of_the_papers_equation() -> None:
    batch = Batch()
    x = batch.logprobs_BT.clone().requires_grad_()
    args = batch.old_BT, batch.advantages_BT, batch.mask_BT
    (gradient,) = torch.autograd.grad(dis_loss(x, *args, **DIS)[0], x)
    ratio_BT = (x - batch.old_BT).exp().detach()
    f_BT = torch.where((ratio_BT > 0.7) & (ratio_BT < 1.4), ratio_BT, 0.0)
    (papers,) = torch.autograd.grad(-(f_BT * batch.advantages_BT * x)[batch.mask_BT].mean(), x)
    assert_close(gradient, papers)
    assert 0 < (f_BT[batch.mask_BT] == 0).sum() < 12


def test_dppo_tv_bounds_the_change_of_the_probability() -> None:
    # pi - mu: 0.5 -> 0.74; 0.02 -> 0.2, a ratio of 10 that PPO would clip; 0.9 -> 0.69; 0.3 -> 0.09
    ratios = [1.48, 10.0, 0.69 / 0.9, 0.3]
    up, down = inputs(ratios, [1.0] * 4), inputs(ratios, [-1.0] * 4)
    weights = [0.0, 10.0, ratios[2], 0.3]
    assert gradient_weights(dppo_tv_loss, *up) == pytest.approx(weights)
    assert gradient_weights(dppo_tv_loss, *down) == pytest.approx([1.48, 10.0, 0.0, 0.0])
    loss, diagnostics = dppo_tv_loss(*up)
    assert loss.item() == pytest.approx(-sum(weights) / 4)
    assert diagnostics["clipfrac"] == diagnostics["clipfrac_high"] == 0.25
    assert dppo_tv_loss(*down)[1]["clipfrac_low"] == 0.5
    capped = [0.0, 3.0, ratios[2], 0.3]
    assert gradient_weights(dppo_tv_loss, *up, clip_ratio_c=3.0) == pytest.approx(capped)
    assert dppo_tv_loss(*up, clip_ratio_c=3.0)[1]["clipfrac_c"] == 0.25


def test_dppo_tv_is_a_ratio_bound_of_eps_over_mu() -> None:
    for mu in (0.05, 0.4, 0.75):
        for side in (1.0, -1.0):
            for inside, weight in ((0.99, True), (1.01, False)):
                ratio = 1 + side * inside * 0.04 / mu
                tensors = inputs([ratio], [side], mu=(mu,))
                clips = {"clip_ratio_low": 0.04, "clip_ratio_high": 0.04}
                expected = [ratio] if weight else [0.0]
                assert gradient_weights(dppo_tv_loss, *tensors, **clips) == pytest.approx(expected)


def test_cispo_clips_the_weight_and_keeps_every_gradient() -> None:
    for sign in (1.0, -1.0):
        tensors = inputs([0.5, 0.9, 1.1, 3.0], [sign] * 4)
        weights = gradient_weights(cispo_loss, *tensors, **CISPO)
        assert weights == pytest.approx([0.8, 0.9, 1.1, 1.15])
        _, diagnostics = cispo_loss(*tensors, **CISPO)
        assert diagnostics["clipfrac_low"] == diagnostics["clipfrac_high"] == 0.25
    without_a_lower_bound = gradient_weights(cispo_loss, *tensors)
    assert without_a_lower_bound == pytest.approx([0.5, 0.9, 1.1, 1.28])


def test_cispo_and_dppo_tv_have_the_gradients_of_weights_times_log_pi() -> None:
    batch = Batch()
    x = batch.logprobs_BT.clone().requires_grad_()
    args = batch.old_BT, batch.advantages_BT, batch.mask_BT
    ratio_BT = (x - batch.old_BT).exp().detach()
    change_BT = (x.exp() - batch.old_BT.exp()).detach()
    inside_BT = torch.where(batch.advantages_BT > 0, change_BT <= 0.12, change_BT >= -0.1)
    for loss, clips, weight_BT in (
        (cispo_loss, CISPO, ratio_BT.clamp(0.8, 1.15)),
        (dppo_tv_loss, DPPO_TV, ratio_BT.clamp(max=1.05) * inside_BT),
    ):
        (gradient,) = torch.autograd.grad(loss(x, *args, **clips)[0], x)
        terms_BT = -(weight_BT * batch.advantages_BT * x)
        (papers,) = torch.autograd.grad(terms_BT[batch.mask_BT].mean(), x)
        assert_close(gradient, papers)


def test_gspo_has_one_ratio_a_response() -> None:
    ratios = [1.2, 0.95, 1.3]
    s = math.prod(ratios) ** (1 / 3)
    for advantages, clipped in (([1.0] * 3, True), ([-1.0] * 3, False)):
        tensors = inputs(ratios, advantages)
        loss, diagnostics = gspo_loss(*tensors, **GSPO)
        bounded = 1.1 if clipped else s
        assert loss.item() == pytest.approx(-advantages[0] * bounded)
        weights = gradient_weights(gspo_loss, *tensors, **GSPO)
        assert weights == pytest.approx([0.0 if clipped else s] * 3)
        assert diagnostics["clipfrac"] == (1.0 if clipped else 0.0)
        ratios_logged = [diagnostics[f"ratio_{of}"].item() for of in ("mean", "max")]
        assert ratios_logged == pytest.approx([s, s])


def test_gspo_takes_advantages_of_tokens() -> None:
    tensors = inputs([1.02, 0.97, 1.03, 1.0], [1.0, -2.0, 0.5, 3.0])
    s = math.prod([1.02, 0.97, 1.03]) ** (1 / 4)
    weights = gradient_weights(gspo_loss, *tensors, clip_ratio_low=0.1, clip_ratio_high=0.1)
    assert weights == pytest.approx([s] * 4)


def test_what_lies_at_a_bound() -> None:
    """DIS drops it, as the paper's inequalities are strict; the others keep its gradient."""
    tensors = inputs([1.0], [1.0])
    for low, high, kept in ((0.0, 0.5, 0.0), (0.5, 0.0, 0.0), (0.5, 0.5, 1.0)):
        clips = {"clip_ratio_low": low, "clip_ratio_high": high}
        assert gradient_weights(dis_loss, *tensors, **clips) == [kept]
        assert gradient_weights(dppo_tv_loss, *tensors, **clips) == [1.0]
        assert gradient_weights(cispo_loss, *tensors, **clips) == [1.0]


def test_the_bounds_are_those_of_the_papers_unless_told_otherwise() -> None:
    ratios = [1 - 3.5e-4] * 2, [1 - 2.5e-4] * 2, [1 + 3.5e-4] * 2, [1 + 4.5e-4] * 2
    for ratio, sign, kept in zip(ratios, (-1, -1, 1, 1), (False, True, True, False), strict=True):
        weights = gradient_weights(gspo_loss, *inputs(ratio, [float(sign)] * 2))
        assert weights == pytest.approx(ratio if kept else [0.0, 0.0])
    assert gradient_weights(policy_loss, *inputs([0.85, 0.75], [-1.0, -1.0])) == pytest.approx(
        [0.85, 0.0]
    )
    assert [*POLICY_LOSSES] == ["ppo", "dis", "dppo_tv", "cispo", "gspo"]


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_on_policy_every_loss_is_minus_the_mean_advantage_with_its_gradient(name: str) -> None:
    batch = Batch()
    x = batch.logprobs_BT.clone().requires_grad_()
    clips = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}
    value, diagnostics = POLICY_LOSSES[name](
        x, batch.logprobs_BT, batch.advantages_BT, batch.mask_BT, **clips
    )
    assert_close(value.detach(), -batch.advantages_BT[batch.mask_BT].mean())
    (gradient,) = torch.autograd.grad(value, x)
    assert_close(gradient, torch.where(batch.mask_BT, -batch.advantages_BT / 12, 0.0))
    assert sorted(diagnostics) == sorted(POLICY_DIAGNOSTICS)
    shown = {key: value.item() for key, value in diagnostics.items()}
    nothing = dict.fromkeys(POLICY_DIAGNOSTICS, 0.0)
    ones = dict.fromkeys(("ratio_mean", "ratio_min", "ratio_max"), 1.0)
    assert shown == pytest.approx(nothing | ones)


def test_extreme_ratios_are_of_tokens_with_a_weight() -> None:
    tensors = inputs([0.5, 2.0, 0.25, 8.0], [1.0] * 4)
    weights_BT = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    _, diagnostics = policy_loss(*tensors, token_weights_BT=weights_BT)
    extremes = [diagnostics[f"ratio_{of}"].item() for of in ("min", "max")]
    assert extremes == pytest.approx([0.5, 2.0])
    _, diagnostics = policy_loss(*tensors, token_weights_BT=torch.zeros(1, 4))
    assert diagnostics["ratio_min"] == diagnostics["ratio_max"] == 1


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_gaps_stay_finite(name: str, gap: float, advantage: float) -> None:
    logprobs_BT = torch.full((1, 1), gap, requires_grad=True)
    mask_BT = torch.ones(1, 1, dtype=torch.bool)
    loss, diagnostics = POLICY_LOSSES[name](
        logprobs_BT,
        torch.zeros(1, 1),
        torch.full((1, 1), advantage),
        mask_BT,
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
    )
    loss.backward()
    assert loss.isfinite() and logprobs_BT.grad is not None and logprobs_BT.grad.isfinite().all()
    assert all(diagnostic.isfinite() for diagnostic in diagnostics.values())


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_negative_clip_is_refused(name: str) -> None:
    tensors = inputs([1.0], [1.0])
    for clips in ((-0.1, 0.2), (0.2, -0.1)):
        with pytest.raises(ValueError, match="clip_ratio_low and clip_ratio_high"):
            POLICY_LOSSES[name](*tensors, clip_ratio_low=clips[0], clip_ratio_high=clips[1])
    with pytest.raises(ValueError, match="clip_ratio_c"):
        dppo_tv_loss(*tensors, clip_ratio_c=1.0)
