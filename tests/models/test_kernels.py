"""Liger's kernels: chosen by one function, refused in one line, and the same model with them."""

import os
import subprocess
import sys

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from lightning_vcppo.models.kernels import (
    _class_of_transformers,
    is_installed,
    on_cuda,
    require_kernels,
    use_kernels,
)
from tests.support.decoders import decoder
from tests.support.training import fit, make_module

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# Triton's interpreter runs Liger's kernels on the CPU, for every family, with and without a head.
CHECK = """
import torch
import triton.language
from liger_kernel.ops import rms_norm
from transformers import AutoModelForTokenClassification

from lightning_vcppo.models import kernels
from lightning_vcppo.models.packing import PackedLayout, enable_packing
from tests.support.decoders import CONFIGS, decoder

class Number(float):  # a kernel's scalar, which the interpreter passes as it is
    def to(self, dtype):
        return self


rms_norm.rsqrt = lambda x: 1 / triton.language.sqrt(x)  # libdevice is empty here
kernels.PARTS["swiglu"] = False  # its scalars reach the interpreter as plain numbers
kernels.on_cuda = lambda fused, plain: fused
layout = PackedLayout.of([7, 4, 4], torch.device("cpu"))
ids_N = torch.arange(15) % 40
# The square of what a norm returns hardly depends on its input: take a plane.
slopes = torch.randn(15, 32, generator=torch.Generator().manual_seed(0))
for kind in ("qwen2", "qwen3", "llama", "mistral, window"):
    def model():
        torch.manual_seed(1)
        return AutoModelForTokenClassification.from_config(CONFIGS[kind], dtype=torch.float32)
    for build in (lambda: decoder(kind), model):
        results = []
        for replaced in (False, True):
            network = enable_packing(build())
            if replaced:
                kernels.replace_layers(network)
                for norm in network.modules():
                    if hasattr(norm, "casting_mode"):
                        norm.variance_epsilon = Number(norm.variance_epsilon)
                        norm.offset = Number(norm.offset)
                assert type(network.base_model.norm).__name__ != "LigerRMSNorm"
                assert network.base_model.norm._get_name() == "LigerRMSNorm"
            hidden = network.base_model(**layout.inputs(ids_N), use_cache=False).last_hidden_state
            weights = [w for w in network.base_model.parameters()]
            results.append([hidden, *torch.autograd.grad((hidden * slopes).sum(), weights)])
        for plain, fused in zip(*results, strict=True):
            gap = float((plain - fused).norm() / plain.norm())
            assert gap < 1e-5, (kind, tuple(plain.shape), gap)  # of float32 sums, in another order
        assert type(build().base_model.norm).__name__.endswith("RMSNorm")
        assert type(build().base_model.norm).__name__ != "LigerRMSNorm"
"""


def test_a_model_with_ligers_kernels_is_the_same_model():
    pytest.importorskip("triton")
    pytest.importorskip("liger_kernel")
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("kernels", ["auto", "none"])
def test_nothing_is_replaced_on_the_cpu(kernels):
    model = decoder("qwen2")
    before = model.model.norm.forward
    assert use_kernels(model, kernels, CPU) is False
    assert model.model.norm.forward == before


def test_liger_is_refused_where_it_cannot_run():
    if is_installed():
        with pytest.raises(ValueError, match=r"--model.kernels=liger: runs on CUDA, not on cpu"):
            require_kernels("liger", CPU)
    else:
        with pytest.raises(ValueError, match=r"--model.kernels=liger: needs `pip install"):
            require_kernels("liger", CUDA)


def test_a_run_that_cannot_have_liger_ends_in_one_line(tiny_actor):
    with pytest.raises(ValueError, match=r"^--model.kernels=liger: [^\n]+$"):
        fit(make_module(tiny_actor, kernels="liger"), 1)


def test_other_models_keep_their_kernels(caplog):
    assert use_kernels(decoder("gpt2"), "auto", CUDA) is False
    expected = "not tried with gpt2" if is_installed() else "Liger is not installed"
    assert not caplog.records or expected in caplog.text


def test_the_rotation_is_fused_on_cuda_alone():
    rotate = on_cuda(lambda *_, **__: "fused", lambda *_, **__: "plain")
    angles = torch.ones(1, 3, 4)
    assert rotate(torch.ones(1, 2, 3, 4), torch.ones(1, 1, 3, 4), angles, angles) == "plain"


def test_the_module_of_a_sharded_model_is_that_of_transformers():
    model = decoder("qwen2")
    whole = type(model)
    model.__class__ = type("FSDPQwen2", (FSDPModule, whole), {"__module__": "torch.somewhere"})
    assert _class_of_transformers(model) is whole
