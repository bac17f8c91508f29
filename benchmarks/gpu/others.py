"""Time transformers itself as it samples the same number of tokens."""

from __future__ import annotations

import time
from argparse import Namespace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.tools import big_model, sync


def run(f: Findings, a: Namespace) -> None:
    """Time `generate` and `generate_batch`."""
    model = big_model(a, torch.bfloat16).eval().requires_grad_(False)
    new = 16 if a.tiny else 256
    for rows in (4,) if a.tiny else (256, 64):
        f.attempt(f"generate_batch {rows}", partial(in_batches, a, model, rows, new))
        f.attempt(f"generate {rows}", partial(plain, a, model, rows, new // 2))


def plain(a: Namespace, model: PreTrainedModel, rows: int, tokens: int) -> dict[str, Any]:
    """Return tokens a second of `generate` with the cache as it comes."""
    found = 0.0
    for prompt, count in ((32, 4), (200, tokens)):
        ids = torch.randint(2, model.config.vocab_size, (rows, prompt), device=a.device)
        sync(a.device)
        began = time.perf_counter()
        model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        sync(a.device)
        found = time.perf_counter() - began
    return {"tokens/s": rows * tokens / found, "ms/step": found / tokens * 1e3}


def in_batches(a: Namespace, model: PreTrainedModel, rows: int, tokens: int) -> dict[str, Any]:
    """Return tokens a second of `generate_batch`: paged attention, its warm-up included."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    generation = GenerationConfig(
        max_new_tokens=tokens, do_sample=True, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0
    )
    batching = ContinuousBatchingConfig(return_logprobs=True, max_memory_percent=0.5)
    prompts = torch.randint(2, model.config.vocab_size, (rows, 200)).tolist()
    began = time.perf_counter()
    outputs = model.generate_batch(  # type: ignore[operator]
        prompts, generation_config=generation, continuous_batching_config=batching
    )
    sync(a.device)
    took = time.perf_counter() - began
    made = sum(len(output.generated_tokens) for output in outputs.values())
    return {"tokens/s": made / took, "tokens": made, "seconds": took}
