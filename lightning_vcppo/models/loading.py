"""Load transformers models and tokenizers from directories, the hub or a config.

Shapes: B sequences, L tokens of prompt + response, T response tokens, N masked response tokens,
H hidden, K outputs of the value head (1, or the bins of a histogram).
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_vcppo.checkpointing.safe_loading import weights_format
from lightning_vcppo.common.errors import MISTAKES, WRONG_FORM
from lightning_vcppo.common.files import local_path
from lightning_vcppo.common.suggestions import near_file
from lightning_vcppo.common.terminal import waiting_for
from lightning_vcppo.models import hub
from lightning_vcppo.models.adapter_folders import base_of_adapter, merge_adapter
from lightning_vcppo.models.checks import check_tokenizer, check_weights, reason
from lightning_vcppo.models.packing import enable_packing

FAILURES = (
    *(*MISTAKES, *WRONG_FORM, RuntimeError),
    *(SafetensorError, StrictDataclassError, pickle.UnpicklingError),
)
"""Errors that transformers raises for files, or fields of a config, that it does not expect."""

# Outputs of these models are not softmax(hidden @ head): the log-probability kernel would be wrong.
_UNSUPPORTED_LOGIT_TRANSFORMS = {
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
}


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a directory or the hub.

    Raises:
        ValueError: If there is none, or if it has no end-of-sequence token.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, name_or_path, "tokenizer")
    check_tokenizer(tokenizer, name_or_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def find_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer next to a model; None if there is none."""
    try:
        return load_tokenizer(name_or_path)
    except ValueError:
        return None


def load_actor(name_or_path: str) -> PreTrainedModel:
    """Load a causal language model, in float32 (the Trainer's precision flag casts it).

    Raises:
        ValueError: If there is none at that path, or if its logits are not a plain linear head's.
    """
    actor: PreTrainedModel = _load(AutoModelForCausalLM, name_or_path, "causal language model")
    _check_plain_head(actor, name_or_path)
    return enable_packing(actor)


def build_actor(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build a causal language model with random weights.

    Args:
        config: `model_type` and the fields of its transformers config, such as hidden_size.
        tokenizer: Tokenizer that gives the vocabulary size and the special tokens.

    Raises:
        ValueError: If transformers has no such model type or refuses a field.
    """
    special_tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    actor = build_model(AutoModelForCausalLM, config, special_tokens, "actor")
    _check_plain_head(actor, "actor config")
    return enable_packing(actor)


def load_config(name_or_path: str) -> PreTrainedConfig:
    """Read only a model's config from a directory or the hub.

    Raises:
        ValueError: If there is none.
    """
    config: PreTrainedConfig = _load(AutoConfig, name_or_path, "model config")
    return config


def class_name(config: PreTrainedConfig) -> str:
    """Return the name of the class of causal language models that a config is of."""
    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config)).__name__


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, because importance ratios need the same policy twice."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let each layer keep only its input and compute the rest again in the backward pass.

    This holds in training mode, in which the model reads no key-value cache.
    """
    options = {"use_reentrant": False, "preserve_rng_state": False}  # dropout is off
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:  # its earlier name
        model.gradient_checkpointing_enable(options)


def _load(auto_class: Any, name_or_path: str, what: str, *, new: str = "", **kwargs: Any) -> Any:
    """Call `from_pretrained` and turn its errors into one line; no code of the model is run.

    Args:
        auto_class: Auto class of transformers.
        name_or_path: Directory or hub id.
        what: Name of what is loaded, for messages.
        new: Prefix of the names of weights that may be missing.
        kwargs: Arguments of `from_pretrained`.
    """
    name_or_path = str(local_path(name_or_path, what)) if ":" in name_or_path else name_or_path
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        if hub.is_path(name_or_path):
            raise ValueError(hub.absent(name_or_path, what))
        if hub.fault_of_hub():  # its client would try again and again; the cache is enough
            kwargs["local_files_only"] = True
    has_weights = auto_class not in (AutoTokenizer, AutoConfig)
    if (base := base_of_adapter(name_or_path, path)) is not None:
        return _load_adapted(auto_class, name_or_path, path, base, what, new=new, **kwargs)
    source = str(path) if path.is_dir() else name_or_path
    kwargs["trust_remote_code"] = False  # None would ask on the terminal
    if (
        path.is_dir()
        and (gguf := sorted(path.glob("*.gguf")))
        and not (path / "config.json").exists()
    ):
        kwargs.setdefault("gguf_file", gguf[0].name)
    if has_weights:
        kwargs.setdefault("dtype", torch.float32)
        kwargs |= weights_format(name_or_path, path)
    reports = logging.getLogger("transformers.modeling_utils")
    level = reports.level
    reports.setLevel(logging.ERROR)  # a newly initialized value head is expected
    try:
        if not has_weights:
            return auto_class.from_pretrained(source, **kwargs)
        if torch.get_default_device().type == "meta":
            dtype = kwargs.pop("dtype")
            config = AutoConfig.from_pretrained(source, **kwargs)
            return auto_class.from_config(config, dtype=dtype)  # without its weights
        checked = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        with waiting_for(f"Loading the {what}"):
            model, info = auto_class.from_pretrained(source, **checked, **kwargs)
    except FAILURES as error:
        if kwargs.get("local_files_only") and not hub.is_cached(name_or_path):
            raise ValueError(hub.absent(name_or_path, what)) from error
        hint = "" if path.is_dir() else near_file(path)
        raise ValueError(
            f"{name_or_path}: cannot load a {what} from here: {reason(error)}{hint}"
        ) from error
    finally:
        reports.setLevel(level)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{name_or_path}: is an adapter; download it (`hf download {name_or_path} --local-dir "
            "DIRECTORY`) and give the directory"
        )
    check_weights(model, info, name_or_path, new)
    return model


