"""Estimate unbiased errors of a critic's values and advantages by continuations of the policy.

s is a state of a stored response (the prompt and the tokens so far), a the token that follows it,
R the reward at the end; there is no other reward and no discount. The policy continues M times from
s and M times from (s, a). If continuation j from s begins with a, it is also continuation j from
(s, a); otherwise the latter is sampled separately. So either set has M independent draws from its
distribution, the pairs j are independent of one another, and if the policy hardly has a choice the
two sets are nearly the same, so that their difference has little noise.

The truth is V*(s) = E[R | s] and A*(s, a) = E[R | s, a] - E[R | s]. A_j is the advantage that GAE
gives to token a from the critic's values along continuation j from (s, a); A0_j is that of the
first token of continuation j from s. R_j and R0_j are their rewards. The end of the stored response
is not used, because the position and the end of one response are not independent.

1. Squares. For M independent draws x_j with mean mu, mean(x)^2 - var(x) / M has mean mu^2 (var with
   M - 1), because mean(x)^2 has mean mu^2 + Var(x) / M. In the same way mean(x) mean(y) -
   cov(x, y) / M has mean mu_x mu_y. Both are averages of x_i y_j over all pairs i != j, as if the
   draws were split in halves, averaged over all splits. They may be below 0.
2. Values. x_j = V(s) - R0_j has the mean V(s) - V*(s).
3. Advantages. x_j = A_j - R_j + R0_j has the mean b(s, a) = E[A | s, a] - A*(s, a), the bias of A.
   Its noise is var(A_j), and the mean squared error of A is b^2 + noise.
4. A part of b that is the same for all tokens in s acts as a baseline and does not change the
   expected gradient. The rest, b(s, a) - E_a b(s, a), is the mean of x_j = (A_j - R_j) -
   (A0_j - R0_j). With lambda = 1 both brackets are -V(s): no bias reaches the gradient.
5. Signal. PPO whitens advantages, so their scale and mean do not matter, and the plain squared
   error would favour a critic that knows nothing: with a low lambda all its advantages are close to
   0, as most true ones are. The error after the best scaling, min over k and c of
   E(k A + c - A*)^2 = Var(A*) - signal^2, depends only on signal = Cov(A, A*) / SD(A). It is in
   units of the reward and at most SD(A*). The lambda with the largest signal is recommended.

Intervals resample prompts, because the states of one prompt are not independent. A signal is a
ratio of means: its estimate is consistent, not unbiased.

Shapes: N states, M continuations, L lambdas, E eighths of a response, D draws of the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lightning_vcppo.report.drawing import jsonable

EIGHTHS = 8
"""Number of parts of a response by which errors are shown."""
DRAWS = 2000
RECORD = (
    "failed its test: for the counting task it recommended 0.9, and policies trained with 0.99 "
    "ended 8.0 points higher (95 % interval 3.5 to 12.5, five seeds); do not rely on it"
)
"""What docs/experiments/lambda_recommendation.md has found."""


@dataclass(frozen=True)
class Branches:
    """Continued states, with a critic's values and advantages along the continuations.

    Attributes:
        values_N: V(s).
        rewards0_NM: R0, from s.
        rewards_NM: R, from (s, a).
        advantages0_LNM: A0, by lambda.
        advantages_LNM: A, by lambda.
        eighths_N: Eighth of the response that each state is in.
        groups_N: Number of the prompt of each state.
    """

    values_N: np.ndarray
    rewards0_NM: np.ndarray
    rewards_NM: np.ndarray
    advantages0_LNM: np.ndarray
    advantages_LNM: np.ndarray
    eighths_N: np.ndarray
    groups_N: np.ndarray


@dataclass(frozen=True)
class ErrorsOfValues:
    """Errors of V at some states.

    Attributes:
        states: Number of states.
        mean: Mean of V*.
        bias: Mean of V - V*.
        variance: Variance of V - V* over the states.
        mse: Mean of (V - V*)^2.
    """

    states: int
    mean: float
    bias: float
    variance: float
    mse: float


@dataclass(frozen=True)
class ErrorsOfAdvantages:
    """Errors of A at some states.

    Attributes:
        bias: Mean of b.
        bias_squared: Mean of b^2.
        reaching_gradient: Mean square of the part of b that differs between tokens.
        noise: Mean variance of A given state and token.
        mse: Mean of (A - A*)^2.
    """

    bias: float
    bias_squared: float
    reaching_gradient: float
    noise: float
    mse: float


@dataclass(frozen=True)
class OfLambda:
    """Errors and signal of the advantages with one lambda.

    Attributes:
        lam: The lambda.
        errors: Errors at all states.
        by_position: Errors in each eighth of a response; None for eighths without states.
        signal: Cov(A, A*) / SD(A).
        interval: 95 % interval of the signal.
    """

    lam: float
    errors: ErrorsOfAdvantages
    by_position: list[ErrorsOfAdvantages | None]
    signal: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Recommendation:
    """The recommended lambda for the advantages of a critic.

    Attributes:
        recommended: The lambda; None if it is not decided.
        reason: The reason, in words.
        label: The evidence for such recommendations.
    """

    recommended: float | None
    reason: str
    label: str = RECORD


@dataclass(frozen=True)
class Truth:
    """Errors of a critic against the rewards that the policy reaches.

    Attributes:
        states: Number of continued states.
        continuations: Number of continuations of each state.
        values: Errors of V at all states.
        values_by_position: Errors in each eighth of a response; None for eighths without states.
        r2: 1 - mse / Var(V*), over states; None if V* does not vary measurably.
        advantage_std: SD(A*); None if A* does not vary measurably.
        lambdas: Errors of A, by lambda.
        lambda_actor: The recommendation.
    """

    states: int
    continuations: int
    values: ErrorsOfValues
    values_by_position: list[ErrorsOfValues | None]
    r2: float | None
    advantage_std: float | None
    lambdas: list[OfLambda]
    lambda_actor: Recommendation

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as plain values; NaN becomes None."""
        return dict(jsonable(asdict(self)))


