"""What `vcppo serve` adds to vLLM, without vLLM; with it, see test_vllm_server.py."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lightning_vcppo.common.server_token import VARIABLE
from lightning_vcppo.generation.vllm_worker import SERVER_PID, RequireToken, WeightsFromFiles
from lightning_vcppo.generation.weight_files import WeightDirectory
from lightning_vcppo.models import loading
from lightning_vcppo.models.lora import plain_weights
from tests.support.tiny_runs import ROOT

KEY = [(b"authorization", b"Bearer right")]


def ask(scope) -> list:
    """Return what the application behind the token, or the guard, sends."""
    sent = []

    async def application(scope, receive, send):
        await send("passed on")

    async def send(message):
        sent.append(message)

    asyncio.run(RequireToken(application)(scope, None, send))
    return sent


@pytest.mark.parametrize("path", ["/v1/models", "/collective_rpc", "/pause", "/healthy", "/"])
def test_every_path_needs_the_token(monkeypatch, path):
    monkeypatch.setenv(VARIABLE, "right")
    for kind in ("http", "websocket"):
        scope = {"type": kind, "path": path, "headers": []}
        refused = ask(scope)
        assert refused[0] in (
            {"type": "websocket.close", "code": 1008},
            {
                "type": "http.response.start",
                "status": 401,
                "headers": [(b"content-type", b"application/json")],
            },
        )
        assert "passed on" not in refused
        wrong = [(b"authorization", b"Bearer wrong")]
        assert ask(scope | {"headers": wrong}) == refused
        assert ask(scope | {"headers": KEY}) == ["passed on"]


def test_health_and_the_start_need_none(monkeypatch):
    monkeypatch.setenv(VARIABLE, "right")
    assert ask({"type": "http", "path": "/health", "headers": []}) == ["passed on"]
    assert ask({"type": "lifespan"}) == ["passed on"]
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(KeyError):
        RequireToken(None)


class Worker(WeightsFromFiles):
    """A worker that keeps what it is given."""

    def __init__(self, config):
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_config=config))
        self.taken: dict[str, torch.Tensor] = {}

    def reload_weights(self, weights_iterator):
        self.taken = dict(weights_iterator)


def test_weights_are_taken_if_every_name_and_shape_is_the_models(tiny_actor, tmp_path):
    model = loading.load_actor(str(tiny_actor))
    directory = WeightDirectory(WeightDirectory.create(str(tmp_path)), owned=True)
    directory.write("a", plain_weights(model), torch.float32)
    worker = Worker(model.config)
    assert worker.take_weight_files(str(directory.path / "a")) == {}
    assert all(torch.equal(worker.taken[name], weight) for name, weight in plain_weights(model))
    few = [(name, weight) for name, weight in plain_weights(model) if "layers.1." not in name]
    directory.write("b", few, torch.float32)
    said = worker.take_weight_files(str(directory.path / "b"))["refused"]
    assert "model.layers.1." in said and "is absent in the trainer and (" in said
    assert "no weights there" in worker.take_weight_files(str(tmp_path / "none"))["fault"]


@pytest.mark.thorough
def test_a_worker_ends_with_its_server_and_takes_the_engine_with_it():
    code = "import lightning_vcppo.generation.vllm_worker as w, time; print(1, flush=True)"
    worker = shlex.join([sys.executable, "-c", f"{code}; time.sleep(60)"])
    server = subprocess.Popen(["sleep", "60"])
    engine = subprocess.Popen(  # it starts the worker
        ["sh", "-c", f"{worker} & wait"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env=os.environ | {SERVER_PID: str(server.pid)},
    )
    assert engine.stdout is not None
    try:
        assert engine.stdout.readline() == b"1\n"
        assert engine.poll() is None
    finally:
        server.kill()
        server.wait()
    assert engine.wait(30) == -signal.SIGKILL
    assert engine.stdout.read() == b""  # the worker has closed it, too
