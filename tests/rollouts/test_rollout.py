"""The rollout record: alignment of tokens, padding, selection of rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.rollouts.rollout import last_token, pad
from tests.support.rollouts import TOKENS, make_rollout


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5), st.randoms())
def test_selected_rows_keep_their_tokens(pairs, random):
    prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
    rows = random.sample(range(len(pairs)), random.randint(1, len(pairs)))
    chosen = make_rollout(prompts, responses).select(torch.tensor(rows))
    expected = [responses[row] for row in rows]
    tokens = [token for row in expected for token in row]
    assert chosen.response_ids_N.tolist() == tokens
    assert chosen.sampler_logprobs_BT[chosen.response_mask_BT].tolist() == tokens
    assert chosen.response_mask_BT.shape[1] == max(map(len, expected))
    assert chosen.input_ids_BL.shape[1] == max(
        len(p) + len(r) for row in rows for p, r in [(prompts[row], responses[row])]
    )
    assert [p.answer for p in chosen.problems] == rows
    assert chosen.positions_B.tolist() == rows


def test_select_cuts_every_tensor_of_the_record():
    rollout = make_rollout([[1], [1, 2]], [[3, 4, 5], [6]])
    rollout = rollout.with_(values_BT=torch.ones(2, 3), loss_weights_BT=torch.ones(2, 3))
    chosen = rollout.select(torch.tensor([1]))
    assert chosen.values_BT.shape == chosen.loss_weights_BT.shape == (1, 1)
    assert chosen.scores_B.tolist() == [1.0]
    assert chosen.old_logprobs_BT is None


def test_select_nothing():
    chosen = make_rollout([[1], [1, 2]], [[3, 4, 5], [6]]).select(
        torch.tensor([], dtype=torch.long)
    )
    assert len(chosen) == 0
    assert chosen.response_mask_BT.shape == (0, 0)


def test_last_token_is_the_last_true_one_even_behind_a_gap():
    mask_BT = torch.tensor([[True, True, False], [True, False, True], [False, False, False]])
    expected = torch.tensor([[False, True, False], [False, False, True], [False, False, False]])
    assert torch.equal(last_token(mask_BT), expected)


def test_pad_puts_tokens_back_and_passes_gradients():
    mask_BT = torch.tensor([[True, False], [True, True]])
    values_N = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    padded = pad(values_N, mask_BT)
    assert padded.tolist() == [[1.0, 0.0], [2.0, 3.0]]
    (padded * torch.tensor([[5.0, 7.0], [11.0, 13.0]])).sum().backward()
    assert values_N.grad.tolist() == [5.0, 11.0, 13.0]
    assert pad(torch.ones(3, 4), mask_BT).shape == (2, 2, 4)


def test_a_filler_weighs_nothing_and_has_the_weights_of_the_mini_batch():
    rollout, ones_BT = make_rollout([[1], [4]], [[2, 3], [5]]), torch.ones(2, 2)
    names = ("loss_weights_BT", "nll_weights_BT", "value_weights_BT")
    for weights in ({}, *({name: ones_BT} for name in names)):
        filler = rollout.filler(rollout.with_(**weights))
        assert len(filler) == 1 and not filler.correct_B.any()
        for name in names:
            value = getattr(filler, name)
            assert (value is not None) == (name in weights)
            assert value is None or value.count_nonzero() == 0
