"""Where the rollout of a step comes from, and what of it a checkpoint keeps."""

from contextlib import nullcontext

import pytest
import torch

from lightning_vcppo.checkpointing.format import Keys
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.distributed.collectives import Ranks
from lightning_vcppo.modules.rollout_source import RolloutSource
from lightning_vcppo.rewards.functions import Grader
from lightning_vcppo.rollouts.ahead import Vantage
from lightning_vcppo.rollouts.sampler import Sampler
from lightning_vcppo.settings import EngineSettings, SamplingSettings
from tests.support.rollouts import make_rollout
from tests.support.rows import every

BATCH = PromptBatch([Problem("p", 1)], [[1]], [0])
NOW = Vantage((0, 0), 0, 0, torch.device("cpu"))


def source_of(correct: list[list[bool]], streams: list[tuple], **sampling) -> RolloutSource:
    """Return a source whose n-th batch is one group with these right and wrong responses."""

    def sample(batch, settings, *stream):
        streams.append(stream)
        rollout = make_rollout([[1]] * 2, [[len(streams)]] * 2)
        group_B = torch.zeros(2, dtype=torch.long)
        return rollout.with_(correct_B=torch.tensor(correct.pop(0)), group_ids_B=group_B)

    grader = Grader("lightning_vcppo.rewards.verify")
    sampler = Sampler(default_tokenizer(320), grader, EngineSettings())
    settings = SamplingSettings(num_generations=2, **sampling)
    return RolloutSource(sampler, settings, sample, nullcontext)


def take(source: RolloutSource, *, whole: bool = False):
    return source.take(BATCH, (5, 3), NOW, Ranks(), whole=whole)


def test_every_batch_is_a_rollout():
    streams: list[tuple] = []
    rollout = take(source_of([[True, True]], streams))
    assert rollout is not None and rollout.response_ids_N.tolist() == [1, 1]
    assert streams == [(5, "rollout", 3, 0)]


@pytest.mark.parametrize("whole", [False, True])
def test_groups_that_teach_nothing_are_dropped_unless_the_batch_is_wanted_whole(whole):
    streams: list[tuple] = []
    source = source_of([[True, True], [True, False]], streams, dynamic_sampling=True)
    first = take(source, whole=whole)
    assert (first is not None) == whole
    if not whole:
        second = take(source)
        assert second is not None and second.response_ids_N.tolist() == [2, 2]
        assert streams == [(5, "rollout", 3, 0), (5, "rollout", 3, 1)]  # not the same responses


@pytest.mark.parametrize("ranks", every(2, [Ranks(), None]))
def test_a_checkpoint_has_the_batches_that_filled_no_rollout(ranks):
    streams: list[tuple] = []
    source = source_of([[False, False]], streams, dynamic_sampling=True)
    assert take(source) is None
    checkpoint = {Keys.ROLLOUTS_DONE: 3}
    source.save(checkpoint)
    again = source_of([[True, False]], streams, dynamic_sampling=True)
    again.restore(checkpoint, ranks)
    assert again.waiting.batches == 1
    again.begin_run()
    assert again.waiting.batches == 0
