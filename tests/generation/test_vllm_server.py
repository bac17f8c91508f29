"""vLLM's real server on the CPU, started by `vcppo serve`: `make test-vllm`."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm", exc_type=ImportError)

from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.generation import (
    TransformersEngine,
    VLLMEngine,
    VLLMServerEngine,
    server_engine,
)
from lightning_vcppo.generation.server_client import ServerClient
from lightning_vcppo.models import loading
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.settings import EngineSettings, SamplingSettings
from tests.support.file_groups import FileGroups
from tests.support.forks import run_ranks
from tests.support.partial_runs import assert_complete, assert_each_token_is_of_its_weights
from tests.support.server_ranks import as_rank, joined, train
from tests.support.serving import ServerProcess
from tests.support.stopping import PROMPTS, assert_responses_end_where_they_should
from tests.support.tiny_runs import ROLLOUTS, TINY_QWEN2, assert_finite, logged, vcppo
from tests.support.training import fit, make_module

IN_PROCESS = {"kv_cache_memory_bytes": 2**26, "max_num_seqs": 16}
TIE = 1e-4
"""Logits that are so close may be ranked either way by sums in another order."""


@pytest.fixture(scope="module")
def actor_directory(tmp_path_factory):
    tokenizer = default_tokenizer(320)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        actor = loading.build_actor(TINY_QWEN2 | {"hidden_size": 64}, tokenizer)
    directory = tmp_path_factory.mktemp("vllm") / "actor"
    write_folder(directory, actor, tokenizer)
    return directory


@pytest.fixture(scope="module")
def servers(actor_directory):
    both = [ServerProcess(actor_directory, actor_directory.parent) for _ in range(2)]
    try:
        for server in both:
            server.start()
        for server in both:
            server.wait()
        yield both
    finally:
        for server in both:
            server.end()


@pytest.fixture
def transfer_server(actor_directory, tmp_path, monkeypatch):
    """Start a server that takes weights by vLLM's own transfer, with files in place of NCCL."""
    groups = FileGroups(tmp_path)
    monkeypatch.setattr(server_engine, "NCCL", lambda device: groups)
    monkeypatch.setattr(server_engine, "require_nccl", lambda: None)
    server = ServerProcess(
        actor_directory,
        tmp_path,
        worker_extension_cls="tests.support.file_groups.WorkerWithFileGroups",
        weight_transfer_config={"backend": "files"},
    )
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.end()


@pytest.fixture
def model(actor_directory):
    return loading.load_actor(str(actor_directory))


def engine_for(model, *servers, stops=(), **settings) -> VLLMServerEngine:
    settings = EngineSettings(
        "vllm_server",
        urls=[server.url for server in servers],
        token_file=str(servers[0].token_file),
        **settings,
    )
    engine = VLLMServerEngine(
        model, settings, device=model.device, pad_token_id=0, eos_token_ids=set(stops)
    )
    engine.take_weights(0)
    return engine


def move(model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def greedy(engine, rows: int = 4, length: int = 24) -> torch.Tensor:
    settings = SamplingSettings(temperature=0.0, max_response_length=length)
    return engine.generate((PROMPTS * rows)[:rows], [0] * rows, settings).response_ids_BT


@torch.no_grad()
def ties(model, sampled, expected) -> int:
    """Return how many rows differ from a near-tie on; any other difference fails."""
    count = 0
    for prompt, ours, theirs in zip(PROMPTS * len(sampled), sampled, expected, strict=False):
        if torch.equal(ours, theirs):
            continue
        at = int((ours != theirs).nonzero()[0])
        logits = model(torch.cat([torch.tensor(prompt), theirs[:at]])[None]).logits[0, -1]
        assert float(logits[theirs[at]] - logits[ours[at]]) < TIE
        count += 1
    return count


@torch.no_grad()
def trainers_logprobs(model, prompt, response, temperature) -> torch.Tensor:
    logits = model(torch.cat([torch.tensor(prompt), response])[None]).logits[0] / temperature
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, response[:, None])[:, 0]


