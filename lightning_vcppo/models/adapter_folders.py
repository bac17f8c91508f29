"""Folders of adapters, as peft saves them: they become a model with all its weights.

transformers reads such a folder as its base with a frozen adapter beside it, and saves the adapter
alone. Here the adapter is added to the weights as the model is loaded, so that everything that
follows, training, adapters of the run's own and exports, sees an ordinary model.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lightning_vcppo.checkpointing.safe_loading import pickles_allowed
from lightning_vcppo.common.errors import require

CONFIG = "adapter_config.json"


def base_of_adapter(name: str, folder: Path) -> str | None:
    """Return folder or hub id of the base that a folder's adapter belongs to; None without one.

    Args:
        name: The folder as the user wrote it.
        folder: The same as a path; there may be none.

    Raises:
        ValueError: If the base is not named, or the folder holds a complete model as well.
    """
    if not (folder / CONFIG).is_file():
        return None
    complete = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin*"))
    require(
        not complete,
        f"{name}: holds a complete model and an adapter ({CONFIG}); move the one that is not meant "
        "elsewhere",
    )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    require(
        isinstance(base, str) and bool(base),
        f"{name}: {CONFIG} names no base model; write its folder into base_model_name_or_path",
    )
    return str(base)


def merge_adapter(model: PreTrainedModel, name: str, folder: Path) -> PreTrainedModel:
    """Return the base with a folder's adapter added to its weights.

    Args:
        model: The base, loaded.
        name: The folder as the user wrote it.
        folder: The same as a path.

    Raises:
        ValueError: If peft is not installed, the adapter's file is missing or a pickle, or it is of
            a kind that is no change of weights.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ValueError(
            f"{name}: is an adapter; reading it needs `pip install 'lightning-vcppo[lora]'`"
        ) from error
    require(
        (folder / "adapter_model.safetensors").is_file() or pickles_allowed(),
        f"{name}: has no adapter_model.safetensors (a pickle is read with --allow_pickle=true)",
    )
    config = PeftConfig.from_pretrained(str(folder))
    config.task_type = None  # the base may be loaded as another kind: a critic, say
    adapted = PeftModel.from_pretrained(model, str(folder), config=config)
    merge = getattr(adapted, "merge_and_unload", None)
    require(
        merge is not None,
        f"{name}: an adapter of type {config.peft_type} is no change of weights; merge it into a "
        "model first",
    )
    assert merge is not None
    with torch.no_grad():
        merged: PreTrainedModel = merge()
    return merged.requires_grad_(True)
