"""Sample on vLLM servers that `vcppo serve` runs on separate devices.

1. The weights are passed in files that trainer and servers can read (`weight_files.py`). The first
   rank writes them; the rank that reaches a server first makes it read them. Or they are sent over
   NCCL (`weight_transfer.py`).
2. Each version has a name that is unique among all runs. Every answer has the name of its version,
   so a restarted server is detected, and gets the weights before it samples again.
3. Each rank sends its own prompts, one request for each response, to all servers
   (`server_fleet.py`). A response depends on its prompt and seed, and not on the server.

Written for vLLM 0.32: its token-in, token-out endpoint, and the routes of its development mode.

Shapes: B sequences.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightning_vcppo.common.errors import require
from lightning_vcppo.common.server_token import read_token
from lightning_vcppo.generation.base import Generations
from lightning_vcppo.generation.padding import pad
from lightning_vcppo.generation.server_client import Answer, ServerClient, ServerRefusal
from lightning_vcppo.generation.server_fleet import Fleet
from lightning_vcppo.generation.vllm_engine import product_type
from lightning_vcppo.generation.weight_files import WeightDirectory
from lightning_vcppo.generation.weight_transfer import FLAG, NCCL, WeightTransfer, require_nccl
from lightning_vcppo.models.lora import plain_weights
from lightning_vcppo.settings import EngineSettings, SamplingSettings

MOST_PULSE_S = 10.0
"""Largest number of seconds between two checks that a server still answers."""


class _Job(NamedTuple):
    prompt_ids: Sequence[int]
    seed: int


class VLLMServerEngine:
    """Samples from copies of the actor that servers hold.

    Log-probabilities are NaN if `top_p` is below 1, because vLLM reports those of the truncated
    distribution.
    """

    detached = True

    def __init__(
        self,
        actor: PreTrainedModel,
        settings: EngineSettings,
        *,
        device: torch.device,
        pad_token_id: int,
        eos_token_ids: set[int],
    ) -> None:
        """Agree on a directory for the weights; call it on every rank. Servers may start later.

        Args:
            actor: The trained model; plain, or sharded by FSDP2.
            settings: Addresses, time limits, and the parent of the directory.
            device: Device on which the actor runs.
            pad_token_id: Filler of shorter responses.
            eos_token_ids: The tokens that end a response.

        Raises:
            ValueError: If there is no token, or no way to pass the weights as the settings say.
        """
        self._actor, self._device = actor, device
        self._pad, self._eos = pad_token_id, sorted(eos_token_ids)
        token = read_token(settings.token_file)
        self._fleet = Fleet(
            [
                ServerClient(
                    url,
                    token,
                    timeout_s=settings.timeout_s,
                    weights_timeout_s=settings.weights_timeout_s,
                    response_timeout_s=settings.response_timeout_s,
                )
                for url in settings.urls
            ],
            at_once=settings.max_num_seqs,
            retry_s=settings.retry_s,
            patience_s=settings.patience_s,
            pulse_s=min(MOST_PULSE_S, settings.timeout_s / 3),
        )
        self._passing: WeightDirectory | WeightTransfer
        if settings.weight_transfer == "nccl":
            self._passing, self._run = _over_nccl(device), _new_name()
        else:
            path, self._run = _of_first_rank(
                lambda: (WeightDirectory.create(settings.weights_dir), _new_name())
            )
            self._passing = WeightDirectory(path, owned=_rank() == 0)
        self._versions = 0
        self._version: object = None
        self._lock = threading.Lock()  # weights must not change while responses are sampled

    def take_weights(self, version: object) -> None:
        """Write the actor's weights for the servers unless they have them; call it on every rank.

        Args:
            version: Key of the actor's state; equal versions mean equal weights.
        """
        if version == self._version:
            return
        with self._lock:
            _wait_for_all()  # until no rank samples from the old weights
            self._versions += 1
            if _rank() == 0:
                dtype = product_type(self._actor, self._device)
                self._passing.write(self._name, plain_weights(self._actor), dtype)
            elif any(isinstance(p, DTensor) for p in self._actor.parameters()):
                for _ in plain_weights(self._actor):
                    pass  # takes part in gathering the shards
            _wait_for_all()
            self._fleet.prepare_again()
        self._version = version

    def forget_weights(self) -> None:
        """Send the weights again next time, whatever their version."""
        self._version = None

    def sleep(self) -> None:
        """Do nothing, because the memory belongs to the servers."""

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response for each prompt, see `GenerationEngine.generate`.

        Raises:
            EngineLostError: If no server has answered for `patience_s`.
            ValueError: If a server refuses the token, the weights or the length of a prompt.
        """
        assert self._versions > 0, "take_weights comes first"
        jobs = [_Job(*job) for job in zip(prompt_ids, seeds, strict=True)]
        longest, limit = max(map(len, prompt_ids)), settings.max_response_length
        salt = uuid.uuid4().hex  # a resumed run must not reuse the prefix cache of this run

        def prepare(client: ServerClient, over: Callable[[], bool]) -> None:
            with self._passing.turn(client.url, over):
                if client.version() == self._name:
                    client.resume()  # it may have failed after it had taken the weights
                    return
                if (room := client.max_model_len()) < longest + limit:
                    raise ServerRefusal(
                        f"a prompt of {longest} tokens and a response of up to {limit} do not fit "
                        f"into its --model.engine.max_model_len of {room}"
                    )
                self._passing.send(client, self._name)

        def do(client: ServerClient, job: _Job) -> Answer:
            return client.generate(
                job.prompt_ids,
                job.seed,
                settings,
                stop_token_ids=self._eos,
                version=self._name,
                salt=salt,
            )

        with self._lock:
            answers = self._fleet.run(jobs, do, prepare)
        return pad(
            [answer.token_ids for answer in answers],
            [answer.logprobs for answer in answers],
            [answer.finished for answer in answers],
            self._pad,
            self._device,
        )

    @property
    def _name(self) -> str:
        """Name of the current version of the weights on the servers."""
        return f"{self._run}-{self._versions}"


def _launched() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _launched() else 0


def _wait_for_all() -> None:
    if _launched():
        dist.barrier()


def _new_name() -> str:
    return uuid.uuid4().hex[:12]


def _over_nccl(device: torch.device) -> WeightTransfer:
    """Return the transfer over NCCL from this process, or refuse it."""
    require_nccl()
    count = dist.get_world_size() if _launched() else 1
    require(
        count == 1,
        f"{FLAG}: expected one training process, got {count}: after the first one has all its "
        "responses, nobody could send weights to a server that is restarted; set it to files",
    )
    return WeightTransfer(NCCL(device))


def _of_first_rank(make: Callable[[], tuple[Path, str]]) -> tuple[Path, str]:
    """Return on every rank what the first rank makes; call it on every rank."""
    if not _launched():
        return make()
    made: list[tuple[Path, str] | None] = [make() if _rank() == 0 else None]
    dist.broadcast_object_list(made)
    assert made[0] is not None
    return made[0]
