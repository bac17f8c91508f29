"""Groups that can teach, and the buffer in which they wait."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.rollouts.group_buffer import GroupBuffer, informative_rows
from lightning_vcppo.rollouts.rollout import join
from tests.support.rollouts import make_rollout


def test_rows_of_mixed_groups_are_informative():
    correct_B = torch.tensor([True, False, True, True, False, False, False, True])
    group_ids_B = torch.tensor([7, 7, 3, 3, 5, 5, 9, 9])
    assert informative_rows(correct_B, group_ids_B).tolist() == [0, 1, 6, 7]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=20))
def test_informative_rows_are_those_of_a_loop(rows):
    groups = [group for group, _ in rows]
    correct = [right for _, right in rows]
    expected = [
        i
        for i, g in enumerate(groups)
        if len({c for c, h in zip(correct, groups, strict=True) if h == g}) == 2
    ]
    assert informative_rows(torch.tensor(correct), torch.tensor(groups)).tolist() == expected


def two_parts():
    first = make_rollout([[1], [2, 3]], [[4, 5, 6], [7]])
    second = make_rollout([[8, 9], [10]], [[11], [12, 13]])
    correct_B, group_ids_B = torch.tensor([True, False]), torch.tensor([4, 4])
    return [part.with_(correct_B=correct_B, group_ids_B=group_ids_B) for part in (first, second)]


def test_joined_rows_keep_their_tokens():
    whole = join(two_parts())
    assert whole.response_ids_N.tolist() == [4, 5, 6, 7, 11, 12, 13]
    assert whole.sampler_logprobs_BT.shape == (4, 3)
    assert whole.responses == ("r0", "r1", "r0", "r1")
    assert whole.values_BT is None


def test_each_rank_takes_its_part_of_the_groups_of_all():
    first, second = two_parts()
    second = second.with_(positions_B=second.positions_B + 2)  # as `Sampler` numbers them
    for rank, mine in enumerate((first, second)):
        buffer = GroupBuffer()
        buffer.add(mine, gather=lambda _: [first, second])
        assert len(buffer) == 4
        taken = buffer.take(2, 2, Ranks(rank=rank, count=2))
        assert torch.equal(taken.response_ids_N, mine.response_ids_N)
        assert taken.positions_B.tolist() == [2 * rank, 2 * rank + 1]
        assert taken.group_ids_B.tolist() == [rank, rank]


def test_batches_that_fill_no_rollout_are_told_once():
    buffer, (_, equal) = GroupBuffer(), two_parts()
    equal = equal.with_(correct_B=torch.tensor([False, False]))
    for _ in range(7):
        buffer.add(equal)
    with pytest.warns(
        UserWarning, match="8 batches have not filled a rollout; 0 responses are kept"
    ):
        buffer.add(equal)
    buffer.add(equal)
    assert len(buffer) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_groups_are_counted_in_any_precision(dtype):
    """Lightning makes the type of the Trainer's precision the default of new tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        rows = informative_rows(torch.tensor([True] * 300 + [False]), torch.zeros(301).long())
    finally:
        torch.set_default_dtype(before)
    assert len(rows) == 301  # bfloat16 does not count that far


def test_the_buffer_survives_a_checkpoint(tmp_path):
    buffer, again = GroupBuffer(), GroupBuffer()
    for part in two_parts():
        buffer.add(part)
    torch.save(buffer.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.batches == 2 and len(again) == 4
    taken, expected = (b.take(2, 2, Ranks(rank=1, count=2)) for b in (again, buffer))
    assert taken.problems == expected.problems
    assert torch.equal(taken.response_ids_N, expected.response_ids_N)
    assert taken.positions_B.tolist() == [2, 3]
    assert taken.group_ids_B.tolist() == [1, 1]
    assert len(buffer) == buffer.batches == 0
