"""Triton's kernel of sampling, run by Triton's interpreter where Triton is installed."""

import os
import subprocess
import sys

import pytest
import torch

from lightning_vcppo.generation import fused_sampling, sampling
from lightning_vcppo.generation.sampling import sample_tokens
from lightning_vcppo.settings import SamplingSettings

CHECK = """
import torch
from lightning_vcppo.generation import fused_sampling, sampling, triton_sampling
from lightning_vcppo.settings import SamplingSettings

print(repr(fused_sampling.disagreement(triton_sampling, torch.device("cpu"))))
generator = torch.Generator().manual_seed(0)
logits = torch.randn(40, 5000, generator=generator) * 3
uniform = torch.rand(40, generator=generator)
settings = SamplingSettings(temperature=0.8)
wanted = sampling.sample_tokens(logits, uniform, settings)
sampling.fused_kernel = lambda logits: triton_sampling
ours = sampling.sample_tokens(logits, uniform, settings)
assert torch.equal(ours[0], wanted[0])
for one, other in zip(ours[1:], wanted[1:], strict=True):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
"""


class Torch:
    """The kernel's interface, by torch."""

    shift = 0

    @classmethod
    def sample(cls, logits_RV, uniform_R, temperature):
        settings = SamplingSettings(temperature=temperature)
        token_R, logprob_R, entropy_R = sample_tokens(logits_RV, uniform_R, settings)
        return (token_R + cls.shift).clamp_max(logits_RV.shape[1] - 1), logprob_R, entropy_R


def test_the_kernel_is_torchs_operations():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "''"


def test_a_trial_finds_a_wrong_kernel(monkeypatch):
    device = torch.device("cpu")
    assert fused_sampling.disagreement(Torch, device) == ""
    monkeypatch.setattr(Torch, "shift", 1)
    assert "tokens differ" in fused_sampling.disagreement(Torch, device)


def test_the_kernel_takes_no_part_with_top_p_or_without_a_temperature(monkeypatch):
    monkeypatch.setattr(sampling, "fused_kernel", lambda logits: pytest.fail("asked for a kernel"))
    logits_RV, uniform_R = torch.zeros(2, 5), torch.zeros(2)
    sample_tokens(logits_RV, uniform_R, SamplingSettings(top_p=0.9))
    sample_tokens(logits_RV, uniform_R, SamplingSettings(temperature=0.0))
    assert fused_sampling.fused_kernel(logits_RV) is None  # on the CPU