def judge(branches: Branches, lambdas: Sequence[float], seed: int = 0) -> Truth:
    """Estimate the errors of a critic, and recommend a lambda.

    Args:
        branches: States with at least two continuations each.
        lambdas: Lambdas, in the order of the advantages.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there are fewer than two continuations, prompts or lambdas.
    """
    states, continuations = branches.rewards_NM.shape
    prompts = len(np.unique(branches.groups_N))
    for name, number in (
        ("continuations", continuations),
        ("prompts", prompts),
        ("lambdas", len(lambdas)),
    ):
        if number < 2:
            raise ValueError(f"{name}: expected at least two, got {number}")
    places = [np.flatnonzero(branches.eighths_N == eighth) for eighth in range(EIGHTHS)]
    everywhere = np.arange(states)
    moments_LNK = _moments(branches)
    drawn_LD = _bootstrap(moments_LNK, branches.groups_N, seed)
    signal_L = _signal(moments_LNK.mean(1))
    of_lambdas = [
        OfLambda(
            lam=lam,
            errors=_of_advantages(branches, i, everywhere),
            by_position=[_of_advantages(branches, i, at) if len(at) else None for at in places],
            signal=float(signal_L[i]),
            interval=_interval(drawn_LD[i]),
        )
        for i, lam in enumerate(lambdas)
    ]
    values = _of_values(branches, everywhere)
    spread = _variance_of_means(branches.rewards0_NM)
    true_NM = branches.rewards_NM - branches.rewards0_NM
    variance = float(squared_mean(true_NM).mean() - true_NM.mean() ** 2)
    return Truth(
        states=states,
        continuations=continuations,
        values=values,
        values_by_position=[_of_values(branches, at) if len(at) else None for at in places],
        r2=1 - values.mse / spread if spread > 0 else None,
        advantage_std=math.sqrt(variance) if variance > 0 else None,
        lambdas=of_lambdas,
        lambda_actor=recommend(lambdas, signal_L, drawn_LD),
    )


# Unbiased pieces


def squared_mean(x_NM: np.ndarray) -> np.ndarray:
    """Estimate the squared mean of each row of independent draws, (N,); see point 1."""
    return product_of_means(x_NM, x_NM)


def product_of_means(x_NM: np.ndarray, y_NM: np.ndarray) -> np.ndarray:
    """Estimate the product of the means of each row of independent pairs, (N,); see point 1."""
    count = x_NM.shape[-1]
    x_N1, y_N1 = x_NM.mean(-1, keepdims=True), y_NM.mean(-1, keepdims=True)
    covariance_N = ((x_NM - x_N1) * (y_NM - y_N1)).sum(-1) / (count - 1)
    estimate_N: np.ndarray = x_N1[..., 0] * y_N1[..., 0] - covariance_N / count
    return estimate_N


def _variance_of_means(x_NM: np.ndarray) -> float:
    """Estimate the variance over rows of the rows' true means; it may be below 0."""
    if len(x_NM) < 2:
        return math.nan
    noise_N = x_NM.var(-1, ddof=1) / x_NM.shape[-1]
    return float(x_NM.mean(-1).var(ddof=1) - noise_N.mean())


def _of_values(branches: Branches, at: np.ndarray) -> ErrorsOfValues:
    rewards_NM = branches.rewards0_NM[at]
    error_NM = branches.values_N[at, None] - rewards_NM
    return ErrorsOfValues(
        states=len(at),
        mean=float(rewards_NM.mean()),
        bias=float(error_NM.mean()),
        variance=_variance_of_means(error_NM),
        mse=float(squared_mean(error_NM).mean()),
    )


