"""What holds for every loss. Shape suffixes: B sequences, T response tokens."""

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
    kl_penalty,
    policy_loss,
    positive_example_nll,
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


@each_loss
def test_means_of_micro_batch_means_would_be_wrong(loss: Loss, input_name: str) -> None:
    """Normalising in each micro-batch, as other trainers do, gives short rows too much weight."""
    batch = Batch()
    whole, _, _ = run(loss, batch, input_name, None)
    means = [run(loss, batch.rows([row]), input_name, None)[0] for row in (0, 1, 3, 4)]
    assert abs(torch.stack(means).mean() - whole) > 1e-2
