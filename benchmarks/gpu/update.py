"""Updates of actor and critic on responses of mixed lengths, whole rollouts, and verl's first step.

verl's quick start trains Qwen2.5-0.5B with PPO and a critic on 256 prompts of 105 tokens, with
responses of 239, in mini-batches of 64: 68 s a step on the machine that its documents name.
"""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import AutoModelForTokenClassification, PreTrainedModel
from typing_extensions import override

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.tools import (
    Peak,
    accelerator,
    big_config,
    big_model,
    profiled,
    small_actor,
    sync,
)
from benchmarks.update import model_flops, random_rollout
from lightning_vcppo import VCPPOModule
from lightning_vcppo.cli.commands.plan import shape_of
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.models.critic import Critic
from lightning_vcppo.models.kernels import is_installed
from lightning_vcppo.models.packing import enable_packing
from lightning_vcppo.planning.memory import plan_memory
from lightning_vcppo.planning.run import Run
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import (
    EngineSettings,
    OptimizerSettings,
    SamplingSettings,
    UpdateSettings,
)


@dataclass(frozen=True)
class Sizes:
    """What is trained on."""

    rows: int
    prompt: int
    limit: int
    sampled: int
    mini_batch: int
    max_tokens: int
    updates: int
    rollouts: int


UPDATES = Sizes(64, 128, 2048, 512, 32, 16_384, updates=3, rollouts=1)
QUICK_START = Sizes(256, 105, 239, 239, 64, 16_384, updates=0, rollouts=3)
MORE_TOKENS = Sizes(64, 128, 2048, 512, 32, 32_768, updates=3, rollouts=0)
SIZES = {
    "quick start": QUICK_START,
    "more tokens": MORE_TOKENS,
}
TINY = Sizes(8, 8, 24, 12, 4, 64, updates=2, rollouts=1)


def half_right(response: str, answer: int) -> float:
    """Reward about half of all responses."""
    return 1.0 if sum(response.encode()) % 2 else -1.0


