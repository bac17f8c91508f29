"""Measure a critic by its values on responses that it was not fitted on.

The target of V at every token of a response is its reward: the Monte-Carlo return with one reward
at the end and no discount. Shapes: N tokens of a response, R responses, P prompts, D deciles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from lightning_vcppo.algorithm.advantages import gae
from lightning_vcppo.metrics.calibration import (
    calibrate,
    forecasts_of_prompts,
    success_probability,
)
from lightning_vcppo.report.drawing import jsonable

DECILES = 10
SHARES = (0.25, 0.5, 0.75)
"""Shares of a response after which V is compared between right and wrong prefixes."""
DRAWS = 2000
"""Draws of the bootstrap."""
LAMBDAS = (0.9, 0.95, 0.99, 1.0)
READY = {"r2": 0.1, "bias": 0.1, "ece": 0.1}
"""A critic is called ready with at least this R^2, and at most this bias (as a share of the range
of rewards) and calibration error. These limits are ours: R^2 above 0 means that V is a better
baseline than the mean return, and a tenth leaves room for the error of a small held-out set; a bias
of a tenth of the range moves no advantage by more than a tenth of the worth of one outcome."""
EXPLAINS = 0.01
"""Least R^2 of a critic that explains something. Below it V is as good as the mean reward, however
narrow the interval, and a rank by R^2 has no meaning. It is ours: a tenth of `READY`."""


@dataclass(frozen=True)
class Decile:
    """The tokens of one tenth of every response.

    Attributes:
        r2: R^2 of V; NaN if all returns are equal.
        bias: Mean of V - R.
        mean_value: Mean of V.
        mean_return: Mean of R.
    """

    r2: float
    bias: float
    mean_value: float
    mean_return: float


@dataclass(frozen=True)
class Advantages:
    """Statistics of the advantages that GAE computes from the values with one lambda.

    Attributes:
        lam: The lambda.
        std: Standard deviation of the advantages of all tokens.
        noise: Standard deviation of A around the mean of its decile, divided by that of R - V.
        bias: Mean of A - (R - V) by decile: the part that comes from the values, not the outcomes.
    """

    lam: float
    std: float
    noise: float
    bias: list[float]


@dataclass(frozen=True)
class Measures:
    """Measures of a critic on held-out responses.

    Attributes:
        responses: Number of responses.
        prompts: Number of their prompts.
        tokens: Number of their tokens.
        r2: 1 - mean((R - V)^2) / Var(R), over tokens.
        r2_interval: Its 95 % interval over prompts (percentile bootstrap); None for one prompt.
        explained_variance: 1 - Var(R - V) / Var(R), which ignores a constant bias.
        bias: Mean of V - R.
        ece: Expected calibration error of V at the first token, as a forecast of the best reward.
        brier: Brier score of the same forecast.
        rank_correlation: Spearman correlation of V at the first token with the pass rate of the
            prompt; None if one of them does not vary.
        auc: By share of the response, the probability that V is higher on a right prefix than on a
            wrong one of the same prompt; None if no prompt has both.
        deciles: Measures by position in the response.
        from_end: R^2 by distance to the end, tokens 1-8, 9-64, 65-512 and further; None without
            such tokens.
        advantages: Statistics of the advantages by lambda.
    """

    responses: int
    prompts: int
    tokens: int
    r2: float
    r2_interval: tuple[float, float] | None
    explained_variance: float
    bias: float
    ece: float | None
    brier: float | None
    rank_correlation: float | None
    auc: dict[str, float | None]
    deciles: list[Decile]
    from_end: dict[str, float | None]
    advantages: list[Advantages]

    def as_json(self) -> dict[str, Any]:
        """Return the measures as plain values; NaN becomes None."""
        return dict(jsonable(asdict(self)))

    def verdict(self, reward_range: float) -> tuple[bool, list[str]]:
        """Return whether the critic is ready, and a reason for each threshold."""
        checks = [
            ("R^2", self.r2, self.r2 >= READY["r2"], f">= {READY['r2']}"),
            (
                "|bias|",
                abs(self.bias),
                abs(self.bias) <= READY["bias"] * reward_range,
                f"<= {READY['bias'] * reward_range:g}",
            ),
        ]
        if self.ece is not None:
            checks.append(("ECE", self.ece, self.ece <= READY["ece"], f"<= {READY['ece']}"))
        lines = [
            f"{name} {value:.3f}, required {wanted}: {'yes' if good else 'no'}"
            for name, value, good, wanted in checks
        ]
        return all(good for _, _, good, _ in checks), lines


def measure(
    values: Sequence[np.ndarray],
    rewards: Sequence[float],
    groups: Sequence[int],
    reward_range: tuple[float, float],
) -> Measures:
    """Compare values with the rewards of the responses.

    Args:
        values: V of the state before each token, (N,) for each of R responses.
        rewards: Reward of each response.
        groups: Number of the prompt of each response.
        reward_range: The lowest and the highest possible reward.

    Raises:
        ValueError: If there is no response, or all rewards are equal.
    """
    if not values:
        raise ValueError("no responses to measure a critic by")
    if min(rewards) == max(rewards):
        raise ValueError(
            f"all {len(rewards)} held-out responses have the reward {rewards[0]:g}, so there is "
            "nothing for a critic to predict; use harder or easier problems"
        )
    flat_V = np.concatenate(values).astype(np.float64)
    lengths_R = np.array([len(v) for v in values])
    rewards_R = np.array(rewards, dtype=np.float64)
    flat_R = np.repeat(rewards_R, lengths_R)
    place = np.concatenate([np.arange(n) for n in lengths_R])
    left = np.repeat(lengths_R, lengths_R) - place
    decile = np.minimum(place * DECILES // np.repeat(lengths_R, lengths_R), DECILES - 1)
    error = flat_V - flat_R
    variance = flat_R.var()
    calibration = _calibration(values, rewards_R, groups, reward_range)
    bounds = {"1-8": (1, 8), "9-64": (9, 64), "65-512": (65, 512), "513-": (513, math.inf)}
    return Measures(
        responses=len(values),
        prompts=len(set(groups)),
        tokens=len(flat_V),
        r2=_r2(flat_V, flat_R),
        r2_interval=_r2_interval(flat_V, flat_R, np.repeat(np.asarray(groups), lengths_R)),
        explained_variance=float(1 - error.var() / variance),
        bias=float(error.mean()),
        ece=calibration.get("ece"),
        brier=calibration.get("brier"),
        rank_correlation=calibration.get("rank_correlation"),
        auc={f"{share:.0%}": _auc(values, rewards_R, groups, share) for share in SHARES},
        deciles=[
            Decile(
                r2=_r2(flat_V[decile == d], flat_R[decile == d]),
                bias=float(error[decile == d].mean()) if (decile == d).any() else math.nan,
                mean_value=float(flat_V[decile == d].mean()) if (decile == d).any() else math.nan,
                mean_return=float(flat_R[decile == d].mean()) if (decile == d).any() else math.nan,
            )
            for d in range(DECILES)
        ],
        from_end={
            name: _r2(flat_V[chosen], flat_R[chosen]) if chosen.any() else None
            for name, (low, high) in bounds.items()
            for chosen in [(left >= low) & (left <= high)]
        },
        advantages=[_advantages(values, rewards_R, decile, -error, lam) for lam in LAMBDAS],
    )


def _r2(values: np.ndarray, returns: np.ndarray) -> float:
    variance = returns.var() if len(returns) else 0.0
    return float(1 - np.square(returns - values).mean() / variance) if variance else math.nan


def _r2_interval(
    values: np.ndarray, returns: np.ndarray, groups: np.ndarray
) -> tuple[float, float] | None:
    """Resample prompts with all their tokens; draws in which all returns are equal do not count."""
    _, place = np.unique(groups, return_inverse=True)
    prompts = int(place.max()) + 1
    if prompts < 2:
        return None
    parts = (np.ones_like(returns), returns, np.square(returns), np.square(returns - values))
    sums = np.stack([np.bincount(place, part, prompts) for part in parts], axis=1)
    rng = np.random.default_rng(0)
    drawn = np.stack(
        [rng.multinomial(prompts, np.full(prompts, 1 / prompts)) @ sums for _ in range(DRAWS)]
    )
    mean, square, error = (drawn[:, 1:] / drawn[:, :1]).T
    variance = square - mean**2
    varies = variance > 1e-9 * square
    if not varies.any():
        return None
    low, high = np.quantile(1 - error[varies] / variance[varies], [0.025, 0.975])
    return float(low), float(high)


def _calibration(
    values: Sequence[np.ndarray],
    rewards_R: np.ndarray,
    groups: Sequence[int],
    reward_range: tuple[float, float],
) -> dict[str, float]:
    """Return scores of V(prompt) as a forecast of the best reward; none with other rewards."""
    low, high = reward_range
    if not np.isin(rewards_R, (low, high)).all():
        return {}
    first_R = torch.tensor([float(v[0]) for v in values])
    predicted_R = success_probability(first_R, reward_min=low, reward_max=high)
    correct_R = torch.from_numpy(rewards_R == high)
    forecasts = forecasts_of_prompts(predicted_R, correct_R, torch.tensor(groups))
    return calibrate(forecasts).scalars()


def _auc(
    values: Sequence[np.ndarray], rewards_R: np.ndarray, groups: Sequence[int], share: float
) -> float | None:
    """Return the probability that V is higher on right responses, averaged over prompts."""
    by_prompt: dict[int, tuple[list[float], list[float]]] = {}
    best = rewards_R.max()
    for v, reward, group in zip(values, rewards_R, groups, strict=True):
        at = float(v[min(int(share * len(v)), len(v) - 1)])
        by_prompt.setdefault(group, ([], []))[int(reward == best)].append(at)
    chances = []
    for wrong, right in by_prompt.values():
        if wrong and right:
            gap = np.subtract.outer(right, wrong)
            chances.append(float((gap > 0).mean() + 0.5 * (gap == 0).mean()))
    return float(np.mean(chances)) if chances else None


def _advantages(
    values: Sequence[np.ndarray],
    rewards_R: np.ndarray,
    decile: np.ndarray,
    target: np.ndarray,
    lam: float,
) -> Advantages:
    parts = []
    for v, reward in zip(values, rewards_R, strict=True):
        values_1T = torch.from_numpy(np.asarray(v, dtype=np.float64))[None]
        rewards_1T = torch.zeros_like(values_1T)
        rewards_1T[0, -1] = reward
        mask_1T = torch.ones_like(values_1T, dtype=torch.bool)
        parts.append(gae(rewards_1T, values_1T, mask_1T, gamma=1.0, lam=lam)[0].numpy())
    flat = np.concatenate(parts)
    means = np.array([flat[decile == d].mean() if (decile == d).any() else 0.0 for d in range(10)])
    shifts = flat - target
    residual, raw = flat - means[decile], target.std()
    return Advantages(
        lam=lam,
        std=float(flat.std()),
        noise=float(residual.std() / raw) if raw else math.nan,
        bias=[
            float(shifts[decile == d].mean()) if (decile == d).any() else math.nan
            for d in range(DECILES)
        ],
    )
