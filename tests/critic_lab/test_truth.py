"""Errors against continuations: closed forms of a small chain, and laws of the estimators.

The chain: a response has `LENGTH` tokens, each 1 with probability `P`, else 0; the reward is 1 if
at least `WANTED` are 1. So V* is a binomial tail, and every expectation is a sum over 2^n paths.
"""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightning_vcppo.critic_lab.truth import (
    Branches,
    judge,
    product_of_means,
    recommend,
    squared_mean,
)

LENGTH, WANTED, P = 4, 2, 0.6
LAMBDAS = (0.0, 0.9, 1.0)


def true_value(place: int, ones: int) -> float:
    left = LENGTH - place
    return sum(
        comb(left, k) * P**k * (1 - P) ** (left - k) for k in range(left + 1) if ones + k >= WANTED
    )


def error(place: int, ones: int) -> float:
    """What the critic of these tests gets wrong in a state."""
    return 0.2 - 0.3 * ones + 0.1 * place * ones


VALUES = np.array(
    [[true_value(t, k) + error(t, k) for k in range(LENGTH + 1)] for t in range(LENGTH)]
)


def advantages(paths: np.ndarray, place: int, lam: float) -> np.ndarray:
    """GAE at `place` of paths of zeros and ones, (..., LENGTH), written as its definition."""
    ones = np.concatenate([np.zeros((*paths.shape[:-1], 1)), paths.cumsum(-1)], -1).astype(int)
    reward = (ones[..., -1] >= WANTED).astype(float)
    total = np.zeros(paths.shape[:-1])
    for t in range(place, LENGTH):
        after = VALUES[t + 1][ones[..., t + 1]] if t + 1 < LENGTH else reward
        total += lam ** (t - place) * (after - VALUES[t][ones[..., t]])
    return total


def chain(states: int, continuations: int, seed: int) -> Branches:
    """Continue states of random responses, as the lab does, the place being that of its eighth."""
    rng = np.random.default_rng(seed)
    stored = rng.random((states, LENGTH)) < P
    places = np.arange(states) % LENGTH
    from_state = rng.random((states, continuations, LENGTH)) < P
    separate = rng.random((states, continuations, LENGTH)) < P
    at = np.arange(LENGTH)
    from_state = np.where(at < places[:, None, None], stored[:, None], from_state)
    separate = np.where(at <= places[:, None, None], stored[:, None], separate)
    token = np.take_along_axis(from_state, places[:, None, None], 2)[..., 0]
    same = token == np.take_along_axis(stored, places[:, None], 1)
    from_token = np.where(same[..., None], from_state, separate)

    def along(paths: np.ndarray, lam: float) -> np.ndarray:
        found = np.zeros(paths.shape[:2])
        for place in range(LENGTH):
            here = places == place
            found[here] = advantages(paths[here], place, lam)
        return found

    ones = (stored * (at < places[:, None])).sum(1)
    return Branches(
        values_N=VALUES[places, ones],
        rewards0_NM=(from_state.sum(-1) >= WANTED).astype(float),
        rewards_NM=(from_token.sum(-1) >= WANTED).astype(float),
        advantages0_LNM=np.stack([along(from_state, lam) for lam in LAMBDAS]),
        advantages_LNM=np.stack([along(from_token, lam) for lam in LAMBDAS]),
        eighths_N=places,
        groups_N=np.arange(states) % 400,
    )


def exact(place: int, lam: float) -> dict[str, float]:
    """Sum over all states, tokens and paths from `place`."""
    sums = dict.fromkeys(("bias", "bias_squared", "reaching_gradient", "noise", "A", "A*"), 0.0)
    sums |= dict.fromkeys(("AA*", "AA", "A*A*"), 0.0)
    for before in product((0, 1), repeat=place):
        of_token = {}
        for token in (0, 1):
            left = LENGTH - place - 1
            ends = np.array([*product((0, 1), repeat=left)], dtype=int).reshape(2**left, left)
            paths = np.concatenate([np.tile([*before, token], (len(ends), 1)), ends], 1)
            chance = np.prod(np.where(ends == 1, P, 1 - P), axis=1)
            found = advantages(paths, place, lam)
            mean = float(chance @ found)
            of_token[token] = mean, float(chance @ (found - mean) ** 2)
        ones, weight = sum(before), float(np.prod([P if x else 1 - P for x in before]))
        true = {
            token: (
                true_value(place + 1, ones + token)
                if place + 1 < LENGTH
                else float(ones + token >= WANTED)
            )
            - true_value(place, ones)
            for token in (0, 1)
        }
        bias = {token: of_token[token][0] - true[token] for token in (0, 1)}
        common = P * bias[1] + (1 - P) * bias[0]
        for token, share in ((1, P), (0, 1 - P)):
            (mean, noise), w = of_token[token], weight * share
            sums["bias"] += w * bias[token]
            sums["bias_squared"] += w * bias[token] ** 2
            sums["reaching_gradient"] += w * (bias[token] - common) ** 2
            sums["noise"] += w * noise
            sums["A"] += w * mean
            sums["A*"] += w * true[token]
            sums["AA*"] += w * mean * true[token]
            sums["AA"] += w * (mean**2 + noise)
            sums["A*A*"] += w * true[token] ** 2
    return sums


