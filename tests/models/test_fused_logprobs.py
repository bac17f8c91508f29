"""Triton's kernels, run by Triton's interpreter on the CPU where Triton is installed."""

import os
import subprocess
import sys

import pytest
import torch

from lightning_vcppo.models import fused_logprobs, logprobs

CHECK = """
import torch
from lightning_vcppo import fused_logprobs, logprobs, triton_logprobs

print(fused_logprobs.largest_gap(triton_logprobs, torch.device("cpu")))
generator = torch.Generator().manual_seed(0)
for weights in ((1.0, 0.5), (1.0, None)):
    results = []
    for kernels in (None, triton_logprobs):
        logprobs.fused_kernels = lambda device, dtype, k=kernels: k
        generator.manual_seed(0)
        hidden = torch.randn(6, 8, generator=generator).requires_grad_()
        weight = torch.randn(3000, 8, generator=generator).requires_grad_()
        targets = torch.randint(0, 3000, (6,), generator=generator)
        found, entropy = logprobs.token_logprobs(
            hidden, weight, targets, temperature=0.8, block_size=700
        )
        total = found.sum() * weights[0]
        if weights[1] is not None:
            total = total + entropy.square().sum() * weights[1]
        results.append([found, entropy, *torch.autograd.grad(total, (hidden, weight))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
"""


def test_kernels_are_torchs_operations():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) < 1e-5


def test_a_trial_finds_wrong_kernels():
    class Wrong:
        """Adds nothing up."""

        @staticmethod
        def sum_block(logits, targets, start, temperature, sums):
            sums[1].add_(1)

        @staticmethod
        def gradient_block(logits, targets, start, temperature, of_rows, dtype):
            return torch.zeros_like(logits)

    assert fused_logprobs.largest_gap(Wrong, torch.device("cpu")) > 1


def test_the_cpu_and_the_switch_have_torchs_operations(monkeypatch):
    assert fused_logprobs.fused_kernels(torch.device("cpu"), torch.float32) is None
    monkeypatch.setattr(fused_logprobs, "_tried", lambda device: logprobs)
    on_cuda = torch.device("cuda", 0)
    assert fused_logprobs.fused_kernels(on_cuda, torch.float32) is logprobs
    assert fused_logprobs.fused_kernels(on_cuda, torch.float64) is None
    monkeypatch.setenv(fused_logprobs.SWITCH, "0")
    assert fused_logprobs.fused_kernels(on_cuda, torch.float32) is None
