"""Compute short fingerprints of tokenizers and models, to detect changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_vcppo.models.lora import plain_weights

SAMPLED = 64
"""Number of weights of each tensor that are hashed."""


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits that depend on the ids of all tokens, and on <eos>."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return _digest(repr((vocabulary, tokenizer.eos_token_id)).encode())


@torch.no_grad()
def model_fingerprint(model: PreTrainedModel) -> str:
    """Return 16 hex digits that change with every update of the weights.

    Some weights of each tensor are enough to detect one. They are hashed as bfloat16, so that the
    fingerprint does not depend on device and precision. Adapters count as merged into the weights.
    """
    digits = b"".join(
        f"{name}{tuple(weights.shape)}".encode() + _some(weights)
        for name, weights in _weights(model)
    )
    return _digest(digits)


def base_of_adapters(source: str, model: PreTrainedModel) -> dict[str, str]:
    """Return source and fingerprint of the base model of adapters.

    A model on the meta device, whose rank receives the weights later, has no fingerprint.
    """
    path = Path(source).expanduser()
    place = str(path.resolve()) if path.is_dir() else source
    on_meta = model.device.type == "meta"
    return {"source": place} | ({} if on_meta else {"fingerprint": model_fingerprint(model)})


def _weights(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    return sorted(plain_weights(model, tied=False), key=lambda entry: entry[0])


def _some(weights: Tensor) -> bytes:
    flat = weights.reshape(-1)
    chosen = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), dtype=torch.float64)
    some = flat[chosen.long().to(flat.device)].to(torch.bfloat16)
    return some.view(torch.int16).cpu().numpy().tobytes()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