@pytest.mark.parametrize("count", [1, 2])
def test_greedy_tokens_are_those_of_both_other_engines(model, servers, count):
    torch.manual_seed(0)
    engine = engine_for(model, *servers[:count])
    trainer = TransformersEngine(model, pad_token_id=0, eos_token_ids=set())
    settings = EngineSettings("vllm", max_model_len=256, init_args=IN_PROCESS)
    within = VLLMEngine(model, settings, device=model.device, pad_token_id=0, eos_token_ids=set())
    within.take_weights(0)
    seen, tied = [], 0
    for update in range(1, 4):
        seen.append(greedy(engine, 16))
        tied += ties(model, seen[-1], greedy(trainer, 16)) + ties(
            model, seen[-1], greedy(within, 16)
        )
        move(model)
        assert torch.equal(greedy(engine, 16), seen[-1])  # the servers have copies
        engine.take_weights(update)
        within.take_weights(update)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    print(f"{tied} near-ties in {2 * 3 * 16} responses")
    assert tied <= 5


def test_logprobs_are_the_trainers_and_the_split_changes_nothing(model, servers):
    settings = SamplingSettings(temperature=0.7, max_response_length=10)
    seeds = [2**62 + i for i in range(16)]
    sampled = engine_for(model, *servers).generate(PROMPTS * 4, seeds, settings)
    for row in range(16):
        response = sampled.response_ids_BT[row]
        expected = trainers_logprobs(model, PROMPTS[row % 4], response, 0.7)
        torch.testing.assert_close(sampled.logprobs_BT[row], expected, atol=1e-5, rtol=0)
    alone = engine_for(model, servers[0]).generate(PROMPTS * 4, seeds, settings)
    assert torch.equal(alone.response_ids_BT, sampled.response_ids_BT)


def test_prompts_that_fill_more_than_one_batch_of_vllm_are_sampled(model, servers):
    prompts, settings = [[7] * 230] * 16, SamplingSettings(max_response_length=4)
    sampled = engine_for(model, servers[0]).generate(prompts, list(range(16)), settings)
    alone = engine_for(model, servers[1]).generate(prompts[-1:], [15], settings)
    assert torch.equal(sampled.response_ids_BT[-1:], alone.response_ids_BT)


def test_responses_end_with_the_stop_token_and_padding_follows(model, servers):
    stops = set(range(20, 60))
    assert_responses_end_where_they_should(engine_for(model, servers[0], stops=stops), stops)


def test_nothing_is_answered_without_the_token_nor_elsewhere(servers):
    server = servers[0]
    token = server.token_file.read_text().strip()
    assert server.token_file.stat().st_mode & 0o777 == 0o600
    assert server.status("/health") == 200
    for path in ("/v1/models", "/weight_info", "/version", "/is_paused", "/metrics", "/docs"):
        assert (server.status(path), server.status(path, "guessed")) == (401, 401), path
    assert server.status("/weight_info", token) == 200
    assert token not in " ".join(server.command) + server.log.read_text()
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with socket.socket() as outside, pytest.raises(OSError, match="refused"):
            outside.connect((own, server.port))


def test_weights_of_another_model_are_refused(servers):
    config = TINY_QWEN2 | {"hidden_size": 64, "num_hidden_layers": 1}
    other = loading.build_actor(config, default_tokenizer(320))
    with pytest.raises(ValueError, match=r"urls: http.*model.layers.1.* is absent in the trainer"):
        greedy(engine_for(other, servers[0]))


@pytest.mark.thorough
def test_vllms_own_transfer_takes_weights_again_and_again(model, transfer_server):
    torch.manual_seed(0)
    token = transfer_server.token_file.read_text().strip()
    client = ServerClient(
        transfer_server.url, token, timeout_s=60, weights_timeout_s=60, response_timeout_s=60
    )
    client.post("/start_weight_update")  # by a trainer that was then killed
    engine = engine_for(model, transfer_server, weight_transfer="nccl")
    trainer = TransformersEngine(model, pad_token_id=0, eos_token_ids=set())
    seen, tied = [], 0
    for update in range(1, 4):
        seen.append(greedy(engine, 16))
        tied += ties(model, seen[-1], greedy(trainer, 16))
        move(model)
        assert torch.equal(greedy(engine, 16), seen[-1])  # the server has a copy
        engine.take_weights(update)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert tied <= 3
    config = TINY_QWEN2 | {"hidden_size": 64, "num_hidden_layers": 1}
    other = loading.build_actor(config, default_tokenizer(320))
    with pytest.raises(ValueError, match=r"urls: http.*model.layers.1.* is absent in the trainer"):
        greedy(engine_for(other, transfer_server, weight_transfer="nccl"))


