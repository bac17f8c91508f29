"""Weights sent with the requests of vLLM's weight transfer; queues take the place of NCCL."""

from __future__ import annotations

import base64
import copy
import importlib.util
import inspect
import threading

import pytest
import torch

from lightning_vcppo.cli.commands import serve
from lightning_vcppo.common.server_token import VARIABLE
from lightning_vcppo.generation import VLLMServerEngine, server_engine, weight_transfer
from lightning_vcppo.generation.build import require_installed
from lightning_vcppo.generation.vllm_worker import WeightsFromFiles
from lightning_vcppo.models import loading
from lightning_vcppo.models.lora import plain_weights
from lightning_vcppo.settings import EngineSettings
from tests.support import served
from tests.support.sampling_server import TOKEN, at, restarted, say
from tests.support.served import QUICK, assert_same, moved, sample
from tests.support.tiny_runs import TINY_QWEN2
from tests.support.training import fit, make_module
from tests.support.transfer_server import (
    FINISH,
    INIT,
    SEQUENCE,
    SHUTDOWN,
    START,
    UPDATE,
    QueueGroups,
    TransferServer,
)

NCCL = {"name": "vllm_server", "weight_transfer": "nccl", "timeout_s": 10.0}


@pytest.fixture
def groups(monkeypatch):
    """Let queues take the place of NCCL, on a machine without CUDA."""
    groups = QueueGroups()
    monkeypatch.setenv(VARIABLE, TOKEN)
    monkeypatch.setattr(server_engine, "NCCL", lambda device: groups)
    for module in ("server_engine", "build"):
        monkeypatch.setattr(f"lightning_vcppo.generation.{module}.require_nccl", lambda: None)
    return groups


@pytest.fixture
def model(tiny_actor):
    return loading.load_actor(str(tiny_actor))


