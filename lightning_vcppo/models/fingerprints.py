"""Short names for the contents of tokenizers and models, to notice that one has changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_vcppo.models.lora import plain_weights

SAMPLED = 64
"""Weights of each tensor that are looked at."""


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits that depend on which id stands for which token, and on <eos>."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return _digest(repr((vocabulary, tokenizer.eos_token_id)).encode())


@torch.no_grad()
def model_fingerprint(model: PreTrainedModel) -> str:
    """Return 16 hex digits that change with every update of the weights.

    Some weights of each tensor are enough to notice one, as bfloat16, so that the name is the same
    on every device and for every precision that the model is loaded in. What adapters have learnt
    counts as if it had been added to the weights.
    """
    digits = b"".join(
        f"{name}{tuple(weights.shape)}".encode() + _some(weights) for name, weights in _named(model)
    )
    return _digest(digits)


def base_of_adapters(source: str, model: PreTrainedModel) -> dict[str, str]:
    """Return where the base of adapters has come from and which it is.

    A model that has no memory, as that of a rank which is sent its weights later, has no name.
    """
    path = Path(source).expanduser()
    place = str(path.resolve()) if path.is_dir() else source
    on_meta = model.device.type == "meta"
    return {"source": place} | ({} if on_meta else {"fingerprint": model_fingerprint(model)})


def _named(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    return sorted(plain_weights(model, tied=False), key=lambda entry: entry[0])


def _some(weights: Tensor) -> bytes:
    flat = weights.reshape(-1)
    chosen = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), dtype=torch.float64)
    some = flat[chosen.long().to(flat.device)].to(torch.bfloat16)
    return some.view(torch.int16).cpu().numpy().tobytes()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
