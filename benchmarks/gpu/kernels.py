"""Parts of a rollout one by one, next to what could take their place."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.tools import Peak, seconds
from lightning_vcppo.algorithm import advantages
from lightning_vcppo.generation import fused_sampling
from lightning_vcppo.generation.sampling import sample_tokens
from lightning_vcppo.models.attention import variable_length_attention
from lightning_vcppo.models import fused_logprobs, logprobs, packing
from lightning_vcppo.models.logprobs import float32_product, token_logprobs
from lightning_vcppo.models.packing import PackedLayout, packed_sdpa
from lightning_vcppo.settings import SamplingSettings

HALF = torch.bfloat16
BY_LENGTH = "variable_length_attention"


def run(f: Findings, a: Namespace) -> None:
    """Time each."""
    for part in (head, attention, sampling, gae, optimizer):
        f.attempt(part.__name__, partial(part, f, a))


def cost(f: Findings, a: Namespace, name: str, go: Callable[[], object], repeats: int = 3) -> None:
    """Note milliseconds and memory of a call."""

    def measure() -> dict[str, float]:
        took = seconds(a.device, go, repeats, 1)
        with Peak(a.device) as peak:
            go()
        return {"ms": took * 1e3, "peak GB": peak.allocated}

    f.attempt(name, measure)


def both_ways(run: Callable[[], Any], *leaves: Tensor) -> Callable[[], object]:
    """Return a call that differentiates the sum of the outputs."""
    return lambda: torch.autograd.grad(sum(o.float().sum() for o in run()), leaves)


@contextmanager
def without(switch: str) -> Iterator[None]:
    """Switch fused kernels off by their variable of the environment."""
    before = os.environ.get(switch)
    os.environ[switch] = "0"
    try:
        yield
    finally:
        del os.environ[switch]
        if before is not None:
            os.environ[switch] = before


def head(f: Findings, a: Namespace) -> None:
    """Log-probabilities of 16K tokens against the products alone and Liger's cross-entropy."""
    n, h, v = (256, 64, 2000) if a.tiny else (16_384, 896, 151_936)
    hidden = torch.randn(n, h, device=a.device, dtype=HALF).requires_grad_()
    weight = (torch.randn(v, h, device=a.device, dtype=HALF) * 0.05).requires_grad_()
    targets = torch.randint(0, v, (n,), device=a.device)

    def ours() -> tuple[Tensor, Tensor]:
        return token_logprobs(hidden, weight, targets)

    with torch.no_grad():
        cost(f, a, f"token_logprobs {n}, forward", ours)
    budget = logprobs._BLOCK_LOGITS
    for power in (24, 26, 28):
        logprobs._BLOCK_LOGITS = 2**power
        cost(f, a, f"token_logprobs {n}, both ways, 2^{power}", both_ways(ours, hidden, weight))
    logprobs._BLOCK_LOGITS = budget
    with without(fused_logprobs.SWITCH):
        cost(f, a, f"token_logprobs {n}, both ways, not fused", both_ways(ours, hidden, weight))
    blocks = range(0, v, 8192)
    with torch.no_grad():
        products = partial(lambda *_: [linear(hidden, weight[i : i + 8192]) for i in blocks])
        cost(f, a, f"the products alone, {n}", products)
        wide = partial(lambda *_: [float32_product(hidden, weight[i : i + 8192].T) for i in blocks])
        cost(f, a, f"the products in float32, {n}", wide)
    if a.device == "cuda":
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        apply = LigerFusedLinearCrossEntropyFunction.apply
        go = both_ways(lambda: apply(hidden, weight, targets)[:1], hidden, weight)
        cost(f, a, f"liger linear cross-entropy {n}, both ways", go)


def attention(f: Findings, a: Namespace) -> None:
    """Attention of a packed row of mixed lengths, as it is chosen and in padded groups."""
    torch.manual_seed(0)
    heads, keys, dim = (4, 2, 16) if a.tiny else (14, 2, 64)
    lengths = [30, 20, 9, 7, 3]
    if not a.tiny:
        lengths = [4096, 3500, 2600, 1900, 1400, 1000, 800, 500, 300, 200, 88]
    q, k, v = (
        torch.randn(1, x, sum(lengths), dim, device=a.device, dtype=HALF).requires_grad_()
        for x in (heads, keys, keys)
    )
    layout = PackedLayout.of(lengths, torch.device(a.device))
    layer: Any = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = heads // keys, True

    def ours() -> tuple[Tensor]:
        return (packed_sdpa(layer, q, k, v, None, layout)[0],)

    cost(f, a, "packed attention as chosen, both ways", both_ways(ours, q, k, v))
    chosen = ours()[0].detach()
    setattr(packing, BY_LENGTH, lambda query: None)
    try:
        name = f"packed attention in {len(layout.groups)} groups, both ways"
        cost(f, a, name, both_ways(ours, q, k, v))
        groups = ours()[0].detach()
    finally:
        setattr(packing, BY_LENGTH, variable_length_attention)
    f.put(**{"packed attention: gap": float((chosen - groups).float().norm() / groups.norm())})


def sampling(f: Findings, a: Namespace) -> None:
    """From logits to tokens, next to an exponential race."""
    vocabulary = 2000 if a.tiny else 151_936
    for rows in (8,) if a.tiny else (64, 256):
        logits = torch.randn(rows, vocabulary, device=a.device)
        uniform = torch.rand(rows, device=a.device)
        go = partial(sample_tokens, logits, uniform, SamplingSettings())
        cost(f, a, f"sample_tokens {rows} x {vocabulary}", go, 10)
        with without(fused_sampling.SWITCH):
            cost(f, a, f"sample_tokens {rows} x {vocabulary}, not fused", go, 10)
        go = partial(sample_tokens, logits, uniform, SamplingSettings(top_p=0.9))
        cost(f, a, f"sample_tokens {rows} x {vocabulary}, top-p", go, 10)


def gae(f: Findings, a: Namespace) -> None:
    """Advantages of long responses."""
    rows, tokens = (8, 500) if a.tiny else (64, 16_384)
    rewards, values = torch.randn(2, rows, tokens, device=a.device)
    mask = torch.ones(rows, tokens, device=a.device, dtype=torch.bool)
    go = partial(advantages.decoupled_gae, rewards, values, mask, lambda_actor=0.99)
    cost(f, a, f"gae {rows} x {tokens}", go)


def optimizer(f: Findings, a: Namespace) -> None:
    """A step of AdamW, fused or not, and the norm of the gradients."""
    parameters = [torch.randn(2**10 if a.tiny else 2**20, device=a.device) for _ in range(400)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    for fused in (False, True):
        adam = torch.optim.AdamW(parameters, fused=fused)
        cost(f, a, f"AdamW, {len(parameters)} tensors, fused={fused}", adam.step)
        del adam
    clip = partial(torch.nn.utils.clip_grad_norm_, parameters, 1.0)
    cost(f, a, "clip_grad_norm_", clip)