def test_a_server_without_the_flag_refuses_a_transfer(model, servers, tmp_path, monkeypatch):
    monkeypatch.setattr(server_engine, "NCCL", lambda device: FileGroups(tmp_path))
    monkeypatch.setattr(server_engine, "require_nccl", lambda: None)
    with pytest.raises(ValueError, match=r"it was started without .*nccl"):
        greedy(engine_for(model, servers[0], weight_transfer="nccl"))


def test_a_stall_is_waited_for(model, servers, capsys):
    engine = engine_for(model, *servers)
    expected = greedy(engine)
    for server in servers:
        server.signal_all(signal.SIGSTOP)
    resume = threading.Timer(5, lambda: [s.signal_all(signal.SIGCONT) for s in servers])
    resume.start()
    began = time.monotonic()
    assert torch.equal(greedy(engine), expected)
    assert time.monotonic() - began >= 4.5
    assert "vcppo:" not in capsys.readouterr().err


def test_a_run_samples_from_servers(actor_directory, servers, tmp_path):
    vcppo(
        *("fit", f"--model.actor={actor_directory}", *ROLLOUTS, "--loggers=[csv]"),
        *("--model.engine.name=vllm_server", f"--model.engine.urls={[s.url for s in servers]}"),
        f"--model.engine.token_file={servers[0].token_file}",
        *("--model.actor_optimizer.lr=0.001", f"--trainer.default_root_dir={tmp_path}"),
    )
    assert_finite(tmp_path)
    rows = [row for row in logged(tmp_path) if "mismatch/kl_k3" in row]
    assert len(rows) == 2  # the first is value pretraining
    for row in rows:  # of other weights it would be far more
        assert abs(row["mismatch/kl_k1"]) < 1e-5 and row["mismatch/kl_k3"] < 1e-9


def test_parts_of_a_response_have_the_logprobs_of_their_own_weights(actor_directory, servers):
    engine = EngineSettings(
        "vllm_server",
        urls=[server.url for server in servers],
        token_file=str(servers[0].token_file),
        partial_length=2,
    )
    run = fit(make_module(actor_directory, engine=engine), 9)
    learned = assert_each_token_is_of_its_weights(actor_directory, run)
    assert_complete(learned, 8, run.trainer.lightning_module.sampler.stop_token_ids())


@pytest.mark.thorough
@pytest.mark.parametrize(("ahead", "count"), [(0, 1), (1, 2)])
def test_two_ranks_sample_what_one_does(actor_directory, servers, tmp_path, ahead, count):
    engine = EngineSettings(
        "vllm_server",
        urls=[server.url for server in servers[:count]],
        token_file=str(servers[0].token_file),
        rollouts_ahead=ahead,
    )
    arguments = (actor_directory, tmp_path, engine)
    logs = tmp_path / "logs"
    assert run_ranks(as_rank, *arguments, ranks=2, logs=logs), (logs / "0.log").read_text()[-3000:]
    rollouts, actors, metrics = joined(tmp_path)
    alone = train(actor_directory, engine)
    for ours, theirs in zip(rollouts, alone.rollouts, strict=True):
        assert ours.responses == theirs.responses
        torch.testing.assert_close(
            ours.sampler_logprobs_BT, theirs.sampler_logprobs_BT, atol=1e-4, rtol=0
        )
        if ahead:
            assert torch.equal(ours.versions_B, theirs.versions_B)
    assert len({tuple(rollout.responses) for rollout in rollouts}) == len(rollouts)
    for first, second in zip(*actors, strict=True):
        assert torch.equal(first, second)
    for row in metrics if not ahead else []:  # of other weights than the rank's it would be more
        assert row["mismatch/kl_k3"] < 1e-9


def test_a_killed_server_is_started_again_and_given_the_weights(model, servers):
    server = servers[1]
    torch.manual_seed(3)
    engine = engine_for(model, server)
    greedy(engine)
    move(model)
    engine.take_weights(1)
    sampled = {}
    rollout = threading.Thread(target=lambda: sampled.update(rows=greedy(engine, 64, 200)))
    rollout.start()
    time.sleep(1.0)
    server.kill()
    end = time.monotonic() + 60
    while server.others() and time.monotonic() < end:  # they would keep the device's memory
        time.sleep(0.2)
    assert not server.others() and rollout.is_alive()
    server.start()
    rollout.join(240)
    trainer = TransformersEngine(model, pad_token_id=0, eos_token_ids=set())
    assert ties(model, sampled["rows"], greedy(trainer, 64, 200)) <= 8
