"""Tiny decoders of several kinds, with random weights."""

from copy import deepcopy

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY, HIDDEN = 40, 32
ROUNDING = 1e-10
"""Two ways to compute the same in float64, absolute and relative: sums of at most some 1e4 terms of
size 1 differ by 1e4 x 2e-16, through a few layers; a mistake that float32 would show is 1e-7."""
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MIXED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "llama": LlamaConfig(**SIZES),
    "mistral, window": MistralConfig(**SIZES, sliding_window=6),
    "gemma2, eager": Gemma2Config(**SIZES, **MIXED, head_dim=8, final_logit_softcapping=None),
    "gemma3, mixed windows": Gemma3TextConfig(**SIZES, **MIXED, head_dim=8),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=128),
}


def decoder(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build one of them, always with the same weights."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(CONFIGS[kind]), dtype=dtype).eval()