@pytest.fixture
def start(model, groups):
    """Start servers that have other weights than the actor, and kill them in the end."""
    servers = []

    def start(on=groups, **arguments) -> TransferServer:
        servers.append(TransferServer(moved(copy.deepcopy(model), 5), on, **arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def engine_for(model, *servers, **settings) -> VLLMServerEngine:
    return served.engine_for(model, *servers, **NCCL | settings)


# Requests ---------------------------------------------------------------------------------------


def test_requests_are_in_vllms_order_and_describe_what_is_sent(model, start, groups):
    server = start()
    engine = engine_for(model, server)
    assert_same(sample(engine), model)
    first = server.paths.index("/pause")
    assert server.paths[first : first + 10] == [*SEQUENCE, "/resume"]
    weights = dict(plain_weights(model))
    assert server.bodies[UPDATE] == {
        "update_info": {
            "names": [*weights],
            "dtype_names": ["float32"] * len(weights),
            "shapes": [list(weight.shape) for weight in weights.values()],
        }
    }
    (name,) = groups.groups
    assert server.bodies[INIT] == {
        "init_info": {
            "rank_offset": 1,
            "world_size": 2,
            "nccl_unique_id_b64": base64.b64encode(name).decode(),
            "packed": False,
        }
    }
    assert server.bodies[START] == server.bodies[SHUTDOWN] == {}
    assert server.bodies[FINISH] == {"weight_version": server.version}
    assert server.version.endswith("-1") and groups.groups[name].closed


def test_each_version_is_sent_once_and_is_a_copy(model, start, groups):
    server = start()
    engine = engine_for(model, server)
    before = copy.deepcopy(model)
    moved(model, 1)  # as updates do while the rollout is sampled
    assert_same(sample(engine), before)
    assert_same(sample(engine), before)
    assert len(groups.groups) == 1
    engine.take_weights(1)
    assert_same(sample(engine), model)
    assert len(groups.groups) == 2 and server.version.endswith("-2")


def test_types_are_named_as_torch_names_them():
    weights = [("a", torch.zeros(2, 3, dtype=torch.bfloat16)), ("b", torch.zeros(4))]
    assert weight_transfer.describe(weights) == {
        "names": ["a", "b"],
        "dtype_names": ["bfloat16", "float32"],
        "shapes": [[2, 3], [4]],
    }
    transfer = weight_transfer.WeightTransfer(QueueGroups())
    transfer.write("v", weights, torch.bfloat16)
    assert {weight.dtype for _, weight in transfer._held} == {torch.bfloat16}


# Faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*SEQUENCE, "/resume"])
def test_a_fault_of_a_request_is_survived(model, start, groups, path, monkeypatch):
    monkeypatch.setattr("tests.support.transfer_server.WAIT_S", 0.3)
    server = start()
    server.fault = at(path, say(b'{"error": "EngineDeadError"}', 500), times=1)
    assert_same(sample(engine_for(model, server)), model)
    assert len([group for group in groups.groups.values() if not group.closed]) == (path == INIT)
    assert not server.updating and server.group is None


def test_a_restarted_server_is_sent_the_weights_again(model, start):
    first = start()
    engine = engine_for(model, first)
    sample(engine)
    before = copy.deepcopy(model)
    first.fault = restarted(first, start, after=6, before=lambda: moved(model, 3))  # an update
    assert_same(sample(engine, 12), before, 12)


def test_a_transfer_that_hangs_is_given_up_and_tried_again(model, start, groups):
    server, stuck = start(), threading.Event()
    server.fault = at(UPDATE, lambda *_: stuck.wait(3) and False, times=1)
    assert_same(sample(engine_for(model, server, weights_timeout_s=0.5)), model)
    stuck.set()
    assert len(groups.groups) == 2 and all(group.closed for group in groups.groups.values())


def test_other_models_and_servers_without_the_flag_are_refused(tiny_actor, model, start):
    server = start()
    tokenizer = loading.load_tokenizer(str(tiny_actor))
    server.model = loading.build_actor(TINY_QWEN2 | {"num_hidden_layers": 1}, tokenizer)
    with pytest.raises(ValueError, match=rf"urls: {server.url}: another model"):
        sample(engine_for(model, server))
    other = start(on=None)
    with pytest.raises(ValueError, match=rf"urls: {other.url}: it was started without"):
        sample(engine_for(model, other))


def test_a_worker_checks_the_shapes(model):
    worker = WeightsFromFiles()
    worker.vllm_config = type("", (), {"model_config": type("", (), {"hf_config": model.config})})
    worker.weight_transfer_engine = None
    shapes = {name: list(weight.shape) for name, weight in plain_weights(model)}
    assert "without --model.engine.weight_transfer=nccl" in worker.check_transfer(shapes)["refused"]
    worker.weight_transfer_engine = object()
    assert worker.check_transfer(shapes) == {}
    shapes.pop("model.norm.weight")
    said = worker.check_transfer(shapes)["refused"]
    assert "model.norm.weight is absent in the trainer and (32,) in the server" in said


@pytest.mark.thorough
def test_a_run_samples_ahead_from_weights_that_were_sent(tiny_actor, start):
    server = start()
    engine = EngineSettings(urls=[server.url], rollouts_ahead=1, **QUICK | NCCL)
    ours = fit(make_module(tiny_actor, engine=engine), 3).rollouts
    engine = EngineSettings("transformers_copy", rollouts_ahead=1)
    wanted = fit(make_module(tiny_actor, engine=engine), 3).rollouts
    assert [r.responses for r in ours] == [r.responses for r in wanted]


# Refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "cuda", "message"),
    [
        (None, True, r"expected vLLM 0.32 or 0.33 on both sides, but it is not installed$"),
        ("0.31.2", True, r"expected vLLM 0.32 or 0.33, whose API it uses, but 0.31.2 is installed"),
        (
            "0.34.0",
            True,
            r"expected vLLM 0.32 or 0.33, .* but 0.34.0 is installed; set it to files$",
        ),
        ("0.32.0", False, r"NCCL needs a CUDA device, and there is none; set it to files$"),
        ("0.33.1", False, r"NCCL needs a CUDA device"),
        ("0.32.0+cu130", True, None),
    ],
)
def test_versions_and_devices_are_checked(monkeypatch, version, cuda, message):
    monkeypatch.setattr(weight_transfer, "installed_version", lambda: version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    settings = EngineSettings(urls=["http://a:1"], **NCCL)
    if message is None:
        require_installed(settings)
        return
    with pytest.raises(ValueError, match=rf"^--model.engine.weight_transfer=nccl: {message}"):
        require_installed(settings)


def test_a_run_on_the_cpu_and_several_processes_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="nccl: the run trains on cpu, and NCCL sends from a CUDA"):
        weight_transfer.NCCL(torch.device("cpu"))
    monkeypatch.setenv("VLLM_DISABLE_PYNCCL", "1")
    with pytest.raises(ValueError, match="nccl: VLLM_DISABLE_PYNCCL is set"):
        weight_transfer.NCCL(torch.device("cuda:0"))
    monkeypatch.setattr(server_engine, "require_nccl", lambda: None)
    monkeypatch.setattr(server_engine, "_launched", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"nccl: expected one training process, got 2: .* files$"):
        server_engine._over_nccl(torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_transfer": "ipc"}, "weight_transfer: expected files or nccl, got ipc"),
        ({"name": "vllm", "urls": []}, "weight_transfer: nccl is for name=vllm_server without"),
        (
            {"weights_dir": "/tmp"},
            "weight_transfer: nccl is for name=vllm_server without a weights",
        ),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        EngineSettings(**{"urls": ["http://a:1"]} | NCCL | changes)


def test_a_server_is_started_with_vllms_flag():
    own = serve._parser().parse_args(["--model.actor=a", "--model.engine.weight_transfer=nccl"])
    flags = serve.flags_for_vllm(own, {}, on_cpu=False)
    assert '--weight-transfer-config={"backend": "nccl"}' in flags
    own = serve._parser().parse_args(["--model.actor=a"])
    assert not [f for f in serve.flags_for_vllm(own, {}, on_cpu=False) if "transfer" in f]


# vLLM's own names -------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_reads_what_is_sent_and_has_what_is_called(tiny_actor, model, start):
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary, ncclUniqueId
    from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.nccl import unpinned_nccl_env

    server = start()
    sample(engine_for(model, server))
    engine = NCCLWeightTransferEngine.__new__(NCCLWeightTransferEngine)
    info = engine.parse_init_info(server.bodies[INIT]["init_info"])
    assert (info.rank_offset, info.world_size, info.packed) == (1, 2, False)
    assert len(info.nccl_unique_id_bytes) == 128
    update = engine.parse_update_info(server.bodies[UPDATE]["update_info"])
    assert update.names == [name for name, _ in plain_weights(model)]
    arguments = EngineArgs(str(tiny_actor), weight_transfer_config={"backend": "nccl"})
    assert arguments.weight_transfer_config.backend == "nccl"
    names = ["nccl_unique_id_bytes", "rank", "world_size", "device"]
    assert [*inspect.signature(uid_init_process_group).parameters] == names
    names = ["self", "tensor", "src", "stream"]
    assert [*inspect.signature(PyNcclCommunicator.broadcast).parameters] == names
    assert callable(PyNcclCommunicator.destroy) and callable(NCCLLibrary.ncclGetUniqueId)
    assert len(bytes(ncclUniqueId().internal)) == 128
    with unpinned_nccl_env():
        pass
