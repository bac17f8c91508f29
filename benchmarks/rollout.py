"""Time sampling against `transformers.generate`: `python -m benchmarks.rollout`.

Both sample from the same weights on two threads of the CPU, in turn, in float32, at temperature 1,
without top-k and top-p. The reference is called in the usual way, in batches of 64.

    fixed      W: 64 prompts of 32 tokens, 256 new tokens each
    long tail  W-tail: 512 prompts; <eos> ends a response after 64 tokens on average, 256 at most;
               both systems decode 64 rows at a time

The raw-forward limit is the time of the decoding steps of W if a step were only the model's own
forward pass with a key-value cache of the mean length, without sampling.
`--model DIRECTORY` adds the same for a model in a directory, such as SmolLM2-135M, with fewer and
shorter responses.
The last line is JSON: `fixed_speedup`, `long_tail_speedup`, `share_of_raw_forward`, ...
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.measure import (
    alternating_seconds,
    median_seconds,
    print_json,
    print_table,
    start,
    workload,
)
from lightning_vcppo.generation import TransformersEngine
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.settings import SamplingSettings

ROWS = 64


def reference(model: Any, prompts: Sequence[Sequence[int]], limit: int, eos: int | None) -> int:
    """Sample with `generate` in batches of 64; return the number of response tokens."""
    tokens = 0
    for first in range(0, len(prompts), ROWS):
        ids_BP = torch.tensor(prompts[first : first + ROWS])
        ids_BL = model.generate(
            ids_BP,
            attention_mask=torch.ones_like(ids_BP),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=limit,
            eos_token_id=eos,
            pad_token_id=0,
        )
        response_BT = ids_BL[:, ids_BP.shape[1] :]
        ended_BT = torch.zeros_like(response_BT, dtype=torch.bool)
        if eos is not None:
            ended_BT = (response_BT == eos).cumsum(1) - (response_BT == eos).long() > 0
        tokens += int((~ended_BT).sum())
    return tokens


def ours(model: Any, prompts: Sequence[Sequence[int]], limit: int, eos: int | None) -> int:
    """Sample with our engine on 64 rows; return the number of response tokens."""
    engine = TransformersEngine(
        model,
        pad_token_id=0,
        eos_token_ids=set() if eos is None else {eos},
        max_num_seqs=ROWS,
    )
    settings = SamplingSettings(max_response_length=limit)
    sampled = engine.generate(prompts, range(len(prompts)), settings)
    return int(sampled.response_mask_BT.sum())


@torch.no_grad()
def raw_forward_seconds(model: Any, rows: int, length: int, steps: int) -> float:
    """Return the seconds of `steps` plain decoding steps with a cache of a fixed length."""
    cache = DynamicCache(config=model.config)
    ids_RL = torch.full((rows, length), 5)
    model(ids_RL, past_key_values=cache, use_cache=True, logits_to_keep=1)
    position_R1 = torch.full((rows, 1), length)
    layers: list[Any] = cache.layers

    def step() -> None:
        model(ids_RL[:, :1], past_key_values=cache, position_ids=position_R1, use_cache=True)
        for layer in layers:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]

    return steps * median_seconds(step, repeats=100)


def compare(
    title: str,
    model: Any,
    prompts: Sequence[Sequence[int]],
    limit: int,
    eos: int | None,
    repeats: int,
) -> tuple[float, float]:
    """Time both, print a table; return the speedup in tokens a second, and our seconds."""
    tokens: dict[str, list[int]] = {"generate": [], "ours": []}

    def run(name: str) -> None:
        sample = reference if name == "generate" else ours
        tokens[name].append(sample(model, prompts, limit, eos))

    times = alternating_seconds(
        {"generate": lambda: run("generate"), "ours": lambda: run("ours")}, repeats
    )
    rows: list[list[Any]] = []
    for name, seconds in times.items():
        rate = statistics.median(t / s for t, s in zip(tokens[name][1:], seconds, strict=True))
        rows.append([name, statistics.median(seconds), tokens[name][-1], rate])
    print_table(title, ["", "seconds", "tokens", "tokens/s"], rows)
    # Lengths are random and differ a little between the two: compare rates, not seconds.
    return rows[1][3] / rows[0][3], statistics.median(times["ours"])


def main() -> None:
    """Time both workloads, and the model in a directory if one is given."""
    parser = argparse.ArgumentParser("python -m benchmarks.rollout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", help="directory of a causal language model")
    arguments = parser.parse_args()
    start()
    results: dict[str, float] = {}

    w = workload("W")
    model = enable_packing(w.model())
    results["fixed_speedup"], seconds = compare(
        "W: 64 prompts, 256 tokens each",
        model,
        w.prompts,
        w.max_response_length,
        None,
        arguments.repeats,
    )
    raw = raw_forward_seconds(model, ROWS, 32 + w.max_response_length // 2, w.max_response_length)
    results["share_of_raw_forward"] = raw / seconds
    tail = workload("W-tail", prompts=512)
    results["long_tail_speedup"], _ = compare(
        "W-tail: 512 prompts, 64 rows",
        enable_packing(tail.model()),
        tail.prompts,
        tail.max_response_length,
        tail.eos_token_id,
        arguments.repeats,
    )
    if arguments.model:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
        prompts = [[id_ + 100 for id_ in ids] for ids in w.prompts[:16]]
        results["folder_speedup"], seconds = compare(
            f"{arguments.model}: 16 prompts, 32 tokens each",
            enable_packing(model),
            prompts,
            32,
            None,
            min(3, arguments.repeats),
        )
        results["folder_share_of_raw_forward"] = (
            raw_forward_seconds(model, len(prompts), 48, 32) / seconds
        )
    print_json(results)


if __name__ == "__main__":
    main()
