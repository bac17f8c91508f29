"""Describe networks in a checkpoint, so that folders can be written from it without the run.

A checkpoint has weights and no architecture. So the other files of each network's Hugging Face
folder, its config above all, go along: a few kilobytes, and the tokenizer once.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_vcppo.common.files import UNFINISHED, put_in_place
from lightning_vcppo.models.lora import plain_weights


def write_folder(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write model and tokenizer beside the old folder, then swap: none is ever half written.

    What adapters have learnt is added to the weights.

    Args:
        folder: Its name.
        model: Gives the config and, unless there are `weights`, its own.
        tokenizer: Of the model.
        weights: The model's, whole.
    """
    unfinished = folder.with_name(f"{folder.name}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    plain = dict(plain_weights(model, model.state_dict() if weights is None else weights))
    model.save_pretrained(unfinished, state_dict=plain)
    if not any(unfinished.glob("*.safetensors")):
        raise RuntimeError(f"{folder}: {type(model).__name__} was saved without weights")
    tokenizer.save_pretrained(unfinished)
    put_in_place(unfinished, folder)


KINDS: dict[str, tuple[str, Any]] = {
    "actor": ("actor.", AutoModelForCausalLM),
    "critic": ("critic.model.", AutoModelForTokenClassification),
    "reward_model": ("reward_model.", AutoModelForSequenceClassification),
}
"""Folder -> what the names of its weights begin with in a checkpoint, and how it is read."""


def files_of(*savable: Any) -> dict[str, str]:
    """Return the files that `save_pretrained` of configs and tokenizers writes, by name.

    They are text; in what is not, each byte that is no text becomes a surrogate.
    """
    with tempfile.TemporaryDirectory() as folder:
        for each in savable:
            each.save_pretrained(folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {
            path.relative_to(folder).as_posix(): path.read_bytes().decode(errors="surrogateescape")
            for path in paths
        }


def describe(model: PreTrainedModel) -> dict[str, str]:
    """Return the files of a model's folder, all but its weights."""
    # As `save_pretrained` would, so that it makes no difference whether it has been called before.
    model.config.architectures = [type(model).__name__]
    if model.can_generate():
        return files_of(model.config, model.generation_config)
    return files_of(model.config)


def put_files(files: Mapping[str, str], folder: Path) -> None:
    """Write files that a checkpoint carries.

    Raises:
        ValueError: If a name leads out of the folder.
    """
    for name, content in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the checkpoint has a file named {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode(errors="surrogateescape"))


def rebuild(name: str, files: Mapping[str, str]) -> PreTrainedModel:
    """Build the network of a folder as `describe` has described it, without memory for weights."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        put_files(files, folder)
        with torch.device("meta"):
            model: PreTrainedModel = KINDS[name][1].from_config(AutoConfig.from_pretrained(folder))
        if "generation_config.json" in files:
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
