"""The same numbers on CPU and device, packed and padded, in blocks and whole."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.findings import Findings
from lightning_vcppo.algorithm import advantages
from lightning_vcppo.generation.fused_sampling import fused_kernel
from lightning_vcppo.generation.sampling import sample_tokens
from lightning_vcppo.models.fused_logprobs import fused_kernels
from lightning_vcppo.models import attention, forward
from lightning_vcppo.models.logprobs import token_logprobs
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.settings import SamplingSettings
from tests.support.decoders import decoder

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(f: Findings, a: Namespace) -> None:
    """Compare, one function after the other."""
    for kind in ("qwen2", "qwen3", "mistral, window"):
        for name, dtype in TYPES.items():
            what = f"packed - padded {kind}, {name}: hidden, gradient"
            f.attempt(what, partial(packed_against_padded, kind, dtype, a.device))
    for name, dtype in TYPES.items():
        what = f"token_logprobs {name}: logprob, entropy, grad hidden, grad weight"
        f.attempt(what, partial(logprobs, dtype, a.device, a.tiny))
    f.attempt("gae: largest gap", partial(gae, a.device))
    f.attempt("nucleus", partial(nucleus, a.device, a.tiny))
    if a.device == "cuda":
        f.attempt("kernels chosen", chosen)
        for dtype in TYPES.values():
            f.attempt(f"masks at aligned columns, {dtype}", partial(masks, dtype))


def packed_against_padded(kind: str, dtype: torch.dtype, device: str) -> list[float]:
    """Return relative distances of hidden states and gradients."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([40, 33, 9, 40, 1, 25], device=device)
    mask = torch.arange(60, device=device) < lengths[:, None]
    ids = torch.randint(3, 40, (6, 67), generator=generator).to(device)
    prompt = torch.tensor([7, 1, 3, 2, 7, 5], device=device)
    ids[torch.arange(67, device=device) >= (prompt + lengths)[:, None]] = 0
    results = []
    for packed in (False, True):
        model: Any = decoder(kind, dtype).train()
        model = model.to(device)
        model = enable_packing(model) if packed else model
        hidden = forward.response_hidden(model.base_model, ids, prompt, mask)
        hidden.float().square().mean().backward()
        gradients = [p.grad for p in model.base_model.parameters() if p.grad is not None]
        results.append((hidden.detach(), torch.cat([g.float().flatten() for g in gradients])))
    (h0, g0), (h1, g1) = results
    return [
        float((h0 - h1).float().norm() / h0.float().norm()),
        float((g0 - g1).norm() / g0.norm()),
    ]


def logprobs(dtype: torch.dtype, device: str, tiny: bool) -> list[float]:
    """Return how far `token_logprobs` is from float64."""
    generator = torch.Generator().manual_seed(3)
    n, h, v = (300, 64, 1000) if tiny else (2048, 256, 50_000)
    hidden = torch.randn(n, h, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(v, h, generator=generator) * 0.2).to(device, dtype).requires_grad_()
    targets = torch.randint(0, v, (n,), generator=generator).to(device)
    slopes = torch.randn(2, n, generator=generator).to(device)
    found, entropy = token_logprobs(hidden, weight, targets, temperature=0.7)
    grads = torch.autograd.grad((found * slopes[0] + entropy * slopes[1]).sum(), (hidden, weight))
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logp = ((exact[0] @ exact[1].T) / 0.7).log_softmax(-1)
    wanted, wanted_entropy = logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)
    wanted_grads = torch.autograd.grad(
        (wanted * slopes[0] + wanted_entropy * slopes[1]).sum(), exact
    )
    gaps = [(found - wanted).abs().max(), (entropy - wanted_entropy).abs().max()]
    gaps += [(x - y).norm() / y.norm() for x, y in zip(grads, wanted_grads, strict=True)]
    return [float(gap) for gap in gaps]


def gae(device: str) -> float:
    """Return the largest gap between CPU and device."""
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 16, 3000, generator=generator)
    mask = torch.rand(16, 3000, generator=generator) < 0.9
    here = advantages.decoupled_gae(rewards, values, mask, lambda_actor=0.95)
    moved = (x.to(device) for x in (rewards, values, mask))
    there = advantages.decoupled_gae(*moved, lambda_actor=0.95)
    return max(float((x - y.cpu()).abs().max()) for x, y in zip(here, there, strict=True))


def nucleus(device: str, tiny: bool) -> dict[str, int]:
    """Count tokens outside the nucleus: a parallel sum need not be monotonous."""
    generator = torch.Generator().manual_seed(3)
    rows, v = (256, 2000) if tiny else (4096, 151_936)
    logits = (torch.randn(64, v, generator=generator) * 3).to(device)
    probs, order = logits.softmax(-1).sort(-1, descending=True)
    tail = probs.cumsum(1) - probs >= 0.9 + 1e-5
    outside = torch.zeros_like(tail).scatter(1, order, tail)
    count = 0
    for _ in range(rows // 64):
        uniform = torch.rand(64, generator=generator).to(device)
        token, _, _ = sample_tokens(logits, uniform, SamplingSettings(top_p=0.9))
        count += int(outside.gather(1, token[:, None]).sum())
    return {"tokens": rows, "outside": count}


def chosen() -> dict[str, Any]:
    """Return which attention kernels are taken."""
    query = torch.zeros(4, 14, 64, device="cuda", dtype=torch.bfloat16)
    return {
        "packed rows": "varlen" if attention.variable_length_attention(query) else "groups",
        "decoding": "by length" if attention.attends_by_length(query) else "masked",
        "sampling": "fused" if fused_kernel(query[0]) else "torch",
        "log-probabilities": "fused" if fused_kernels(query.device, torch.float32) else "torch",
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
    }


def masks(dtype: torch.dtype) -> dict[str, float]:
    """Attend as ordinary decoding steps do, from each kind of column; return gaps to no mask."""
    attention.prefer_general_kernels()
    query = torch.randn(4, 2, 7, 64, device="cuda", dtype=dtype)
    storage = torch.randn(4, 2, 384, 64, device="cuda", dtype=dtype)
    mask = torch.zeros(4, 384, device="cuda", dtype=dtype)
    found = {}
    for first in (0, 16, 48):
        for last in (300, 301, 304):
            keys = storage[:, :, first:last]
            attend = torch.nn.functional.scaled_dot_product_attention
            got = attend(query, keys, keys, attn_mask=mask[:, None, None, first:last])
            wanted = attend(query.float(), keys.float(), keys.float())
            found[f"{first} to {last}"] = float((got - wanted).abs().max())
    return found
