"""Losses token by token. Shape suffixes: B sequences, T response tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightning_vcppo.algorithm.importance import truncated_importance_weights
from lightning_vcppo.algorithm.loss_weights import aggregation_weights, prompt_noise_weights
from lightning_vcppo.algorithm.losses import (
    kl_estimate,
    kl_penalty,
    value_loss,
)
from lightning_vcppo.algorithm.policy_losses import policy_loss
from lightning_vcppo.algorithm.statistics import Reduce
from tests.support.losses import Batch, _nll, _policy, run
from tests.support.ranks import on_ranks


def test_policy_loss_token_by_token() -> None:
    batch = Batch()
    terms, low, high, bounded = [], 0, 0, 0
    for b, t in batch.mask_BT.nonzero().tolist():
        ratio = math.exp(batch.logprobs_BT[b, t] - batch.old_BT[b, t])
        advantage = batch.advantages_BT[b, t].item()
        term = max(-advantage * ratio, -advantage * min(max(ratio, 0.9), 1.15))
        if advantage < 0:
            term = min(term, -advantage * 1.3)
            low, bounded = low + (ratio < 0.9), bounded + (ratio > 1.3)
        else:
            high += ratio > 1.15
        terms.append(term * batch.importance_BT[b, t].item())
    loss, diagnostics = _policy(batch, batch.logprobs_BT, None)
    assert loss.item() == pytest.approx(sum(terms) / 12)
    assert min(low, high, bounded) > 0
    assert diagnostics["clipfrac_low"].item() == pytest.approx(low / 12)
    assert diagnostics["clipfrac_high"].item() == pytest.approx(high / 12)
    assert diagnostics["clipfrac_c"].item() == pytest.approx(bounded / 12)
    assert diagnostics["clipfrac"].item() == pytest.approx((low + high + bounded) / 12)


def test_clipped_tokens_are_those_without_a_gradient() -> None:
    batch = Batch()
    _, gradient, diagnostics = run(_policy, batch, "logprobs_BT", None)
    stopped = (batch.mask_BT & (gradient == 0)).sum().item()
    assert diagnostics["clipfrac"].item() == pytest.approx(stopped / 12)


def test_policy_loss_on_policy_is_minus_the_mean_advantage() -> None:
    batch = Batch()
    loss, diagnostics = policy_loss(
        batch.logprobs_BT, batch.logprobs_BT, batch.advantages_BT, batch.mask_BT
    )
    assert_close(loss, -batch.advantages_BT[batch.mask_BT].mean())
    assert diagnostics["approx_kl"] == 0
    assert diagnostics["clipfrac"] == 0
    assert_close(diagnostics["ratio_mean"], torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_ratios_stay_finite(gap: float, advantage: float) -> None:
    logprobs_BT = torch.full((1, 1), gap, requires_grad=True)
    mask_BT = torch.ones(1, 1, dtype=torch.bool)
    loss, diagnostics = policy_loss(
        logprobs_BT, torch.zeros(1, 1), torch.full((1, 1), advantage), mask_BT
    )
    loss.backward()
    assert loss.isfinite() and logprobs_BT.grad.isfinite().all()
    assert all(diagnostic.isfinite() for diagnostic in diagnostics.values())


def test_value_loss_by_hand() -> None:
    values_BT = torch.tensor([[0.0, 1.0, 3.0]])
    returns_BT = torch.tensor([[1.0, 1.0, -1.0]])
    mask_BT = torch.ones(1, 3, dtype=torch.bool)
    loss, diagnostics = value_loss(values_BT, returns_BT, mask_BT)
    assert_close(loss, torch.tensor((0.5 + 0.0 + 8.0) / 3))
    assert_close(diagnostics["value_mean"], torch.tensor(4 / 3))
    assert_close(diagnostics["return_mean"], torch.tensor(1 / 3))
    assert_close(diagnostics["value_error"], torch.tensor(5 / 3))
    huber, _ = value_loss(values_BT, returns_BT, mask_BT, loss="huber", huber_delta=2.0)
    assert_close(huber, torch.tensor((0.5 + 0.0 + 2.0 * (4.0 - 1.0)) / 3))


def test_value_clipping_by_hand() -> None:
    # Both moved by 1 and are clipped to 0.2. Only in the first is the clipped loss the larger.
    loss, diagnostics = value_loss(
        torch.tensor([[1.0, 1.0]]),
        torch.tensor([[1.0, -1.0]]),
        torch.ones(1, 2, dtype=torch.bool),
        old_values_BT=torch.zeros(1, 2),
        cliprange_value=0.2,
    )
    assert_close(loss, torch.tensor((0.5 * 0.8**2 + 0.5 * 2.0**2) / 2))
    assert diagnostics["value_clipfrac"] == 0.5


def test_nll_is_over_the_tokens_of_correct_responses() -> None:
    batch = Batch()
    chosen_BT = batch.mask_BT & batch.correct_B[:, None]
    loss, diagnostics = _nll(batch, batch.logprobs_BT, None)
    assert_close(loss, -batch.logprobs_BT[chosen_BT].sum() / 7)
    assert diagnostics["positive_tokens"] == 7


def test_nll_without_a_correct_response_is_zero() -> None:
    batch = Batch(fill=math.nan)
    batch.correct_B = torch.zeros(5, dtype=torch.bool)
    value, gradient, _ = run(_nll, batch, "logprobs_BT", None)
    assert value == 0
    assert not gradient.any()


def test_kl_estimators_by_hand() -> None:
    logprobs_BT, ref_BT = torch.tensor([[0.5, -1.0]]).log_softmax(-1), torch.tensor([[-0.1, -3.0]])
    d_BT = logprobs_BT - ref_BT
    assert_close(kl_estimate(logprobs_BT, ref_BT, "k1"), d_BT)
    assert_close(kl_estimate(logprobs_BT, ref_BT, "k2"), d_BT**2 / 2)
    assert_close(kl_estimate(logprobs_BT, ref_BT, "k3"), torch.exp(-d_BT) - 1 + d_BT)


def test_k1_and_k3_are_unbiased_and_gradients_are_as_documented() -> None:
    torch.manual_seed(0)
    logits_V, ref_V = torch.randn(2, 7, dtype=torch.float64)
    logits_V.requires_grad_()
    logp_V, ref_V = logits_V.log_softmax(-1), ref_V.log_softmax(-1)
    p_V = logp_V.detach().exp()
    forward = (logp_V.exp() * (logp_V - ref_V)).sum()
    backward = (ref_V.exp() * (ref_V - logp_V)).sum()

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits_V, retain_graph=True)[0]

    # Expectations over tokens sampled from pi, exactly: the samples' weights are constants.
    expected = {k: (p_V * kl_estimate(logp_V, ref_V, k)).sum() for k in ("k1", "k2", "k3")}
    assert_close(expected["k1"], forward)
    assert_close(expected["k3"], forward)
    assert_close(gradient(expected["k1"]), torch.zeros(7, dtype=torch.float64))
    assert_close(gradient(expected["k2"]), gradient(forward))
    assert_close(gradient(expected["k3"]), gradient(backward))


def mismatch_case() -> tuple[Tensor, Tensor, Tensor]:
    ratios_BT = torch.tensor([[1.0, 1.5, 4.0, 0.25, 100.0]], dtype=torch.float64)
    mask_BT = torch.tensor([[True, True, True, True, False]])
    sampler_BT = -torch.ones_like(ratios_BT)
    return ratios_BT.log() + sampler_BT, sampler_BT, mask_BT


def test_truncated_importance_weights_by_hand() -> None:
    old_BT, sampler_BT, mask_BT = mismatch_case()
    weights_BT, keep_BT, diagnostics = truncated_importance_weights(old_BT, sampler_BT, mask_BT)
    assert_close(weights_BT, torch.tensor([[1.0, 1.5, 2.0, 0.25, 0.0]], dtype=torch.float64))
    assert torch.equal(keep_BT, mask_BT)
    kl_k1 = -sum(math.log(ratio) for ratio in (1.0, 1.5, 4.0, 0.25)) / 4
    assert {name: value.item() for name, value in diagnostics.items()} == pytest.approx(
        {
            "kl_k1": kl_k1,
            "kl_k3": (1.0 + 1.5 + 4.0 + 0.25) / 4 - 1 + kl_k1,
            "weight_mean": 4.75 / 4,
            "weight_max": 4.0,
            "ess": 4.75**2 / (1.0 + 2.25 + 4.0 + 0.0625) / 4,
            "weight_clipped": 1 / 4,
        }
    )


def test_masked_importance_weights_drop_tokens_on_both_sides() -> None:
    old_BT, sampler_BT, mask_BT = mismatch_case()
    weights_BT, keep_BT, diagnostics = truncated_importance_weights(
        old_BT, sampler_BT, mask_BT, mode="mask"
    )
    assert_close(weights_BT, torch.tensor([[1.0, 1.5, 0.0, 0.0, 0.0]], dtype=torch.float64))
    assert keep_BT.tolist() == [[True, True, False, False, False]]
    assert diagnostics["weight_clipped"] == 0.5
    assert aggregation_weights(keep_BT).tolist() == [[0.5, 0.5, 0.0, 0.0, 0.0]]


def test_importance_weights_of_matching_policies_are_one() -> None:
    batch = Batch(fill=math.nan)
    for mode in ("truncate", "mask"):
        weights_BT, keep_BT, diagnostics = truncated_importance_weights(
            batch.logprobs_BT, batch.logprobs_BT, batch.mask_BT, mode=mode
        )
        assert torch.equal(weights_BT, batch.mask_BT.double())
        assert torch.equal(keep_BT, batch.mask_BT)
        assert diagnostics["kl_k3"] == 0
        assert diagnostics["ess"] == 1


def test_importance_diagnostics_are_over_all_ranks() -> None:
    batch = Batch()

    def compute(rows: slice, reduce: Reduce) -> dict[str, Tensor]:
        part = batch.rows(rows)
        diagnostics = truncated_importance_weights(
            part.logprobs_BT, part.old_BT, part.mask_BT, reduce=reduce
        )[2]
        del diagnostics["weight_max"]
        return diagnostics

    whole = compute(slice(None), lambda statistics: statistics)
    for part in on_ranks(compute, [slice(0, 1), slice(1, 5)]):
        assert_close(part, whole)


def test_importance_weights_of_no_tokens() -> None:
    nothing_BT = torch.full((2, 3), math.nan)
    mask_BT = torch.zeros(2, 3, dtype=torch.bool)
    weights_BT, _, diagnostics = truncated_importance_weights(nothing_BT, nothing_BT, mask_BT)
    assert not weights_BT.any()
    assert all(value == 0 for value in diagnostics.values())


def test_prompt_noise_weights_by_hand() -> None:
    scores_B, ids_B = (
        torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0]),
        torch.tensor([4, 2, 4, 2, 9, 4]),
    )
    std = math.sqrt(8 / 9)  # of 1, -1, 1; the others have the floor
    mean = (1 / std + 4.0 + 4.0) / 3  # over prompts
    expected_B = torch.tensor([1 / std, 4.0, 1 / std, 4.0, 4.0, 1 / std]) / mean
    assert_close(prompt_noise_weights(scores_B, ids_B), expected_B)
    assert prompt_noise_weights(scores_B[:0], ids_B[:0]).shape == (0,)


def test_prompt_noise_weights_have_an_exponent_and_a_floor() -> None:
    """The case of EasyPPO's own test: variances of 1/4 and 0, weights of 4 and 100."""
    scores_B, ids_B = torch.tensor([0.0, 1.0, 0.5, 0.5]), torch.tensor([0, 0, 1, 1])
    weights_B = prompt_noise_weights(scores_B, ids_B, exponent=1.0, floor=0.01)
    assert_close(weights_B, torch.tensor([4.0, 4.0, 100.0, 100.0]) / 52.0)


