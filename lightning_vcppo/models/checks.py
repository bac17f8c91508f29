"""Check that a directory's model is complete and fits the tokenizer and the texts.

transformers initializes missing weights at random and only logs it; a token without an embedding
ends in an index error during the run. Both are refused here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_vcppo.common.errors import WRONG_FORM, require

QUANTIZED = "its weights are quantized; training needs them in 16 or 32 bits"


def reason(error: Exception) -> str:
    """Return the reason of a loading error of transformers in one line."""
    text = str(error).strip()
    if re.search("quantiz", text, re.IGNORECASE):
        return QUANTIZED
    # The first line of a config's validation names only the field.
    text = re.sub(r"^(?:Class v|V)alidation error for .*:\n\s*", "", text)
    if not text or isinstance(error, WRONG_FORM):
        form = f"{type(error).__name__} {text}".strip().splitlines()[0]
        return f"a file in it is not of the expected form ({form})"
    if "trust_remote_code" in text:
        return "transformers does not have its type; code that comes with it is not run"
    line = text.splitlines()[0]
    return line.partition(" Model type should be one of")[0]  # a list of all types


def check_weights(model: PreTrainedModel, info: Mapping[str, Any], name: str, new: str) -> None:
    """Refuse a model that is incomplete or quantized, differs from its config, or is not finite.

    Args:
        model: The loaded model.
        info: Loading information of transformers.
        name: Source of the model.
        new: Prefix of the names of weights that may be initialized; "" means none.

    Raises:
        ValueError: If so.
    """
    if missing := _others(info["missing_keys"], new):
        raise ValueError(
            f"{name}: its files lack {_some(missing)}; copy the directory again with all files"
        )
    if getattr(model.config, "quantization_config", None):
        raise ValueError(f"{name}: {QUANTIZED}")
    if unread := _unread(model, info["unexpected_keys"]):
        raise ValueError(
            f"{name}: its files hold {_some(unread)}, which a model of its config.json does not "
            "read; the files belong to different models"
        )
    wrong = {key: shapes for key, *shapes in info["mismatched_keys"]}
    for key in _others(wrong, new):
        stored, expected = (tuple(shape) for shape in wrong[key])
        raise ValueError(
            f"{name}: {key} has shape {stored}, but config.json expects {expected}; the files "
            "belong to different models"
        )
    weights = {} if model.device.type == "meta" else dict(model.named_parameters())
    if bad := [key for key, weight in weights.items() if not weight.sum().isfinite()]:
        raise ValueError(
            f"{name}: {_some(bad)} is not finite; the model comes from a run that diverged"
        )


def _unread(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Return weights that belong to a layer of the model, such as a bias or a scale."""
    owners = {name for name, part in model.named_modules() if [*part.parameters(recurse=False)]}
    return sorted(key for key in unexpected if key.rpartition(".")[0] in owners)


def _others(keys: Iterable[str], new: str) -> list[str]:
    return sorted(key for key in keys if not (new and key.startswith(new)))


