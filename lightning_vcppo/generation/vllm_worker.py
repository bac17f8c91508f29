"""Extend vLLM's server for `vcppo serve`: the trainer's weights, and a token for every request.

vLLM imports both extensions by name (`--worker-extension-cls`, `--middleware`) in its own
processes. vLLM's API key protects only `/v1` and similar routes, not those for new weights.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from lightning_vcppo.common.server_token import VARIABLE
from lightning_vcppo.generation.weight_files import read_shapes, read_weights

if TYPE_CHECKING:
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

SERVER_PID = "VCPPO_SERVER_PID"
"""Environment variable with the process id of the first process of a server."""
OPEN_PATH = "/health"
"""Route without a token, for monitors; it shows only whether the server runs."""


def end_with_server(server: int) -> None:
    """End this process, and the one that started it, soon after a server has ended.

    Otherwise vLLM's other processes would keep the device's memory after the first one was killed.

    Args:
        server: Process id of the server's first process; nothing happens in that process itself.
    """
    starter = os.getppid()

    def watch() -> None:
        while _is_there(server):
            time.sleep(0.5)
        if starter not in (1, server) and os.getppid() == starter:
            os.kill(starter, signal.SIGKILL)
        os._exit(1)

    if server != os.getpid():
        threading.Thread(target=watch, name="end with server", daemon=True).start()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class WeightsFromFiles:
    """Extension of vLLM's workers for new weights of the actor; each worker takes its shards."""

    vllm_config: Any
    reload_weights: Callable[..., None]
    weight_transfer_engine: Any

    def take_weight_files(self, directory: str) -> dict[str, str]:
        """Replace all weights by those in a directory.

        vLLM itself only warns of missing weights, and continues with the old ones.

        Returns:
            An error message: about the directory as "fault", or about the weights as "refused";
            empty without an error.
        """
        try:
            given = read_shapes(directory)
        except OSError as error:
            return {"fault": str(error)}
        refused = self._compare(given)
        if not refused:
            self.reload_weights(weights_iterator=read_weights(directory))
        return refused

    def check_transfer(self, shapes: dict[str, list[int]]) -> dict[str, str]:
        """Check that vLLM's own weight transfer can replace all weights by those of these shapes.

        Returns:
            An error message as "refused"; empty without an error.
        """
        if self.weight_transfer_engine is None:
            return {"refused": "it was started without --model.engine.weight_transfer=nccl"}
        return self._compare({name: tuple(shape) for name, shape in shapes.items()})

    def _compare(self, given: dict[str, tuple[int, ...]]) -> dict[str, str]:
        """Return a message if weights of these shapes are not those of the model."""
        expected = _shapes(self.vllm_config.model_config.hf_config)
        different = {
            name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)
        }
        if different:
            name = min(different)
            return {
                "refused": f"{name} is {given.get(name, 'absent')} in the trainer and "
                f"{expected.get(name, 'absent')} in the server; it was started with another "
                "--model.actor"
            }
        return {}


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that a transformers model of this config has, by name."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    named = model.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in named}


class RequireToken:
    """ASGI middleware that refuses every request without the token, whatever its path."""

    def __init__(self, app: App) -> None:
        """Wrap an application; the token is in the environment.

        Raises:
            KeyError: If the environment has no token.
        """
        self._app = app
        self._expected = f"Bearer {os.environ[VARIABLE]}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Forward a request, or answer 401."""
        known = scope["type"] == "lifespan" or scope.get("path") == OPEN_PATH
        given = dict(scope.get("headers") or ()).get(b"authorization", b"")
        if known or secrets.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
        else:
            await send({"type": "websocket.close", "code": 1008})


if SERVER_PID in os.environ:  # on import, because vLLM's workers call nothing in this file at first
    end_with_server(int(os.environ[SERVER_PID]))
