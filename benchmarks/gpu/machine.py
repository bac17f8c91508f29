"""Versions and rates of the device."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from argparse import Namespace

import torch

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.tools import seconds

LIBRARIES = ("torch", "transformers", "lightning", "peft", "triton", "numpy", "tokenizers")


def run(f: Findings, a: Namespace) -> None:
    """Note what the check ran on."""
    f.attempt("versions", versions)
    f.attempt("doctor", doctor)
    if a.device == "cuda":
        f.attempt("device", device)
        f.attempt("rates", rates)


def versions() -> dict[str, object]:
    """Return the versions of what matters."""
    found: dict[str, object] = {"python": sys.version.split()[0], "cpus": os.cpu_count()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def doctor() -> dict[str, object]:
    """Return what `vcppo doctor` says."""
    command = [sys.executable, "-m", "lightning_vcppo", "doctor", "--json"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return {"rc": told.returncode, "report": json.loads(told.stdout)}


def device() -> dict[str, object]:
    """Return the properties of the device."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory GB": properties.total_memory / 1e9,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def rates() -> dict[str, float]:
    """Return TB/s of a copy, TFLOP/s of a product in bfloat16, and microseconds of a launch."""
    x = torch.randn(2**28, device="cuda")
    y = torch.empty_like(x)
    copied = 2 * x.nbytes / seconds("cuda", lambda: y.copy_(x)) / 1e12
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    multiplied = 2 * 8192**3 / seconds("cuda", lambda: m @ m) / 1e12
    tiny = torch.zeros(8, device="cuda")
    began = time.perf_counter()
    for _ in range(3000):
        tiny.add_(1)
    launch = (time.perf_counter() - began) / 3000 * 1e6
    return {"copy TB/s": copied, "bf16 TFLOP/s": multiplied, "launch us, all at once": launch}
