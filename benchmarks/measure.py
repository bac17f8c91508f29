"""Provide timing, peak memory, tables and reference workloads for the benchmarks.

Speed is always a ratio between implementations of the same task, timed in turn in one process, so
that other load of the machine affects all of them. Peak memory never falls within a process, so
each measurement of it has its own process.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging
from typing_extensions import override

from lightning_vcppo import VCPPOModule
from lightning_vcppo.cli.configs import shipped_directory
from lightning_vcppo.data.prompts import PromptBatch
from lightning_vcppo.data.tiny_tokenizer import default_tokenizer
from lightning_vcppo.models.hf_folders import write_folder
from lightning_vcppo.models.loading import build_actor
from lightning_vcppo.rollouts.sampler import Sampler

THREADS = 2
UNKNOWN = "1"


def start() -> None:
    """Set threads and seed, and silence the messages of libraries; call it first."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


# Time --------------------------------------------------------------------------------------------


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of `run`, after one call to warm up."""
    return statistics.median(alternating_seconds({"run": run}, repeats)["run"])


def alternating_seconds(
    runs: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return wall times of functions that are called in turn, a b c a b c ..., `repeats` of each.

    A function that cannot be timed from outside may return its own seconds as a float.

    Args:
        runs: Functions to time, by name.
        repeats: Number of timed calls of each.
        warm_up: Number of calls of each before them.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-warm_up, repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            result = run()
            seconds = time.perf_counter() - began
            if repeat >= 0:
                times[name].append(result if isinstance(result, float) else seconds)
    return times


def speedup(times: Mapping[str, Sequence[float]], reference: str, ours: str) -> float:
    """Return the ratio of two medians, above 1 if `ours` is faster."""
    return statistics.median(times[reference]) / statistics.median(times[ours])


# Memory ------------------------------------------------------------------------------------------


def peak_bytes() -> int:
    """Return the peak of the resident set of this process, in bytes."""
    status = Path("/proc/self/status")  # getrusage would include the parent at the fork
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Reset the peak of `peak_bytes` to the memory that is used now; Linux only."""
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")


def in_own_process(module: str, *arguments: object) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS` and return the JSON object on its last line.

    Raises:
        RuntimeError: If it fails; the message ends with its output.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip()[-2000:]
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}: {said}")
    point: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return point


# Training ----------------------------------------------------------------------------------------


def quiet_trainer(**flags: Any) -> Trainer:
    """Return a Trainer for one epoch on the CPU that prints and writes nothing."""
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **flags,
    )


def steps_without_prompts(count: int) -> DataLoader[PromptBatch]:
    """Return a loader of empty batches, for modules whose steps already have their responses."""
    steps: Any = range(count)
    return DataLoader(steps, None, collate_fn=lambda _: PromptBatch([], [], []))


# Output ------------------------------------------------------------------------------------------


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under a title; the first column is text, the others are numbers."""
    cells = [[*header], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(title)  # flushed below: the next part may take minutes
    for first, *others in cells:
        columns = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([f"{first:<{widths[0]}}", *columns]), flush=True)


def print_json(results: Mapping[str, object]) -> None:
    """Print the last line of a benchmark, with floats of four significant digits."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in results.items()}
    print(json.dumps(rounded))


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# Workloads ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """Prompts to a small decoder with random weights.

    Attributes:
        name: W or W-tail.
        config: Config of the model. All token ids in its vocabulary are about equally likely.
        prompts: Token ids of the prompts; none contains <eos> or <pad>.
        max_response_length: Limit in tokens.
        eos_token_id: On W outside the vocabulary, so that no response ends before its limit.
        pad_token_id: Inside the vocabulary, and sampled like any other id.
    """

    name: str
    config: Qwen2Config
    prompts: list[list[int]]
    max_response_length: int
    eos_token_id: int
    pad_token_id: int

    def model(self) -> Qwen2ForCausalLM:
        """Build the model: the same weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Qwen2ForCausalLM = Qwen2ForCausalLM(self.config).eval()
        return model


def workload(
    name: str,
    prompts: int = 64,
    prompt_length: int = 32,
    max_response_length: int = 256,
) -> Workload:
    """Return a reference workload.

    Args:
        name: "W", with a vocabulary of 512 tokens and every response as long as its limit; or
            "W-tail", with 64 tokens, so that <eos> comes with a probability of about 1/64 a token
            and lengths have a long tail.
        prompts: Number of prompts.
        prompt_length: Tokens of each prompt.
        max_response_length: Limit in tokens.
    """
    vocab_size = {"W": 512, "W-tail": 64}[name]
    eos, pad = (vocab_size, 0) if name == "W" else (1, 0)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512,
        max_position_embeddings=max(4096, prompt_length + max_response_length),
        eos_token_id=None if name == "W" else eos,
        bos_token_id=None,
        pad_token_id=None,  # it would freeze that token's embedding
    )
    ids_BP = torch.randint(
        2, vocab_size, (prompts, prompt_length), generator=torch.Generator().manual_seed(0)
    )
    return Workload(name, config, ids_BP.tolist(), max_response_length, eos, pad)


def word_tokenizer(work: Workload, pad_token_id: int | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose ids are words, because trainers require one.

    Args:
        work: The workload.
        pad_token_id: Id to use instead of that of the workload.
    """
    pad = work.pad_token_id if pad_token_id is None else pad_token_id
    size = max(work.config.vocab_size, work.eos_token_id + 1, pad + 1)
    # transformers reads it as a Qwen2 tokenizer, letter by letter, and refuses a tokenizer that
    # cannot read any text, so one word is a digit.
    words = {UNKNOWN if i == 2 else f"w{i}": i for i in range(size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=UNKNOWN)),
        pad_token=f"w{pad}",
        eos_token=f"w{work.eos_token_id}",
    )


class EndlessSampler(Sampler):
    """A sampler whose responses all have the largest length."""

    @override
    def stop_token_ids(self) -> set[int]:
        """Return no ids, so that nothing ends a response."""
        return set()


class EndlessModule(VCPPOModule):
    """A module whose responses all have the largest length."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Replace the sampler."""
        super().__init__(*args, **kwargs)
        self.sampler = EndlessSampler(self.tokenizer, self.grader, self.sampler.settings)


def actor_fields(config: str) -> dict[str, Any]:
    """Return the config fields of the model with which a cold start begins.

    Args:
        config: Short name of the cold start's config, such as "model/tiny_qwen2".
    """
    whole = yaml.safe_load((shipped_directory("configs") / f"{config}.yaml").read_text("utf-8"))
    fields: dict[str, Any] = whole.get("model", whole)["init_args"]["actor"]
    return fields


def write_actor(directory: Path, fields: Mapping[str, Any]) -> None:
    """Write a model with random weights, and the tokenizer that a cold start trains."""
    tokenizer = default_tokenizer(320)
    write_folder(directory, build_actor(fields, tokenizer), tokenizer)
