"""Value targets after an update of the policy. Shape suffixes: B sequences, T response tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightning_vcppo.algorithm.importance import (
    importance_corrected_returns,
    truncated_importance_weights,
)
from lightning_vcppo.algorithm.statistics import Reduce
from tests.support.losses import Batch
from tests.support.ranks import on_ranks


def test_targets_by_hand() -> None:
    ratios_BT = torch.tensor([[1.0, 0.5, 2.0, 7.0, 3.0]], dtype=torch.float64)
    returns_BT = torch.tensor([[1.0, 1.0, -1.0, 1.0, 9.0]], dtype=torch.float64)
    old_BT = -torch.ones_like(ratios_BT)
    mask_BT = torch.tensor([[True, True, True, True, False]])
    arguments = returns_BT, old_BT + ratios_BT.log(), old_BT, mask_BT
    targets_BT, keep_BT, diagnostics = importance_corrected_returns(*arguments)
    assert_close(targets_BT, torch.tensor([[1.0, 0.5, -2.0, 0.0, 0.0]], dtype=torch.float64))
    assert keep_BT.tolist() == [[True, True, True, False, False]]
    assert diagnostics["target_left_out"] == 0.25
    assert diagnostics["target_ratio_mean"].item() == pytest.approx((1 + 0.5 + 2 + 7) / 4)
    # From -1 on, in whose unit the returns are 2, 2, 0: the lowest stays what it is.
    targets_BT, _, _ = importance_corrected_returns(*arguments, low=-1.0, max_ratio=8.0)
    assert_close(targets_BT, torch.tensor([[1.0, 0.0, -1.0, 13.0, 0.0]], dtype=torch.float64))


def test_without_an_update_the_targets_are_the_returns() -> None:
    batch = Batch(fill=torch.nan)
    same = batch.returns_BT, batch.logprobs_BT, batch.logprobs_BT, batch.mask_BT
    targets_BT, keep_BT, diagnostics = importance_corrected_returns(*same, low=-1.0)
    assert_close(targets_BT, torch.where(batch.mask_BT, batch.returns_BT, 0.0))
    assert torch.equal(keep_BT, batch.mask_BT)
    assert diagnostics["target_ratio_mean"] == 1 and diagnostics["target_left_out"] == 0


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_the_mean_target_is_the_value_of_drawing_one_token_anew(low: float) -> None:
    """All responses of two tokens, each with its probability: expectations are exact."""
    torch.manual_seed(0)
    size = 4
    first_V, new_first_V = torch.randn(2, size, dtype=torch.float64).softmax(-1)
    second_VV, new_second_VV = torch.randn(2, size, size, dtype=torch.float64).softmax(-1)
    reward_VV = torch.randint(0, 2, (size, size)).double() * (1.0 - low) + low

    a_B, b_B = torch.cartesian_prod(torch.arange(size), torch.arange(size)).unbind(1)
    old_BT = torch.stack([first_V[a_B], second_VV[a_B, b_B]], 1)
    new_BT = torch.stack([new_first_V[a_B], new_second_VV[a_B, b_B]], 1)
    returns_BT = reward_VV[a_B, b_B][:, None].expand(-1, 2)
    targets_BT, keep_BT, _ = importance_corrected_returns(
        returns_BT,
        new_BT.log(),
        old_BT.log(),
        torch.ones_like(old_BT).bool(),
        low=low,
        max_ratio=99,
    )
    assert keep_BT.all()

    # Before the first token: it is drawn from the new policy, the second from the old.
    value = (first_V[a_B] * second_VV[a_B, b_B] * targets_BT[:, 0]).sum()
    assert_close(value, (new_first_V[:, None] * second_VV * reward_VV).sum())
    # Before the second: the value under the new policy, for it is the last.
    values_V = (second_VV * targets_BT[:, 1].view(size, size)).sum(1)
    assert_close(values_V, (new_second_VV * reward_VV).sum(1))


def test_diagnostics_are_over_all_ranks() -> None:
    batch = Batch()

    def compute(rows: slice, reduce: Reduce) -> dict[str, Tensor]:
        part = batch.rows(rows)
        arguments = part.returns_BT, part.logprobs_BT, part.old_BT, part.mask_BT
        return importance_corrected_returns(*arguments, max_ratio=1.2, reduce=reduce)[2]

    whole = compute(slice(None), lambda statistics: statistics)
    assert 0 < whole["target_left_out"] < 1
    for part in on_ranks(compute, [slice(0, 1), slice(1, 5)]):
        assert_close(part, whole)


def test_a_largest_ratio_of_one_is_refused() -> None:
    batch = Batch()
    arguments = batch.returns_BT, batch.logprobs_BT, batch.old_BT, batch.mask_BT
    with pytest.raises(ValueError, match="max_ratio"):
        importance_corrected_returns(*arguments, max_ratio=1.0)


def test_weights_are_detached_from_both_log_probabilities() -> None:
    batch = Batch()
    old_BT, sampler_BT = batch.logprobs_BT.clone().requires_grad_(), batch.old_BT.clone()
    weights_BT, _, diagnostics = truncated_importance_weights(
        old_BT, sampler_BT.requires_grad_(), batch.mask_BT
    )
    assert not weights_BT.requires_grad
    assert not any(diagnostic.requires_grad for diagnostic in diagnostics.values())
