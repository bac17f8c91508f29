"""Groups of `weight_transfer` between processes without a GPU: each tensor is a file.

`WorkerWithFileGroups` extends a worker of vLLM: with `weight_transfer_config={"backend": "files"}`
vLLM's own engine for NCCL receives and loads weights as usual, but from these files.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import torch

from lightning_vcppo.generation.vllm_worker import SERVER_PID, WeightsFromFiles

WAIT_S = 60.0


class TrainersGroup:
    """The trainer's side of a group."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def broadcast(self, weights: Iterable[torch.Tensor]) -> None:
        for number, weight in enumerate(weights):
            torch.save(weight, part := self._directory / f"{number}.part")
            part.rename(part.with_suffix(".pt"))

    def close(self) -> None:
        """Do nothing."""


class WorkersGroup:
    """The worker's side, with the methods of vLLM's communicator that its engine calls."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._received = directory, 0

    def broadcast(self, tensor: torch.Tensor, src: int, stream: object) -> None:
        assert src == 0
        path, end = self._directory / f"{self._received}.pt", time.monotonic() + WAIT_S
        while not path.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        weight = torch.load(path)
        assert weight.dtype == tensor.dtype and weight.shape == tensor.shape
        tensor.copy_(weight)
        self._received += 1

    def destroy(self) -> None:
        """Do nothing."""


class FileGroups:
    """The trainer's groups; the id of one is its directory.

    Args:
        directory: Parent of these directories, with a short path.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def new_id(self) -> bytes:
        return tempfile.mkdtemp(dir=self._directory).encode().ljust(128, b"\0")

    def join(self, group_id: bytes, size: int) -> TrainersGroup:
        assert size == 2
        return TrainersGroup(_directory(group_id))


def _directory(group_id: bytes) -> Path:
    return Path(group_id.rstrip(b"\0").decode())


def _register() -> None:
    """Add a backend of weight transfer to vLLM."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    class FileEngine(NCCLWeightTransferEngine):
        """vLLM's engine without its communicator and without what needs a GPU."""

        def init_transfer_engine(self, init_info):
            assert (init_info.rank_offset, init_info.world_size) == (1, 2)
            self.packed = init_info.packed
            self.model_update_group = WorkersGroup(_directory(init_info.nccl_unique_id_bytes))

        def update_weights(self, update_info):
            with (
                mock.patch("torch.cuda.current_stream"),
                mock.patch("torch.accelerator.synchronize"),
            ):
                super().update_weights(update_info)

    WeightTransferEngineFactory.register_engine("files", FileEngine)


class WorkerWithFileGroups(WeightsFromFiles):
    """Extension of vLLM's workers; vLLM imports this file because of its name."""


if SERVER_PID in os.environ:  # in a server of vLLM
    _register()
