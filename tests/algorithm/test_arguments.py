"""Public functions refuse what would broadcast by chance, in a line that names both shapes."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_vcppo import algorithm
from lightning_vcppo.algorithm import value_heads

B, T, K = 3, 3, 8  # B = T: what is one a sequence would run along the tokens

EDGES_E = value_heads.hl_gauss_edges(-1.0, 1.0, K)
MASK_BT = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
X_BT, Y_BT, Z_BT = torch.randn(3, B, T, generator=torch.Generator().manual_seed(0)).unbind()
X_B, IDS_B = X_BT[:, 0], torch.tensor([0, 0, 1])
GAE = {"rewards_BT": X_BT, "values_BT": Y_BT, "response_mask_BT": MASK_BT, "bootstrap_B": X_B}
POLICY = {
    "logprobs_BT": X_BT,
    "old_logprobs_BT": Y_BT,
    "advantages_BT": Z_BT,
    "response_mask_BT": MASK_BT,
    "importance_weights_BT": Y_BT.exp(),
    "token_weights_BT": X_BT.exp(),
}

TABLE: dict[str, dict[str, Any]] = {
    "gae": GAE | {"lam": torch.full((B,), 0.9)},
    "decoupled_gae": GAE
    | {"lambda_actor": torch.full((B,), 0.9), "lambda_critic": torch.full((B,), 1.0)},
    "monte_carlo_returns": {"rewards_BT": X_BT, "response_mask_BT": MASK_BT},
    "length_adaptive_lambda": {"lengths_B": torch.tensor([3, 4, 5]), "alpha": 0.5},
    "group_advantages": {"rewards_B": X_B, "group_ids_B": IDS_B},
    "batch_advantages": {"scores_B": X_B, "response_mask_BT": MASK_BT},
    "leave_one_out_advantages": {"rewards_B": X_B, "group_ids_B": IDS_B},
    "importance_corrected_returns": {
        "returns_BT": X_BT,
        "logprobs_BT": Y_BT,
        "old_logprobs_BT": Z_BT,
        "response_mask_BT": MASK_BT,
    },
    "explained_variance_gate": {
        "advantages_BT": X_BT,
        "returns_BT": Y_BT,
        "values_BT": Z_BT,
        "scores_B": X_B,
        "response_mask_BT": MASK_BT,
    },
    "aggregation_weights": {"response_mask_BT": MASK_BT, "sequence_weights_B": X_B},
    "prompt_noise_weights": {"scores_B": X_B, "group_ids_B": IDS_B},
    "weighted_sum": {"terms_BT": X_BT, "response_mask_BT": MASK_BT, "weights_BT": Y_BT},
    "policy_loss": POLICY,
    "dis_loss": POLICY,
    "dppo_tv_loss": POLICY,
    "cispo_loss": POLICY,
    "gspo_loss": POLICY,
    "value_loss": {
        "values_BT": X_BT,
        "returns_BT": Y_BT,
        "response_mask_BT": MASK_BT,
        "old_values_BT": Z_BT,
        "cliprange_value": 0.2,
        "token_weights_BT": X_BT.exp(),
    },
    "positive_example_nll": {
        "logprobs_BT": X_BT,
        "response_mask_BT": MASK_BT,
        "correct_B": torch.tensor([True, False, True]),
        "token_weights_BT": X_BT.exp(),
    },
    "kl_estimate": {"logprobs_BT": X_BT, "ref_logprobs_BT": Y_BT},
    "kl_penalty": {
        "logprobs_BT": X_BT,
        "ref_logprobs_BT": Y_BT,
        "response_mask_BT": MASK_BT,
        "token_weights_BT": X_BT.exp(),
    },
    "truncated_importance_weights": {
        "old_logprobs_BT": X_BT,
        "sampler_logprobs_BT": Y_BT,
        "response_mask_BT": MASK_BT,
    },
    "masked_mean": {"values": X_BT, "mask": MASK_BT},
    "masked_var": {"values": X_BT, "mask": MASK_BT},
    "whiten": {"values": X_BT, "mask": MASK_BT},
    "explained_variance": {"values": X_BT, "returns": Y_BT, "mask": MASK_BT},
    "r_squared": {"values": X_BT, "returns": Y_BT, "mask": MASK_BT},
    "group_moments": {"values_B": X_B, "group_ids_B": IDS_B},
    "hl_gauss_value": {"logits": torch.randn(B, T, K), "edges_E": EDGES_E},
    "hl_gauss_target": {"returns": X_BT, "edges_E": EDGES_E},
    "bce_loss": {
        "logits_BT": X_BT,
        "returns_BT": Y_BT,
        "response_mask_BT": MASK_BT,
        "low": -1.0,
        "high": 1.0,
        "token_weights_BT": X_BT.exp(),
    },
    "hl_gauss_loss": {
        "logits_BTK": torch.randn(B, T, K),
        "returns_BT": Y_BT,
        "response_mask_BT": MASK_BT,
        "edges_E": EDGES_E,
        "token_weights_BT": X_BT.exp(),
    },
}
"""Function -> arguments that fit together, every tensor that it takes among them."""

ELEMENTWISE = {"bounded_value", "sigmoid_value", "hl_gauss_edges", "float_dtype", "identity"}
ELEMENTWISE |= {"token_weights", "combine", "is_extreme", "sum_diagnostics"}
ELEMENTWISE |= {"read_tokens", "clipped_loss", "with_bounded_gradient", "sum_terms"}
ELEMENTWISE |= {"log_ratio", "masked"}  # of tensors that the functions above have checked
"""Functions in which no two tensors meet, or that no user calls."""
ALONE = {
    ("batch_advantages", "response_mask_BT"),
    ("hl_gauss_target", "returns"),
    ("hl_gauss_target", "edges_E"),
    ("hl_gauss_value", "logits"),
    ("aggregation_weights", "response_mask_BT"),
    ("length_adaptive_lambda", "lengths_B"),
}
"""Arguments of which more rows, or another number of columns, fit."""
MASKS = {"response_mask_BT", "mask", "correct_B"}


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for module_info in pkgutil.iter_modules(algorithm.__path__):
        if module_info.name == "checks":
            continue
        module = import_module(f"{algorithm.__name__}.{module_info.name}")
        for name, member in vars(module).items():
            own = getattr(member, "__module__", "") == module.__name__
            if inspect.isfunction(member) and own and not name.startswith("_"):
                yield name, member


FUNCTIONS = dict(public_functions())
ARGUMENTS = [
    (name, argument)
    for name, arguments in TABLE.items()
    for argument, value in arguments.items()
    if isinstance(value, Tensor) and (name, argument) not in ALONE
]


def misshapen(x: Tensor) -> Iterator[Tensor]:
    """Yield other shapes: (B, T, 1), one a sequence, a row, one token more."""
    yield x[..., None]
    if x.ndim > 1:
        yield x[..., 0]
        yield x[:1]
    else:
        yield x[None]
    yield torch.cat([x, x[..., :1]], dim=-1)


def test_the_table_has_every_public_function():
    assert FUNCTIONS.keys() == TABLE.keys() | ELEMENTWISE
    for name, function in FUNCTIONS.items():
        tensors = {
            argument
            for argument, parameter in inspect.signature(function).parameters.items()
            if "Tensor" in str(parameter.annotation) and argument not in {"reduce"}
        }
        assert name in ELEMENTWISE or tensors <= TABLE[name].keys(), name


@pytest.mark.parametrize("name", TABLE)
def test_arguments_that_fit_are_taken(name):
    FUNCTIONS[name](**TABLE[name])


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_wrong_shape_is_refused(name, argument):
    for wrong in misshapen(TABLE[name][argument]):
        with pytest.raises(ValueError, match=r"shape|must be") as refusal:
            FUNCTIONS[name](**TABLE[name] | {argument: wrong})
        assert str(tuple(wrong.shape)) in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "argument", "wrong"),
    [
        ("length_adaptive_lambda", "lengths_B", torch.ones(B, 1)),
        ("aggregation_weights", "response_mask_BT", MASK_BT[..., None]),
        ("aggregation_weights", "response_mask_BT", MASK_BT[0]),
        ("hl_gauss_value", "logits", torch.zeros(B, T, K + 1)),
        ("hl_gauss_value", "logits", torch.zeros(B, T, K, 1)),
        ("hl_gauss_target", "edges_E", EDGES_E[:, None]),
        ("hl_gauss_target", "edges_E", EDGES_E[:1]),
    ],
)
def test_a_wrong_shape_of_an_argument_that_stands_alone_is_refused(name, argument, wrong):
    with pytest.raises(ValueError, match=r"shape"):
        FUNCTIONS[name](**TABLE[name] | {argument: wrong})


@pytest.mark.parametrize(("name", "argument"), [pair for pair in ARGUMENTS if pair[1] in MASKS])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_a_mask_that_is_not_boolean_is_refused(name, argument, dtype):
    with pytest.raises(ValueError, match=f"{argument} must be boolean, got {dtype}"):
        FUNCTIONS[name](**TABLE[name] | {argument: TABLE[name][argument].to(dtype)})


REAL = [
    (name, argument)
    for name, argument in ARGUMENTS
    if argument.endswith("_BT") and argument not in MASKS
]


@pytest.mark.parametrize(("name", "argument"), REAL)
def test_a_tensor_of_tokens_holds_real_numbers_on_the_device_of_the_others(name, argument):
    given = TABLE[name][argument]
    for wrong in (given.bool(), given.to(torch.complex64), given.to("meta")):
        with pytest.raises(ValueError, match=r"^\w+ must (?:hold real numbers|be on \w+), got "):
            FUNCTIONS[name](**TABLE[name] | {argument: wrong})


@pytest.mark.parametrize(("name", "argument"), REAL)
def test_integers_count_as_the_numbers_that_they_are(name, argument):
    whole = TABLE[name][argument].round()
    wanted = FUNCTIONS[name](**TABLE[name] | {argument: whole})
    torch.testing.assert_close(
        FUNCTIONS[name](**TABLE[name] | {argument: whole.long()}), wanted, check_dtype=False
    )


@pytest.mark.parametrize("name", [n for n in TABLE if "group_ids_B" in TABLE[n]])
def test_group_ids_are_integers(name):
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match="group_ids_B must be integers"):
            FUNCTIONS[name](**TABLE[name] | {"group_ids_B": IDS_B.to(dtype)})


@pytest.mark.parametrize(
    ("name", "argument", "wrong"),
    [
        *[
            (name, argument, -0.1)
            for name in ("policy_loss", "dis_loss", "dppo_tv_loss", "cispo_loss", "gspo_loss")
            for argument in ("clip_ratio_low", "clip_ratio_high")
        ],
        ("policy_loss", "clip_ratio_c", 1.0),
        ("dppo_tv_loss", "clip_ratio_c", 1.0),
        ("value_loss", "cliprange_value", 0.0),
        ("value_loss", "huber_delta", 0.0),
        ("truncated_importance_weights", "cap", 0.9),
        ("importance_corrected_returns", "max_ratio", 1.0),
        ("prompt_noise_weights", "floor", 0.0),
        ("prompt_noise_weights", "exponent", -1.0),
        ("hl_gauss_target", "sigma_ratio", 0.0),
    ],
)
def test_a_number_outside_its_range_is_refused_and_so_is_nan(name, argument, wrong):
    for number in (wrong, float("nan")):
        with pytest.raises(ValueError, match=rf"^[^\n]*{argument}[^\n]* (must|and)[^\n]*$"):
            FUNCTIONS[name](**TABLE[name] | {argument: number})


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (2, 0)])
@pytest.mark.parametrize("name", [n for n in TABLE if "response_mask_BT" in TABLE[n]])
def test_nothing_gives_nothing(name, shape):
    """An empty batch, or responses without tokens, are no error in any of them."""
    sizes = {"B": shape[:1], "BT": shape, "BTK": (*shape, K)}
    arguments = {
        argument: value.new_zeros(sizes[argument.rpartition("_")[2]])
        if isinstance(value, Tensor) and argument.rpartition("_")[2] in sizes
        else value
        for argument, value in TABLE[name].items()
    }
    for lam in arguments.keys() & {"lam", "lambda_actor", "lambda_critic"}:
        arguments[lam] = 0.9
    result = FUNCTIONS[name](**arguments)
    for tensor in result if isinstance(result, tuple) else (result,):
        if isinstance(tensor, Tensor) and tensor.ndim == 0:
            assert not tensor