def _of_advantages(branches: Branches, lam: int, at: np.ndarray) -> ErrorsOfAdvantages:
    rewards_NM, rewards0_NM = branches.rewards_NM[at], branches.rewards0_NM[at]
    advantages_NM = branches.advantages_LNM[lam, at]
    advantages0_NM = branches.advantages0_LNM[lam, at]
    bias_NM = advantages_NM - rewards_NM + rewards0_NM
    differing_NM = (advantages_NM - rewards_NM) - (advantages0_NM - rewards0_NM)
    bias_squared = float(squared_mean(bias_NM).mean())
    noise = float(advantages_NM.var(-1, ddof=1).mean())
    return ErrorsOfAdvantages(
        bias=float(bias_NM.mean()),
        bias_squared=bias_squared,
        reaching_gradient=float(squared_mean(differing_NM).mean()),
        noise=noise,
        mse=bias_squared + noise,
    )


# The signal of a lambda


def _moments(branches: Branches) -> np.ndarray:
    """Return unbiased estimates of the means of A, A*, A A* and A^2 at each state, (L, N, 4)."""
    advantages_LNM = branches.advantages_LNM
    true_LNM = np.broadcast_to(branches.rewards_NM - branches.rewards0_NM, advantages_LNM.shape)
    return np.stack(
        [
            advantages_LNM.mean(-1),
            true_LNM.mean(-1),
            product_of_means(advantages_LNM, true_LNM),
            np.square(advantages_LNM).mean(-1),
        ],
        axis=-1,
    )


def _signal(means_K: np.ndarray) -> np.ndarray:
    """Return Cov(A, A*) / SD(A) from the means of the moments, (...); 0 if A never varies."""
    mean, true, product, square = np.moveaxis(means_K, -1, 0)
    variance = square - mean**2
    varies = variance > 1e-12 * np.maximum(square, 1e-300)
    deviation = np.sqrt(np.where(varies, variance, 1.0))
    signal: np.ndarray = np.where(varies, (product - mean * true) / deviation, 0.0)
    return signal


def _bootstrap(moments_LNK: np.ndarray, groups_N: np.ndarray, seed: int) -> np.ndarray:
    """Return the signals of resampled prompts, the same prompts for all lambdas, (L, D)."""
    _, place_N = np.unique(groups_N, return_inverse=True)
    prompts = int(place_N.max()) + 1
    sums_GLK = np.zeros((prompts, moments_LNK.shape[0], moments_LNK.shape[2]))
    np.add.at(sums_GLK, place_N, moments_LNK.swapaxes(0, 1))
    counts_G = np.bincount(place_N, minlength=prompts)
    rng = np.random.default_rng(seed)
    even_G = np.full(prompts, 1 / prompts)
    drawn = []
    for _ in range(DRAWS):  # one by one, because all at once need prompts times draws of memory
        times_G = rng.multinomial(prompts, even_G)
        drawn.append(np.tensordot(times_G, sums_GLK, axes=1) / (times_G @ counts_G))
    return _signal(np.stack(drawn, axis=1))


def _interval(drawn_D: np.ndarray, error: float = 0.05) -> tuple[float, float]:
    low, high = np.quantile(drawn_D, [error / 2, 1 - error / 2])
    return float(low), float(high)


def recommend(
    lambdas: Sequence[float], signal_L: np.ndarray, drawn_LD: np.ndarray
) -> Recommendation:
    """Recommend the lambda with the largest signal, if it is separated from all others.

    The intervals of its differences to the others hold jointly with 95 %: each has an error of
    0.05 / (L - 1).

    Args:
        lambdas: The L lambdas.
        signal_L: Estimated signals.
        drawn_LD: Estimated signals of resampled prompts.
    """
    best = int(np.argmax(signal_L))
    low, high = _interval(drawn_LD[best])
    signals = ", ".join(f"{lam:g}: {s:.3f}" for lam, s in zip(lambdas, signal_L, strict=True))
    measured = f"signals by lambda {signals}"
    if low <= 0:
        return Recommendation(
            None,
            f"not decided: {lambdas[best]:g} has the largest signal, but it is not beyond chance "
            f"({measured}; 95 % interval of the largest {low:.3f} to {high:.3f}); use more "
            "prefixes or continuations, or a better critic",
        )
    others = [i for i in range(len(lambdas)) if i != best]
    error = 0.05 / len(others)
    close = [i for i in others if _interval(drawn_LD[best] - drawn_LD[i], error)[0] <= 0]
    if close:
        named = ", ".join(f"{lambdas[i]:g}" for i in close)
        return Recommendation(
            None,
            f"not decided: {lambdas[best]:g} has the largest signal, but is not separated from "
            f"{named} ({measured}); use more prefixes or continuations",
        )
    return Recommendation(
        lambdas[best],
        f"with {lambdas[best]:g} the advantages follow the true ones most closely, and every other "
        f"lambda is separated from it ({measured}; 95 % interval of the largest {low:.3f} to "
        f"{high:.3f})",
    )
