"""The Trainer's precision outside of its steps, and what half precision rounds away."""

import types

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_vcppo.distributed.precision import (
    float32_products,
    lost_share,
    multiplies_in_tf32,
    multiplies_precisely,
    step_precision,
)
from lightning_vcppo.generation.sampling import sample_tokens, within_nucleus
from lightning_vcppo.generation.vllm_engine import product_type
from lightning_vcppo.models.logprobs import float32_product
from lightning_vcppo.modules.optimizers import _fused, build_optimizer
from lightning_vcppo.settings import EngineSettings, OptimizerSettings, SamplingSettings
from tests.support.decoders import decoder

CPU = torch.device("cpu")


def attached(precision):
    module = LightningModule()
    trainer = Trainer(accelerator="cpu", devices=1, precision=precision, logger=False)
    module._trainer = trainer
    return module


@pytest.mark.parametrize(("precision", "expected"), [("bf16-mixed", True), ("32-true", False)])
def test_networks_are_read_outside_of_steps_as_within(precision, expected):
    with step_precision(attached(precision)):
        assert torch.is_autocast_enabled("cpu") is expected
    assert not torch.is_autocast_enabled("cpu")


def test_a_module_without_a_trainer_computes_as_it_is():
    with step_precision(LightningModule()):
        assert not torch.is_autocast_enabled("cpu")


@pytest.fixture
def matmul_precision():
    """Leave the process as it was."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def trainer(device, precision="32-true"):
    """Return what is read of a Trainer on a device that need not be here."""
    strategy = types.SimpleNamespace(root_device=torch.device(device))
    return types.SimpleNamespace(precision=precision, strategy=strategy)


@pytest.mark.parametrize(
    ("choice", "of_run", "chosen", "expected"),
    [
        ("auto", trainer("cuda"), "highest", "high"),
        ("auto", trainer("cuda"), "medium", "medium"),  # the process has chosen
        ("auto", trainer("cuda", "bf16-mixed"), "highest", "highest"),  # the head is in float32
        ("auto", trainer("cuda", "64-true"), "highest", "highest"),
        ("auto", trainer("cpu"), "highest", "highest"),
        ("high", trainer("cpu"), "highest", "highest"),
        ("highest", trainer("cuda"), "medium", "highest"),
        ("medium", trainer("cuda", "bf16-mixed"), "highest", "medium"),
    ],
)
def test_float32_products_are_those_of_the_flag_or_of_the_process(
    matmul_precision, choice, of_run, chosen, expected
):
    torch.set_float32_matmul_precision(chosen)
    with float32_products(choice, of_run):
        assert torch.get_float32_matmul_precision() == expected
        assert multiplies_in_tf32() == (expected != "highest")
    assert torch.get_float32_matmul_precision() == chosen


def test_a_choice_by_torchs_newer_flags_is_left_alone(matmul_precision):
    cublas = torch.backends.cuda.matmul
    if not hasattr(cublas, "fp32_precision"):
        pytest.skip("since torch 2.9")
    before = cublas.fp32_precision
    try:
        cublas.fp32_precision = "tf32"
        with float32_products("auto", trainer("cuda")):
            assert multiplies_in_tf32()
        assert cublas.fp32_precision == "tf32"
    finally:
        cublas.fp32_precision = before


def test_products_in_tf32_are_not_taken_for_exact(matmul_precision):
    here = torch.zeros(1)
    there = types.SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"), is_cuda=True)
    double = types.SimpleNamespace(dtype=torch.float64, device=torch.device("cuda"), is_cuda=True)
    assert multiplies_precisely(here) and multiplies_precisely(there)
    torch.set_float32_matmul_precision("high")
    assert multiplies_precisely(here) and multiplies_precisely(double)
    assert not multiplies_precisely(there)
    with torch.autocast("cpu", torch.bfloat16):
        assert not multiplies_precisely(here)
    assert not multiplies_precisely(here.bfloat16())


def test_entropy_of_sampling_is_not_rounded_by_autocast():
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(16, 2000, generator=generator) * 2
    uniform_R = torch.rand(16, generator=generator)
    plain = sample_tokens(logits_RV, uniform_R, SamplingSettings())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sample_tokens(logits_RV, uniform_R, SamplingSettings())
    for one, other in zip(plain, mixed, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_a_token_outside_the_nucleus_gives_way_to_the_most_probable():
    probs_RV = torch.tensor([[0.0, 0.2, 0.8, 0.0], [0.0, 0.2, 0.8, 0.0], [0.3, 0.0, 0.0, 0.6]])
    assert within_nucleus(torch.tensor([3, 1, 1]), probs_RV).tolist() == [2, 1, 3]


def test_bfloat16_weights_that_lose_their_updates_are_counted():
    """2^-9 of the weight is the limit: 0.001 of a step of 1e-6 is above it, 0.0001 below."""
    weights = torch.tensor([[0.1, 0.01, 0.001, 0.0001]], dtype=torch.bfloat16)
    assert lost_share([weights], 1e-6) == 0.75
    assert lost_share([weights], 1e-3) == 0
    assert lost_share([weights.float(), weights[0]], 1e-6) == 0
    step = torch.tensor(1e-6, dtype=torch.bfloat16)
    moved = (weights + step != weights)[0].tolist()
    assert moved == [False, False, False, True]


def test_small_rates_in_bfloat16_are_warned_of():
    weight = torch.nn.Parameter(torch.full((8, 8), 0.02, dtype=torch.bfloat16))
    with pytest.warns(UserWarning, match="100% of the bfloat16 weights round a step away"):
        build_optimizer(OptimizerSettings(lr=1e-6), [weight])


def test_small_rates_in_float32_are_not_warned_of(recwarn):
    build_optimizer(OptimizerSettings(lr=1e-6), [torch.nn.Parameter(torch.full((8, 8), 0.02))])
    assert not [w for w in recwarn if "round a step away" in str(w.message)]


def test_torchs_adam_is_fused_on_cuda_alone():
    on_cuda = types.SimpleNamespace(is_cuda=True, is_floating_point=lambda: True)
    assert _fused(torch.optim.AdamW, [on_cuda]) == {"fused": True}
    assert _fused(torch.optim.SGD, [on_cuda]) == {}
    assert _fused(torch.optim.AdamW, [torch.zeros(2)]) == {}
    assert _fused(torch.optim.AdamW, []) == {}


def test_vllm_is_built_in_the_type_of_the_products():
    model = decoder("qwen2")
    assert product_type(model, CPU) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product_type(model, CPU) == torch.bfloat16
    assert product_type(model.double(), CPU) == torch.float32


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_vllm_of_several_processes_is_refused(name):
    with pytest.raises(ValueError, match=rf"init_args.{name}: expected 1, got 2"):
        EngineSettings(name="vllm", init_args={name: 2})
    EngineSettings(name="vllm", init_args={name: 1})


def test_products_of_half_numbers_are_float32():
    left, right = torch.ones(3, 5, dtype=torch.bfloat16), torch.ones(5, 2, dtype=torch.bfloat16)
    out = torch.empty(3, 2)
    assert float32_product(left, right, out=out) is out
    assert float32_product(left, right).dtype == torch.float32
    assert out.eq(5).all()