def test_errors_of_a_chain_are_those_of_its_closed_form() -> None:
    truth = judge(chain(80_000, 2, seed=0), LAMBDAS)
    for place, found in enumerate(truth.values_by_position[:LENGTH]):
        assert found is not None
        weights = [comb(place, k) * P**k * (1 - P) ** (place - k) for k in range(place + 1)]
        errors = np.array([error(place, k) for k in range(place + 1)])
        bias = float(np.dot(weights, errors))
        assert found.bias == pytest.approx(bias, abs=0.012)
        assert found.mse == pytest.approx(float(np.dot(weights, errors**2)), abs=0.012)
        assert found.variance == pytest.approx(found.mse - found.bias**2, abs=0.005)
    for of_lambda in truth.lambdas:
        expected = [exact(place, of_lambda.lam) for place in range(LENGTH)]
        for place, errors_there in enumerate(of_lambda.by_position[:LENGTH]):
            assert errors_there is not None
            for name in ("bias", "bias_squared", "reaching_gradient", "noise"):
                wanted = expected[place][name]
                assert getattr(errors_there, name) == pytest.approx(wanted, abs=0.012), name
        mean = {name: np.mean([e[name] for e in expected]) for name in expected[0]}
        deviation = np.sqrt(mean["AA"] - mean["A"] ** 2)
        signal = (mean["AA*"] - mean["A"] * mean["A*"]) / deviation
        assert of_lambda.signal == pytest.approx(signal, abs=0.01)
        assert of_lambda.interval[0] < of_lambda.signal < of_lambda.interval[1]
    assert truth.advantage_std == pytest.approx(np.sqrt(mean["A*A*"]), abs=0.01)
    assert truth.values_by_position[LENGTH:] == [None] * 4


def test_with_lambda_1_no_bias_reaches_the_gradient() -> None:
    at_1 = judge(chain(200, 3, seed=1), LAMBDAS).lambdas[-1]
    assert at_1.lam == 1.0 and at_1.errors.reaching_gradient == pytest.approx(0, abs=1e-12)


def test_the_plain_error_praises_a_critic_that_knows_nothing_and_the_signal_does_not() -> None:
    branches = chain(4000, 4, seed=2)
    nothing = Branches(
        values_N=np.full(4000, 0.5),
        rewards0_NM=branches.rewards0_NM,
        rewards_NM=branches.rewards_NM,
        # Tokens are of one place here, so lambda shrinks all advantages by the same factor.
        advantages0_LNM=np.stack([f * (branches.rewards0_NM - 0.5) for f in (0.1, 1.0)]),
        advantages_LNM=np.stack([f * (branches.rewards_NM - 0.5) for f in (0.1, 1.0)]),
        eighths_N=branches.eighths_N,
        groups_N=branches.groups_N,
    )
    truth = judge(nothing, (0.5, 1.0))
    low, high = truth.lambdas
    assert low.errors.mse < 0.5 * high.errors.mse
    assert low.signal == pytest.approx(high.signal)
    assert truth.lambda_actor.recommended is None
    assert "0.5" in truth.lambda_actor.reason and "not separated" in truth.lambda_actor.reason


numbers = st.floats(-10, 10, allow_nan=False, width=32)
tables = st.integers(2, 5).flatmap(
    lambda m: st.tuples(*[arrays(np.float64, (3, m), elements=numbers)] * 2)
)


@given(tables)
@settings(max_examples=50)
def test_products_of_means_are_means_over_different_draws(xy: tuple[np.ndarray, ...]) -> None:
    x, y = xy
    count = x.shape[1]
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    expected = np.mean([x[:, i] * y[:, j] for i, j in pairs], axis=0)
    np.testing.assert_allclose(product_of_means(x, y), expected, atol=1e-9)


@given(arrays(np.float64, (2, 4), elements=numbers), numbers)
@settings(max_examples=50)
def test_a_constant_shift_changes_the_squared_mean_as_it_should(x: np.ndarray, c: float) -> None:
    shifted = squared_mean(x) + 2 * c * x.mean(1) + c**2
    np.testing.assert_allclose(squared_mean(x + c), shifted, atol=1e-8)
    np.testing.assert_allclose(squared_mean(np.full((1, 3), c)), c**2, atol=1e-9)


def test_a_lambda_is_recommended_only_where_it_is_separated() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.normal(s, 0.01, 500) for s in (0.3, 0.1, 0.2)])
    found = recommend((0.9, 0.95, 1.0), np.array([0.3, 0.1, 0.2]), drawn)
    assert found.recommended == 0.9 and found.label.startswith("failed its test")
    close = np.stack([rng.normal(s, 0.05, 500) for s in (0.3, 0.1, 0.29)])
    found = recommend((0.9, 0.95, 1.0), np.array([0.3, 0.1, 0.29]), close)
    assert found.recommended is None and "not separated from 1 (" in found.reason
    nothing = np.stack([rng.normal(s, 0.3, 500) for s in (0.1, 0.0)])
    found = recommend((0.9, 1.0), np.array([0.1, 0.0]), nothing)
    assert found.recommended is None and "beyond chance" in found.reason


def test_too_few_draws_are_refused() -> None:
    branches = chain(8, 1, seed=0)
    with pytest.raises(ValueError, match="continuations: expected at least two, got 1"):
        judge(branches, LAMBDAS)