def _load_adapted(
    auto_class: Any, name: str, directory: Path, base: str, what: str, **kwargs: Any
) -> Any:
    """Do the same as `_load` for the directory of an adapter and its base model."""
    if auto_class is AutoTokenizer and (directory / "tokenizer_config.json").exists():
        try:
            return auto_class.from_pretrained(str(directory), trust_remote_code=False)
        except FAILURES as error:
            raise ValueError(f"{name}: cannot load a {what} from here: {reason(error)}") from error
    try:
        model = _load(auto_class, base, what, **kwargs)
        if auto_class in (AutoTokenizer, AutoConfig) or model.device.type == "meta":
            return model
        return merge_adapter(model, name, directory)
    except FAILURES as error:
        raise ValueError(f"{name}: an adapter of {base}: {reason(error)}") from error


def build_model(
    auto_class: Any, given: Mapping[str, Any], extra: Mapping[str, Any], what: str
) -> PreTrainedModel:
    """Build a model with random weights.

    Args:
        auto_class: Auto class of transformers.
        given: `model_type` and the fields of its config that the user has chosen.
        extra: Other fields.
        what: Name of what is built, for messages.

    Raises:
        ValueError: If transformers has no such model type, or cannot build it with these fields.
    """
    fields = dict(given)
    model_type = fields.pop("model_type", None)
    try:
        config = AutoConfig.for_model(model_type, **fields, **extra)
        model: PreTrainedModel = auto_class.from_config(config)
    except FAILURES as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        line = " ".join(str(error).split())
        raise ValueError(f"{what} config (model_type {model_type!r}): {kind}{line}") from error
    return model


def stop_token_ids(actor: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return every token that ends a response: the tokenizer's <eos> and the model's own list."""
    configured = getattr(actor.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None}


def _check_plain_head(actor: PreTrainedModel, name: str) -> None:
    for option, neutral in _UNSUPPORTED_LOGIT_TRANSFORMS.items():
        value = getattr(actor.config, option, neutral)
        if value not in (neutral, None):
            raise ValueError(f"{name}: models with {option}={value} are not supported as actors")
    if getattr(actor.get_output_embeddings(), "bias", None) is not None:
        raise ValueError(f"{name}: a language-model head with a bias is not supported")
