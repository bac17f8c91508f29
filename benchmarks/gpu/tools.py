"""Helpers of the parts: time, memory, models of a size."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from benchmarks.measure import write_actor

SHAPES: dict[str, dict[str, int]] = {
    "0.5B": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151_936,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
    },
}
"""Qwen2.5-0.5B's, and one for rehearsals."""


def accelerator(a: Namespace) -> str:
    """Return Lightning's name of the device."""
    return "gpu" if a.device == "cuda" else "cpu"


def sync(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device: str, run: Callable[[], object], repeats: int = 5, warm_up: int = 2) -> float:
    """Return the median wall time of a call, the device's work included."""
    times = []
    for repeat in range(-warm_up, repeats):
        sync(device)
        began = time.perf_counter()
        run()
        sync(device)
        if repeat >= 0:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def profiled(run: Callable[[], object], device: str, path: Path) -> dict[str, float]:
    """Return what the device does during a call; write its operations to a file."""
    sync(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        began = time.perf_counter()
        run()
        sync(device)
        wall = time.perf_counter() - began
    events = profile.key_averages()
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    on_device = sum(event.self_device_time_total for event in kernels) / 1e6  # calls have it too
    key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    table = events.table(sort_by=key, row_limit=60, max_name_column_width=90)
    path.write_text(f"{path.stem}\n{table}\n")
    return {
        "wall ms": wall * 1e3,
        "device ms": on_device * 1e3,
        "device busy": on_device / wall,
        "kernels": sum(event.count for event in kernels),
    }


class Peak:
    """Memory of the device while the body ran, GB: allocated at the most, and reserved."""

    def __init__(self, device: str, *, forget: bool = False) -> None:
        """Prepare; `forget` gives back what is reserved first."""
        self._device, self._forget = device, forget
        self.allocated = self.reserved = 0.0

    def __enter__(self) -> Peak:
        """Begin to measure."""
        if self._device == "cuda":
            sync(self._device)
            if self._forget:
                torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        """Note the peak."""
        if self._device == "cuda":
            sync(self._device)
            self.allocated = torch.cuda.max_memory_allocated() / 1e9
            self.reserved = torch.cuda.max_memory_reserved() / 1e9


def big_config(a: Namespace, **changes: Any) -> Qwen2Config:
    """Return the config of the model that is timed."""
    fields: dict[str, Any] = {
        **SHAPES["tiny" if a.tiny else "0.5B"],
        "tie_word_embeddings": True,
        "max_position_embeddings": 32_768,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return Qwen2Config(**(fields | changes))


def big_model(
    a: Namespace, dtype: torch.dtype, auto: Any = AutoModelForCausalLM, **changes: Any
) -> PreTrainedModel:
    """Build it with random weights where it is needed; on the meta device if that is asked."""
    on_meta = torch.get_default_device().type == "meta"
    with torch.device("meta" if on_meta else a.device):
        torch.manual_seed(0)
        model: PreTrainedModel = auto.from_config(big_config(a, **changes), dtype=dtype)
    return model


def small_actor(directory: Path) -> Path:
    """Write a small actor with grouped queries, and its tokenizer."""
    if not (directory / "config.json").exists():
        fields = {
            "model_type": "qwen2",
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 256,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        }
        write_actor(directory, fields)
    return directory
