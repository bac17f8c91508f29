"""Sample with vLLM, in the trainer's own process and on its device.

How they share the device:

1. vLLM's model is built from the actor's config with random weights. Its weights always come from
   the trainer's memory, tensor by tensor; no weight is ever written to a file.
2. Every rank has its own engine for its own prompts. Sharded weights are gathered one tensor at a
   time, so that there is never a second complete copy besides vLLM's.
3. On the GPU vLLM sleeps between rollouts: weights and cache are dropped, the trainer has the
   memory, and the weights are copied again for the next rollout. On the CPU vLLM cannot sleep.

Written for vLLM 0.32; besides `LLM.generate` it uses `sleep`, `wake_up`,
`reset_prefix_cache` and the worker's `reload_weights`.

Shapes: B sequences, T response tokens.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import os
import socket
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedConfig, PreTrainedModel

from lightning_vcppo.common.errors import require
from lightning_vcppo.generation.base import Generations
from lightning_vcppo.generation.padding import pad
from lightning_vcppo.models.lora import plain_weights
from lightning_vcppo.settings import EngineSettings, SamplingSettings

NOT_INSTALLED = "vLLM is not installed; pip install 'lightning-vcppo[vllm]' (Python 3.11 or newer)"

COMPLETE_PROMPTS = {"enable_chunked_prefill": False}
"""vLLM's argument for reading each prompt at once, which it needs on the CPU (0.32): after a part
of a prompt it winds a response's random numbers back, and those of the CPU do not allow that."""


class VLLMEngine:
    """Samples from a copy of the actor that vLLM holds.

    vLLM reports log-probabilities of the truncated distribution, so they are NaN unless `top_p` is
    1.
    """

    detached = False  # shares the process, its random state and the device's memory

    def __init__(
        self,
        actor: PreTrainedModel,
        settings: EngineSettings,
        *,
        device: torch.device,
        pad_token_id: int,
        eos_token_ids: set[int],
    ) -> None:
        """Build the engine; called on every rank, because vLLM forms its own process groups.

        Args:
            actor: The trained model, unsharded or sharded by FSDP2.
            settings: Engine settings: memory, lengths, vLLM's own arguments.
            device: Device on which the actor runs.
            pad_token_id: Token id that fills shorter responses.
            eos_token_ids: Tokens that end a response.

        Raises:
            ValueError: If vLLM is missing or refuses the model or an argument.
        """
        self.require_installed()
        self._actor = actor
        self._device = device
        self._pad = pad_token_id
        self._eos = sorted(eos_token_ids)
        self._version: object = None
        self._can_sleep = settings.sleep and self._device.type == "cuda"
        self._asleep = False
        dtype = product_type(actor, device)  # before autocast is switched off
        gc.collect()  # an unused engine clears the state that it shares with this one
        with _apart_from_training(self._device), _as_launched_rank(self._device):
            self._llm = _build(actor, settings, device, dtype, enable_sleep_mode=self._can_sleep)
        self._max_model_len: int = self._llm.model_config.max_model_len

    @staticmethod
    def require_installed() -> None:
        """Check that vLLM can be imported.

        Raises:
            ValueError: If vLLM cannot be imported.
        """
        require(
            is_installed(),
            f"--model.engine.name=vllm: {NOT_INSTALLED}, or omit the flag to sample with "
            "transformers",
        )

    def take_weights(self, version: object) -> None:
        """Copy the actor's weights unless vLLM has them already; called on every rank.

        Args:
            version: Key of the actor's weights; equal versions mean equal weights.
        """
        if version == self._version:
            return
        with _apart_from_training(self._device):
            if self._asleep:
                torch.cuda.empty_cache()  # memory that the trainer has freed but torch still caches
                self._llm.wake_up(tags=["weights"])
            self._llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": plain_weights(self._actor)}
            )
            if self._asleep:
                self._llm.wake_up(tags=["kv_cache"])
        self._version, self._asleep = version, False

    def forget_weights(self) -> None:
        """Copy the weights again next time, whatever their version."""
        self._version = None

    def sleep(self) -> None:
        """Release memory until the next `take_weights`; do nothing on the CPU."""
        if self._can_sleep and not self._asleep:
            self._llm.sleep(level=2)  # drops the weights: the trainer has them
            self._version, self._asleep = None, True

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], settings: SamplingSettings
    ) -> Generations:
        """Sample one response per prompt, see `GenerationEngine.generate`.

        Raises:
            ValueError: If a prompt and its response might not fit into `max_model_len`.
        """
        assert self._version is not None, "take_weights comes first"
        longest, limit = max(map(len, prompt_ids)), settings.max_response_length
        require(
            longest + limit <= self._max_model_len,
            f"--model.engine.max_model_len: a prompt of {longest} tokens and a response of up to "
            f"{limit} do not fit into {self._max_model_len}",
        )
        with _apart_from_training(self._device):
            # Reuse nothing computed with other weights, nor anything that a resumed run, whose
            # cache is empty at first, would have to compute.
            self._llm.reset_prefix_cache()
            results = self._llm.generate(
                [{"prompt_token_ids": list(ids)} for ids in prompt_ids],
                [self._parameters(seed, settings) for seed in seeds],
                use_tqdm=False,
            )
            self.sleep()
        completions = [result.outputs[0] for result in results]
        return pad(
            [completion.token_ids for completion in completions],
            [c.logprobs.logprobs if c.logprobs else None for c in completions],
            [completion.finish_reason == "stop" for completion in completions],
            self._pad,
            self._device,
        )

    def _parameters(self, seed: int, settings: SamplingSettings) -> Any:
        """Return vLLM's `SamplingParams` of one sequence."""
        from vllm import SamplingParams

        return SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_response_length,
            seed=seed,
            stop_token_ids=self._eos,
            ignore_eos=True,  # vLLM's own choice: the list above is complete
            logprobs=0 if settings.top_p == 1 else None,  # only of the sampled token
            flat_logprobs=True,
            detokenize=False,
        )


