"""Compare `vcppo plan` with the memory that a run takes: `python -m benchmarks.plan`.

Each workload has its own process on the CPU, and all responses are as long as their limit. It does
two rollouts. In each phase of the second, when the optimizers have their moments, the peak of the
resident set is read, above its size before the models were loaded. Large pieces of memory are
returned to the system as soon as they are freed (MALLOC_MMAP_THRESHOLD_), so the resident set is
the memory of tensors.

    tiny      configs/model/tiny_qwen2.yaml: 3 layers x 96
    smollm2   SmolLM2-135M from a directory (`make smollm2`): 30 layers x 576

`_long`: a cache that grows; `_mixed`, `_half`: bf16-mixed and bf16-true instead of float32; `_one`:
one micro-batch an update instead of four.

A row is a phase; `ratio` is the plan divided by the measurement. The last line is JSON:
`tiny_sampling_ratio`, ...
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig
from typing_extensions import override

from benchmarks.measure import (
    EndlessModule,
    actor_fields,
    forget_peak,
    in_own_process,
    peak_bytes,
    print_json,
    print_table,
    quiet_trainer,
    start,
    steps_without_prompts,
    write_actor,
)
from lightning_vcppo.cli.commands.plan import shape_of
from lightning_vcppo.data.problem import Problem
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.planning.memory import plan_memory
from lightning_vcppo.planning.run import Run
from lightning_vcppo.rollouts.rollout import Rollout
from lightning_vcppo.settings import EngineSettings, SamplingSettings, UpdateSettings


@dataclass(frozen=True)
class Sizes:
    """Sizes of a workload: prompts and their tokens, tokens of responses and of micro-batches."""

    prompts: int
    prompt: int
    response: int
    max_tokens: int
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"


WORKLOADS = {
    "tiny": Sizes(128, 64, 256, 16384),
    "tiny_long": Sizes(16, 64, 1024, 8704),
    "tiny_mixed": Sizes(128, 64, 256, 16384, "bf16-mixed"),
    "tiny_half": Sizes(128, 64, 256, 16384, "bf16-true"),
    "smollm2": Sizes(16, 64, 64, 512),
    "smollm2_one": Sizes(4, 64, 192, 1024),
}


def planned(directory: str, name: str) -> Run:
    """Return the description of a workload for the planner."""
    work, shape = WORKLOADS[name], shape_of(AutoConfig.from_pretrained(directory), directory)
    return Run(
        actor=shape,
        critic=shape,
        prompt_length=work.prompt,
        response_length=work.response,
        mean_response_length=work.response,
        prompts=work.prompts,
        mini_batch=work.prompts,
        critic_mini_batch=work.prompts,
        max_tokens=work.max_tokens,
        max_num_seqs=work.prompts,
        precision=work.precision,
    )


def held_bytes() -> int:
    """Return the resident set of the process now."""
    gc.collect()
    forget_peak()
    return peak_bytes()


class Bench(EndlessModule):
    """A module that measures the peak of each phase of a rollout."""

    def prepare(self, batch: PromptBatch) -> None:
        """Set the prompts that every step samples from."""
        self.prompts = batch
        self.peaks: dict[str, int] = {}
        self.took: dict[str, float] = {}

    def measured(self, phase: str, run: Any) -> Any:
        """Call `run` and store its peak and its seconds."""
        held_bytes()
        began = time.perf_counter()
        result = run()
        self.took[phase], self.peaks[phase] = time.perf_counter() - began, peak_bytes()
        return result

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Do a rollout, one phase after the other."""
        rollout: Rollout = self.measured(
            "sampling", lambda: self.sample(self.prompts, self.sampling, batch_idx)
        )
        scores_B = torch.arange(len(rollout), device=self.device) % 2 * 2.0 - 1
        rollout = self.estimate_advantages(self.score(rollout.with_(scores_B=scores_B)))
        self.measured("critic update", lambda: self.update_network("critic", rollout))
        whitened = self.prepare_policy_update(rollout)
        self.measured("policy update", lambda: self.update_network("policy", whitened))


def fit(directory: str, name: str, rollouts: int) -> Bench:
    """Run the phases of a workload."""
    work = WORKLOADS[name]
    bench = Bench(
        directory,
        sampling=SamplingSettings(max_response_length=work.response),
        update=UpdateSettings(
            ppo_mini_batch_size=work.prompts, ppo_max_token_len_per_gpu=work.max_tokens
        ),
        engine=EngineSettings(max_num_seqs=work.prompts),
    )
    vocabulary = AutoConfig.from_pretrained(directory).vocab_size
    rng = torch.Generator().manual_seed(0)
    ids_BP = torch.randint(3, vocabulary, (work.prompts, work.prompt), generator=rng)
    count = work.prompts
    bench.prepare(PromptBatch([Problem("", 0)] * count, ids_BP.tolist(), list(range(count))))
    with tempfile.TemporaryDirectory() as runs:
        trainer = quiet_trainer(precision=work.precision, default_root_dir=runs)
        trainer.fit(bench, steps_without_prompts(rollouts))
    return bench


def measure(directory: str, name: str) -> None:
    """Print the peaks of a workload; runs in its own process."""
    start()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    WORKLOADS["warm_up"] = Sizes(2, 8, 8, 64, WORKLOADS[name].precision)
    with tempfile.TemporaryDirectory() as tiny:
        write_actor(Path(tiny), actor_fields("model/tiny_qwen2"))
        fit(tiny, "warm_up", 2)  # allocate the memory of libraries and threads
    base = held_bytes()
    bench = fit(directory, name, 2)
    peaks = {phase: peak - base for phase, peak in bench.peaks.items()}
    print(json.dumps({"peaks": peaks, "took": bench.took}))


def main() -> None:
    """Measure every workload and print it next to the plan."""
    parser = argparse.ArgumentParser("python -m benchmarks.plan")
    parser.add_argument("--model", default="models/smollm2_135m", help="directory of SmolLM2-135M")
    parser.add_argument("--workload", choices=WORKLOADS, help="only this workload")
    parser.add_argument("--directory", help="measure one workload in this process")
    arguments = parser.parse_args()
    if arguments.directory:
        return measure(arguments.directory, arguments.workload)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    rows: list[list[Any]] = []
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as tiny:
        write_actor(Path(tiny), actor_fields("model/tiny_qwen2"))
        for name in [arguments.workload] if arguments.workload else WORKLOADS:
            directory = tiny if name.startswith("tiny") else arguments.model
            point = in_own_process("benchmarks.plan", "--directory", directory, "--workload", name)
            for phase, memory in plan_memory(planned(directory, name)).items():
                measured = point["peaks"][phase]
                ratio = memory.total / measured
                rows.append([f"{name}, {phase}", memory.total / 1e6, measured / 1e6, ratio])
                results[f"{name}_{phase.replace(' ', '_')}_ratio"] = ratio
    print_table(
        "Peak memory above the process's own", ["", "plan MB", "measured MB", "ratio"], rows
    )
    print_json(results)
    return None


if __name__ == "__main__":
    main()
