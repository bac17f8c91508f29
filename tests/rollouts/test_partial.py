"""Responses that are continued with newer weights: nothing lost, doubled or mixed up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.generation import Generations
from lightning_vcppo.rollouts.ahead import Vantage
from lightning_vcppo.rollouts.group_buffer import GroupBuffer
from lightning_vcppo.rollouts.partial import PartialRollouts
from lightning_vcppo.rollouts.rollout import Rollout, join
from lightning_vcppo.settings import EngineSettings, PolicySettings, SamplingSettings
from tests.support.forks import run_ranks
from tests.support.partial_runs import assert_complete, assert_each_token_is_of_its_weights
from tests.support.rollouts import make_rollout
from tests.support.rows import every
from tests.support.training import SAMPLING, SaveAfter, fit, make_module

TRUNCATE = PolicySettings(importance_correction="truncate")
ALONE = Ranks()


def in_parts(length, **changes):
    return {"engine": EngineSettings(partial_length=length)} | changes


class Counting:
    """A sampler whose responses have set lengths and count their own tokens."""

    def __init__(self, lengths):
        self.lengths, self.calls = lengths, []

    def generate(self, prompts, seeds, settings, *, version):
        assert len(set(seeds)) == len(seeds)
        self.calls.append(len(prompts))
        parts, ends = [], []
        for prompt in prompts:
            identity, done = prompt[0], len(prompt) - 1
            end = min(self.lengths[identity], done + settings.max_response_length)
            parts.append(torch.arange(done, end))
            ends.append(end == self.lengths[identity])
        ids_BT = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        counts_B = torch.tensor([len(part) for part in parts])
        mask_BT = torch.arange(ids_BT.shape[1]) < counts_B[:, None]
        logprobs_BT = -(ids_BT + 1000 * version[1]).double()
        return Generations(ids_BT, mask_BT, logprobs_BT, torch.tensor(ends))

    def graded(self, problems, prompts, sampled, positions_B, num_generations):
        tokens = [ids[mask].tolist() for ids, mask in zip(*sampled_rows(sampled), strict=True)]
        rollout = make_rollout(prompts, tokens)
        return rollout.with_(
            problems=tuple(problems),
            sampler_logprobs_BT=sampled.logprobs_BT,
            finished_B=sampled.finished_B,
            positions_B=positions_B,
            group_ids_B=positions_B // num_generations,
        )


def sampled_rows(sampled):
    return sampled.response_ids_BT, sampled.response_mask_BT


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 12), min_size=12, max_size=12),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.sampled_from([1, 2, 3]),
)
def test_each_response_is_complete_and_leaves_once_with_its_group(lengths, part, n):
    """Six batches of two prompts, then as many as it takes; a prompt's id names its response."""
    of_twelve = SamplingSettings(max_response_length=12, num_generations=n)
    sampler = Counting(lengths)
    partial = PartialRollouts(part, sampler)
    left: list[Rollout] = []
    steps = 6 + 12 // part
    for step in range(steps):
        first = 2 * step % 12
        batch = PromptBatch([Problem("", 0)] * 2, [[first], [first + 1]], [first, first + 1])
        at = Vantage((0, step), step, 0, torch.device("cpu"))
        rollout = partial.sample(batch, of_twelve, ("run", step), at, ALONE)
        left += [] if rollout is None else [rollout]
        assert len(partial._waiting) <= 2 * n * (12 // part)
    assert left[0].positions_B[0] % n == 0
    whole = join(left)
    positions = whole.positions_B.tolist()
    assert len({*positions}) == len(positions)
    groups = whole.group_ids_B.unique(return_counts=True)[1]
    assert groups.tolist() == [n] * len(groups)
    assert {*range(2 * n * 6)} <= {*positions}  # what had time to end has ended
    for row, (ids, mask) in enumerate(
        zip(whole.input_ids_BL.tolist(), whole.response_mask_BT, strict=True)
    ):
        count, began = int(mask.sum()), positions[row] // (2 * n)
        assert count == lengths[ids[0]]
        assert ids[1 : 1 + count] == [*range(count)]
        versions = whole.versions_BT[row, :count].tolist()
        assert versions == [began + token // part for token in range(count)]
        wanted = [-float(token + 1000 * v) for token, v in enumerate(versions)]
        assert whole.sampler_logprobs_BT[row, :count].tolist() == wanted


def test_in_one_part_it_is_the_run_of_complete_responses(tiny_actor):
    ours = fit(make_module(tiny_actor, **in_parts(8, policy=TRUNCATE)), 3)
    wanted = fit(make_module(tiny_actor, policy=TRUNCATE), 3)
    for mine, theirs in zip(ours.rollouts, wanted.rollouts, strict=True):
        assert torch.equal(mine.input_ids_BL, theirs.input_ids_BL)
        assert torch.equal(mine.sampler_logprobs_BT, theirs.sampler_logprobs_BT)
    assert torch.equal(ours.actors[-1], wanted.actors[-1])
    assert torch.equal(ours.critics[-1], wanted.critics[-1])
    assert [m["rollout/age"] for m in ours.metrics] == [0, 0, 0]
    assert "rollout/age" not in wanted.metrics[-1]


@pytest.fixture(scope="module")
def in_four(tiny_actor):
    """A run whose responses of up to 8 tokens take up to four steps."""
    return fit(make_module(tiny_actor, **in_parts(2)), 9)


def test_each_token_has_the_log_probability_of_the_weights_that_sampled_it(tiny_actor, in_four):
    learned = assert_each_token_is_of_its_weights(tiny_actor, in_four)
    assert_complete(learned, 8, in_four.trainer.lightning_module.sampler.stop_token_ids())


def test_age_and_waiting_responses_are_logged_and_corrected_for(in_four):
    logged = [m for m, r in zip(in_four.metrics, in_four.rollouts, strict=True) if r is not None]
    assert logged[-1]["rollout/age"] > 0 and logged[-1]["rollout/unfinished"] >= 8
    assert logged[-1]["mismatch/kl_k3"] > 1e-6


def test_the_frozen_policy_is_sampled_in_complete_responses(tiny_actor):
    pretraining = {"max_rollouts": 2, "min_rollouts": 2, "held_out_share": 0.5}
    ours = fit(make_module(tiny_actor, **in_parts(2)), 3, ValuePretraining(**pretraining))
    wanted = fit(make_module(tiny_actor), 3, ValuePretraining(**pretraining))
    assert torch.equal(ours.critics[1], wanted.critics[1])
    assert ours.rollouts[2] is None


@pytest.mark.parametrize("dynamic", every(2, [False, True]))
def test_a_resumed_run_goes_on_bit_for_bit(tiny_actor, tmp_path, dynamic):
    sampling = replace(SAMPLING, dynamic_sampling=dynamic)

    def run(*callbacks, **flags):
        return fit(
            make_module(tiny_actor, **in_parts(2, sampling=sampling)), 9, *callbacks, **flags
        )

    path = tmp_path / "saved.ckpt"
    whole = run(SaveAfter(5, path))
    assert torch.load(path, weights_only=True)["unfinished"]["waiting"][0]
    resumed = run(ckpt_path=path)
    assert len(resumed.actors) == 4
    for mine, theirs in zip(resumed.actors, whole.actors[5:], strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(resumed.critics, whole.critics[5:], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("length", "n", "message"),
    every(
        3,
        [
            (
                2,
                3,
                r"\d+ responses wait in the checkpoint in groups of 2, but --model.sampling.num_",
            ),
            (None, 2, r"\d+ responses that wait .* are dropped: --model.engine.partial_length and"),
            (None, 3, "they are dropped"),
        ],
    ),
)
def test_what_does_not_fit_a_resumed_run_is_dropped_with_a_warning(
    tiny_actor, tmp_path, length, n, message
):
    path = tmp_path / "saved.ckpt"
    fit(make_module(tiny_actor, **in_parts(2)), 5, SaveAfter(4, path))
    sampling = replace(SAMPLING, num_generations=n)
    with pytest.warns(UserWarning, match=message):
        resumed = fit(
            make_module(tiny_actor, **in_parts(length, sampling=sampling)), 12, ckpt_path=path
        )
    learned = [rollout for rollout in resumed.rollouts if rollout is not None]
    assert learned
    for rollout in learned:
        lengths = rollout.prompt_lengths_B.tolist()
        prompts = [
            (int(group), tuple(ids[:end]))
            for group, ids, end in zip(
                rollout.group_ids_B, rollout.input_ids_BL.tolist(), lengths, strict=True
            )
        ]
        assert len({*prompts}) == len({group for group, _ in prompts}) == len(prompts) // n


def as_rank(actor, directory):
    """Train on each of two processes, and save a checkpoint after the fifth batch."""
    module = make_module(actor, **in_parts(2))
    flags = {"devices": 2, "strategy": "ddp"}
    recorder = fit(module, 8, SaveAfter(5, directory / "saved.ckpt"), **flags)
    rollouts = [None if r is None else r.to_plain() for r in recorder.rollouts]
    torch.save(rollouts, directory / f"{module.global_rank}.pt")


@pytest.mark.thorough
def test_two_processes_sample_what_one_does_and_one_continues_them(tiny_actor, tmp_path):
    assert run_ranks(as_rank, tiny_actor, tmp_path, ranks=2, logs=tmp_path / "logs")
    of_ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = fit(make_module(tiny_actor, **in_parts(2)), 8)
    for rollout, *parts in zip(whole.rollouts, *of_ranks, strict=True):
        assert [part is None for part in parts] == [rollout is None] * 2
        if rollout is not None:
            both = join([Rollout.from_plain(part) for part in parts])
            assert both.responses == rollout.responses
            assert torch.equal(both.versions_BT, rollout.versions_BT)
            assert torch.equal(both.positions_B, rollout.positions_B)
    one = fit(make_module(tiny_actor, **in_parts(2)), 8, ckpt_path=tmp_path / "saved.ckpt")
    for rollout, wanted in zip(one.rollouts, whole.rollouts[5:], strict=True):
        assert (rollout is None) == (wanted is None)
        assert rollout is None or sorted(rollout.responses) == sorted(wanted.responses)


def test_groups_that_are_too_many_wait_for_the_next_rollout():
    buffer = GroupBuffer(informative=False, keeps_rest=True)
    rollout = make_rollout([[1], [2], [3], [4]], [[5], [6], [7], [8]])
    rollout = rollout.with_(positions_B=torch.tensor([9, 8, 3, 2]))
    cpu = torch.device("cpu")
    assert buffer.fill(None, 2, 1, ALONE, cpu) is None
    first = buffer.fill(rollout, 2, 1, ALONE, cpu)
    assert first.response_ids_N.tolist() == [8, 7]  # in the order in which they have begun
    second = buffer.fill(None, 2, 1, ALONE, cpu)
    assert second.response_ids_N.tolist() == [6, 5] and second.positions_B.tolist() == [0, 1]
    assert buffer.fill(None, 2, 1, ALONE, cpu) is None


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        ({"partial_length": 0}, {}, "partial_length: expected >= 1 token, got 0"),
        ({"partial_length": 2, "rollouts_ahead": 1}, {}, "set one of the two"),
        ({"partial_length": 3}, {}, "a divisor of sampling.max_response_length=8, .* got 3"),
        (
            {"partial_length": 2},
            {"policy": PolicySettings(importance_correction="off")},
            "with engine.partial_length=2 older weights sample than learn",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tiny_actor, engine, changes, message):
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        make_module(tiny_actor, engine=EngineSettings("transformers_copy", **engine), **changes)
