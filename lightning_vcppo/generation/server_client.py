"""Send requests to one sampling server over HTTP, and validate its answers.

Every call has its own connection, so that no connection is stale after a restart of the server, and
`abort` can end all calls that wait for an answer.
"""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from lightning_vcppo.settings import SamplingSettings

REFUSALS = {400, 401, 403, 404, 405, 422}
"""HTTP statuses for which a retry is useless."""
MAX_WORDS = 200
"""Largest number of characters of a server's message that are shown."""


class ServerFault(Exception):
    """A server did not answer correctly; the message follows "URL: "."""


class ServerRefusal(ServerFault):
    """A server refused a request, and will refuse it again: a user's mistake."""


class StaleWeights(ServerFault):
    """An answer comes from other weights, as after a restart of the server."""


@dataclass(frozen=True)
class Answer:
    """A response to one prompt.

    Attributes:
        token_ids: Sampled tokens.
        logprobs: Log-probability of each token; None if they were not requested.
        finished: Whether a stop token was sampled.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    finished: bool


class ServerClient:
    """Client of one server that `vcppo serve` has started.

    Args:
        url: Address of the server, such as http://127.0.0.1:8000.
        token: Token that is sent with each request.
        timeout_s: Time limit in seconds for requests that need no work.
        weights_timeout_s: Time limit in seconds for new weights.
        response_timeout_s: Time limit in seconds for a response.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float,
        weights_timeout_s: float,
        response_timeout_s: float,
    ) -> None:
        """Collect the settings; nothing is sent yet."""
        self.url = url.rstrip("/")
        self._parts = urlsplit(self.url)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._timeout_s, self.weights_timeout_s = timeout_s, weights_timeout_s
        self._response_timeout_s = response_timeout_s
        self._open: set[HTTPConnection] = set()
        self._lock = threading.Lock()

    # Requests ------------------------------------------------------------------------------------

    def version(self) -> str:
        """Return the name of the weights from which the server samples."""
        answer = self._call("GET", "/weight_info")
        return str(_field(answer, "weight_version", str))

    def max_model_len(self) -> int:
        """Return the largest number of tokens of a prompt and its response."""
        models = _field(self._call("GET", "/v1/models"), "data", list)
        if not models:
            raise ServerFault("lists no model")
        return int(_field(models[0], "max_model_len", int))

    def take_weights(self, directory: str, version: str) -> None:
        """Make the server read weights from a directory; running requests are aborted.

        Args:
            directory: Path of the directory on the server.
            version: New name of the weights.

        Raises:
            ServerRefusal: If the weights do not fit the server's model.
        """
        self._call("POST", "/pause?mode=abort")  # also empties the cache
        self.on_workers("take_weight_files", [directory])
        self._call("POST", "/update_weight_version", {"new_version": version})
        self.resume()

    def resume(self) -> None:
        """Let the server sample again; without a pause it does nothing."""
        self._call("POST", "/resume")

    def on_workers(self, method: str, arguments: Sequence[object]) -> None:
        """Call a method of `WeightsFromFiles` on each worker of the server.

        Raises:
            ServerRefusal: If a worker refuses the weights.
        """
        body = {"method": method, "args": list(arguments)}
        answer = self._call("POST", "/collective_rpc", body, self.weights_timeout_s)
        for of_worker in _field(answer, "results", list):
            for key, kind in (("refused", ServerRefusal), ("fault", ServerFault)):
                if isinstance(of_worker, dict) and key in of_worker:
                    raise kind(str(of_worker[key]))

    def world_size(self) -> int:
        """Return the number of the server's workers."""
        return int(_field(self._call("GET", "/get_world_size"), "world_size", int))

    def post(self, path: str, body: object = None, timeout_s: float | None = None) -> None:
        """Send a request that `abort` does not end, because the server cannot drop it half done.

        Args:
            path: Path of the request.
            body: Its content.
            timeout_s: Time limit in seconds, if it is another than that of requests without work.
        """
        self._call("POST", path, body, timeout_s, abortable=False)

    def generate(
        self,
        prompt_ids: Sequence[int],
        seed: int,
        settings: SamplingSettings,
        *,
        stop_token_ids: Sequence[int],
        version: str,
        salt: str,
    ) -> Answer:
        """Sample a response.

        Args:
            prompt_ids: Prompt of at least one token.
            seed: Seed of the response.
            settings: Temperature, top-p, length limit.
            stop_token_ids: Tokens that end the response.
            version: Expected version of the weights.
            salt: Key of the prefix cache; only requests with equal keys share cached tokens.

        Raises:
            ServerFault: If there is no answer, or an invalid one.
            StaleWeights: If the answer comes from other weights.
        """
        parameters = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_response_length,
            "seed": seed,
            "stop_token_ids": list(stop_token_ids),
            "ignore_eos": True,  # vLLM's own; the list above is complete
            "detokenize": False,
        }
        if settings.top_p == 1:
            parameters["logprobs"] = 0  # only of the sampled token
        body = {
            "token_ids": list(prompt_ids),
            "sampling_params": parameters,
            "cache_salt": salt,
        }
        answer = self._call("POST", "/inference/v1/generate", body, self._response_timeout_s)
        choices = _field(answer, "choices", list)
        if len(choices) != 1:
            raise ServerFault(f"returned {len(choices)} responses for one")
        check_version(choices[0], version)
        return read_answer(choices[0], settings, stop_token_ids)

    # Transport -----------------------------------------------------------------------------------

    def abort(self) -> None:
        """End every call that waits for an answer; each raises `ServerFault`."""
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        timeout_s: float | None = None,
        *,
        abortable: bool = True,
    ) -> Any:
        """Send a request and return its answer."""
        patience_s = self._timeout_s if timeout_s is None else timeout_s
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        assert self._parts.hostname is not None
        connection = kind(self._parts.hostname, self._parts.port, timeout=patience_s)
        if abortable:
            with self._lock:
                self._open.add(connection)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, f"{self._parts.path}{path}", sent, self._headers)
            response = connection.getresponse()
            status, data = response.status, response.read()
        except TimeoutError as error:
            raise ServerFault(f"no answer in {patience_s:g} s") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ServerFault(reason.lower()) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if status == 401:
            raise ServerRefusal("refuses the token (--model.engine.token_file)")
        if status != 200:
            kind_of_fault = ServerRefusal if status in REFUSALS else ServerFault
            words = data.decode("utf-8", "replace").strip()[:MAX_WORDS]
            raise kind_of_fault(f"{path.partition('?')[0]}: HTTP {status}: {words}")
        try:
            return json.loads(data) if data else {}
        except ValueError as error:
            raise ServerFault(f"{path.partition('?')[0]}: the answer is not JSON") from error


