"""Which engine samples, and what holds without vLLM; with it, see test_vllm.py."""

import importlib.util

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_vcppo import VCPPOModule
from lightning_vcppo.models import loading
from lightning_vcppo.models.lora import plain_weights
from lightning_vcppo.settings import EngineSettings, PolicySettings
from tests.support.forks import run_ranks


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_what_to_install(tiny_actor):
    with pytest.raises(ValueError, match=r"--model.engine.name=vllm: vLLM is not installed; pip"):
        VCPPOModule(str(tiny_actor), engine=EngineSettings("vllm"))


@pytest.mark.parametrize(
    ("asked", "with_vllm", "with_transformers"),
    [("auto", "truncate", "off"), ("off", "off", "off"), ("mask", "mask", "mask")],
)
def test_importance_is_corrected_where_the_sampler_is_another(asked, with_vllm, with_transformers):
    policy = PolicySettings(importance_correction=asked)
    assert policy.correction_with(EngineSettings("vllm")) == with_vllm
    assert policy.correction_with(EngineSettings("transformers")) == with_transformers


def test_memory_and_lengths_are_checked():
    with pytest.raises(ValueError, match="gpu_memory_utilization: expected a share in"):
        EngineSettings(gpu_memory_utilization=1.5)
    with pytest.raises(ValueError, match="max_model_len: expected >= 2 tokens, got 1"):
        EngineSettings(max_model_len=1)


def test_tied_weights_come_under_both_names(tiny_actor):
    weights = dict(plain_weights(loading.load_actor(str(tiny_actor))))
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


@pytest.mark.thorough
def test_shards_of_two_ranks_are_gathered_one_tensor_at_a_time(tiny_actor, tmp_path):
    assert run_ranks(_gather_shards, str(tiny_actor), str(tmp_path), ranks=2, logs=tmp_path)
    expected = dict(plain_weights(loading.load_actor(str(tiny_actor))))
    for rank in range(2):
        gathered = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert gathered.keys() == expected.keys()
        assert all(torch.equal(gathered[name], weight) for name, weight in expected.items())


def _gather_shards(actor: str, directory: str) -> None:
    dist.init_process_group("gloo")
    model = loading.load_actor(actor)
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    weights = plain_weights(model)
    assert iter(weights) is weights  # lazy: nothing is gathered before it is asked for
    torch.save(dict(weights), f"{directory}/{dist.get_rank()}.pt")
    dist.destroy_process_group()
