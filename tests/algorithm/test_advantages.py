"""Shape suffixes: B sequences, T response tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lightning_vcppo.algorithm.advantages import decoupled_gae, gae

SEEDS = st.integers(0, 2**31 - 1)
MANY = settings(max_examples=40, deadline=None)


def loop(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    lam: float | Tensor,
    bootstrap_B: Tensor | None = None,
) -> Tensor:
    """GAE as one writes it down first: token by token, from the last to the first."""
    batch, length = rewards_BT.shape
    lam_B = torch.as_tensor(lam, dtype=torch.float64).expand(batch).tolist()
    advantages_BT = torch.zeros(batch, length, dtype=torch.float64)
    for b in range(batch):
        advantage, next_value = 0.0, 0.0 if bootstrap_B is None else float(bootstrap_B[b])
        rewards, values, mask = rewards_BT[b].tolist(), values_BT[b].tolist(), mask_BT[b].tolist()
        result = [0.0] * length
        for t in reversed(range(length)):
            if mask[t]:
                delta = rewards[t] + gamma * next_value - values[t]
                advantage = delta + gamma * lam_B[b] * advantage
                next_value, result[t] = values[t], advantage
        advantages_BT[b] = torch.tensor(result, dtype=torch.float64)
    return advantages_BT


def random_case(
    seed: int, batch: int = 5, length: int = 150
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, values, a mask with gaps and an empty row, and bootstraps, in float64."""
    rng = torch.Generator().manual_seed(seed)
    rewards_BT = torch.randn(batch, length, generator=rng, dtype=torch.float64)
    values_BT = torch.randn(batch, length, generator=rng, dtype=torch.float64)
    share_B1 = torch.rand(batch, 1, generator=rng)
    mask_BT = torch.rand(batch, length, generator=rng) < share_B1
    mask_BT[batch // 2] = False
    bootstrap_B = torch.randn(batch, generator=rng, dtype=torch.float64)
    return rewards_BT, values_BT, mask_BT, bootstrap_B


def test_four_tokens_by_hand() -> None:
    rewards_BT = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    values_BT = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    mask_BT = torch.ones(1, 4, dtype=torch.bool)
    d0, d1, d2, d3 = 0.9 * 0.2 - 0.1, 0.9 * 0.3 - 0.2, 0.9 * 0.4 - 0.3, 1 - 0.4
    expected_BT = torch.tensor(
        [
            [
                d0 + 0.45 * d1 + 0.45 * 0.45 * d2 + 0.45 * 0.45 * 0.45 * d3,
                d1 + 0.45 * d2 + 0.45 * 0.45 * d3,
                d2 + 0.45 * d3,
                d3,
            ]
        ],
        dtype=torch.float64,
    )
    assert_close(gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.5), expected_BT)


@pytest.mark.parametrize("gap", [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 1], [1, 1, 0, 1]])
def test_a_gap_wherever_it_is_costs_no_discount(gap: list[int]) -> None:
    mask_BT = torch.tensor([gap], dtype=torch.bool)
    rewards_BT = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    values_BT = torch.tensor([[0.5, 0.25, 0.125, 1.0]])
    whole_BT = gae(rewards_BT, values_BT, mask_BT, gamma=0.5, lam=0.5)
    closed_BT = gae(
        rewards_BT[mask_BT][None],
        values_BT[mask_BT][None],
        torch.ones(1, sum(gap), dtype=torch.bool),
        gamma=0.5,
        lam=0.5,
    )
    assert_close(whole_BT[mask_BT], closed_BT[0])


def test_lambda_0_is_the_td_error() -> None:
    rewards_BT, values_BT, _, bootstrap_B = random_case(0)
    mask_BT = torch.ones_like(rewards_BT, dtype=torch.bool)
    next_values_BT = torch.cat([values_BT[:, 1:], bootstrap_B[:, None]], dim=1)
    advantages_BT = gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.0, bootstrap_B=bootstrap_B)
    assert_close(advantages_BT, rewards_BT + 0.9 * next_values_BT - values_BT)


def test_lambda_1_is_return_minus_value() -> None:
    rewards_BT, values_BT, _, _ = random_case(1)
    mask_BT = torch.ones_like(rewards_BT, dtype=torch.bool)
    returns_BT = rewards_BT.flip(1).cumsum(1).flip(1)
    advantages_BT, targets_BT = decoupled_gae(rewards_BT, values_BT, mask_BT, lambda_actor=1.0)
    assert torch.equal(targets_BT, returns_BT)
    assert torch.equal(advantages_BT, returns_BT - values_BT)