def check_version(choice: Any, version: str) -> None:
    """Check that all tokens of a response were sampled from the same, expected weights."""
    spans = _field(choice, "weight_versions", list)
    versions = {str(_field(span, "version", str)) for span in spans}
    if versions != {version}:
        raise StaleWeights(f"sampled from {', '.join(sorted(versions)) or 'nothing'}")


def read_answer(choice: Any, settings: SamplingSettings, stop_token_ids: Sequence[int]) -> Answer:
    """Return a response after checking that it is a valid answer to the request.

    Args:
        choice: Answer of the server.
        settings: Settings of the request.
        stop_token_ids: Stop tokens of the request.

    Raises:
        ServerFault: If the answer is not valid.
    """
    ids = _field(choice, "token_ids", list)
    reason = _field(choice, "finish_reason", str)
    if reason not in ("stop", "length"):
        raise ServerFault(f"the response ended by {reason!r}")
    if not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise ServerFault("the response has no token ids")
    ends = [at for at, token in enumerate(ids) if token in set(stop_token_ids)]
    finished = reason == "stop"
    if len(ids) > settings.max_response_length or ends != ([len(ids) - 1] if finished else []):
        raise ServerFault("the response does not end where it should")
    if not finished and len(ids) != settings.max_response_length:
        raise ServerFault("the response ends too early")
    if settings.top_p < 1:
        return Answer(ids, None, finished)
    content = _field(_field(choice, "logprobs", dict), "content", list)
    if [_field(entry, "token_id", int) for entry in content] != ids:
        raise ServerFault("the log-probabilities are of other tokens")
    logprobs = [float(_field(entry, "logprob", (int, float))) for entry in content]
    if not all(math.isfinite(logprob) and logprob <= 1e-3 for logprob in logprobs):
        raise ServerFault("a log-probability is not finite, or above 0")
    return Answer(ids, logprobs, finished)


def _field(answer: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """Return a field of an answer.

    Raises:
        ServerFault: If it is missing or of another type.
    """
    value = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(value, kind):
        raise ServerFault(f"the answer has no {name}")
    return value
