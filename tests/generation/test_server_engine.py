"""The server engine against servers that speak as vLLM's do; with vLLM, see test_vllm_server.py."""

from __future__ import annotations

import copy
import re
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_vcppo.common.errors import EngineLostError
from lightning_vcppo.common.server_token import VARIABLE
from lightning_vcppo.generation import server_fleet
from lightning_vcppo.generation.server_fleet import Fleet
from lightning_vcppo.models import loading
from lightning_vcppo.settings import EngineSettings, SamplingSettings
from tests.support.forks import run_ranks
from tests.support.rows import every
from tests.support.sampling_server import (
    GENERATE,
    TOKEN,
    SamplingServer,
    at,
    hang_up,
    restarted,
    say,
    stall,
)
from tests.support.served import assert_same, engine_for, moved, sample
from tests.support.stopping import PROMPTS, assert_responses_end_where_they_should
from tests.support.tiny_runs import ROLLOUTS, TINY_QWEN2, vcppo

SEEDS = [1, 2, 3, 4]


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv(VARIABLE, TOKEN)


@pytest.fixture
def model(tiny_actor):
    return loading.load_actor(str(tiny_actor))


@pytest.fixture
def start(model):
    """Start servers that have other weights than the actor, and kill them in the end."""
    servers = []

    def start(**arguments) -> SamplingServer:
        servers.append(SamplingServer(moved(copy.deepcopy(model), 5), **arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def test_responses_are_the_trainers_before_and_after_a_hand_over(model, start):
    server = start()
    engine = engine_for(model, server)
    before = sample(engine)
    assert_same(before, model)
    old = copy.deepcopy(model)
    moved(model, 1)
    engine.take_weights(0)  # the version says: nothing new
    assert_same(sample(engine), old)
    engine.take_weights(1)
    assert_same(sample(engine), model)
    assert sample(engine).response_ids_BT.tolist() != before.response_ids_BT.tolist()
    moved(model, 2)
    engine.forget_weights()
    engine.take_weights(1)
    assert_same(sample(engine), model)
    assert server.paths.count("/collective_rpc") == 3


def test_stops_and_greedy_and_top_p(model, start):
    stops = set(range(20, 60))
    assert_responses_end_where_they_should(engine_for(model, start(), stops=stops), stops)
    settings = SamplingSettings(top_p=0.5, max_response_length=5)
    sampled = engine_for(model, start()).generate(PROMPTS, SEEDS, settings)
    assert sampled.logprobs_BT.isnan().all() and not sampled.finished_B.any()


def test_two_servers_share_the_prompts_and_the_split_changes_nothing(model, start):
    first, second = start(), start()
    assert_same(sample(engine_for(model, first, second), 24), model, 24)
    assert first.served + second.served == 24 and min(first.served, second.served) > 0


def test_calls_of_two_threads_do_not_mix(model, start):
    engine, sampled = engine_for(model, start()), {}
    threads = [
        threading.Thread(target=lambda i=i: sampled.update({i: sample(engine, i)})) for i in (3, 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows, of_thread in sampled.items():
        assert_same(of_thread, model, rows)


RUBBISH = {
    "closed": hang_up,
    "500": say(b'{"error": "EngineDeadError"}', 500),
    "not json": say(b"<html>"),
    "empty": say(b""),
    "list": say(b"[1, 2]"),
    "no choices": say(b'{"choices": []}'),
    "other tokens": say(b'{"choices": [{"token_ids": "12", "weight_versions": []}]}'),
}


@pytest.mark.parametrize("name", every(2, RUBBISH))
@pytest.mark.parametrize("path", [GENERATE, "/collective_rpc", "/weight_info"])
def test_a_fault_is_survived(model, start, path, name, capsys):
    server = start()
    # Jobs run at the same time, so a second fault of theirs may come after a good answer.
    server.fault = at(path, RUBBISH[name], times=1 if path == GENERATE else 2)
    if (path, name) == ("/collective_rpc", "empty"):
        pytest.skip("an empty answer to it is caught by the next question")
    assert_same(sample(engine_for(model, server)), model)
    said = capsys.readouterr().err
    assert said.count(f"vcppo: {server.url}: ") == 1 and f"{server.url} answers again" in said


def test_a_server_that_fails_before_it_resumes_is_resumed(model, start):
    server = start()
    server.fault = at("/resume", hang_up, times=1)
    assert_same(sample(engine_for(model, server)), model)
    assert server.paths.count("/collective_rpc") == 1 and not server.paused


def good_choice(**changes):
    content = [{"token_id": token, "logprob": -1.0} for token in (3, 4, 5)]
    choice = {
        "token_ids": [3, 4, 5],
        "finish_reason": "length",
        "logprobs": {"content": content},
        "weight_versions": [{"version": "a", "start": 0, "end": 3}],
    }
    return choice | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": []},
        {"token_ids": [3, 4]},
        {"token_ids": [3, 4, 5, 6]},
        {"token_ids": [3, 4, -5]},
        {"token_ids": [3, 4, 5.0]},
        {"token_ids": [3, 4, 6]},  # log-probabilities of others
        {"token_ids": [3, 9, 5]},  # a stop token in the middle
        {"finish_reason": "stop"},
        {"finish_reason": "abort"},
        {"finish_reason": None},
        {"logprobs": None},
        {"logprobs": {"content": [{"token_id": t, "logprob": float("nan")} for t in (3, 4, 5)]}},
        {"logprobs": {"content": [{"token_id": t, "logprob": 0.5} for t in (3, 4, 5)]}},
        {"logprobs": {"content": [{"token_id": t} for t in (3, 4, 5)]}},
    ],
)
def test_rubbish_is_told_from_a_response(changes):
    from lightning_vcppo.generation.server_client import ServerFault, check_version, read_answer

    settings = SamplingSettings(max_response_length=3)
    good = read_answer(good_choice(), settings, [9])
    assert good.token_ids == [3, 4, 5] and good.logprobs == [-1.0] * 3 and not good.finished
    check_version(good_choice(), "a")
    with pytest.raises(ServerFault):
        read_answer(good_choice(**changes), settings, [9])
    with pytest.raises(ServerFault, match="sampled from a"):
        check_version(good_choice(), "b")
    two = good_choice(weight_versions=[{"version": v, "start": 0, "end": 3} for v in "ab"])
    with pytest.raises(ServerFault, match="sampled from a, b"):
        check_version(two, "b")


def test_a_restarted_server_is_given_the_weights_again(model, start):
    first = start()
    engine = engine_for(model, first)
    sample(engine)
    moved(model, 1)
    engine.take_weights(1)
    first.fault = restarted(first, start, after=6)  # in the middle of the second rollout
    assert_same(sample(engine, 12), model, 12)


def test_a_server_that_was_replaced_between_rollouts_is_noticed_by_its_answers(model, start):
    server = start()
    engine = engine_for(model, server)
    sample(engine)
    server.version = "default"
    moved(server.model, 3)  # as one that has started again
    assert_same(sample(engine), model)


def test_a_hanging_server_is_found_by_its_pulse_and_a_short_stall_is_waited_for(model, start):
    server = start()
    engine = engine_for(model, server, timeout_s=0.6)
    sample(engine)
    server.fault = at(GENERATE, stall(0.3), times=1)
    attempts = server.paths.count(GENERATE)
    assert_same(sample(engine), model)
    assert server.paths.count(GENERATE) == attempts + 4  # nothing was asked again
    stuck = threading.Event()

    def freeze(handler, path: str) -> bool:
        stuck.wait(20)
        return False

    server.fault = freeze
    threading.Timer(1.5, lambda: (setattr(server, "fault", lambda *_: False), stuck.set())).start()
    began = time.monotonic()
    assert_same(sample(engine), model)
    assert time.monotonic() - began < 10


def test_a_server_that_hangs_while_it_takes_weights_is_asked_again(model, start, capsys):
    server, stuck = start(), threading.Event()
    server.fault = at("/collective_rpc", lambda *_: stuck.wait(20) and False, times=1)
    began = time.monotonic()
    assert_same(sample(engine_for(model, server, weights_timeout_s=0.5)), model)
    stuck.set()
    assert time.monotonic() - began < 10
    assert f"{server.url}: no answer in 0.5 s; trying again" in capsys.readouterr().err


def test_the_others_do_the_work_of_a_dead_server(model, start, capsys):
    first, second = start(), start()
    engine = engine_for(model, first, second, patience_s=0.05)
    first.kill()
    assert_same(sample(engine, 12), model, 12)
    assert second.served == 12
    assert f"vcppo: {first.url}: connection refused" in capsys.readouterr().err
    assert_same(sample(engine, 5), model, 5)


def test_without_any_server_one_line_names_them_and_what_was_tried(model, start):
    first, second = start(), start()
    engine = engine_for(model, first, second, patience_s=0.1)
    first.kill()
    second.fault = at(GENERATE, say(b"<html>"), times=10**6)
    with pytest.raises(EngineLostError) as error:
        sample(engine)
    assert str(error.value).count("\n") == 0
    assert f"{first.url}: connection refused; tried" in str(error.value)
    assert f"{second.url}: {GENERATE}: the answer is not JSON; tried" in str(error.value)
    assert "--model.engine.patience_s=0.1" in str(error.value)
    second.fault = lambda *_: False
    assert_same(sample(engine), model)  # it is asked again


def test_waiting_doubles_up_to_half_a_minute():
    fleet = Fleet([], at_once=1, retry_s=1.0, patience_s=60.0, pulse_s=1.0)
    waits = [fleet.wait_s(attempts) for attempts in range(9)]
    assert waits == [0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert fleet.wait_s(10**6) == server_fleet.LONGEST_WAIT_S


def test_mistakes_end_the_run_at_once(tiny_actor, model, start, monkeypatch, tmp_path):
    server = start(max_model_len=12)
    with pytest.raises(ValueError, match=rf"urls: {server.url}: a prompt of 5 .* up to 8 .* of 12"):
        sample(engine_for(model, server))
    other = start()
    tokenizer = loading.load_tokenizer(str(tiny_actor))
    other.model = loading.build_actor(TINY_QWEN2 | {"num_hidden_layers": 1}, tokenizer)
    with pytest.raises(ValueError, match=rf"urls: {other.url}: another model"):
        sample(engine_for(model, other))
    monkeypatch.setenv(VARIABLE, "guessed")
    with pytest.raises(ValueError, match=rf"urls: {other.url}: refuses the token"):
        sample(engine_for(model, other))
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ValueError, match=r"token_file: .*none holds no token; `vcppo serve`"):
        engine_for(model, other, token_file=str(tmp_path / "none"))


def test_only_this_user_reads_the_weights_and_only_the_newest_stay(model, tmp_path, start):
    engine = engine_for(model, start(), weights_dir=str(tmp_path / "shared"))
    (directory,) = (tmp_path / "shared").iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    engine.take_weights(1)
    assert len([path for path in directory.iterdir() if path.is_dir()]) == 1
    sample(engine)
    del engine
    assert not directory.exists()


def test_large_weights_are_split_over_files(model, tmp_path, monkeypatch):
    from lightning_vcppo.generation import weight_files
    from lightning_vcppo.models.lora import plain_weights

    monkeypatch.setattr(weight_files, "FILE_BYTES", 20_000)
    directory = weight_files.WeightDirectory(
        weight_files.WeightDirectory.create(str(tmp_path)), owned=True
    )
    directory.write("a", plain_weights(model), torch.float32)
    assert len(list((directory.path / "a").iterdir())) > 2
    read = dict(weight_files.read_weights(str(directory.path / "a")))
    assert all(torch.equal(read[name], weight) for name, weight in plain_weights(model))
    assert weight_files.read_shapes(str(directory.path / "a")).keys() == read.keys()
    with pytest.raises(FileNotFoundError, match="no weights there; do both machines see"):
        weight_files.read_shapes(str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vllm_server"}, "urls: name=vllm_server needs"),
        ({"urls": ["http://a:1"]}, "urls: name=vllm_server needs"),
        ({"name": "vllm_server", "urls": ["127.0.0.1:8000"]}, "urls: expected an address"),
        *[
            (
                {"name": "vllm_server", "urls": [url]},
                rf"urls: expected an address like http://HOST:PORT, .* got {re.escape(url)}$",
            )
            for url in (
                *("http://h:99999", "http://h:abc", "http://[::1", "http://..:1", "http://h:0"),
                *("http://h:", "http://:80", "http://h:-1", "http://[::g]:1", "http://a b:1"),
                *("http://[::1]x:1", f"http://{'h' * 64}:1", "http://h]:1"),
            )
        ],
        ({"name": "vllm_server", "urls": ["http://a:1", "http://a:1/"]}, "the same address twice"),
        ({"timeout_s": 0}, "timeout_s: expected more than 0 seconds, got 0"),
        ({"patience_s": -1}, "patience_s: expected >= 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        EngineSettings(**settings)


# Runs ----------------------------------------------------------------------------------------


def fit(actor, directory, urls, *flags) -> None:
    vcppo(
        *("fit", f"--model.actor={actor}", *ROLLOUTS, "--loggers=[csv]"),
        *("--model.engine.name=vllm_server", f"--model.engine.urls={urls}"),
        *("--model.engine.retry_s=0.01", "--model.engine.patience_s=0.2"),
        *("--model.actor_optimizer.lr=0.001", "--trainer.limit_train_batches=4"),
        *("--data.train_size=48", f"--trainer.default_root_dir={directory}"),
        *("--trainer.callbacks+=tests.support.tiny_runs.WeightsWatcher", *flags),
    )


@pytest.mark.thorough
def test_a_run_that_loses_its_server_ends_with_a_checkpoint_and_resumes(
    tiny_actor, tmp_path, start, capsys
):
    server = start()
    fit(tiny_actor, tmp_path / "whole", [server.url])
    per_rollout = 12
    whole = (tmp_path / "whole" / "weights_0.jsonl").read_text().splitlines()
    assert len({*whole}) == 4
    broken = start()

    def die(handler, path: str) -> bool:
        if broken.served < 2 * per_rollout + 5:  # in the third rollout
            return False
        return hang_up(handler, path)

    broken.fault = die
    with pytest.raises(EngineLostError, match=f"{broken.url}: .*; tried"):
        fit(tiny_actor, tmp_path / "part", [broken.url], "--rollout_checkpoint.every_n_rollouts=9")
    assert "last.ckpt has all rollouts so far" in capsys.readouterr().out
    broken.fault = lambda *_: False
    fit(tiny_actor, tmp_path / "part", [broken.url], "--ckpt_path=last")
    assert (tmp_path / "part" / "weights_0.jsonl").read_text().splitlines() == whole


@pytest.mark.thorough
def test_ranks_with_shards_sample_from_the_same_servers(tiny_actor, model, tmp_path, start):
    urls = [start().url, start().url]
    assert run_ranks(_on_rank, str(tiny_actor), str(tmp_path), urls, ranks=2, logs=tmp_path)
    for parameter in model.parameters():
        parameter.data.neg_()
    for rank in range(2):
        sampled = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert_same(sampled, model, 4 + rank)


def _on_rank(actor: str, directory: str, urls: list[str]) -> None:
    dist.init_process_group("gloo")
    model = loading.load_actor(actor)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    engine = engine_for(model, *(SimpleNamespace(url=url) for url in urls))
    rank = dist.get_rank()
    sample(engine, 4 + rank)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    engine.take_weights(1)
    torch.save(sample(engine, 4 + rank), f"{directory}/{rank}.pt")
    dist.barrier()  # the first rank removes the weights in the end
    dist.destroy_process_group()