def _some(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} other weights" if len(keys) > 1 else "")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer without a vocabulary, or without an end-of-sequence token.

    Raises:
        ValueError: If so.
    """
    # Without the files transformers creates an empty tokenizer.
    reads = bool(tokenizer("1 + 1", add_special_tokens=False).input_ids)
    require(reads, f"{name}: no tokenizer found (expected tokenizer.json next to the model)")
    require(
        tokenizer.eos_token_id is not None,
        f"{name}: the tokenizer has no eos_token, so no response could end; set it in "
        "tokenizer_config.json",
    )


def check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, what: str
) -> None:
    """Refuse a model that has no embedding for some tokens.

    Args:
        model: Actor or critic.
        tokenizer: The actor's.
        name: Source of the model.
        what: "actor", "critic" or "reference".

    Raises:
        ValueError: If so.
    """
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    rows = embeddings.shape[0]
    advice = (
        "use the tokenizer it was trained with, or resize_token_embeddings"
        if what == "actor"
        else "it must share the actor's tokenizer"
    )
    end = tokenizer.eos_token_id
    require(
        isinstance(end, int) and end < rows,
        f"{name}: the {what} has {rows} tokens, and the tokenizer's eos_token "
        f"{tokenizer.eos_token} is none of them, so no response could end; {advice}",
    )
    # transformers adds its own unknown token, which byte-level tokenizers never use.
    vocabulary = tokenizer.get_vocab()
    beyond = {i: t for t, i in vocabulary.items() if i >= rows and t != tokenizer.unk_token}
    unused = _special_tokens_without_role(tokenizer) & beyond.keys()
    require(
        beyond.keys() == unused,
        f"{name}: the {what} has {rows} tokens, but the tokenizer has ids up to "
        f"{max(vocabulary[t] for t in vocabulary if t != tokenizer.unk_token)}; {advice}",
    )
    if unused:
        first = min(unused)
        rank_zero_warn(
            f"{name}: the {what} has {rows} tokens, without the special token {beyond[first]!r} "
            f"({first}); a prompt that contains it would be refused"
        )


def check_prompts(model: PreTrainedModel, largest: int, name: str) -> None:
    """Refuse prompts with a token that the model has no embedding for.

    Args:
        model: The actor.
        largest: Largest token id in a prompt.
        name: Source of the model.

    Raises:
        ValueError: If the model has no embedding for that id.
    """
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    rows = embeddings.shape[0]
    require(
        largest < rows,
        f"{name}: a prompt contains token {largest}, but the model has only {rows}; remove that "
        "special token from the problems and from the chat template",
    )


def _special_tokens_without_role(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of special tokens other than the <eos>, <bos> and padding tokens."""
    needed = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    added = tokenizer.added_tokens_decoder.items()
    return {i for i, token in added if token.special and i not in needed}


def check_same_tokens(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    name: str,
    what: str = "tokenizer",
) -> None:
    """Refuse a tokenizer in which an id of the actor's belongs to another token.

    Tokens that only one of them has are accepted: networks may have more rows than tokens.

    Args:
        tokenizer: The actor's tokenizer.
        other: The tokenizer that must have the same ids.
        name: Source of the other tokenizer.
        what: Its owner, for the message.

    Raises:
        ValueError: If a token differs; the message names the first one.
    """
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    of_id = {i: token for token, i in theirs.items()}
    for token, i in sorted(ours.items(), key=lambda entry: entry[1]):
        if token in (tokenizer.unk_token, other.unk_token):  # transformers may add its own
            continue
        there, their_id = of_id.get(i, token), theirs.get(token, i)
        if there == token and their_id == i:
            continue
        difference = (
            f"token {i} is {token!r} for the actor and {there!r} there"
            if there != token
            else f"{token!r} is token {i} for the actor and {their_id} there"
        )
        raise ValueError(f"{name}: the {what} must share the actor's tokenizer, but {difference}")


def check_rotary(
    model: PreTrainedModel, prompt: int, response: int, flag: str, what: str = "model"
) -> None:
    """Refuse texts longer than the length at which a model's rotary factors change.

    Beyond it all tokens of a text, even its first ones, have other probabilities than while it was
    sampled, or than in a batch of shorter texts. So there is no single policy to train.

    Args:
        model: The actor, or another network that reads its responses.
        prompt: Number of tokens of the longest prompt.
        response: Largest number of tokens of a response.
        flag: Flag of that limit.
        what: Name of the network.

    Raises:
        ValueError: If prompt and response are longer than that.
    """
    config = model.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    for rope in (given, *(part for part in given.values() if isinstance(part, dict))):
        if rope.get("rope_type") not in ("longrope", "dynamic"):
            continue
        border = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", config.max_position_embeddings
        )
        require(
            prompt + response <= border,
            f"{flag}: {response} tokens after a prompt of {prompt} exceed {border} positions, "
            f"where the {what}'s rotary factors (rope_type {rope['rope_type']}) and so its policy "
            "change; lower it or --data.max_prompt_length",
        )


def check_context(
    model: PreTrainedModel, prompt: int, response: int, flag: str, what: str = "model"
) -> None:
    """Refuse prompts and responses that together are longer than the model's positions.

    Args:
        model: The actor, or another network that reads its responses.
        prompt: Number of tokens of the longest prompt.
        response: Largest number of tokens of a response.
        flag: Flag of that limit.
        what: Name of the network.

    Raises:
        ValueError: If so.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    require(
        not positions or prompt + response <= positions,
        f"{flag}: {response} tokens after a prompt of {prompt} are more than the {what}'s "
        f"{positions} positions; lower it or --data.max_prompt_length",
    )
