"""Rollouts sampled while others are learned from: which weights, when, and what ends it."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vcppo import VCPPOModule
from lightning_vcppo.callbacks import ValuePretraining
from lightning_vcppo.common.server_token import VARIABLE
from lightning_vcppo.generation import TransformersEngine
from lightning_vcppo.models import loading
from lightning_vcppo.rollouts.rollout import Rollout, join
from lightning_vcppo.settings import (
    EngineSettings,
    PolicySettings,
    SamplingSettings,
)
from tests.support.forks import run_ranks
from tests.support.rows import every
from tests.support.sampling_server import TOKEN, SamplingServer
from tests.support.training import SAMPLING, Recorder, SaveAfter, fit, make_module

DYNAMIC = SamplingSettings(max_response_length=8, num_generations=2, dynamic_sampling=True)
PRETRAINING = {"max_rollouts": 2, "min_rollouts": 2, "held_out_share": 0.5}


def ahead(depth: int, **changes) -> dict:
    return {"engine": EngineSettings("transformers_copy", rollouts_ahead=depth)} | changes


def assert_same_runs(ours: Recorder, wanted: Recorder) -> None:
    """Compare the last rollouts, and the weights after each of them, bit for bit."""
    assert ours.actors and len(ours.actors) <= len(wanted.actors)
    for mine, theirs in zip(ours.actors[::-1], wanted.actors[::-1], strict=False):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(ours.critics[::-1], wanted.critics[::-1], strict=False):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(ours.rollouts[::-1], wanted.rollouts[::-1], strict=False):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert torch.equal(mine.input_ids_BL, theirs.input_ids_BL)
            assert torch.equal(mine.sampler_logprobs_BT, theirs.sampler_logprobs_BT)


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "rollout ahead"]


class Evaluated(Callback):
    """Compare what is evaluated with what the actor of this moment samples."""

    def __init__(self) -> None:
        self.batches = 0

    def on_validation_batch_end(self, trainer, pl_module: VCPPOModule, outputs, batch, *_) -> None:
        sampler, records = pl_module.sampler, outputs["records"]
        engine = TransformersEngine(
            pl_module.actor,
            pad_token_id=sampler.tokenizer.pad_token_id,
            eos_token_ids=sampler.stop_token_ids(),
        )
        prompts = [ids for ids in batch.prompt_ids for _ in range(2)]
        sampled = engine.generate(prompts, [record.seed for record in records], SAMPLING)
        assert [r.length for r in records] == sampled.response_mask_BT.sum(1).tolist()
        for record, prompt, ids, mask in zip(
            records, prompts, sampled.response_ids_BT, sampled.response_mask_BT, strict=True
        ):
            assert record.response == sampler.response_text(prompt, ids[mask].tolist())
        self.batches += 1


# Which weights ----------------------------------------------------------------------------------


def test_a_copy_with_nothing_ahead_trains_as_the_model_itself(tiny_actor):
    off = PolicySettings(importance_correction="off")
    ours = fit(make_module(tiny_actor, **ahead(0, policy=off)), 2)
    wanted = fit(make_module(tiny_actor, policy=off), 2)
    assert_same_runs(ours, wanted)
    assert ours.rollouts[0].versions_B is None
    assert "rollout/age" not in ours.metrics[0]


@pytest.fixture(scope="module")
def one_ahead(tiny_actor):
    """Six rollouts over the end of an epoch, each but the first sampled one ahead."""
    return fit(make_module(tiny_actor, **ahead(1)), 3, epochs=2)


def test_a_rollout_comes_from_the_weights_of_the_step_before(tiny_actor, one_ahead):
    module, rollouts = one_ahead.trainer.lightning_module, one_ahead.rollouts
    updates = 2 * 2  # of a rollout: passes, mini-batches
    assert [int(r.versions_B[0]) // updates for r in rollouts] == [0, 0, 1, 2, 3, 4]
    assert [m["rollout/age"] for m in one_ahead.metrics] == [0, *[updates] * 5]
    for k in range(2, 6):  # what was sampled in step k - 1, before its updates
        torch.nn.utils.vector_to_parameters(one_ahead.actors[k - 2], module.actor.parameters())
        logprobs_BT, _ = module.scorer.actor_logprobs(rollouts[k])
        mask_BT = rollouts[k].response_mask_BT
        wanted_N = rollouts[k].sampler_logprobs_BT[mask_BT]
        assert torch.allclose(logprobs_BT[mask_BT], wanted_N, atol=1e-5)
    assert no_thread_is_left()


def test_the_older_weights_are_corrected_for(one_ahead):
    first, second = (one_ahead.metrics[k]["mismatch/kl_k3"] for k in (0, 1))
    assert first < 1e-9 < 1e-6 < second
    names = ("time/trainer_idle", "time/sampler_idle", "time/overlap")
    shares = [[metrics[name] for name in names] for metrics in one_ahead.metrics]
    assert all(0 <= share <= 1 for row in shares for share in row)


def test_each_prompt_is_used_once_and_in_the_order_of_turns(tiny_actor, one_ahead):
    in_turn = fit(make_module(tiny_actor), 3, epochs=2)
    for ours, theirs in zip(one_ahead.rollouts, in_turn.rollouts, strict=True):
        assert [p.problem for p in ours.problems] == [p.problem for p in theirs.problems]


def test_it_is_the_same_again(tiny_actor, one_ahead):
    assert_same_runs(fit(make_module(tiny_actor, **ahead(1)), 3, epochs=2), one_ahead)


@pytest.mark.parametrize("depth", every(2, [1, 2]))
def test_while_the_actor_is_frozen_nothing_is_behind(tiny_actor, depth):
    ours = fit(make_module(tiny_actor, **ahead(depth)), 4, ValuePretraining(**PRETRAINING))
    wanted = fit(make_module(tiny_actor), 4, ValuePretraining(**PRETRAINING))
    for k in range(3):  # the last was in flight at the end of the phase
        assert torch.equal(ours.rollouts[k].input_ids_BL, wanted.rollouts[k].input_ids_BL)
    assert torch.equal(ours.critics[1], wanted.critics[1])
    assert [m["rollout/age"] for m in ours.metrics[:3]] == [0, 0, 0]


def test_with_more_ahead_weights_are_handed_over_less_often(tiny_actor):
    rollouts = fit(make_module(tiny_actor, **ahead(3)), 8).rollouts
    assert [int(r.versions_B[0]) // 4 for r in rollouts] == [0, 0, 0, 0, 3, 3, 3, 6]


def test_an_evaluation_has_the_weights_of_its_moment(tiny_actor):
    evaluated = Evaluated()
    flags = {"val_batches": 1, "val_check_interval": 1}
    fit(make_module(tiny_actor, **ahead(2)), 3, evaluated, **flags)
    assert evaluated.batches >= 3


# Resume -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "sampling", "after"), every(3, [(1, SAMPLING, 3), (2, SAMPLING, 4), (1, DYNAMIC, 4)])
)
def test_a_resumed_run_goes_on_bit_for_bit(tiny_actor, tmp_path, depth, sampling, after):
    def run(*callbacks, **flags):
        module = make_module(tiny_actor, **ahead(depth, sampling=sampling))
        return fit(module, 7, ValuePretraining(**PRETRAINING), *callbacks, **flags)

    path = tmp_path / "saved.ckpt"
    whole = run(SaveAfter(after, path))
    assert torch.load(path, weights_only=True)["rollouts_ahead"]["rollouts"]
    resumed = run(ckpt_path=path)
    assert len(resumed.actors) == 7 - after
    assert_same_runs(resumed, whole)
    assert resumed.metrics[-1]["rollout/age"] == whole.metrics[-1]["rollout/age"]


def test_other_prompts_than_those_sampled_ahead_are_sampled_again(tiny_actor, tmp_path):
    path = tmp_path / "saved.ckpt"
    fit(make_module(tiny_actor, **ahead(1)), 3, SaveAfter(1, path))
    longer = SamplingSettings(max_response_length=8, num_generations=3)
    with pytest.warns(UserWarning, match="not those that were sampled ahead"):
        resumed = fit(make_module(tiny_actor, **ahead(1, sampling=longer)), 3, ckpt_path=path)
    assert [len(rollout) for rollout in resumed.rollouts] == [12, 12]
    assert resumed.metrics[0]["rollout/age"] == 0


# Ranks ------------------------------------------------------------------------------------------


def as_rank(actor, directory, strategy, urls, resumed=False):
    """Learn from four rollouts on each of two processes, and save a checkpoint after the second."""
    module = make_module(actor, **on_ranks(urls))
    path, flags = directory / "saved.ckpt", {"devices": 2, "strategy": strategy}
    if resumed:
        recorder = fit(module, 4, ckpt_path=path, **flags)
    else:
        recorder = fit(module, 4, SaveAfter(2, path), **flags)
    rollouts = [rollout.to_plain() for rollout in recorder.rollouts]
    name = f"{module.global_rank}{'_resumed' * resumed}.pt"
    torch.save((rollouts, recorder.actors[-1]), directory / name)


def on_ranks(urls) -> dict:
    if not urls:
        return ahead(1)
    return {"engine": EngineSettings("vllm_server", urls=urls, rollouts_ahead=1, retry_s=0.01)}


@pytest.fixture
def serve(tiny_actor, monkeypatch):
    """Start servers, and return their addresses; kill them in the end."""
    monkeypatch.setenv(VARIABLE, TOKEN)
    servers = []

    def serve(count: int) -> list[str]:
        servers.extend(SamplingServer(loading.load_actor(str(tiny_actor))) for _ in range(count))
        return [server.url for server in servers]

    yield serve
    for server in servers:
        server.kill()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("strategy", "servers"), [("ddp", 0), ("fsdp2", 0), ("ddp", 1), ("fsdp2", 2)]
)
def test_two_processes_sample_ahead_what_one_does(tiny_actor, tmp_path, serve, strategy, servers):
    urls = serve(servers)
    arguments = (tiny_actor, tmp_path, strategy, urls)
    assert run_ranks(as_rank, *arguments, ranks=2, logs=tmp_path / "logs")
    of_ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = fit(make_module(tiny_actor, **ahead(1)), 4)
    for k, rollout in enumerate(whole.rollouts):
        both = join([Rollout.from_plain(rollouts[k]) for rollouts, _ in of_ranks])
        assert both.responses == rollout.responses
        assert torch.equal(both.versions_B, rollout.versions_B)
    for _, actor in of_ranks:
        assert torch.allclose(actor, whole.actors[-1], atol=2e-3)  # after 16 updates with lr 1e-3
    if strategy == "fsdp2":  # its checkpoints are read by fsdp2
        assert run_ranks(as_rank, *arguments, True, ranks=2, logs=tmp_path / "resumed")
        for rank, (rollouts, actor) in enumerate(of_ranks):
            rest, resumed = torch.load(tmp_path / f"{rank}_resumed.pt")
            assert torch.equal(resumed, actor)
            for mine, theirs in zip(rest, rollouts[2:], strict=True):
                mine, theirs = Rollout.from_plain(mine), Rollout.from_plain(theirs)
                assert mine.responses == theirs.responses
                assert torch.equal(mine.sampler_logprobs_BT, theirs.sampler_logprobs_BT)
        return
    one = fit(make_module(tiny_actor, **on_ranks(urls)), 4, ckpt_path=tmp_path / "saved.ckpt")
    assert one.rollouts[0].responses == whole.rollouts[2].responses
    assert torch.equal(one.rollouts[0].positions_B, whole.rollouts[2].positions_B)


# Refused, and ended -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_an_engine_that_shares_with_training_is_refused(tiny_actor, name, monkeypatch):
    monkeypatch.setattr("lightning_vcppo.rollouts.sampler.require_installed", lambda settings: None)
    with pytest.raises(ValueError, match=f"rollouts_ahead: {name} shares the model .* set --model"):
        make_module(tiny_actor, engine=EngineSettings(name, rollouts_ahead=1))


def test_older_weights_without_a_correction_are_refused(tiny_actor):
    off = PolicySettings(importance_correction="off")
    with pytest.raises(ValueError, match=r"importance_correction: with engine\.rollouts_ahead=1"):
        make_module(tiny_actor, **ahead(1, policy=off))
    for allowed in (PolicySettings(loss="dis", old_logprobs="sampler"), PolicySettings()):
        make_module(tiny_actor, **ahead(1, policy=allowed))


CALLS: list[str] = []


def fails_in_the_second_rollout(response: str, answer: int) -> float:
    CALLS.append(threading.current_thread().name)
    if len(CALLS) > 8:
        raise RuntimeError("no reward")
    return 1.0


def test_what_fails_in_the_thread_ends_the_run(tiny_actor):
    CALLS.clear()
    reward = f"{__name__}.fails_in_the_second_rollout"
    with pytest.raises(RuntimeError, match="no reward"):
        fit(make_module(tiny_actor, **ahead(1, reward=reward)), 3)
    assert {*CALLS} == {"rollout ahead"} and no_thread_is_left()


def slow_in_the_second_rollout(response: str, answer: int) -> float:
    CALLS.append(response)
    time.sleep(0.5 * (len(CALLS) > 8))
    return 1.0


class Fail(Callback):
    """Fail in the first update, while the second rollout is sampled."""

    def on_before_optimizer_step(self, *_) -> None:
        raise RuntimeError("no update")


def test_what_fails_in_training_ends_the_thread(tiny_actor):
    CALLS.clear()
    reward = f"{__name__}.slow_in_the_second_rollout"
    with pytest.raises(RuntimeError, match="no update"):
        fit(make_module(tiny_actor, **ahead(1, reward=reward)), 3, Fail())
    assert no_thread_is_left()
    assert len(CALLS) < 2 * 8  # it has not done all that it had to
