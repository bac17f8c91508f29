"""A sampling server without vLLM: the routes of `vcppo serve`, on a thread, with a tiny model.

It samples with the transformers engine, so what comes over the wire can be compared to the token.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import torch

from lightning_vcppo.cli.commands import serve
from lightning_vcppo.common.server_token import make_token
from lightning_vcppo.generation import TransformersEngine
from lightning_vcppo.generation.weight_files import read_shapes, read_weights
from lightning_vcppo.models import loading
from lightning_vcppo.settings import SamplingSettings

TOKEN = "open sesame"
GENERATE = "/inference/v1/generate"
Fault = Callable[["_Handler", str], bool]


class SamplingServer:
    """Serves until it is killed.

    Attributes:
        fault: Called with each request and its path; returns whether it has dealt with it.
        served: Responses sampled so far.
        paths: Of all requests so far, in order.
    """

    def __init__(
        self,
        model,
        port: int = 0,
        max_model_len: int = 1024,
        host: str = "127.0.0.1",
        token: str = TOKEN,
    ) -> None:
        self.model, self.max_model_len, self.token = model, max_model_len, token
        self.version, self.paused = "default", False
        self.fault: Fault = lambda handler, path: False
        self.served, self.paths = 0, []
        self.lock = threading.Lock()
        self._http = _Server((host, port), _Handler)
        self._http.owner = self
        self.port = self._http.server_address[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        """Stop answering, in the middle of whatever it does."""
        self.fault = hang_up
        self._http.shutdown()
        self._http.server_close()

    def take(self, directory: str) -> dict[str, str]:
        named = self.model.named_parameters(remove_duplicate=False)
        expected = {name: tuple(parameter.shape) for name, parameter in named}
        if read_shapes(directory) != expected:
            return {"refused": "another model"}
        self.model.load_state_dict(dict(read_weights(directory)), strict=False)
        return {}

    def sample(self, request: dict) -> dict:
        wanted = request["sampling_params"]
        settings = SamplingSettings(
            temperature=wanted["temperature"],
            top_p=wanted["top_p"],
            max_response_length=wanted["max_tokens"],
        )
        engine = TransformersEngine(
            self.model, pad_token_id=0, eos_token_ids=set(wanted["stop_token_ids"])
        )
        with self.lock:
            assert not self.paused
            sampled = engine.generate([request["token_ids"]], [wanted["seed"]], settings)
            version, self.served = self.version, self.served + 1
        ids = sampled.response_ids_BT[0].tolist()
        choice = {
            "token_ids": ids,
            "finish_reason": "stop" if sampled.finished_B[0] else "length",
            "weight_versions": [{"version": version, "start": 0, "end": len(ids)}],
        }
        if "logprobs" in wanted:
            pairs = zip(ids, sampled.logprobs_BT[0].tolist(), strict=True)
            content = [{"token_id": token, "logprob": logprob} for token, logprob in pairs]
            choice["logprobs"] = {"content": content}
        return {"choices": [choice]}

    def answer(self, path: str, body: dict) -> dict:
        if path in ("/health", "/weight_info"):
            return {"weight_version": self.version}
        if path == "/v1/models":
            return {"data": [{"id": "actor", "max_model_len": self.max_model_len}]}
        if path == "/collective_rpc":
            assert self.paused and body["method"] == "take_weight_files"
            with self.lock:
                return {"results": [self.take(*body["args"])]}
        if path == "/update_weight_version":
            self.version = body["new_version"]
        elif path in ("/pause", "/resume"):
            self.paused = path == "/pause"
        else:
            assert path == GENERATE
            return self.sample(body)
        return {}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    owner: SamplingServer

    def handle_error(self, request, client_address):
        """Say nothing: clients may leave."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        self._answer()

    do_POST = do_GET

    def _answer(self):
        owner, path = self.server.owner, urlsplit(self.path).path
        owner.paths.append(path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if owner.fault(self, path):
            return
        if path != "/health" and self.headers["Authorization"] != f"Bearer {owner.token}":
            self.reply(b'{"error": "Unauthorized"}', 401)
            return
        with torch.no_grad():
            self.reply(json.dumps(owner.answer(path, json.loads(body or b"{}"))).encode())

    def reply(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Say nothing."""


# Faults --------------------------------------------------------------------------------------


def hang_up(handler, path: str) -> bool:
    """Close the connection without an answer."""
    handler.close_connection = True
    return True


def say(data: bytes, status: int = 200) -> Fault:
    def fault(handler, path: str) -> bool:
        handler.reply(data, status)
        return True

    return fault


def stall(seconds: float) -> Fault:
    def fault(handler, path: str) -> bool:
        time.sleep(seconds)
        return False

    return fault


def at(path: str, fault: Fault, times: int) -> Fault:
    """Do it to the first requests of a path only; lists below count them."""
    left = [times]

    def limited(handler, asked: str) -> bool:
        if asked != path or not left[0]:
            return False
        left[0] -= 1
        return fault(handler, asked)

    return limited


def restarted(server: SamplingServer, start, after: int, before=lambda: None) -> Fault:
    """Once it has served some responses, hang up, and start another server in its place.

    Args:
        server: The server that ends.
        start: Starts the other one on a port.
        after: Number of responses.
        before: Called before the server ends.
    """
    once = threading.Lock()

    def fault(handler, path: str) -> bool:
        if server.served < after:
            return False
        if once.acquire(blocking=False):  # of several requests, each in a thread
            before()
            threading.Thread(target=lambda: (server.kill(), start(port=server.port))).start()
        return hang_up(handler, path)

    return fault


def main(arguments: list[str]) -> None:
    """Serve in a process of its own, until it is killed.

    Args:
        arguments: Actor and port; or "serve" and what `vcppo serve` takes.
    """
    torch.set_num_threads(1)
    if arguments[0] == "serve":
        own = serve._parser().parse_args(arguments[1:])
        actor, port = own.actor, own.port
        listening = {"host": own.host, "token": make_token(own.token_file)[0]}
    else:
        (actor, port), listening = arguments, {}
    SamplingServer(loading.load_actor(actor), port=int(port), **listening)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