def test_lambda_1_telescopes_to_the_score_and_the_first_value() -> None:
    scores_B = torch.tensor([1.0, -1.0])
    rewards_BT = torch.zeros(2, 300)
    rewards_BT[:, -1] = scores_B
    values_BT = torch.randn(2, 300)
    mask_BT = torch.ones(2, 300, dtype=torch.bool)
    advantages_BT = gae(rewards_BT, values_BT, mask_BT, lam=1.0)
    assert torch.equal(advantages_BT[:, 0], scores_B - values_BT[:, 0])


def test_equal_lambdas_are_plain_gae() -> None:
    rewards_BT, values_BT, mask_BT, _ = random_case(2)
    advantages_BT, returns_BT = decoupled_gae(
        rewards_BT, values_BT, mask_BT, lambda_actor=0.9, lambda_critic=0.9
    )
    plain_BT = gae(rewards_BT, values_BT, mask_BT, lam=0.9)
    assert torch.equal(advantages_BT, plain_BT)
    assert_close(returns_BT, torch.where(mask_BT, plain_BT + values_BT, 0.0))


@pytest.mark.parametrize("gamma", [1.0, 0.97])
@pytest.mark.parametrize("lambda_critic", [1.0, torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0])])
def test_monte_carlo_targets_do_not_depend_on_the_values(
    gamma: float, lambda_critic: float | Tensor
) -> None:
    rewards_BT, values_BT, mask_BT, _ = random_case(3)
    rows_B = torch.as_tensor(lambda_critic).expand(5) == 1

    def targets(values_BT: Tensor) -> Tensor:
        return decoupled_gae(
            rewards_BT,
            values_BT,
            mask_BT,
            gamma=gamma,
            lambda_actor=0.95,
            lambda_critic=lambda_critic,
        )[1]

    assert torch.equal(targets(values_BT)[rows_B], targets(1e6 * values_BT + 7)[rows_B])


def test_targets_and_advantages_use_their_own_lambda() -> None:
    rewards_BT, values_BT, mask_BT, bootstrap_B = random_case(4)
    advantages_BT, returns_BT = decoupled_gae(
        rewards_BT,
        values_BT,
        mask_BT,
        gamma=0.99,
        lambda_actor=0.3,
        lambda_critic=0.8,
        bootstrap_B=bootstrap_B,
    )
    assert_close(advantages_BT, loop(rewards_BT, values_BT, mask_BT, 0.99, 0.3, bootstrap_B))
    critic_BT = loop(rewards_BT, values_BT, mask_BT, 0.99, 0.8, bootstrap_B)
    assert_close(returns_BT, torch.where(mask_BT, critic_BT + values_BT, 0.0))


@MANY
@given(
    seed=SEEDS,
    length=st.integers(1, 200),
    gamma=st.sampled_from([1.0, 0.99, 0.5, 0.0]),
    lam=st.sampled_from([1.0, 0.95, 0.0, None]),
    bootstrapped=st.booleans(),
    contiguous=st.booleans(),
)
def test_equals_the_loop(
    seed: int, length: int, gamma: float, lam: float | None, bootstrapped: bool, contiguous: bool
) -> None:
    rewards_BT, values_BT, mask_BT, bootstrap_B = random_case(seed, length=length)
    if contiguous:
        mask_BT = torch.arange(length) < mask_BT.sum(1, keepdim=True)
    lambdas = torch.rand(5, dtype=torch.float64) if lam is None else lam
    actual_BT = gae(
        rewards_BT,
        values_BT,
        mask_BT,
        gamma=gamma,
        lam=lambdas,
        bootstrap_B=bootstrap_B if bootstrapped else None,
    )
    expected_BT = loop(
        rewards_BT, values_BT, mask_BT, gamma, lambdas, bootstrap_B if bootstrapped else None
    )
    assert_close(actual_BT, expected_BT, rtol=1e-10, atol=1e-10)
    assert not actual_BT[~mask_BT].any()


