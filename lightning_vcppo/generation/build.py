"""Build engines by name; this is the only list of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lightning_vcppo.common.errors import require
from lightning_vcppo.generation.base import GenerationEngine
from lightning_vcppo.generation.server_engine import VLLMServerEngine
from lightning_vcppo.generation.transformers_copy import TransformersCopyEngine
from lightning_vcppo.generation.transformers_engine import TransformersEngine
from lightning_vcppo.generation.vllm_engine import VLLMEngine
from lightning_vcppo.generation.weight_transfer import require_nccl
from lightning_vcppo.settings import EngineSettings

ENGINES: dict[str, type[GenerationEngine]] = {
    "transformers": TransformersEngine,
    "transformers_copy": TransformersCopyEngine,
    "vllm": VLLMEngine,
    "vllm_server": VLLMServerEngine,
}
"""Classes of engines, by `--model.engine.name`."""
GATHERS_SHARDS = {"vllm", "vllm_server"}
"""Engines that gather sharded weights one by one; the others need complete weights."""


def require_installed(settings: EngineSettings) -> None:
    """Refuse an engine whose package is missing, or is another release than the settings need.

    Raises:
        ValueError: If the package of the engine cannot be imported, or cannot pass weights as the
            settings say.
    """
    if settings.name == "vllm":
        VLLMEngine.require_installed()
    if settings.weight_transfer == "nccl":
        require_nccl()


def require_detached(settings: EngineSettings) -> None:
    """Refuse to sample ahead with an engine that shares something with training.

    Raises:
        ValueError: If rollouts are to be sampled ahead, and training would be in the way.
    """
    able = [name for name, engine in ENGINES.items() if engine.detached]
    require(
        settings.rollouts_ahead == 0 or settings.name in able,
        f"--model.engine.rollouts_ahead: {settings.name} shares the model or its device with "
        f"training, so it cannot sample meanwhile; set --model.engine.name to {' or '.join(able)}, "
        "or rollouts_ahead to 0",
    )


def build_engine(
    actor: PreTrainedModel,
    settings: EngineSettings,
    *,
    device: torch.device,
    pad_token_id: int,
    eos_token_ids: set[int],
) -> GenerationEngine:
    """Build the engine that the settings name.

    Args:
        actor: The trained model; an engine reads it, or copies its weights in `take_weights`.
        settings: Name and arguments of the engine.
        device: Device on which the actor runs; its weights may be on the host at the moment.
        pad_token_id: Token id that fills finished responses.
        eos_token_ids: Tokens that end a response.
    """
    if settings.name == "transformers":  # is used without settings as well
        return TransformersEngine(
            actor,
            pad_token_id=pad_token_id,
            eos_token_ids=eos_token_ids,
            max_num_seqs=settings.max_num_seqs,
        )
    engine: Any = ENGINES[settings.name]
    ends = {"pad_token_id": pad_token_id, "eos_token_ids": eos_token_ids}
    return cast(GenerationEngine, engine(actor, settings, device=device, **ends))
