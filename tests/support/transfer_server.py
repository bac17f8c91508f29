"""A sampling server that takes weights as vLLM's weight transfer does, over queues, not NCCL."""

from __future__ import annotations

import base64
import os
import queue
import threading
from collections.abc import Iterable

import torch

from tests.support.sampling_server import SamplingServer

START, UPDATE, FINISH = "/start_weight_update", "/update_weights", "/finish_weight_update"
INIT, SHUTDOWN = "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine"
SEQUENCE = [
    *("/pause", "/collective_rpc", SHUTDOWN, "/get_world_size"),
    *(INIT, START, UPDATE, FINISH, SHUTDOWN),
]
WAIT_S = 5.0


class QueueGroup:
    """A group of the trainer and one worker, which must join at the same time."""

    def __init__(self) -> None:
        self.both, self.sent = threading.Barrier(2), queue.Queue(maxsize=1)
        self.closed = False

    def broadcast(self, weights: Iterable[torch.Tensor]) -> None:
        for weight in weights:
            self.sent.put(weight.clone(), timeout=WAIT_S)

    def close(self) -> None:
        self.closed = True


class QueueGroups:
    """Groups by their ids."""

    def __init__(self) -> None:
        self.groups: dict[bytes, QueueGroup] = {}

    def new_id(self) -> bytes:
        name = os.urandom(128)
        self.groups[name] = QueueGroup()
        return name

    def join(self, group_id: bytes, size: int) -> QueueGroup:
        assert size == 2
        group = self.groups[group_id]
        group.both.wait(WAIT_S)
        return group


class TransferServer(SamplingServer):
    """Serves until it is killed.

    Attributes:
        groups: Where it finds the trainer; None for a server that was started without the flag.
        bodies: Of the requests of a transfer, the last one of each path.
    """

    def __init__(self, model, groups: QueueGroups | None, **arguments) -> None:
        self.groups, self.bodies = groups, {}
        self.group: QueueGroup | None = None
        self.updating = False
        super().__init__(model, **arguments)

    def answer(self, path: str, body: dict) -> dict:
        if path not in SEQUENCE[1:]:
            return super().answer(path, body)
        self.bodies[path] = body
        if path == "/get_world_size":
            return {"world_size": 1}
        assert self.paused
        if path == "/collective_rpc":
            assert body["method"] == "check_transfer"
            return {"results": [self.check(*body["args"])]}
        if path == INIT:
            name = base64.b64decode(body["init_info"]["nccl_unique_id_b64"], validate=True)
            self.group = self.groups.join(name, body["init_info"]["world_size"])
        elif path == START:
            assert not self.updating
            self.updating = True
        elif path == UPDATE:
            self.receive(**body["update_info"])
        elif path == FINISH:
            assert self.updating
            self.updating, self.version = False, body.get("weight_version", self.version)
        else:
            assert not self.updating
            self.group = None
        return {}

    def check(self, shapes: dict[str, list[int]]) -> dict[str, str]:
        if self.groups is None:
            return {"refused": "it was started without"}
        named = self.model.named_parameters(remove_duplicate=False)
        same = shapes == {name: list(parameter.shape) for name, parameter in named}
        return {} if same else {"refused": "another model"}

    def receive(self, names, dtype_names, shapes) -> None:
        assert self.updating
        weights = {}
        for name, dtype, shape in zip(names, dtype_names, shapes, strict=True):
            weights[name] = self.group.sent.get(timeout=WAIT_S)
            assert weights[name].dtype == getattr(torch, dtype)
            assert list(weights[name].shape) == shape
        with self.lock:
            self.model.load_state_dict(weights, strict=False)