@MANY
@given(seed=SEEDS, padding=st.integers(1, 70))
def test_padding_anywhere_changes_nothing(seed: int, padding: int) -> None:
    rewards_BT, values_BT, mask_BT, bootstrap_B = random_case(seed, length=60)
    rng = torch.Generator().manual_seed(seed)
    kept_T = torch.randperm(60 + padding, generator=rng)[:60].sort().values

    def spread(x_BT: Tensor, fill: float | bool) -> Tensor:
        wide_BT = torch.full((5, 60 + padding), fill, dtype=x_BT.dtype)
        wide_BT[:, kept_T] = x_BT
        return wide_BT

    narrow = decoupled_gae(
        rewards_BT, values_BT, mask_BT, gamma=0.9, lambda_actor=0.9, bootstrap_B=bootstrap_B
    )
    wide = decoupled_gae(
        spread(rewards_BT, float("nan")),
        spread(values_BT, float("inf")),
        spread(mask_BT, False),
        gamma=0.9,
        lambda_actor=0.9,
        bootstrap_B=bootstrap_B,
    )
    for narrow_BT, wide_BT in zip(narrow, wide, strict=True):
        assert_close(wide_BT, spread(narrow_BT, 0.0))


@MANY
@given(seed=SEEDS)
def test_rows_do_not_see_each_other(seed: int) -> None:
    rewards_BT, values_BT, mask_BT, _ = random_case(seed)
    lam_B = torch.rand(5, dtype=torch.float64)
    order_B = torch.randperm(5, generator=torch.Generator().manual_seed(seed))[:3]
    whole_BT = gae(rewards_BT, values_BT, mask_BT, lam=lam_B)
    some_BT = gae(rewards_BT[order_B], values_BT[order_B], mask_BT[order_B], lam=lam_B[order_B])
    assert_close(some_BT, whole_BT[order_B])


@MANY
@given(seed=SEEDS, scale=st.floats(-100, 100))
def test_is_homogeneous_in_rewards_and_values(seed: int, scale: float) -> None:
    rewards_BT, values_BT, mask_BT, _ = random_case(seed)
    once = decoupled_gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lambda_actor=0.8)
    scaled = decoupled_gae(
        scale * rewards_BT, scale * values_BT, mask_BT, gamma=0.9, lambda_actor=0.8
    )
    for once_BT, scaled_BT in zip(once, scaled, strict=True):
        assert_close(scaled_BT, scale * once_BT)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("lam", [1.0, 0.9999, 0.95])
def test_131072_tokens_in_float32_are_accurate(lam: float, gaps: bool) -> None:
    torch.manual_seed(0)
    length = 131_072
    rewards_BT = 0.01 * torch.randn(1, length)
    rewards_BT[0, -1] = 1.0
    values_BT = torch.randn(1, length) - 0.5
    mask_BT = torch.rand(1, length) < 0.9 if gaps else torch.ones(1, length, dtype=torch.bool)
    actual_BT = gae(rewards_BT, values_BT, mask_BT, lam=lam)
    expected_BT = loop(rewards_BT, values_BT, mask_BT, 1.0, lam)
    assert actual_BT.dtype == torch.float32
    assert_close(actual_BT.double(), expected_BT, rtol=1e-6, atol=1e-6)


def test_reward_on_an_observation_token_is_ignored() -> None:
    mask_BT = torch.tensor([[True, False, True]])
    values_BT = torch.zeros(1, 3)
    rewards_BT = torch.tensor([[0.0, 100.0, 1.0]])
    advantages_BT = gae(rewards_BT, values_BT, mask_BT, gamma=0.5, lam=1.0)
    assert_close(advantages_BT, torch.tensor([[0.5, 0.0, 1.0]]))


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_fast_matrix_products_do_not_make_it_inexact(precision: str) -> None:
    rewards_BT, values_BT, mask_BT, _ = random_case(5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        actual_BT = gae(rewards_BT.float(), values_BT.float(), mask_BT, lam=0.99)
    finally:
        torch.set_float32_matmul_precision(before)
    expected_BT = loop(rewards_BT.float(), values_BT.float(), mask_BT, 1.0, 0.99)
    assert_close(actual_BT.double(), expected_BT, rtol=1e-6, atol=1e-6)


def test_types_and_empty_shapes() -> None:
    for dtype, expected in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ]:
        zeros_BT = torch.zeros(2, 3, dtype=dtype)
        mask_BT = torch.ones(2, 3, dtype=torch.bool)
        for result_BT in decoupled_gae(zeros_BT, zeros_BT, mask_BT, lambda_actor=0.9):
            assert result_BT.dtype == expected
    for shape in [(0, 4), (3, 0), (0, 0)]:
        empty_BT = torch.zeros(shape)
        assert gae(empty_BT, empty_BT, empty_BT.bool(), lam=0.9).shape == shape


