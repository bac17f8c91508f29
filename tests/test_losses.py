"""Shape suffixes: B sequences, T response tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lightning_vcppo.losses import (
    kl_estimate,
    kl_penalty,
    policy_loss,
    positive_example_nll,
    prompt_noise_weights,
    truncated_importance_weights,
    value_loss,
)
from lightning_vcppo.microbatch import (
    LossAggMode,
    Reduce,
    aggregation_weights,
    token_balanced_micro_batches,
)
from lightning_vcppo.value_heads import hl_gauss_edges, hl_gauss_loss
from tests.ranks import on_ranks

MODES: list[LossAggMode] = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
BINS = 9


class Batch:
    """Everything that a loss may ask for, of five rows with 6, 1, 0, 4 and 2 tokens, in float64."""

    def __init__(self, seed: int = 0, fill: float = 0.0) -> None:
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        self.mask_BT = torch.arange(6) < torch.tensor([6, 1, 0, 4, 2])[:, None]
        self.mask_BT[0, 2] = False
        self.logprobs_BT = self._with(fill, -normal(5, 6).abs())
        self.old_BT = self._with(fill, self.logprobs_BT + 0.5 * normal(5, 6))
        self.advantages_BT = self._with(fill, normal(5, 6))
        self.importance_BT = self._with(fill, normal(5, 6).exp())
        self.values_BT = self._with(fill, normal(5, 6))
        self.old_values_BT = self._with(fill, self.values_BT + 0.3 * normal(5, 6))
        self.returns_BT = self._with(fill, normal(5, 6))
        self.correct_B = torch.tensor([True, False, True, False, True])
        self.logits_BTK = normal(5, 6, BINS)
        self.logits_BTK[~self.mask_BT] = fill

    def _with(self, fill: float, x_BT: Tensor) -> Tensor:
        return torch.where(self.mask_BT, x_BT, fill)

    def rows(self, indices: list[int] | slice) -> Batch:
        part = object.__new__(Batch)
        part.__dict__ = {name: x[indices] for name, x in vars(self).items()}
        return part


# Every loss, with every term that it has, as a function of a batch, its prediction and weights.
Loss = Callable[[Batch, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]


def _policy(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return policy_loss(
        x,
        batch.old_BT,
        batch.advantages_BT,
        batch.mask_BT,
        clip_ratio_low=0.1,
        clip_ratio_high=0.15,
        clip_ratio_c=1.3,
        importance_weights_BT=batch.importance_BT,
        token_weights_BT=weights_BT,
    )


def _value(batch: Batch, x: Tensor, weights_BT: Tensor | None, **options: Any) -> Any:
    return value_loss(x, batch.returns_BT, batch.mask_BT, token_weights_BT=weights_BT, **options)


def _clipped_value(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return _value(
        batch, x, weights_BT, old_values_BT=batch.old_values_BT, cliprange_value=0.2, loss="huber"
    )


def _nll(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return positive_example_nll(x, batch.mask_BT, batch.correct_B, token_weights_BT=weights_BT)


def _kl(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    return kl_penalty(x, batch.old_BT, batch.mask_BT, estimator="k3", token_weights_BT=weights_BT)


def _hl_gauss(batch: Batch, x: Tensor, weights_BT: Tensor | None) -> Any:
    edges_E = hl_gauss_edges(-3.0, 3.0, BINS, dtype=torch.promote_types(x.dtype, torch.float32))
    return hl_gauss_loss(
        x, batch.returns_BT, batch.mask_BT, edges_E=edges_E, token_weights_BT=weights_BT
    )


LOSSES: dict[str, tuple[Loss, str]] = {
    "policy": (_policy, "logprobs_BT"),
    "value": (_value, "values_BT"),
    "clipped value": (_clipped_value, "values_BT"),
    "nll": (_nll, "logprobs_BT"),
    "kl": (_kl, "logprobs_BT"),
    "hl_gauss": (_hl_gauss, "logits_BTK"),
}
each_loss = pytest.mark.parametrize(("loss", "input_name"), LOSSES.values(), ids=LOSSES.keys())


def counted_mask(loss: Loss, batch: Batch) -> Tensor:
    return batch.mask_BT & batch.correct_B[:, None] if loss is _nll else batch.mask_BT


def run(
    loss: Loss, batch: Batch, input_name: str, weights_BT: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x = getattr(batch, input_name).clone().requires_grad_()
    value, diagnostics = loss(batch, x, weights_BT)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient, diagnostics


@each_loss
@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_change_nothing(loss: Loss, input_name: str, mode: LossAggMode) -> None:
    batch = Batch()
    weights_BT = aggregation_weights(counted_mask(loss, batch), mode, dtype=torch.float64)
    whole, whole_gradient, whole_diagnostics = run(loss, batch, input_name, weights_BT)
    cuts = [
        [[0], [1], [2], [3], [4]],
        [[4, 1], [2, 0, 3]],
        token_balanced_micro_batches(batch.mask_BT.sum(1).tolist(), 6, num_micro_batches=7),
    ]
    for cut in cuts:
        total, gradient = torch.zeros_like(whole), torch.zeros_like(whole_gradient)
        sums = dict.fromkeys(whole_diagnostics, 0.0)
        for rows in cut:
            part, gradient[rows], diagnostics = run(
                loss, batch.rows(rows), input_name, weights_BT[rows]
            )
            total += part
            sums = {name: sums[name] + diagnostics[name].item() for name in sums}
        assert_close(total, whole)
        assert_close(gradient, whole_gradient)
        assert sums == pytest.approx({k: v.item() for k, v in whole_diagnostics.items()})


@each_loss
def test_ranks_change_nothing(loss: Loss, input_name: str) -> None:
    batch = Batch()

    def compute(rows: slice, reduce: Reduce) -> tuple[Tensor, Tensor]:
        part = batch.rows(rows)
        weights_BT = aggregation_weights(
            counted_mask(loss, part), "seq-mean-token-mean", reduce=reduce, dtype=torch.float64
        )
        value, gradient, _ = run(loss, part, input_name, weights_BT)
        return value, gradient

    parts = on_ranks(compute, [slice(0, 1), slice(1, 5)])
    whole, gradient = compute(slice(None), lambda statistics: statistics)
    assert_close(torch.stack([value for value, _ in parts]).sum(), whole)
    assert_close(torch.cat([part for _, part in parts]), gradient)


@each_loss
@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf])
def test_nothing_outside_the_mask_is_read(loss: Loss, input_name: str, fill: float) -> None:
    clean, clean_gradient, clean_diagnostics = run(loss, Batch(), input_name, None)
    value, gradient, diagnostics = run(loss, Batch(fill=fill), input_name, None)
    assert torch.equal(value, clean)
    assert torch.equal(gradient, clean_gradient)
    assert diagnostics == clean_diagnostics
    assert not gradient[~Batch().mask_BT].any()


@each_loss
def test_an_empty_batch_costs_nothing(loss: Loss, input_name: str) -> None:
    for rows in ([2], []):
        value, gradient, _ = run(loss, Batch().rows(rows), input_name, None)
        assert value == 0
        assert not gradient.any()


@each_loss
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), padding=st.integers(1, 5))
def test_padding_and_the_order_of_rows_change_nothing(
    loss: Loss, input_name: str, seed: int, padding: int
) -> None:
    batch = Batch(seed)
    wide = batch.rows(torch.randperm(5).tolist())
    for name, x in vars(wide).items():
        if x.ndim > 1:
            fill = torch.zeros(5, padding, *x.shape[2:]).to(x.dtype)
            setattr(wide, name, torch.cat([fill, x, fill], dim=1))
    assert_close(run(loss, wide, input_name, None)[0], run(loss, batch, input_name, None)[0])


@each_loss
def test_gradients_are_those_of_finite_differences(loss: Loss, input_name: str) -> None:
    batch = Batch()
    x = getattr(batch, input_name).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(batch, x, None)[0], (x,), fast_mode=True)


@each_loss
def test_only_the_prediction_gets_a_gradient(loss: Loss, input_name: str) -> None:
    batch = Batch()
    others = {name: x for name, x in vars(batch).items() if x.is_floating_point()}
    prediction = others.pop(input_name)
    for x in others.values():
        x.requires_grad_()
    value, diagnostics = loss(batch, prediction, None)
    assert not value.requires_grad
    prediction.requires_grad_()
    value, diagnostics = loss(batch, prediction, None)
    value.backward()
    assert all(x.grad is None for x in others.values())
    assert not any(diagnostic.requires_grad for diagnostic in diagnostics.values())


@each_loss
def test_lower_precision_is_computed_in_float32(loss: Loss, input_name: str) -> None:
    batch = Batch()
    for name, x in vars(batch).items():
        if x.is_floating_point():
            setattr(batch, name, x.bfloat16())
    value, _ = loss(batch, getattr(batch, input_name), None)
    assert value.dtype == torch.float32


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


@each_loss
def test_means_of_micro_batch_means_would_be_wrong(loss: Loss, input_name: str) -> None:
    """Normalising in each micro-batch, as other trainers do, gives short rows too much weight."""
    batch = Batch()
    whole, _, _ = run(loss, batch, input_name, None)
    means = [run(loss, batch.rows([row]), input_name, None)[0] for row in (0, 1, 3, 4)]
    assert abs(torch.stack(means).mean() - whole) > 1e-2


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
    scores_B = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0])
    weights_B = prompt_noise_weights(scores_B, torch.tensor([4, 2, 4, 2, 9]))
    std = math.sqrt(2)  # of +1 and -1
    assert_close(weights_B, torch.tensor([1 / std, 4.0, 1 / std, 4.0, 4.0]))


def test_impossible_arguments_are_refused() -> None:
    batch = Batch()
    policy = batch.logprobs_BT, batch.old_BT, batch.advantages_BT, batch.mask_BT
    value = batch.values_BT, batch.returns_BT, batch.mask_BT
    refused: list[tuple[str, Callable[[], object]]] = [
        ("clip_ratio_low", lambda: policy_loss(*policy, clip_ratio_low=-0.1)),
        ("clip_ratio_c", lambda: policy_loss(*policy, clip_ratio_c=1.0)),
        ("loss_agg_mode", lambda: policy_loss(*policy, loss_agg_mode="mean")),
        ("mse", lambda: value_loss(*value, loss="l1")),
        ("huber_delta", lambda: value_loss(*value, loss="huber", huber_delta=0.0)),
        ("cliprange_value", lambda: value_loss(*value, cliprange_value=0.2)),
        ("kl_estimator", lambda: kl_estimate(*policy[:2], "k4")),
        ("cap", lambda: truncated_importance_weights(*policy[:2], batch.mask_BT, cap=0.5)),
        ("mode", lambda: truncated_importance_weights(*policy[:2], batch.mask_BT, mode="x")),
    ]
    for name, call in refused:
        with pytest.raises(ValueError, match=name):
            call()
