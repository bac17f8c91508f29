"""What holds for every loss. Shape suffixes: B sequences, T response tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lightning_vcppo.algorithm.loss_weights import LossAggMode, aggregation_weights
from lightning_vcppo.algorithm.losses import combine
from lightning_vcppo.algorithm.statistics import Reduce
from lightning_vcppo.modules.micro_batches import token_balanced_micro_batches
from tests.support.losses import LOSSES, Batch, Loss, counted_mask, run
from tests.support.ranks import on_ranks

MODES: list[LossAggMode] = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
each_loss = pytest.mark.parametrize(("loss", "input_name"), LOSSES.values(), ids=LOSSES.keys())


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
        sums: dict[str, Tensor] = {}
        for rows in cut:
            part, gradient[rows], diagnostics = run(
                loss, batch.rows(rows), input_name, weights_BT[rows]
            )
            total += part
            sums = {n: combine(n, sums[n], d) if sums else d for n, d in diagnostics.items()}
        assert_close(total, whole)
        assert_close(gradient, whole_gradient)
        assert_close(sums, whole_diagnostics)


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
