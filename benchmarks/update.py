"""Time the updates of a rollout: `python -m benchmarks.update`.

It is one PPO update of actor and critic on 64 responses of W-tail (32 tokens of prompt, 1 to 256 of
response, about 60 on average), two threads of the CPU, float32, AdamW.

    ours       `VCPPOModule.update_network` for both networks, as in training
    reference  the usual implementation: rows padded to the longest of the rollout, logits at every
               position, log_softmax, gather; micro-batches of 16 rows, in the order of sampling

A check ensures that both do the same update. Tokens a second count real tokens with prompts. Model
FLOPs are 6 per weight and token (forward 2, backward 4), and 12 x hidden x (mean length / 2) per
layer and token for attention; embeddings do not count, the head counts for response tokens. The
peak is the best of a few float32 matrix products. Only attention has padding; everything else
processes only real tokens. The real share is the share of real tokens in the rows of attention.

`--layers smollm2` adds an update of four layers of SmolLM2-135M's size. The last line is JSON:
`speedup`, `real_share`, `mfu`, ...
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from typing_extensions import override

from benchmarks.measure import (
    alternating_seconds,
    print_json,
    print_table,
    quiet_trainer,
    start,
    steps_without_prompts,
    word_tokenizer,
    workload,
)
from lightning_vcppo import VCPPOModule
from lightning_vcppo.algorithm import policy_loss, value_loss
from lightning_vcppo.algorithm.statistics import masked_mean
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.models.packing import PackedLayout
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import OptimizerSettings, SamplingSettings, UpdateSettings

SMOLLM2_LAYERS = Qwen2Config(
    vocab_size=64,
    hidden_size=576,
    num_hidden_layers=4,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    bos_token_id=None,
    pad_token_id=None,
)
REFERENCE_ROWS = 16
LR = 1e-4


def random_rollout(rows: int, prompt: int, limit: int, vocab: int, stop: float) -> Rollout:
    """Make a scored rollout of responses whose tokens are the last with probability `stop`."""
    rng = torch.Generator().manual_seed(1)
    lengths_B = torch.empty(rows).geometric_(stop, generator=rng).long().clamp_max(limit)
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    ids_BL = torch.randint(2, vocab, (rows, prompt + mask_BT.shape[1]), generator=rng)
    ids_BL[:, prompt:][~mask_BT] = 0
    correct_B = torch.rand(rows, generator=rng) < 0.5
    row_B = torch.arange(rows)
    return Rollout(
        problems=(Problem("", 0),) * rows,
        responses=("",) * rows,
        input_ids_BL=ids_BL,
        prompt_lengths_B=torch.full((rows,), prompt),
        response_mask_BT=mask_BT,
        sampler_logprobs_BT=torch.zeros(mask_BT.shape),
        finished_B=lengths_B < limit,
        positions_B=row_B,
        group_ids_B=row_B,
        scores_B=correct_B.float() * 2 - 1,
        correct_B=correct_B,
    )


class Bench(VCPPOModule):
    """A module whose training step times the same update twice, ours and the reference."""

    def prepare(self, rollout: Rollout) -> None:
        """Set the responses that every step learns from."""
        self.responses = rollout
        self.times: dict[str, list[float]] = {"reference": [], "ours": []}
        self.difference = 0.0

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Time one update of either kind."""
        rollout = self.prepare_policy_update(self.estimate_advantages(self.score(self.responses)))
        if batch_idx == 0:
            assert self.actor is not None and self.critic is not None
            self.reference_networks = copy.deepcopy(nn.ModuleList([self.actor, self.critic]))
            self.reference_optimizers = [
                torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.0)
                for network in self.reference_networks
            ]
        began = time.perf_counter()
        self.reference_update(rollout)
        middle = time.perf_counter()
        self.update_network("critic", rollout)
        self.update_network("policy", rollout)
        ended = time.perf_counter()
        if batch_idx == 0:  # warm-up, and the same start for both
            assert self.actor is not None and self.critic is not None
            ours = nn.utils.parameters_to_vector(
                [*self.actor.parameters(), *self.critic.parameters()]
            )
            theirs = nn.utils.parameters_to_vector(self.reference_networks.parameters())
            self.difference = float((ours - theirs).detach().abs().max())
        else:
            self.times["reference"].append(middle - began)
            self.times["ours"].append(ended - middle)

    def reference_update(self, rollout: Rollout) -> None:
        """Update actor and critic with the usual implementation."""
        networks: Any = self.reference_networks
        actor, critic = networks
        assert rollout.old_logprobs_BT is not None and rollout.advantages_BT is not None
        assert rollout.returns_BT is not None
        tokens = int(rollout.response_mask_BT.sum())
        for rows in torch.arange(len(rollout)).split(REFERENCE_ROWS):
            mask_BT = rollout.response_mask_BT[rows]
            ids_BL = rollout.input_ids_BL[rows]
            prompt = int(rollout.prompt_lengths_B[0])
            share = int(mask_BT.sum()) / tokens
            logits_BTV = actor(ids_BL).logits[:, prompt - 1 : -1]
            logprobs_BTV = logits_BTV.log_softmax(-1)
            response_BT1 = ids_BL[:, prompt:, None]
            loss, _ = policy_loss(
                logprobs_BTV.gather(-1, response_BT1)[..., 0],
                rollout.old_logprobs_BT[rows],
                rollout.advantages_BT[rows],
                mask_BT,
                clip_ratio_low=0.2,
                clip_ratio_high=0.2,
            )
            with torch.no_grad():  # for logging, as is usual
                entropy_BT = -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)
                masked_mean(entropy_BT, mask_BT)
            (loss * share).backward()
            values_BT = critic.model(ids_BL).logits[:, prompt - 1 : -1, 0]
            loss, _ = value_loss(values_BT, rollout.returns_BT[rows], mask_BT)
            (loss * share).backward()
        for network, optimizer in zip(
            self.reference_networks, self.reference_optimizers, strict=True
        ):
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def model_flops(config: Qwen2Config, rollout: Rollout) -> float:
    """Return the floating-point operations of a model's update on a rollout, both networks."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = config.num_attention_heads + 2 * (config.num_key_value_heads or 0)
    head_dim = hidden // config.num_attention_heads
    weights = layers * (
        hidden * head_dim * heads + hidden**2 + 3 * hidden * config.intermediate_size
    )
    lengths_B = rollout.lengths_B.double()
    attention = 12 * hidden * layers * float((lengths_B**2).sum()) / 2
    body = 6 * weights * float(lengths_B.sum()) + attention
    head = 6 * hidden * config.vocab_size * float(rollout.response_lengths_B.sum())
    return 2 * body + head


def matmul_peak() -> float:
    """Return the largest rate of floating-point operations of a few float32 products."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.randn(size, size), torch.randn(size, size)
        times = alternating_seconds({"mm": partial(torch.mm, a, b)}, repeats=10, warm_up=2)["mm"]
        best = max(best, 2 * size**3 / min(times))
    return best


