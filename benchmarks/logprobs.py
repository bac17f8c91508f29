"""Compare `token_logprobs` with the full logits: `python -m benchmarks.logprobs`.

It measures the forward and backward pass from hidden states to log-probabilities, with gradients of
hidden states and weight, at the vocabulary of Qwen2.5 and the width of SmolLM2-135M, on two threads
of the CPU. Each peak of memory is measured in its own process, above inputs and libraries; it
includes the two gradients. Times are medians of runs in turn. By default it takes about ten minutes
and 20 GB, nearly all for the full logits; `--dtype` and `--tokens` reduce that.

The reference is the usual implementation: logits, log_softmax in float32, gather. `--entropy` sets
what it returns in addition to the log-probabilities: "none", "logged" (without its gradient, as PPO
usually reports it) or "gradient" (an entropy bonus). `token_logprobs` always returns the entropy.

The last line is JSON, where R is float32 or bfloat16:

    memory_ratio_R  extra peak memory, ours / reference
    time_ratio_R    time, ours / reference

Shape suffixes: N tokens, V vocabulary, H hidden.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import (
    THREADS,
    alternating_seconds,
    forget_peak,
    in_own_process,
    peak_bytes,
    print_json,
    print_table,
    start,
)
from lightning_vcppo.models.logprobs import token_logprobs

HIDDEN, VOCABULARY = 576, 151_936
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 2e-6, "bfloat16": 0.03}  # relative difference of the gradients, in norm


def full_logits(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, entropy: str
) -> tuple[Tensor, Tensor | None]:
    """Compute log-probabilities, and the entropy if requested, from all logits at once."""
    logp_NV = (hidden_NH @ weight_VH.T).float().log_softmax(-1)
    logprobs_N = logp_NV.gather(1, targets_N[:, None])[:, 0]
    if entropy == "none":
        return logprobs_N, None
    with torch.set_grad_enabled(entropy == "gradient"):
        return logprobs_N, -(logp_NV.exp() * logp_NV).sum(-1)


WAYS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "full logits": full_logits,
    "token_logprobs": lambda hidden, weight, targets, _: token_logprobs(hidden, weight, targets),
}


def make_run(way: str, dtype: str, tokens: int, entropy: str) -> Callable[[], list[Tensor]]:
    """Return a function that does one forward and backward pass and returns the gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(tokens, HIDDEN, generator=generator).to(DTYPES[dtype])
    weight_VH = torch.randn(VOCABULARY, HIDDEN, generator=generator).mul_(0.04).to(DTYPES[dtype])
    targets_N = torch.randint(VOCABULARY, (tokens,), generator=generator)
    slope_N = torch.randn(tokens, generator=generator)
    inputs = [hidden_NH.requires_grad_(), weight_VH.requires_grad_()]

    def run() -> list[Tensor]:
        logprobs_N, entropy_N = WAYS[way](*inputs, targets_N, entropy)
        loss = (slope_N * logprobs_N).sum()
        if entropy == "gradient":
            assert entropy_N is not None
            loss = loss - 0.01 * entropy_N.sum()
        return list(torch.autograd.grad(loss, inputs))

    return run


def check(dtype: str, entropy: str) -> None:
    """Check that both ways give the same gradients, up to the type's rounding."""
    expected, actual = (make_run(way, dtype, 64, entropy)() for way in WAYS)
    for e, a in zip(expected, actual, strict=True):
        error = (a.double() - e.double()).norm() / e.double().norm()
        assert error < TOLERANCE[dtype], f"{dtype}: gradients differ by {error}"


def extra_peak(way: str, dtype: str, tokens: int, entropy: str) -> int:
    """Return the bytes by which one run raises the peak of this process."""
    make_run(way, dtype, 2, entropy)()  # the libraries load parts at their first use
    run = make_run(way, dtype, tokens, entropy)
    forget_peak()
    before = peak_bytes()
    run()
    return peak_bytes() - before


def compare(dtype: str, tokens: int, entropy: str, repeats: int) -> dict[str, float]:
    """Measure both ways, print a table and return the ratios."""
    check(dtype, entropy)
    module, point = "benchmarks.logprobs", ["--dtype", dtype, "--entropy", entropy]
    gigabytes = {
        way: in_own_process(module, *point, "--tokens", tokens, "--memory-of", way)["bytes"] / 1e9
        for way in WAYS
    }
    runs = {way: make_run(way, dtype, tokens, entropy) for way in WAYS}
    times = alternating_seconds(runs, repeats, warm_up=0)  # `check` has warmed up
    seconds = {way: statistics.median(taken) for way, taken in times.items()}
    title = f"{dtype}, {tokens} tokens x {VOCABULARY} ids, entropy {entropy}, {THREADS} threads"
    rows = [[way, seconds[way], gigabytes[way], tokens / seconds[way]] for way in WAYS]
    print_table(title, ["", "seconds", "extra GB", "tokens/s"], rows)
    ours, reference = "token_logprobs", "full logits"
    return {
        f"memory_ratio_{dtype}": gigabytes[ours] / gigabytes[reference],
        f"time_ratio_{dtype}": seconds[ours] / seconds[reference],
    }


def main() -> None:
    """Read the flags, measure, print tables and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--entropy", choices=["none", "logged", "gradient"], default="logged")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=WAYS, help="only measure this way's peak")
    flags = parser.parse_args()
    start()
    if flags.memory_of:
        size = extra_peak(flags.memory_of, flags.dtype[0], flags.tokens, flags.entropy)
        print_json({"bytes": size})
        return
    results: dict[str, float] = {}
    for dtype in flags.dtype:
        results |= compare(dtype, flags.tokens, flags.entropy, flags.repeats)
    print_json(results)


if __name__ == "__main__":
    main()
