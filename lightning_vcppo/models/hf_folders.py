"""Save networks' configs in a checkpoint, so that exports need only the checkpoint.

A checkpoint has weights but no architecture. So it also holds the other files of each network's
Hugging Face directory, such as its config: a few kilobytes, and the tokenizer once.
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
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write model and tokenizer next to the old directory, then swap the two.

    So the directory is always complete. Adapters are merged into the weights.

    Args:
        directory: Directory to write.
        model: Model that gives the config, and the weights unless `weights` are given.
        tokenizer: Tokenizer of the model.
        weights: The model's complete weights.
    """
    unfinished = directory.with_name(f"{directory.name}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    plain = dict(plain_weights(model, model.state_dict() if weights is None else weights))
    model.save_pretrained(unfinished, state_dict=plain)
    if not any(unfinished.glob("*.safetensors")):
        raise RuntimeError(f"{directory}: {type(model).__name__} was saved without weights")
    tokenizer.save_pretrained(unfinished)
    put_in_place(unfinished, directory)


KINDS: dict[str, tuple[str, Any]] = {
    "actor": ("actor.", AutoModelForCausalLM),
    "critic": ("critic.model.", AutoModelForTokenClassification),
    "reward_model": ("reward_model.", AutoModelForSequenceClassification),
}
"""Name of a network's directory -> prefix of its weights in a checkpoint, and its auto class."""


def files_of(*savable: Any) -> dict[str, str]:
    """Return the files that `save_pretrained` of configs or tokenizers writes, by name.

    Files are decoded as text; bytes that are not valid text become surrogates.
    """
    with tempfile.TemporaryDirectory() as directory:
        for each in savable:
            each.save_pretrained(directory)
        contents = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(Path(directory).rglob("*"))
            if path.is_file()
        }
    return {name: each.decode(errors="surrogateescape") for name, each in contents.items()}


def describe(model: PreTrainedModel) -> dict[str, str]:
    """Return the files of a model's directory, except its weights."""
    # `save_pretrained` sets this, too; so its earlier calls make no difference.
    model.config.architectures = [type(model).__name__]
    if model.can_generate():
        return files_of(model.config, model.generation_config)
    return files_of(model.config)


def put_files(files: Mapping[str, str], directory: Path) -> None:
    """Write files that a checkpoint contains.

    Raises:
        ValueError: If a name leads out of the directory.
    """
    for name, content in files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ValueError(f"the checkpoint has a file named {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode(errors="surrogateescape"))


def rebuild(name: str, files: Mapping[str, str]) -> PreTrainedModel:
    """Build a network from the files that `describe` returned, on the meta device."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        put_files(files, directory)
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(directory)
            model: PreTrainedModel = KINDS[name][1].from_config(config)
        if "generation_config.json" in files:
            model.generation_config = GenerationConfig.from_pretrained(directory)
    return model
