"""Shape suffixes: N tokens, V vocabulary, H hidden."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vcppo.models.logprobs import _block_size, token_logprobs

N, H, V = 37, 16, 101


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden_NH = torch.randn(N, H).to(dtype).requires_grad_()
    weight_VH = torch.randn(V, H).to(dtype).requires_grad_()
    return hidden_NH, weight_VH, torch.randint(V, (N,))


def naive(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    logp_NV = (hidden_NH @ weight_VH.T / temperature).log_softmax(-1)
    return logp_NV.gather(1, targets_N[:, None])[:, 0], -(logp_NV.exp() * logp_NV).sum(-1)


def gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum with different, fixed weights on each log-probability and entropy."""
    logprobs_N, entropy_N = outputs
    slope_N = torch.linspace(-1, 2, len(logprobs_N))
    return torch.autograd.grad((slope_N * logprobs_N + slope_N.cos() * entropy_N).sum(), inputs)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("block_size", [1, 10, V, None])
def test_equals_log_softmax(temperature: float, block_size: int | None) -> None:
    hidden_NH, weight_VH, targets_N = case()
    actual = token_logprobs(
        hidden_NH, weight_VH, targets_N, temperature=temperature, block_size=block_size
    )
    expected = naive(hidden_NH, weight_VH, targets_N, temperature)
    assert_close(actual, expected)
    inputs = [hidden_NH, weight_VH]
    assert_close(gradients(actual, inputs), gradients(expected, inputs))


def test_tied_head_adds_its_gradient_to_the_embedding() -> None:
    _, weight_VH, targets_N = case()
    ids_N = torch.randint(V, (N,))
    expected = gradients(naive(weight_VH[ids_N].tanh(), weight_VH, targets_N), [weight_VH])
    actual = gradients(token_logprobs(weight_VH[ids_N].tanh(), weight_VH, targets_N), [weight_VH])
    assert_close(actual, expected)


def test_gradcheck() -> None:
    hidden_NH, weight_VH, targets_N = case()
    small = hidden_NH[:5].detach().requires_grad_(), weight_VH[:7].detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda hidden_NH, weight_VH: token_logprobs(
            hidden_NH, weight_VH, targets_N[:5] % 7, temperature=0.7, block_size=2
        ),
        small,
    )