def test_prompt_noise_weights_have_their_mean_over_the_prompts_of_all_ranks() -> None:
    scores_B, ids_B = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1, 1])

    def compute(rows: slice, reduce: Reduce) -> Tensor:
        return prompt_noise_weights(scores_B[rows], ids_B[rows], reduce=reduce)

    parts = on_ranks(compute, [slice(0, 2), slice(2, 5)])
    assert_close(torch.cat(parts), prompt_noise_weights(scores_B, ids_B))


def ratios(*ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of one row with these ratios, and a full mask."""
    log_ratio_BT = torch.tensor([ratio], dtype=torch.float64).log()
    old_BT = torch.full_like(log_ratio_BT, -1.0)
    return old_BT + log_ratio_BT, old_BT, torch.ones_like(old_BT, dtype=torch.bool)


def test_the_divergence_is_that_of_schulmans_k3() -> None:
    logprobs_BT, old_BT, mask_BT = ratios(2.0, 0.8)
    _, diagnostics = policy_loss(logprobs_BT, old_BT, torch.zeros(1, 2), mask_BT)
    k3 = ((2 - 1 - math.log(2)) + (0.8 - 1 - math.log(0.8))) / 2
    assert diagnostics["approx_kl"].item() == pytest.approx(k3)
    assert diagnostics["ratio_mean"].item() == pytest.approx(1.4)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.15, 1.0, -1.15),
        (1.25, 1.0, -1.2),
        (0.85, -1.0, 0.85),
        (0.75, -1.0, 0.8),
        (0.75, 1.0, -0.75),  # a clip never makes a bad move look better
        (3.0, -1.0, 3.0),
    ],
)
def test_the_clip_of_the_paper_is_the_default(
    ratio: float, advantage: float, expected: float
) -> None:
    logprobs_BT, old_BT, mask_BT = ratios(ratio)
    loss, _ = policy_loss(logprobs_BT, old_BT, torch.tensor([[advantage]]), mask_BT)
    assert loss.item() == pytest.approx(expected)


def test_a_clip_of_zero_lets_nothing_through_but_is_allowed() -> None:
    logprobs_BT, old_BT, mask_BT = ratios(1.1, 0.9)
    loss, diagnostics = policy_loss(
        *(logprobs_BT, old_BT, torch.tensor([[1.0, -1.0]]), mask_BT),
        clip_ratio_low=0.0,
        clip_ratio_high=0.0,
    )
    assert loss.item() == pytest.approx(0.0)
    assert diagnostics["clipfrac"] == 1
    _, diagnostics = policy_loss(  # at the bound itself nothing is cut off
        *(old_BT, old_BT, torch.tensor([[1.0, -1.0]]), mask_BT),
        clip_ratio_low=0.0,
        clip_ratio_high=0.0,
    )
    assert diagnostics["clipfrac"] == 0


def test_a_dual_clip_stops_at_its_bound() -> None:
    logprobs_BT, old_BT, mask_BT = ratios(1.4, 1.6, 1.6)
    advantages_BT = torch.tensor([[-1.0, -1.0, 0.0]])
    loss, diagnostics = policy_loss(logprobs_BT, old_BT, advantages_BT, mask_BT, clip_ratio_c=1.5)
    assert loss.item() == pytest.approx((1.4 + 1.5) / 3)
    assert diagnostics["clipfrac_c"].item() == pytest.approx(1 / 3)


def test_log_ratios_end_at_twenty() -> None:
    mask_BT = torch.ones(1, 1, dtype=torch.bool)
    far_BT = torch.full((1, 1), 1e4, dtype=torch.float64)
    _, diagnostics = policy_loss(far_BT, torch.zeros_like(far_BT), far_BT, mask_BT)
    assert diagnostics["ratio_mean"].item() == pytest.approx(math.exp(20))
    assert kl_estimate(-far_BT, far_BT, "k1").item() == -20


def test_values_that_have_not_moved_are_not_clipped() -> None:
    values_BT = torch.tensor([[0.5, -0.5]])
    mask_BT = torch.ones(1, 2, dtype=torch.bool)
    loss, diagnostics = value_loss(
        *(values_BT, torch.zeros(1, 2), mask_BT), old_values_BT=values_BT, cliprange_value=0.2
    )
    assert_close(loss, torch.tensor(0.125))
    assert diagnostics["value_clipfrac"] == 0


def test_huber_turns_linear_at_one_unless_told_otherwise() -> None:
    mask_BT = torch.ones(1, 1, dtype=torch.bool)
    far_BT = torch.full((1, 1), 3.0)
    loss, _ = value_loss(far_BT, torch.zeros(1, 1), mask_BT, loss="huber")
    assert loss.item() == pytest.approx(3.0 - 0.5)


def test_the_estimator_is_k1_unless_told_otherwise() -> None:
    logprobs_BT, ref_BT, mask_BT = ratios(2.0)
    assert_close(kl_estimate(logprobs_BT, ref_BT), kl_estimate(logprobs_BT, ref_BT, "k1"))
    loss, diagnostics = kl_penalty(logprobs_BT, ref_BT, mask_BT)
    assert loss.item() == pytest.approx(math.log(2))
    assert diagnostics["kl"] == loss


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_a_cap_of_one_keeps_what_matches(mode: Any) -> None:
    logprobs_BT, old_BT, mask_BT = ratios(1.0, 1.0, 0.5, 2.0)
    weights_BT, keep_BT, diagnostics = truncated_importance_weights(
        logprobs_BT, old_BT, mask_BT, cap=1.0, mode=mode
    )
    low = 0.5 if mode == "truncate" else 0.0
    high = 1.0 if mode == "truncate" else 0.0
    assert_close(weights_BT, torch.tensor([[1.0, 1.0, low, high]], dtype=torch.float64))
    assert keep_BT.tolist() == [[True, True, mode == "truncate", mode == "truncate"]]
    assert diagnostics["weight_clipped"] == (0.25 if mode == "truncate" else 0.5)
    assert diagnostics["weight_max"].item() == pytest.approx(2.0)


def test_the_cap_is_two_unless_told_otherwise() -> None:
    weights_BT, _, diagnostics = truncated_importance_weights(*ratios(1.9, 3.0))
    assert_close(weights_BT, torch.tensor([[1.9, 2.0]], dtype=torch.float64))
    assert diagnostics["weight_clipped"] == 0.5
    k1, k3 = -(math.log(1.9) + math.log(3)) / 2, (0.9 - math.log(1.9) + 2 - math.log(3)) / 2
    assert diagnostics["kl_k1"].item() == pytest.approx(k1)
    assert diagnostics["kl_k3"].item() == pytest.approx(k3)
    assert diagnostics["weight_mean"].item() == pytest.approx(1.95)
    assert diagnostics["ess"].item() == pytest.approx(1.95**2 / ((1.9**2 + 4) / 2))


def test_impossible_arguments_are_refused() -> None:
    batch = Batch()
    policy = batch.logprobs_BT, batch.old_BT, batch.advantages_BT, batch.mask_BT
    value = batch.values_BT, batch.returns_BT, batch.mask_BT
    refused: list[tuple[str, Callable[[], object]]] = [
        ("clip_ratio_low", lambda: policy_loss(*policy, clip_ratio_low=-0.1)),
        ("clip_ratio_high", lambda: policy_loss(*policy, clip_ratio_high=-0.1)),
        ("clip_ratio_c", lambda: policy_loss(*policy, clip_ratio_c=1.0)),
        ("mse", lambda: value_loss(*value, loss="l1")),
        ("huber_delta", lambda: value_loss(*value, loss="huber", huber_delta=0.0)),
        ("cliprange_value", lambda: value_loss(*value, cliprange_value=0.2)),
        (
            "cliprange_value",
            lambda: value_loss(*value, cliprange_value=0.0, old_values_BT=batch.old_values_BT),
        ),
        ("kl_estimator", lambda: kl_estimate(*policy[:2], "k4")),
        ("cap", lambda: truncated_importance_weights(*policy[:2], batch.mask_BT, cap=0.5)),
        ("mode", lambda: truncated_importance_weights(*policy[:2], batch.mask_BT, mode="x")),
    ]
    for name, call in refused:
        with pytest.raises(ValueError, match=name):
            call()


def test_a_value_that_is_not_clipped_counts_as_none() -> None:
    """Old V plus the change is not V in float32; a range of 100 clips neither."""
    old_BT, values_BT = torch.tensor([[-1.6094848]]), torch.tensor([[1.5980923]])
    mask_BT = torch.ones(1, 1, dtype=torch.bool)
    assert old_BT + (values_BT - old_BT) != values_BT
    loss, metrics = value_loss(
        values_BT, torch.ones(1, 1), mask_BT, old_values_BT=old_BT, cliprange_value=100.0
    )
    assert metrics["value_clipfrac"] == 0
    assert loss == value_loss(values_BT, torch.ones(1, 1), mask_BT)[0]
