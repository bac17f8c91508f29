"""Sampling on the device: the CPU's tokens, and log-probabilities as they are read for updates."""

from __future__ import annotations

from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.findings import Findings
from lightning_vcppo.generation import Generations, TransformersEngine
from lightning_vcppo.generation.graphs import CapturedStep
from lightning_vcppo.models import forward
from lightning_vcppo.models.lora import adapt
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.rollouts.rollout import join_prompts
from lightning_vcppo.settings import LoRASettings, SamplingSettings
from tests.support.decoders import CONFIGS, decoder

LEAN = ("qwen2", "qwen3", "llama", "mistral, window")
SETTINGS = SamplingSettings(max_response_length=60, temperature=0.8)
PRECISIONS = {"fp32": torch.float32, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}


def run(f: Findings, a: Namespace) -> None:
    """Compare each kind of model: in float32 (`lean`), in bfloat16 (`half`), or the others."""
    others = tuple(kind for kind in CONFIGS if kind not in LEAN)
    kinds, precisions = {
        "lean": (LEAN, ["fp32"]),
        "half": (LEAN, ["bf16-mixed", "bf16-true"]),
        "others": (others, list(PRECISIONS)),
    }[a.argument]
    for kind in kinds:
        for precision in precisions:
            f.attempt(f"{kind}, {precision}", partial(compare, kind, precision, a.device))
    if a.argument == "others":
        for precision in PRECISIONS:
            f.attempt(f"long tail, {precision}", partial(long_tail, precision, a.device))
        f.attempt("adapters", partial(adapters, a.device))


def prompts_of(lengths: tuple[int, ...], times: int) -> list[list[int]]:
    """Draw prompts of the given lengths."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 40, (n,), generator=generator).tolist() for n in lengths * times]


PROMPTS = prompts_of((4, 1, 9, 2, 2, 7, 1, 3), 3)


def context(precision: str, device: str) -> AbstractContextManager[Any]:
    """Return autocast as Lightning has it, or nothing."""
    if precision != "bf16-mixed":
        return nullcontext()
    return torch.autocast(device, torch.bfloat16, cache_enabled=False)


def sample(model: Any, precision: str, device: str, static: bool | None = None) -> Generations:
    """Sample responses to the prompts."""
    engine = TransformersEngine(
        model, pad_token_id=0, eos_token_ids={1}, max_num_seqs=16, static=static
    )
    with context(precision, device):
        return engine.generate(PROMPTS, list(range(len(PROMPTS))), SETTINGS)


def gap_of_reading(model: Any, sampled: Generations, precision: str, device: str) -> list[float]:
    """Return mean and maximum of |sampled - read| log-probabilities."""
    mask = sampled.response_mask_BT
    ids = join_prompts(PROMPTS, sampled.response_ids_BT, mask, 0)
    lengths = torch.tensor([len(p) for p in PROMPTS], device=mask.device)
    with torch.no_grad(), context(precision, device):
        read, _ = forward.response_logprobs(
            model, ids, lengths, mask, sampled.response_ids_BT[mask], temperature=0.8
        )
    gap = (read.float() - sampled.logprobs_BT[mask].float()).abs()
    return [float(gap.mean()), float(gap.max())]


def agreement(one: Generations, other: Generations) -> dict[str, Any]:
    """Return how many responses are the same, and how far log-probabilities of these are."""
    width = min(one.response_ids_BT.shape[1], other.response_ids_BT.shape[1])
    same = one.response_ids_BT[:, :width].cpu() == other.response_ids_BT[:, :width].cpu()
    both = one.response_mask_BT[:, :width].cpu() & same.cumprod(1).bool()
    gap = (one.logprobs_BT[:, :width].cpu() - other.logprobs_BT[:, :width].cpu()).abs()[both]
    return {"same responses of 24": int(same.all(1).sum()), "gap": float(gap.max())}


def compare(kind: str, precision: str, device: str) -> dict[str, Any]:
    """Sample with and without a graph, and read."""
    model: Any = enable_packing(decoder(kind, PRECISIONS[precision]))
    model = model.to(device)
    ours = sample(model, precision, device)
    found: dict[str, Any] = {
        "sampled - read, mean and max": gap_of_reading(model, ours, precision, device),
        "graphs": CapturedStep.enabled and device == "cuda",
    }
    if kind in LEAN:
        static = True if device == "cpu" else None
        ours = sample(model, precision, device, static)
        eager = sample(model, precision, device, static=False)
        found["against ordinary steps"] = agreement(ours, eager)
    if precision == "fp32":
        cpu = sample(enable_packing(decoder(kind)), precision, "cpu")
        found["against the CPU"] = agreement(ours, cpu)
    return found


def long_tail(precision: str, device: str) -> dict[str, Any]:
    """Sample responses of very different lengths: ordinary steps read from any column."""
    tail = prompts_of((32, 5, 17, 8), 16)
    settings = SamplingSettings(max_response_length=256)
    found: dict[str, Any] = {}
    for static in (False, True):
        model: Any = enable_packing(decoder("qwen2", PRECISIONS[precision]))
        model = model.to(device)
        engine = TransformersEngine(
            model, pad_token_id=0, eos_token_ids={1}, max_num_seqs=16, static=static
        )
        with context(precision, device):
            sampled = engine.generate(tail, list(range(len(tail))), settings)
        lengths = sampled.response_mask_BT.sum(1)
        found["static" if static else "ordinary"] = {
            "lengths": [int(lengths.min()), int(lengths.max())],
            "finite": bool(sampled.logprobs_BT.isfinite().all()),
        }
    return found


def adapters(device: str) -> dict[str, Any]:
    """Sample with adapters that have learnt something."""
    model: Any = enable_packing(decoder("qwen2"))
    adapt(model, LoRASettings(rank=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model = model.to(device)
    found = {}
    for precision in ("fp32", "bf16-mixed"):
        sampled = sample(model, precision, device)
        found[precision] = gap_of_reading(model, sampled, precision, device)
    return found
