"""Tokens a second of sampling, and what a step costs: eager, as a graph, and at the least."""

from __future__ import annotations

import time
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.tools import Peak, big_model, profiled, seconds, sync
from lightning_vcppo.generation import TransformersEngine, static_decoder
from lightning_vcppo.generation.graphs import CapturedStep
from lightning_vcppo.generation.static_batch import StaticBatch
from lightning_vcppo.models.attention import attends_by_length
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.settings import SamplingSettings

BY_LENGTH = "attends_by_length"
PEAK_TB_S = 3.0
"""Of an H100's memory, about; the floor reads weights and keys once at this rate."""


class Bench:
    """A model, and what is timed with it."""

    def __init__(self, a: Namespace, dtype: torch.dtype) -> None:
        """Build the model."""
        self.a, self.device = a, a.device
        model = enable_packing(big_model(a, dtype))
        self.model: PreTrainedModel = model.eval().requires_grad_(False)
        self.vocabulary = int(model.config.vocab_size)

    def generate(self, rows: int, prompt: int, tokens: int, static: bool | None) -> float:
        """Return the seconds of sampling."""
        prompts = torch.randint(2, self.vocabulary, (rows, prompt)).tolist()
        engine = TransformersEngine(
            self.model, pad_token_id=0, eos_token_ids=set(), max_num_seqs=rows, static=static
        )
        sync(self.device)
        began = time.perf_counter()
        engine.generate(prompts, list(range(rows)), SamplingSettings(max_response_length=tokens))
        sync(self.device)
        return time.perf_counter() - began

    def measure(
        self, rows: int, tokens: int, *, static: bool | None = None, mixed: bool = False
    ) -> dict[str, Any]:
        """Return tokens a second and memory of sampling `tokens` tokens a row."""
        half = torch.autocast(self.device, torch.bfloat16, cache_enabled=False)
        with half if mixed else nullcontext():
            self.generate(rows, 32, 16, static)
            with Peak(self.device, forget=True) as peak:
                took = self.generate(rows, 200, tokens, static)
        return {
            "tokens/s": rows * tokens / took,
            "ms/step": took / tokens * 1e3,
            "new tokens": tokens,
            "peak GB": peak.allocated,
            "reserved GB": peak.reserved,
        }

    def batch(self, rows: int, keys: int) -> StaticBatch:
        """Return a batch whose rows have about `keys` keys each, ready for steps."""
        prompts = torch.randint(2, self.vocabulary, (rows, 16)).tolist()
        batch = StaticBatch(
            self.model,
            prompts,
            range(rows),
            SamplingSettings(max_response_length=keys + 512),
            max_num_seqs=rows,
            eos=[],
            pad=0,
        )
        batch._refill()
        batch._resize(rows, keys + 512)
        for layer in batch._decoder.layers:
            layer.keys_RCKD.normal_()
            layer.values_RCKD.normal_()
        batch._position_R.fill_(keys)
        return batch

    @torch.no_grad()
    def steps(self, rows: int, keys: int) -> dict[str, Any]:
        """Return what a step takes."""
        config = self.model.config
        head = config.hidden_size // config.num_attention_heads
        weights = 2 * sum(p.numel() for p in self.model.parameters())
        read = 4 * rows * keys * config.num_hidden_layers * config.num_key_value_heads * head
        found: dict[str, Any] = {"floor ms": (weights + read) / PEAK_TB_S / 1e9}
        batch = self.batch(rows, keys)
        found["eager ms"] = seconds(self.device, batch._advance, 5, 2) * 1e3
        batch._step()
        found["captured"] = batch.is_captured
        found["graph ms"] = seconds(self.device, batch._step, 20, 3) * 1e3
        setattr(static_decoder, BY_LENGTH, lambda query: None)
        try:
            masked = self.batch(rows, keys)
            masked._step()
            found["graph ms, masked attention"] = seconds(self.device, masked._step, 10, 3) * 1e3
        finally:
            setattr(static_decoder, BY_LENGTH, attends_by_length)
        return found

    @torch.no_grad()
    def profile(self, rows: int, keys: int) -> dict[str, float]:
        """Return what the device does in replayed steps; write the operations down."""
        batch = self.batch(rows, keys)
        for _ in range(3):
            batch._step()

        def five_steps() -> None:
            for _ in range(5):
                batch._step()

        found = profiled(five_steps, self.device, self.a.work / f"profile_{rows}.txt")
        return found | {"kernels/step": found["kernels"] / 5}


def run(f: Findings, a: Namespace) -> None:
    """Time sampling in bfloat16 and under autocast."""
    few, many, tokens = (4, 8, 24) if a.tiny else (64, 256, 1024)
    short, long = (16, 32) if a.tiny else (512, 4096)
    static = True if a.device == "cpu" else None
    bench = Bench(a, torch.bfloat16)
    for rows in (few, many):
        f.attempt(f"bf16, {rows} rows", partial(bench.measure, rows, tokens, static=static))
    f.put(graphs=CapturedStep.enabled)
    for rows in (few, many):
        for keys in (short, long):
            f.attempt(f"step of {rows} rows, {keys} keys", partial(bench.steps, rows, keys))
    for rows in (few, many):
        f.attempt(f"profile of {rows} rows", partial(bench.profile, rows, 32 if a.tiny else 1024))
    f.attempt(
        f"bf16, {few} rows, ordinary steps",
        partial(bench.measure, few, 12 if a.tiny else 128, static=False),
    )
    del bench
    mixed = Bench(a, torch.float32)
    for rows in (few, many):
        f.attempt(
            f"bf16-mixed, {rows} rows",
            partial(mixed.measure, rows, tokens // 2, static=static, mixed=True),
        )
