"""Add to vLLM's own server, for `vcppo serve`, our weights and a token for every request.

vLLM imports both by their names (`--worker-extension-cls`, `--middleware`), in processes of its
own. Its own key guards `/v1` and its kin alone, not the routes through which weights come.
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
"""Environment variable that tells the processes of a server which is the first of them."""
OPEN_PATH = "/health"
"""Says whether the server runs, and nothing else: monitors ask it without a token."""


def end_with_server(server: int) -> None:
    """End this process, and the one that started it, soon after a server is gone.

    If the first process of a server is killed, vLLM's others stay, and keep the device's memory.

    Args:
        server: Its first process; if that is this one, nothing happens.
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
    """Lets vLLM's workers read the actor's weights from a directory; each takes its shards."""

    vllm_config: Any
    reload_weights: Callable[..., None]

    def take_weight_files(self, folder: str) -> dict[str, str]:
        """Replace all weights by those in a directory.

        Returns:
            What is wrong: with the directory, under "fault", or with the weights, under "refused".
            vLLM itself only warns of weights that are missing, and samples on with those it has.
        """
        expected = _shapes(self.vllm_config.model_config.hf_config)
        try:
            given = read_shapes(folder)
        except OSError as error:
            return {"fault": str(error)}
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
        self.reload_weights(weights_iterator=read_weights(folder))
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
            KeyError: If it is not.
        """
        self._app = app
        self._expected = f"Bearer {os.environ[VARIABLE]}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
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


if SERVER_PID in os.environ:  # vLLM imports this file in a worker, and calls nothing in it yet
    end_with_server(int(os.environ[SERVER_PID]))