def is_installed() -> bool:
    """Return whether vLLM can be imported."""
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None  # not only a directory of that name


def product_type(actor: PreTrainedModel, device: torch.device) -> torch.dtype:
    """Return the type in which an actor computes at present, float32 instead of float64."""
    if actor.dtype == torch.float32 and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32 if actor.dtype == torch.float64 else actor.dtype


def _build(
    actor: PreTrainedModel,
    settings: EngineSettings,
    device: torch.device,
    dtype: torch.dtype,
    *,
    enable_sleep_mode: bool,
) -> Any:
    """Build `vllm.LLM` for a model like the actor, with random weights."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    on_cpu = device.type == "cpu"
    arguments: dict[str, Any] = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": str(dtype).removeprefix("torch."),
        "logprobs_mode": "processed_logprobs",  # at the sampling temperature
        "distributed_executor_backend": "external_launcher",
        "enable_sleep_mode": enable_sleep_mode,
        "enforce_eager": on_cpu,  # compiling saves no time there, and needs a compiler
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        **(COMPLETE_PROMPTS if on_cpu else {}),
        **settings.init_args,
    }
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
            warnings.simplefilter("ignore", FutureWarning)
            from vllm import LLM

            classes = (c for c in type(actor).__mro__ if c.__module__.startswith("transformers."))
            name = next(classes).__name__  # FSDP2 puts a class of its own before
            config_for_vllm(actor.config, name, untie=on_cpu).save_pretrained(directory)
            llm = LLM(directory, **arguments)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError) as error:
        raise ValueError(f"--model.engine.name=vllm: vLLM cannot be started: {error}") from error
    # vLLM assumes that the process is its own: at exit it would destroy the trainer's process
    # group, and it excludes all present objects from garbage collection.
    core = llm.llm_engine.engine_core
    core._finalizer.detach()
    weakref.finalize(core, core.engine_core.model_executor.shutdown)
    gc.unfreeze()
    return llm


def config_for_vllm(config: PreTrainedConfig, name: str, *, untie: bool) -> PreTrainedConfig:
    """Return a copy of an actor's config from which vLLM builds a model that can be reloaded.

    On the CPU vLLM packs the matrix of the output layer and, if it is tied to the embedding, does
    not pack it again when weights are reloaded. So both are passed, untied.

    Args:
        config: Config of the actor.
        name: Name of the actor's class.
        untie: Whether to untie the two matrices.
    """
    config = copy.deepcopy(config)
    config.architectures = [name]
    if untie:
        config.tie_word_embeddings = False
    return config


@contextmanager
def _apart_from_training(device: torch.device) -> Iterator[None]:
    """Keep vLLM and the trainer's precision, inference mode, threads and random state apart."""
    dtype, threads, set_threads = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.set_num_threads,  # vLLM replaces it on the CPU
    )
    with ExitStack() as stack:
        stack.enter_context(isolate_rng())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)


@contextmanager
def _as_launched_rank(device: torch.device) -> Iterator[None]:
    """Set torchrun's variables, from which vLLM reads its rank and device."""
    launched = dist.is_available() and dist.is_initialized()
    variables = {
        "RANK": str(dist.get_rank() if launched else 0),
        "WORLD_SIZE": str(dist.get_world_size() if launched else 1),
        "LOCAL_RANK": str(device.index or 0),
    }
    if not launched:  # vLLM forms a group of one process, for which Lightning warns
        warnings.filterwarnings("ignore", ".*It is recommended to use `self.log")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
