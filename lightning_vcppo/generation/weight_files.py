"""Pass weights to sampling servers as safetensors files in a directory that both sides can read.

Each version is a subdirectory. It gets its name when it is complete, so a version that exists is
complete, and a restarted server can read the newest version at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_vcppo.common.files import UNFINISHED, put_in_place, remove
from lightning_vcppo.generation.server_client import ServerClient, ServerFault

FILE_BYTES = 4 * 2**30
"""Size of a file, which is the memory that the first rank needs in addition to the actor."""


class WeightDirectory:
    """A directory with the newest version of the actor's weights.

    Args:
        path: Path of an existing directory that only this run uses.
        owned: Whether to remove the directory in the end.
    """

    def __init__(self, path: Path, *, owned: bool) -> None:
        """Use a directory."""
        self.path = path
        if owned:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    @staticmethod
    def create(parent: str | None) -> Path:
        """Make a directory that only this user can read.

        Args:
            parent: A directory that the servers see under the same path; None means this machine's
                directory for temporary files.
        """
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="vcppo-weights-", dir=parent))

    def write(
        self, version: str, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype
    ) -> None:
        """Write a version, then remove the others.

        Args:
            version: Name of the version.
            weights: Weights with their names.
            dtype: Type of the weights in the files.
        """
        unfinished = self.path / f"{version}{UNFINISHED}"
        unfinished.mkdir()
        part: dict[str, Tensor] = {}
        size = files = 0
        for name, weight in weights:
            copy = weight.to("cpu", dtype, copy=True).contiguous()  # tied weights share memory
            if part and size + copy.nbytes > FILE_BYTES:
                save_file(part, unfinished / f"{files:05}.safetensors")
                part, size, files = {}, 0, files + 1
            part[name] = copy
            size += copy.nbytes
        save_file(part, unfinished / f"{files:05}.safetensors")
        put_in_place(unfinished, self.path / version)
        for other in self.path.iterdir():
            if other.is_dir() and other.name != version:
                remove(other)

    def send(self, client: ServerClient, version: str) -> None:
        """Make a server take a version; its running requests are aborted.

        Args:
            client: Client of the server.
            version: Name of the version, the newest one.

        Raises:
            ServerFault: If the server fails.
            ServerRefusal: If the weights do not fit the server's model.
        """
        client.take_weights(str(self.path / version), version)

    @contextlib.contextmanager
    def turn(self, url: str, over: Callable[[], bool]) -> Iterator[None]:
        """Let one process of the run at a time change a server.

        Args:
            url: Address of the server.
            over: Function that returns whether to stop waiting.

        Raises:
            ServerFault: If `over` returned true before the lock was free.
        """
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        with (self.path / f"{name}.lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if over():
                        raise ServerFault("another rank prepares it") from None
                    time.sleep(0.05)
            yield


def read_shapes(directory: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights in a directory, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(directory):
        with safe_open(path, "pt") as file:
            names = file.keys()
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return shapes


def read_weights(directory: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights in a directory, one by one."""
    for path in _files(directory):
        with safe_open(path, "pt") as file:
            names = file.keys()
            for name in names:
                yield name, file.get_tensor(name)


def _files(directory: str) -> list[Path]:
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{directory}: no weights there; do both machines see this directory?"
        )
    return files
