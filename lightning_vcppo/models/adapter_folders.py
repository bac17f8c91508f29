"""Load a directory with an adapter, as peft saves it, as a complete model.

transformers loads such a directory as its base model with a frozen adapter, and saves only the
adapter. Here the adapter is merged into the weights at loading, so that training, the run's own
adapters and exports see an ordinary model.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lightning_vcppo.checkpointing.safe_loading import pickles_allowed
from lightning_vcppo.common.errors import require

CONFIG = "adapter_config.json"


def base_of_adapter(name: str, directory: Path) -> str | None:
    """Return directory or hub id of the base model of a directory's adapter; None without one.

    Args:
        name: The directory as the user wrote it.
        directory: The directory as a path; it may not exist.

    Raises:
        ValueError: If the base is not named, or the directory also holds a complete model.
    """
    if not (directory / CONFIG).is_file():
        return None
    weights = ("model*.safetensors", "pytorch_model*.bin*")
    complete = any(any(directory.glob(pattern)) for pattern in weights)
    require(
        not complete,
        f"{name}: holds a complete model and an adapter ({CONFIG}); move the one that is not to be "
        "used elsewhere",
    )
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    require(
        isinstance(base, str) and bool(base),
        f"{name}: {CONFIG} names no base model; set base_model_name_or_path to its directory",
    )
    return str(base)


def merge_adapter(model: PreTrainedModel, name: str, directory: Path) -> PreTrainedModel:
    """Return the base model with a directory's adapter merged into its weights.

    Args:
        model: The loaded base model.
        name: The directory as the user wrote it.
        directory: The directory as a path.

    Raises:
        ValueError: If peft is not installed, the adapter's file is missing or a pickle, or its type
            cannot be merged into weights.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ValueError(
            f"{name}: is an adapter; loading it needs `pip install 'lightning-vcppo[lora]'`"
        ) from error
    require(
        (directory / "adapter_model.safetensors").is_file() or pickles_allowed(),
        f"{name}: has no adapter_model.safetensors (a pickle is loaded with --allow_pickle=true)",
    )
    config = PeftConfig.from_pretrained(str(directory))
    config.task_type = None  # the base may be loaded as another class, such as a critic
    adapted = PeftModel.from_pretrained(model, str(directory), config=config)
    merge = getattr(adapted, "merge_and_unload", None)
    require(
        merge is not None,
        f"{name}: an adapter of type {config.peft_type} cannot be merged into weights; give a "
        "complete model",
    )
    assert merge is not None
    with torch.no_grad():
        merged: PreTrainedModel = merge()
    return merged.requires_grad_(True)
