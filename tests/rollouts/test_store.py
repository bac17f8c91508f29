"""Stored rollouts: what is kept, what is held out, whose turn it is; files of saved ones."""

import json
import math
from dataclasses import asdict, fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_vcppo.models.fingerprints import model_fingerprint, tokenizer_fingerprint
from lightning_vcppo.models.loading import load_actor, load_tokenizer
from lightning_vcppo.rollouts.records import ResponseRecord, SavedResponse
from lightning_vcppo.rollouts.saved import SavedRollouts
from lightning_vcppo.rollouts.store import RolloutStore, held_out_prompts, pack, part, unpack
from tests.support.ranks import on_ranks
from tests.support.rollouts import TOKENS, make_rollout, rows


def with_returns(prompts, responses):
    rollout = make_rollout(prompts, responses)
    returns_BT = torch.where(rollout.response_mask_BT, rollout.scores_B[:, None], 0.0)
    return rollout.with_(returns_BT=returns_BT)


def four(first):
    """Four prompts of their own, each with a response."""
    return with_returns(
        [[first], [first + 1, 9], [first + 2], [first + 3]], [[1], [2, 2], [3], [4]]
    )


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5))
def test_what_the_critic_needs_survives_packing(pairs):
    rollout = with_returns([p for p, _ in pairs], [r for _, r in pairs])
    packed = pack(rollout)
    again = unpack(packed)
    assert rows(again) == rows(rollout)
    for name in ("response_mask_BT", "returns_BT", "scores_B", "positions_B", "finished_B"):
        assert torch.equal(getattr(again, name), getattr(rollout, name)), name
    tokens = sum(len(p) + len(r) for p, r in pairs)
    assert packed["input_ids_BL"].shape == (tokens,) and packed["input_ids_BL"].dtype == torch.int32


def test_held_out_and_fitted_rows_make_up_the_rollout():
    store = RolloutStore(replays=0, held_out_share=0.5)
    store.add(four(10))
    assert [p for p, _ in rows(store.held_out)] == [[11, 9], [13]]
    assert [p for p, _ in rows(store.seen)] == [[10], [12]]
    assert store.seen.positions_B.tolist() == store.held_out.positions_B.tolist() == [0, 1]
    assert store.seen.scores_B.tolist() == [0, 2]


def test_a_held_out_prompt_that_comes_again_is_left_out():
    store = RolloutStore(replays=0, held_out_share=0.5)
    store.add(four(10))
    store.add(four(12))  # prompts 12, [13, 9], 14 and 15
    store.add(four(13))  # the first of them was held out
    (lesson,) = store.rollouts_to_fit()
    assert [p for p, _ in rows(lesson)] == [[14, 9], [15], [16]]
    assert lesson.positions_B.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("share", "chosen"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.99, 3)])
def test_something_is_held_out_and_something_is_fitted_on(share, chosen):
    prompts = held_out_prompts([7, 8, 9, 10], torch.arange(4), share)
    assert len(prompts) == chosen and prompts < {7, 8, 9, 10}


def test_one_prompt_cannot_be_in_two_parts():
    with pytest.raises(ValueError, match="nothing can be held out"):
        RolloutStore(0, 0.5).add(make_rollout([[1]], [[2]]))