class Bench(VCPPOModule):
    """Trains a large model with random weights, and times it."""

    findings: Findings
    options: Namespace
    sizes: Sizes

    @override
    def load_actor(self) -> PreTrainedModel:
        """Build one with random weights."""
        return enable_packing(big_model(self.options, torch.float32))

    @override
    def load_critic(self) -> Critic:
        """Build one with random weights."""
        auto = AutoModelForTokenClassification
        critic = Critic(big_model(self.options, torch.float32, auto, num_labels=1), self.value)
        critic.reset_head()
        return critic

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do an update alone, or then a whole rollout."""
        if batch_idx < self.sizes.updates:
            self.findings.attempt(f"update {batch_idx}", partial(self.update_alone, batch_idx))
            if batch_idx == self.sizes.updates - 1 and self.options.argument == "bf16-mixed":
                self.findings.attempt("profile of an update", self.profile)
        else:
            number = batch_idx - self.sizes.updates
            self.findings.attempt(f"rollout {number}", partial(self.whole, batch, batch_idx))

    def update_alone(self, number: int) -> dict[str, Any]:
        """Return time and memory of the parts of an update."""
        torch.manual_seed(number)
        config, rollout = big_config(self.options), self.responses(number)
        tokens, flops = int(rollout.lengths_B.sum()), model_flops(config, rollout)
        found: dict[str, Any] = {"tokens": tokens}

        def timed(name: str, run: Callable[[], Any]) -> Any:
            with Peak(self.options.device) as peak:
                began = time.perf_counter()
                result = run()
                sync(self.options.device)
                found[f"{name} s"] = time.perf_counter() - began
            found[f"{name} GB"] = peak.allocated
            return result

        scored = timed("score", lambda: self.estimate_advantages(self.score(rollout)))
        timed("critic", lambda: self.update_network("critic", scored))
        ready = self.prepare_policy_update(scored)
        timed("policy", lambda: self.update_network("policy", ready))
        took = found["critic s"] + found["policy s"]
        return found | {"update tokens/s": tokens / took, "TFLOP/s": flops / took / 1e12}

    def responses(self, number: int) -> Rollout:
        """Return responses of mixed lengths, others for each number."""
        size, config = self.sizes, big_config(self.options)
        stop = 4 / size.limit * (1 + 0.13 * number)
        rollout = random_rollout(size.rows, size.prompt, size.limit, config.vocab_size, stop)
        return rollout.to(self.device)

    def profile(self) -> dict[str, Any]:
        """Return what the device does in an update; write the operations down."""
        scored = self.estimate_advantages(self.score(self.responses(0)))
        ready = self.prepare_policy_update(scored)
        found: dict[str, Any] = {}
        for network in ("critic", "policy"):
            name = f"profile_{self.options.argument}_{network}.txt".replace(" ", "_")
            found[network] = profiled(
                partial(self.update_network, network, ready),
                self.options.device,
                self.options.work / name,
            )
        return found

    def whole(self, batch: Any, number: int) -> dict[str, Any]:
        """Return time and memory of a rollout."""
        with Peak(self.options.device) as peak:
            began = time.perf_counter()
            super().training_step(batch, number)
            sync(self.options.device)
            took = time.perf_counter() - began
        metrics = {key: float(value) for key, value in self.trainer.callback_metrics.items()}
        return {
            "seconds": took,
            **{key: value for key, value in metrics.items() if key.startswith("time/")},
            "tokens/s": metrics.get("rollout/tokens_per_second", math.nan),
            "peak GB": peak.allocated,
            "reserved GB": peak.reserved,
            "approx_kl": metrics.get("policy/approx_kl", math.nan),
        }


def run(f: Findings, a: Namespace) -> None:
    """Train for some steps in one precision, and put the plan of memory beside it."""
    sizes = TINY if a.tiny else SIZES.get(a.argument, UPDATES)
    precision = a.argument if a.argument.startswith("bf16") else "bf16-mixed"
    strategy = "fsdp2" if a.argument == "fsdp2" else "auto"
    f.attempt("training", partial(train, f, a, sizes, precision, strategy))
    f.attempt("plan, GB", partial(planned, a, sizes, precision, strategy))


def train(f: Findings, a: Namespace, sizes: Sizes, precision: str, strategy: str) -> None:
    """Fit for as many batches as there are things to time."""
    directory: Path = a.work / f"update_{a.argument.replace(' ', '_')}"
    module = Bench(
        str(small_actor(directory / "actor")),
        reward=half_right,
        sampling=SamplingSettings(max_response_length=sizes.sampled),
        engine=EngineSettings(max_num_seqs=sizes.rows),
        update=UpdateSettings(
            ppo_mini_batch_size=sizes.mini_batch, ppo_max_token_len_per_gpu=sizes.max_tokens
        ),
        actor_optimizer=OptimizerSettings(lr=1e-6, init_args={"weight_decay": 0.0}),
        critic_optimizer=OptimizerSettings(lr=1e-6, init_args={"weight_decay": 0.0}),
    )
    module.findings, module.options, module.sizes = f, a, sizes
    trainer = Trainer(
        accelerator=accelerator(a),
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        strategy=strategy,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
    )
    prompts = torch.randint(2, 300, (sizes.rows, sizes.prompt)).tolist()
    batch = PromptBatch([Problem("", 0)] * sizes.rows, prompts, list(range(sizes.rows)))
    steps = sizes.updates + sizes.rollouts
    numbers: Any = list(range(steps))  # a list is all that a loader needs
    trainer.fit(module, DataLoader(numbers, None, collate_fn=lambda _: batch))


def planned(a: Namespace, sizes: Sizes, precision: str, strategy: str) -> dict[str, Any]:
    """Return what `vcppo plan` says of updates alone and of rollouts."""
    shape = shape_of(big_config(a), "random")
    found: dict[str, Any] = {}
    for name, length in (("updates", sizes.limit), ("rollout", sizes.sampled)):
        run = Run(
            actor=shape,
            critic=shape,
            prompt_length=sizes.prompt,
            response_length=length,
            mean_response_length=length,
            prompts=sizes.rows,
            mini_batch=sizes.mini_batch,
            critic_mini_batch=sizes.mini_batch,
            max_tokens=sizes.max_tokens,
            max_num_seqs=sizes.rows,
            precision=precision,
            strategy="fsdp2" if strategy == "fsdp2" else "single",
            logprob_readings=int(precision != "32-true"),
            kernels="liger" if is_installed() else "none",
            device="cuda",
        )
        found[name] = {key: memory.total / 1e9 for key, memory in plan_memory(run).items()}
    return found
