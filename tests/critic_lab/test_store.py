"""Rollouts on disk: what goes in comes out, prompts stay whole, bad records are refused."""

from __future__ import annotations

import pytest
import torch

from lightning_vcppo.critic_lab.store import TokenStore
from lightning_vcppo.rollouts.records import SavedResponse
from tests.support.saved_responses import saved_response as record


def test_rows_come_back_in_any_order() -> None:
    store = TokenStore((record(i, j) for i in range(4) for j in range(2)), 10)
    rollout = store.rollout([5, 0])
    assert rollout.prompt_lengths_B.tolist() == [3, 1]
    assert rollout.input_ids_BL.tolist() == [[1, 1, 1, 2, 3, 1], [1, 2, 3, 0, 0, 0]]
    assert rollout.returns_BT is not None
    assert torch.equal(rollout.returns_BT, torch.tensor([[1.0] * 3, [0.0] * 3]))
    assert rollout.group_ids_B.tolist() == [2, 0]


def test_no_prompt_is_fitted_on_and_judged_by() -> None:
    store = TokenStore((record(i, j) for i in range(10) for j in range(3)), 10)
    to_fit, held_out = store.split(0.3, seed=1)
    assert sorted(to_fit + held_out) == list(range(30))
    groups = [{store.groups[row] for row in rows} for rows in (to_fit, held_out)]
    assert not groups[0] & groups[1] and len(groups[1]) == 3
    assert store.split(0.3, seed=1) == (to_fit, held_out) != store.split(0.3, seed=2)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no rollouts"),
        ([record(0, response_ids=[2, 10])], "dump:0: token id 10 is not in the model's vocabulary"),
        ([record(0, response_ids=[])], "dump:0: the response has no tokens"),
    ],
)
def test_bad_records_are_refused(records: list[SavedResponse], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenStore(records, 10)


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="only one prompt"):
        TokenStore([record(0), record(0, 1)], 10).split(0.5, 0)