def test_every_stored_rollout_has_its_turn_and_the_newest_comes_last():
    store = RolloutStore(replays=2, held_out_share=0.25)
    turns = []
    for number in range(4):
        store.add(four(10 * number))
        turns.append([int(lesson.input_ids_BL[0, 0]) // 10 for lesson in store.rollouts_to_fit()])
    assert turns == [[0, 0, 0], [0, 1, 1], [0, 1, 2], [2, 3, 3]]
    assert {number for step in turns for number in step} == {0, 1, 2, 3}


def test_saved_rollouts_that_come_again_are_stored_once():
    store = RolloutStore(replays=1, held_out_share=0.25)
    store.distinct = 2
    newest = []
    for number in (0, 1, 0, 1, 0):
        store.add(four(10 * number))
        newest.append(int(list(store.rollouts_to_fit())[-1].input_ids_BL[0, 0]) // 10)
    assert len(store) == 2 and store.rounds == 5
    assert newest == [0, 1, 0, 1, 0]


def test_ranks_hold_out_what_one_would():
    whole = four(10)
    again = four(13)

    def shard(rollout, rank):
        return rollout.select(torch.arange(2 * rank, 2 * rank + 2))

    def run(rank, reduce):
        store = RolloutStore(replays=0, held_out_share=0.5)
        for rollout in (whole, again):
            store.add(shard(rollout, rank), reduce=reduce)
        return [store.held_out, store.seen, *store.rollouts_to_fit()]

    alone = RolloutStore(replays=0, held_out_share=0.5)
    alone.add(whole)
    alone.add(again)
    expected = [alone.held_out, alone.seen, *alone.rollouts_to_fit()]
    for one, *parts in zip(expected, *on_ranks(run, [0, 1]), strict=True):
        found = {}
        for of_rank in parts:
            found |= dict(zip(of_rank.positions_B.tolist(), rows(of_rank), strict=True))
        assert found == dict(zip(one.positions_B.tolist(), rows(one), strict=True))


def test_a_rank_without_any_of_the_rows_keeps_one_that_no_mini_batch_asks_for():
    whole = four(10)
    chosen_B = torch.tensor([True, True, False, False])

    def run(rank, reduce):
        mine = torch.arange(2 * rank, 2 * rank + 2)
        return part(whole.select(mine), chosen_B[mine], reduce)

    first, second = on_ranks(run, [0, 1])
    assert first.positions_B.tolist() == [0, 1]
    assert second.positions_B.tolist() == [-1]


def test_a_store_survives_a_checkpoint(tmp_path):
    store, again = (RolloutStore(replays=1, held_out_share=0.5) for _ in range(2))
    for number in range(3):
        store.add(four(10 * number))
        list(store.rollouts_to_fit())
    torch.save(store.state_dict(), tmp_path / "state.pt")
    again.load_state_dict([torch.load(tmp_path / "state.pt", weights_only=True)])
    assert rows(again.held_out) == rows(store.held_out)
    for one in (store, again):
        one.add(four(11))  # prompt 11 is held out
    assert [rows(x) for x in again.rollouts_to_fit()] == [rows(x) for x in store.rollouts_to_fit()]
    assert again.rounds == store.rounds == 4


@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_another_number_of_ranks_divides_what_was_stored(ranks):
    whole = four(10)

    def run(rank, reduce):
        store = RolloutStore(replays=0, held_out_share=0.5)
        store.add(whole.select(torch.arange(2 * rank, 2 * rank + 2)), reduce=reduce)
        return store.state_dict()

    alone = RolloutStore(replays=0, held_out_share=0.5)
    alone.add(whole)
    saved, found = on_ranks(run, [0, 1]), {"held_out": [], "seen": []}
    for rank in range(ranks):
        store = RolloutStore(replays=0, held_out_share=0.5)
        store.load_state_dict(saved, rank, ranks)
        for name, parts in found.items():
            mine = getattr(store, name)
            parts += rows(mine.select((mine.positions_B >= 0).nonzero()[:, 0]))
    assert found == {name: rows(getattr(alone, name)) for name in found}


# Files

ORIGIN = {"tokenizer": "a", "model": "b", "temperature": 1.0}


def saved(index, sample=0, origin=ORIGIN):
    return SavedResponse(
        index=index,
        sample=sample,
        source="s",
        problem=f"p{index}",
        answer=index,
        response="r",
        prediction=None,
        correct=index % 2 == 0,
        length=2,
        finished=True,
        prompt_ids=[index],
        response_ids=[50 + index, sample],
        reward=1.0 if index % 2 == 0 else -1.0,
        origin=origin,
    )


def evaluated(index):
    """Return what an evaluation keeps of a response: no tokens."""
    return ResponseRecord(
        **{field.name: getattr(saved(index), field.name) for field in fields(ResponseRecord)}
    )


def write(path, responses):
    path.write_text("".join(json.dumps(asdict(response)) + "\n" for response in responses))
    return str(path)


def test_a_file_is_dealt_out_again_and_again(tmp_path):
    path = write(tmp_path / "x.jsonl", [saved(i, s) for i in range(5) for s in range(2)])
    rollouts = SavedRollouts(path, ORIGIN, seed=0)
    assert rollouts.count(2) == 2  # one problem is left over
    first, second, third = (rollouts.take(number, 2) for number in range(3))
    assert rows(first) == rows(third) != rows(second)
    assert len(set(first.problems + second.problems)) == 4
    for rollout in (first, second):
        assert rollout.group_ids_B.tolist() == [0, 0, 1, 1]
        for (prompt, response), problem in zip(rows(rollout), rollout.problems, strict=True):
            assert problem.answer == prompt[0] == response[0] - 50
        assert rollout.correct_B.tolist() == [p.answer % 2 == 0 for p in rollout.problems]
    halves = [rollouts.take(1, 1, rank, 2) for rank in range(2)]
    assert rows(halves[0]) + rows(halves[1]) == rows(second)
    assert halves[1].positions_B.tolist() == [2, 3]


def test_problems_of_a_file_can_be_graded_by(tmp_path):
    given = {"answer": "1/2", "accepted": ["B"], "columns": {"level": 3}}
    path = write(tmp_path / "x.jsonl", [replace(saved(0), **given), saved(1)])
    problems = {p.problem: p for p in SavedRollouts(path, ORIGIN, seed=0).take(0, 2).problems}
    first, second = problems["p0"], problems["p1"]
    assert (first.gold, first.answer_kind, first.columns) == (("1/2", "B"), "math", {"level": 3})
    assert (second.gold, second.answer_kind, second.columns) == (1, "integer", {})


BAD_FIELDS = [
    (json.dumps(asdict(saved(0)) | {field: cell}), f"{field}: expected")
    for field, cells in {
        "reward": [math.nan, math.inf, 1e39, 10**400, "1", None],
        "prompt_ids": [None, 5, "ab", [1.5], [-1], [True], ["1"], [[1]]],
        "response_ids": [None, 5, "ab", [1.5], [-1], [True], ["1"], [[1]]],
        "finished": ["false", 300, None],
        "correct": ["true", [1]],
        "index": [[1], None],
        "origin": ["here"],
        "columns": [["level"], None],
    }.items()
    for cell in cells
]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "x.jsonl:1: expected a graded response; Expecting property name"),
        ('{"index": 0}', "x.jsonl:1: expected a graded response"),
        ("[]", "x.jsonl:1: expected a graded response"),
        ("[" * 100_000, "x.jsonl:1: expected a graded response; broken JSON, nested too deeply"),
        *((text, f"x.jsonl:1: expected a graded response; {end}") for text, end in BAD_FIELDS),
        ([saved(60)], "x.jsonl:1: response_ids: expected a list of token ids in 0..99, got 110"),
        ([evaluated(0)], "x.jsonl: expected token ids, as `vcppo predict` writes them"),
        ("", "x.jsonl: no responses"),
        ([saved(0), saved(0, 1), saved(1)], "x.jsonl: problems have 1 to 2 responses"),
        (
            [saved(0, origin=ORIGIN | {"model": "c", "temperature": 0.6})],
            "x.jsonl: the responses come from another policy: model c instead of b, "
            "temperature 0.6 instead of 1.0",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    if isinstance(content, str):
        path.write_text(content)
    else:
        write(path, content)
    with pytest.raises(ValueError) as error:
        SavedRollouts(str(path), ORIGIN, seed=0, vocabulary=100)
    assert str(error.value).startswith(f"{tmp_path}/{message}")


def test_a_file_too_small_for_a_rollout_is_refused(tmp_path):
    rollouts = SavedRollouts(write(tmp_path / "x.jsonl", [saved(0)]), ORIGIN, seed=0)
    with pytest.raises(ValueError, match="expected at least the 2 problems of a rollout"):
        rollouts.take(0, 2)


def test_fingerprints_notice_a_change_and_nothing_else(tiny_actor):
    model, tokenizer = load_actor(str(tiny_actor)), load_tokenizer(str(tiny_actor))
    before = model_fingerprint(model), tokenizer_fingerprint(tokenizer)
    same = load_actor(str(tiny_actor)).to(torch.bfloat16)
    assert model_fingerprint(same) == before[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    tokenizer.add_tokens(["<new>"])
    assert model_fingerprint(model) != before[0]
    assert tokenizer_fingerprint(tokenizer) != before[1]
