"""Check that a folder's model is complete and fits the tokenizer and the texts.

transformers fills what a file lacks with random numbers and only mentions it; a token beyond the
embedding ends in an index error somewhere in the run. Both are refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_vcppo.common.errors import require


def reason(error: Exception) -> str:
    """Return in one line why transformers could not load something."""
    text = str(error).strip()
    if not text or isinstance(error, KeyError):
        return f"a file in it is not of the expected form ({type(error).__name__} {text})".rstrip()
    if "trust_remote_code" in text:
        return "it is of a kind that transformers lacks; code that comes with it is not run"
    line = text.splitlines()[0]
    return line.partition(" Model type should be one of")[0]  # all that transformers knows


def check_weights(model: PreTrainedModel, info: Mapping[str, Any], name: str, new: str) -> None:
    """Refuse a model that is incomplete, of another shape than its config says, or not finite.

    Args:
        model: As loaded.
        info: What transformers says about its loading.
        name: Where it comes from.
        new: Beginning of the names of weights that may start anew; "" are none.

    Raises:
        ValueError: If so.
    """
    if missing := _others(info["missing_keys"], new):
        raise ValueError(
            f"{name}: its files lack {_some(missing)}; copy the folder again, all files of it"
        )
    wrong = {key: shapes for key, *shapes in info["mismatched_keys"]}
    for key in _others(wrong, new):
        stored, expected = (tuple(shape) for shape in wrong[key])
        raise ValueError(
            f"{name}: {key} has shape {stored}, but config.json makes it {expected}; the files are "
            "not of one model"
        )
    weights = {} if model.device.type == "meta" else dict(model.named_parameters())
    if bad := [key for key, weight in weights.items() if not weight.sum().isfinite()]:
        raise ValueError(
            f"{name}: {_some(bad)} is not finite; the model comes from a run that diverged"
        )


def _others(keys: Iterable[str], new: str) -> list[str]:
    return sorted(key for key in keys if not (new and key.startswith(new)))


def _some(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} other weights" if len(keys) > 1 else "")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that reads nothing, or that no response could end with.

    Raises:
        ValueError: If so.
    """
    # Without the files transformers makes up an empty one.
    reads = bool(tokenizer("1 + 1", add_special_tokens=False).input_ids)
    require(reads, f"{name}: no tokenizer is here (expected tokenizer.json beside the model)")
    require(
        tokenizer.eos_token_id is not None,
        f"{name}: the tokenizer has no eos_token, so no response could end; name one in "
        "tokenizer_config.json",
    )


def check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, what: str
) -> None:
    """Refuse a model that has no embedding for some tokens.

    Args:
        model: Actor or critic.
        tokenizer: The actor's.
        name: Where the model comes from.
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
    # transformers adds an unknown token of its own, which byte-level tokenizers never use.
    vocabulary = tokenizer.get_vocab()
    beyond = {i: t for t, i in vocabulary.items() if i >= rows and t != tokenizer.unk_token}
    unused = _written_by_nobody(tokenizer) & beyond.keys()
    require(
        beyond.keys() == unused,
        f"{name}: the {what} has {rows} tokens, but the tokenizer has ids up to "
        f"{max(vocabulary[t] for t in vocabulary if t != tokenizer.unk_token)}; {advice}",
    )
    if unused:
        first = min(unused)
        rank_zero_warn(
            f"{name}: the {what} has {rows} tokens and none for {beyond[first]!r} ({first}), a "
            "special token; a prompt that held it would be refused"
        )


def check_prompts(model: PreTrainedModel, largest: int, name: str) -> None:
    """Refuse prompts with a token that the model has no embedding for.

    Args:
        model: The actor.
        largest: Largest id in a prompt.
        name: Where the model comes from.

    Raises:
        ValueError: With that id.
    """
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    rows = embeddings.shape[0]
    require(
        largest < rows,
        f"{name}: a prompt holds token {largest}, but the model has {rows}; leave that special "
        "token out of the problems and of the chat template",
    )


def _written_by_nobody(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of special tokens that stand for none of the roles that a response needs."""
    needed = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    added = tokenizer.added_tokens_decoder.items()
    return {i for i, token in added if token.special and i not in needed}


def check_same_tokens(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    name: str,
    what: str = "tokenizer",
) -> None:
    """Refuse a tokenizer that gives an id of the actor's to another token.

    Tokens that only one of them has are no difference: networks may have more rows than tokens.

    Args:
        tokenizer: The actor's.
        other: That of what shares its token ids.
        name: Where the other comes from.
        what: It belongs to, for the message.

    Raises:
        ValueError: With the first token that differs.
    """
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    of_id = {i: token for token, i in theirs.items()}
    for token, i in sorted(ours.items(), key=lambda entry: entry[1]):
        if token in (tokenizer.unk_token, other.unk_token):  # transformers may add one of its own
            continue
        there, their_id = of_id.get(i, token), theirs.get(token, i)
        if there == token and their_id == i:
            continue
        difference = (
            f"token {i} is {token!r} to the actor and {there!r} there"
            if there != token
            else f"{token!r} is token {i} to the actor and {their_id} there"
        )
        raise ValueError(f"{name}: the {what} must share the actor's tokenizer, but {difference}")


def check_rotary(
    model: PreTrainedModel, prompt: int, response: int, flag: str, what: str = "model"
) -> None:
    """Refuse texts past the length at which a model's rotary factors change.

    Beyond it a text has other probabilities, from its first token on, than its beginning had while
    it was sampled, and than it has beside a shorter one: there is no one policy to train.

    Args:
        model: The actor, or a network that reads what it wrote.
        prompt: Tokens of the longest prompt.
        response: Limit of a response.
        flag: Of that limit.
        what: Name of the network.

    Raises:
        ValueError: With that length.
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
            f"{flag}: {response} tokens behind a prompt of {prompt} pass {border} positions, where "
            f"the {what}'s rotary factors change (rope_type {rope['rope_type']}), and its policy "
            "with them; lower it or --data.max_prompt_length",
        )


def check_context(
    model: PreTrainedModel, prompt: int, response: int, flag: str, what: str = "model"
) -> None:
    """Refuse prompts and responses that together are longer than the model's positions.

    Args:
        model: The actor, or a network that reads what it wrote.
        prompt: Tokens of the longest prompt.
        response: Limit of a response.
        flag: Of that limit.
        what: Name of the network.

    Raises:
        ValueError: If so.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    require(
        not positions or prompt + response <= positions,
        f"{flag}: {response} tokens behind a prompt of {prompt} are more than the {what}'s "
        f"{positions} positions; lower it or --data.max_prompt_length",
    )