def test_no_gradient_flows_through_the_results() -> None:
    rewards_BT, values_BT, mask_BT, _ = random_case(6)
    results = decoupled_gae(
        rewards_BT.requires_grad_(), values_BT.requires_grad_(), mask_BT, lambda_actor=0.9
    )
    assert not any(result_BT.requires_grad for result_BT in results)


def test_inputs_are_left_alone() -> None:
    rewards_BT, values_BT, _, bootstrap_B = random_case(7)
    mask_BT = torch.ones_like(rewards_BT, dtype=torch.bool)
    copies = rewards_BT.clone(), values_BT.clone()
    decoupled_gae(rewards_BT, values_BT, mask_BT, lambda_actor=0.9, bootstrap_B=bootstrap_B)
    assert torch.equal(rewards_BT, copies[0]) and torch.equal(values_BT, copies[1])


@pytest.mark.parametrize("lam", [-0.1, 1.1, float("nan"), torch.tensor([0.5, 2.0])])
def test_lambda_outside_its_range_is_refused(lam: float | Tensor) -> None:
    zeros_BT = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"lambda_actor must be in \[0, 1\]"):
        decoupled_gae(zeros_BT, zeros_BT, zeros_BT.bool(), lambda_actor=lam)


def test_wrong_arguments_are_refused() -> None:
    zeros_BT, mask_BT = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="gamma"):
        gae(zeros_BT, zeros_BT, mask_BT, gamma=1.5, lam=1.0)
    with pytest.raises(ValueError, match="must be a number or"):
        gae(zeros_BT, zeros_BT, mask_BT, lam=torch.ones(3))
    with pytest.raises(ValueError, match=r"^lam must be a number or \(2,\), got \(2, 1\)"):
        gae(zeros_BT, zeros_BT, mask_BT, lam=torch.ones(2, 1))
    with pytest.raises(ValueError, match="lambda_critic must be in"):
        decoupled_gae(zeros_BT, zeros_BT, mask_BT, lambda_actor=1.0, lambda_critic=2.0)
    with pytest.raises(ValueError, match="share a shape"):
        gae(zeros_BT, torch.zeros(2, 4), mask_BT, lam=1.0)
    with pytest.raises(ValueError, match="boolean"):
        gae(zeros_BT, zeros_BT, mask_BT.long(), lam=1.0)
    with pytest.raises(ValueError, match="bootstrap"):
        gae(zeros_BT, zeros_BT, mask_BT, lam=1.0, bootstrap_B=torch.zeros(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_what_is_not_finite_reaches_no_later_token(bad: float, lam: float) -> None:
    rng = torch.Generator().manual_seed(0)
    rewards_BT, values_BT = torch.randn(2, 2, 70, generator=rng).unbind()
    mask_BT = torch.ones(2, 70, dtype=torch.bool)
    spoilt_BT = rewards_BT.clone()
    spoilt_BT[0, 40] = bad
    clean_BT = gae(rewards_BT, values_BT, mask_BT, lam=lam)
    found_BT = gae(spoilt_BT, values_BT, mask_BT, lam=lam)
    assert_close(found_BT[0, 41:], clean_BT[0, 41:])
    assert_close(found_BT[1], clean_BT[1])
    assert not found_BT[0, 40].isfinite()
    assert bool(found_BT[0, :40].isfinite().all()) == (lam == 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("gamma", [1.0, 0.99])
@pytest.mark.parametrize("lam", [1.0, torch.tensor([1.0, 0.9])])
def test_targets_with_lambda_one_do_not_depend_on_values_that_are_not_finite(
    bad: float, gamma: float, lam: float | Tensor
) -> None:
    rng = torch.Generator().manual_seed(0)
    rewards_BT, values_BT = torch.randn(2, 2, 70, generator=rng).unbind()
    mask_BT = torch.ones(2, 70, dtype=torch.bool)
    spoilt_BT = values_BT.clone()
    spoilt_BT[0, 40] = bad
    both = [
        decoupled_gae(rewards_BT, v_BT, mask_BT, gamma=gamma, lambda_actor=0.9, lambda_critic=lam)
        for v_BT in (values_BT, spoilt_BT)
    ]
    assert torch.equal(both[0][1], both[1][1])
