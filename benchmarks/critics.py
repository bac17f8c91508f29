"""Measure time and memory of updates by kind of critic: `python -m benchmarks.critics`.

One pass over 64 responses of W-tail (32 tokens of prompt, 1 to 256 of response, about 60 on
average) in mini-batches of 16, of a decoder of eight layers of width 320 (10M weights), one thread
of the CPU, float32, AdamW.

    none       GRPO: only the policy
    together   a side critic that learns in the policy's forward passes
    side       a side critic that learns in separate passes (`update.order: critic_first`)
    backbone   a critic of the actor's size

Each kind runs in its own process; seconds are CPU seconds of its one thread. Score means reading
log-probabilities and values before the updates. Memory is the peak of the resident set above its
size before the networks are loaded.
The last line is JSON: `together_ratio`, `side_ratio`, `backbone_ratio` of the updates' seconds to
those of `none`, ...
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from typing_extensions import override

from benchmarks.measure import (
    forget_peak,
    in_own_process,
    peak_bytes,
    print_json,
    print_table,
    quiet_trainer,
    start,
    steps_without_prompts,
    word_tokenizer,
    workload,
)
from benchmarks.update import random_rollout
from lightning_vcppo import VCPPOModule
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import (
    AdvantageSettings,
    PolicySettings,
    SamplingSettings,
    UpdateSettings,
    ValueSettings,
)

ACTOR = Qwen2Config(
    vocab_size=64,
    hidden_size=320,
    num_hidden_layers=8,
    num_attention_heads=5,
    num_key_value_heads=5,
    intermediate_size=864,
    bos_token_id=None,
    pad_token_id=None,
)
SIDE = ValueSettings(architecture="side")
UPDATE = UpdateSettings(ppo_mini_batch_size=16, ppo_max_token_len_per_gpu=2048)
KINDS: dict[str, dict[str, Any]] = {
    "none": {"advantage": AdvantageSettings(estimator="group")},
    "together": {"value": SIDE, "update": replace(UPDATE, order="together")},
    "side": {"value": SIDE},
    "backbone": {},
}


class Timed(VCPPOModule):
    """A module whose training steps learn from the same responses, and are timed."""

    def prepare(self, rollout: Rollout) -> None:
        """Set the responses that every step learns from."""
        self.responses = rollout
        self.times: dict[str, list[float]] = {"score": [], "update": []}

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Time the scoring and the updates; the first step warms up."""
        began = time.process_time()
        rollout = self.estimate_advantages(self.score(self.responses))
        middle = time.process_time()
        self.update_networks(rollout)
        ended = time.process_time()
        if batch_idx > 0:
            self.times["score"].append(middle - began)
            self.times["update"].append(ended - middle)


def measure(kind: str, model: Qwen2ForCausalLM, rollout: Rollout, repeats: int) -> dict[str, float]:
    """Return median seconds, megabytes and the critic's weights for a kind of critic."""
    with tempfile.TemporaryDirectory() as directory:
        write_folder(Path(directory, "actor"), model, word_tokenizer(workload("W-tail")))
        del model
        forget_peak()
        before = peak_bytes()
        module = Timed(
            str(Path(directory, "actor")),
            sampling=SamplingSettings(
                max_response_length=rollout.response_mask_BT.shape[1], num_generations=4
            ),
            policy=PolicySettings(old_logprobs="recomputed"),
            **{"update": UPDATE} | KINDS[kind],
        )
        module.prepare(rollout)
        trainer = quiet_trainer(default_root_dir=directory)
        trainer.fit(module, steps_without_prompts(repeats + 1))
    critic = module.critic
    found = {name: statistics.median(times) for name, times in module.times.items()}
    return found | {
        "megabytes": (peak_bytes() - before) / 1e6,
        "weights": 0 if critic is None else sum(p.numel() for p in critic.parameters()),
    }


def main() -> None:
    """Measure all kinds, or one in this process."""
    parser = argparse.ArgumentParser("python -m benchmarks.critics")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kind", choices=[*KINDS], help="only this kind, in this process")
    arguments = parser.parse_args()
    if arguments.kind:
        start()
        torch.set_num_threads(1)
        rollout = random_rollout(64, 32, 256, ACTOR.vocab_size, stop=1 / 64)
        rollout = rollout.with_(group_ids_B=rollout.positions_B // 4 * 4)
        print_json(measure(arguments.kind, Qwen2ForCausalLM(ACTOR), rollout, arguments.repeats))
        return
    results = {
        kind: in_own_process("benchmarks.critics", "--kind", kind, "--repeats", arguments.repeats)
        for kind in KINDS
    }
    alone = results["none"]
    rows = [
        [kind, r["score"], r["update"], r["update"] / alone["update"], r["megabytes"], r["weights"]]
        for kind, r in results.items()
    ]
    header = ["", "score, s", "updates, s", "ratio", "MB", "critic's weights"]
    print_table("updates by kind of critic", header, rows)
    ratios = {f"{kind}_ratio": r["update"] / alone["update"] for kind, r in results.items()}
    print_json(ratios | {f"{kind}_megabytes": r["megabytes"] for kind, r in results.items()})


if __name__ == "__main__":
    main()
