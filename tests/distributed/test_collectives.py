"""Exchange between ranks, as far as one process can try it; the rest is in integration."""

import pytest
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg  # noqa: F401  (registers the backend "fake")

from lightning_vcppo.distributed import collectives
from lightning_vcppo.distributed.collectives import gather


@pytest.fixture
def start():
    """Start runs of one process, one after the other."""

    def begin(backend):
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    yield begin
    dist.destroy_process_group()


def test_objects_are_gathered_by_gloo_where_the_run_has_it(start):
    start("gloo")
    assert collectives._host_group() is None
    assert gather({"a": [1]}) == [{"a": [1]}]


def test_objects_are_gathered_by_gloo_where_the_run_has_another_backend(start):
    """The backend "fake" stands for NCCL, which puts objects on the GPU."""
    groups = []
    for _ in range(2):
        start("fake")
        assert gather({"a": [1]}) == [{"a": [1]}]
        groups.append(collectives._host_group())
        assert "gloo" in dist.get_backend_config(groups[-1])
        assert collectives._host_group() is groups[-1]
    assert groups[0] is not groups[1] and len(collectives._host_groups) == 1