def run(
    title: str, model: Qwen2ForCausalLM, rollout: Rollout, max_tokens: int, repeats: int
) -> dict[str, float]:
    """Time both updates and print a table."""
    with tempfile.TemporaryDirectory() as directory:
        write_folder(Path(directory, "actor"), model, word_tokenizer(workload("W-tail")))
        bench = Bench(
            str(Path(directory, "actor")),
            sampling=SamplingSettings(max_response_length=rollout.response_mask_BT.shape[1]),
            update=UpdateSettings(
                ppo_mini_batch_size=len(rollout), ppo_max_token_len_per_gpu=max_tokens
            ),
            actor_optimizer=OptimizerSettings(lr=LR),
            critic_optimizer=OptimizerSettings(lr=LR),
        )
        bench.prepare(rollout)
        trainer = quiet_trainer(default_root_dir=directory)
        trainer.fit(bench, steps_without_prompts(repeats + 1))
    assert bench.difference < 1e-5, f"the two updates differ by {bench.difference}"
    tokens = int(rollout.lengths_B.sum())
    peak, flops = matmul_peak(), model_flops(model.config, rollout)
    rows: list[list[Any]] = []
    for name, times in bench.times.items():
        seconds = statistics.median(times)
        rows.append([name, seconds, tokens / seconds, flops / seconds / peak])
    print_table(title, ["", "seconds", "tokens/s", "MFU"], rows)
    places = sum(
        group.rows * group.width
        for rows in bench.scorer.micro_batch_rows(rollout)
        for group in PackedLayout.of(rollout.lengths_B[rows].tolist(), torch.device("cpu")).groups
    )
    return {
        "speedup": rows[0][1] / rows[1][1],
        "mfu": rows[1][3],
        "reference_mfu": rows[0][3],
        "real_share": tokens / places,
        "peak_gflops": peak / 1e9,
    }


def main() -> None:
    """Time the update of W-tail, and of SmolLM2-sized layers."""
    parser = argparse.ArgumentParser("python -m benchmarks.update")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--max_tokens", type=int, default=2048, help="tokens of our micro-batches")
    parser.add_argument("--layers", choices=["smollm2"], help="add four layers of that size")
    arguments = parser.parse_args()
    start()
    tail = workload("W-tail")
    rollout = random_rollout(64, 32, 256, tail.config.vocab_size, stop=1 / 64)
    results = run(
        "W-tail: one update of actor and critic",
        tail.model(),
        rollout,
        arguments.max_tokens,
        arguments.repeats,
    )
    if arguments.layers:
        large = run(
            "four layers of SmolLM2-135M's size",
            Qwen2ForCausalLM(SMOLLM2_LAYERS),
            rollout,
            arguments.max_tokens,
            arguments.repeats,
        )
        results |= {f"smollm2_{key}": value for key, value in large.items()}
    print_json(results)


if __name__ == "__main__":
    main()