@pytest.mark.parametrize("output", [0, 1])
def test_either_output_may_go_unused(output: int) -> None:
    hidden_NH, weight_VH, targets_N = case()
    inputs = [hidden_NH, weight_VH]
    actual = token_logprobs(hidden_NH, weight_VH, targets_N)[output].sum()
    expected = naive(hidden_NH, weight_VH, targets_N)[output].sum()
    assert_close(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize("frozen", [0, 1])
def test_either_input_may_be_frozen(frozen: int) -> None:
    inputs = [*case()[:2]]
    targets_N = case()[2]
    inputs[frozen].requires_grad_(False)
    free = [inputs[1 - frozen]]
    actual = gradients(token_logprobs(*inputs, targets_N), free)
    assert_close(actual, gradients(naive(*inputs, targets_N), free))


def test_bfloat16_sums_in_float32() -> None:
    hidden_NH, weight_VH, targets_N = case(torch.bfloat16)
    actual = token_logprobs(hidden_NH, weight_VH, targets_N, block_size=8)
    logits_NV = (hidden_NH @ weight_VH.T).double()  # the model's own bfloat16 logits
    logp_NV = logits_NV.log_softmax(-1)
    assert actual[0].dtype == actual[1].dtype == torch.float32
    expected_N = logp_NV.gather(1, targets_N[:, None])[:, 0]
    assert_close(actual[0].double(), expected_N, rtol=1e-5, atol=1e-5)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    assert_close(actual[1].double(), entropy_N, rtol=1e-5, atol=1e-5)

    inputs = [hidden_NH, weight_VH]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = gradients(naive(*exact, targets_N), exact)
    for gradient, expected_gradient in zip(gradients(actual, inputs), expected, strict=True):
        assert gradient.dtype == torch.bfloat16
        error = (gradient.double() - expected_gradient).norm() / expected_gradient.norm()
        assert error < 0.03


def test_many_tokens_of_bfloat16_do_not_lose_the_weight_gradient() -> None:
    hidden_NH = torch.ones(512, 1, dtype=torch.bfloat16)
    weight_VH = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets_N = torch.zeros(512, dtype=torch.long)
    token_logprobs(hidden_NH, weight_VH, targets_N)[0].sum().backward()
    # Summed in bfloat16, 0.5 + 0.5 + ... would stop at 128.
    assert weight_VH.grad.flatten().tolist() == [256.0, -256.0]


def test_many_blocks_of_bfloat16_do_not_lose_the_hidden_gradient() -> None:
    hidden_NH = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight_VH = torch.ones(1024, 1, dtype=torch.bfloat16)
    targets_N = torch.zeros(1, dtype=torch.long)
    token_logprobs(hidden_NH, weight_VH, targets_N, block_size=1)[0].sum().backward()
    # 1 - 1/1024 - 1/1024 - ... = 0; summed in bfloat16, it would stay at 1.
    assert abs(hidden_NH.grad.item()) < 0.01


def test_autocast_sets_the_type_of_the_products() -> None:
    hidden_NH, weight_VH, targets_N = case(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = token_logprobs(hidden_NH, weight_VH, targets_N)
    low = token_logprobs(hidden_NH.bfloat16(), weight_VH.bfloat16(), targets_N)
    assert torch.equal(actual[0], low[0]) and torch.equal(actual[1], low[1])
    for gradient in gradients(actual, [hidden_NH, weight_VH]):
        assert gradient.dtype == torch.float32


def test_mixed_types_are_promoted() -> None:
    hidden_NH, weight_VH, targets_N = case(torch.float32)
    mixed = token_logprobs(hidden_NH.bfloat16(), weight_VH, targets_N)
    assert_close(mixed, token_logprobs(hidden_NH.bfloat16().float(), weight_VH, targets_N))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: type[torch.no_grad] | type[torch.inference_mode]) -> None:
    hidden_NH, weight_VH, targets_N = case()
    with mode():
        logprobs_N, entropy_N = token_logprobs(hidden_NH, weight_VH, targets_N)
    expected = naive(hidden_NH, weight_VH, targets_N)
    assert not logprobs_N.requires_grad and not entropy_N.requires_grad
    assert_close((logprobs_N, entropy_N), tuple(x.detach() for x in expected))


def test_no_tokens() -> None:
    hidden_NH, weight_VH, targets_N = case()
    outputs = token_logprobs(hidden_NH[:0], weight_VH, targets_N[:0])
    assert outputs[0].shape == outputs[1].shape == (0,)
    for gradient in gradients(outputs, [hidden_NH, weight_VH]):
        assert not gradient.any()


def test_large_logits_do_not_overflow() -> None:
    hidden_NH, weight_VH, targets_N = case(torch.float32)
    outputs = token_logprobs(1e3 * hidden_NH, weight_VH, targets_N)
    assert outputs[0].isfinite().all()
    assert (outputs[1] >= 0).all()
    for gradient in gradients(outputs, [hidden_NH, weight_VH]):
        assert gradient.isfinite().all()


def test_all_logits_are_never_there_at_once() -> None:
    """No tensor of the computation, saved ones included, is larger than a block of logits."""
    hidden_NH, weight_VH, targets_N = case()
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        outputs = token_logprobs(hidden_NH, weight_VH, targets_N, block_size=4)
        gradients(outputs, [hidden_NH, weight_VH])
    assert largest == V * H  # the gradient of the weight


def test_wrong_arguments_are_refused() -> None:
    hidden_NH, weight_VH, targets_N = case()
    with pytest.raises(ValueError, match="hidden and weight"):
        token_logprobs(hidden_NH, weight_VH.T, targets_N)
    with pytest.raises(ValueError, match="targets"):
        token_logprobs(hidden_NH, weight_VH, targets_N[:-1])
    with pytest.raises(ValueError, match=r"\[0, 101\), got -1 to"):
        token_logprobs(hidden_NH, weight_VH, targets_N - targets_N.min() - 1)
    with pytest.raises(ValueError, match="to 101"):
        token_logprobs(hidden_NH, weight_VH, targets_N - targets_N.max() + V)
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(hidden_NH, weight_VH, targets_N, temperature=0.0)
    with pytest.raises(ValueError, match="block_size"):
        token_logprobs(hidden_NH, weight_VH, targets_N, block_size=0)


@given(tokens=st.integers(0, 10**7))
def test_blocks_on_a_gpu_are_aligned_and_no_larger_than_their_budget(tokens: int) -> None:
    columns = _block_size(tokens, "cuda")
    assert columns % 64 == 0
    assert columns == 256 or columns * tokens <= 2**26
