"""Compare V(prompt) with the outcome that it predicts.

With a terminal reward of +1 or -1 and no discount, V before the first token is a forecast of a
binary event, p = (V - r_min) / (r_max - r_min), whose observed frequency is the pass rate over the
samples of a prompt. Such forecasts are measured by reliability curve, expected calibration error
(arXiv 1706.04599), Brier score (1950), and rank correlation.

Shapes: R responses of all ranks, P prompts, D bins of probability.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Forecasts:
    """Forecasts for prompts, and their outcomes.

    Attributes:
        predicted_P: Forecast probability of success.
        observed_P: Pass rate over the prompt's samples.
        samples_P: Number of samples.
    """

    predicted_P: Tensor
    observed_P: Tensor
    samples_P: Tensor

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.predicted_P)


@dataclass(frozen=True)
class ReliabilityBin:
    """The prompts whose forecasts fall into one bin of probability.

    Attributes:
        predicted: Mean forecast of the prompts.
        observed: Mean pass rate of the prompts.
        count: Number of prompts.
    """

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """Measures of the quality of forecasts.

    Attributes:
        prompts: Number of forecasts.
        ece: Expected calibration error: mean |predicted - observed| of the bins, by their prompts.
        brier: Mean squared error of the forecast against single outcomes.
        brier_skill: 1 - brier / (that of always forecasting the mean); None if all outcomes agree.
        rank_correlation: Spearman's, of forecast and pass rate; None if one of them is constant.
        bins: Reliability curve, without empty bins.
    """

    prompts: int
    ece: float
    brier: float
    brier_skill: float | None
    rank_correlation: float | None
    bins: list[ReliabilityBin]

    def scalars(self) -> dict[str, float]:
        """Return the numbers that are not None."""
        return {k: float(v) for k, v in asdict(self).items() if k != "bins" and v is not None}


def success_probability(
    values: Tensor, *, reward_min: float = -1.0, reward_max: float = 1.0
) -> Tensor:
    """Convert expected rewards to probabilities of the higher one, clamped to [0, 1]."""
    return ((values - reward_min) / (reward_max - reward_min)).clamp(0.0, 1.0)


def forecasts_of_prompts(predicted_R: Tensor, correct_R: Tensor, group_ids_R: Tensor) -> Forecasts:
    """Group responses by prompt; the forecast of a prompt is the mean of its (equal) forecasts.

    Args:
        predicted_R: Forecast probability of success.
        correct_R: Whether the response is correct.
        group_ids_R: The same number for the responses to one prompt.
    """
    _, prompt_R = group_ids_R.unique(return_inverse=True)
    samples_P = prompt_R.bincount().double()
    sums = [
        torch.zeros_like(samples_P).index_add_(0, prompt_R, x_R.double())
        for x_R in (predicted_R, correct_R)
    ]
    return Forecasts(sums[0] / samples_P, sums[1] / samples_P, samples_P)


def join_forecasts(parts: list[Forecasts]) -> Forecasts:
    """Concatenate the prompts of several rollouts."""
    return Forecasts(*(torch.cat(of_parts) for of_parts in zip(*map(_tensors, parts), strict=True)))


def calibrate(forecasts: Forecasts, num_bins: int = 10) -> Calibration:
    """Compare forecasts with outcomes, prompt by prompt.

    If one of them is not finite, the errors are NaN, and there are no bins.

    Args:
        forecasts: Forecasts, at least one.
        num_bins: Number of bins of equal width between 0 and 1.
    """
    predicted_P, observed_P = forecasts.predicted_P, forecasts.observed_P
    if not bool((predicted_P + observed_P).isfinite().all()):
        return Calibration(len(forecasts), math.nan, math.nan, None, None, [])
    bin_P = (predicted_P * num_bins).long().clamp(max=num_bins - 1)
    count_D = bin_P.bincount(minlength=num_bins)
    mean_D = [
        torch.zeros(num_bins, dtype=x_P.dtype).index_add_(0, bin_P, x_P) / count_D
        for x_P in (predicted_P, observed_P)
    ]
    bins = [
        ReliabilityBin(*row)
        for row in zip(*(x_D.tolist() for x_D in (*mean_D, count_D)), strict=True)
        if row[-1]
    ]
    share_P = forecasts.samples_P / forecasts.samples_P.sum()  # every outcome counts once
    spread_P = observed_P * (1 - observed_P)  # mean (outcome - pass rate)^2
    brier = float((share_P * ((predicted_P - observed_P).square() + spread_P)).sum())
    rate = float((share_P * observed_P).sum())
    return Calibration(
        prompts=len(forecasts),
        ece=sum(b.count * abs(b.predicted - b.observed) for b in bins) / len(forecasts),
        brier=brier,
        brier_skill=1 - brier / (rate * (1 - rate)) if 0 < rate < 1 else None,
        rank_correlation=rank_correlation(predicted_P, observed_P),
        bins=bins,
    )


def correlation(x: Tensor, y: Tensor) -> float | None:
    """Return Pearson's correlation, or None if x or y is constant or not finite."""
    if not bool((x + y).isfinite().all()) or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return None
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float(x @ y / (x.norm() * y.norm()))


def rank_correlation(x: Tensor, y: Tensor) -> float | None:
    """Return Spearman's correlation: that of the ranks; equal numbers share their mean rank.

    It is None if x or y is constant or not finite.
    """
    if not bool((x + y).isfinite().all()):
        return None
    return correlation(_ranks(x), _ranks(y))


def _ranks(x: Tensor) -> Tensor:
    """Return the mean rank of each number among its equals, from 0."""
    _, group, count = x.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0) - 1
    rank: Tensor = (2 * last - count + 1) / 2
    return rank[group]


def _tensors(forecasts: Forecasts) -> tuple[Tensor, Tensor, Tensor]:
    return forecasts.predicted_P, forecasts.observed_P, forecasts.samples_P


# The audit ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Audit:
    """Comparison of V at prefixes of responses with the mean reward of continuations.

    Attributes:
        prefixes: Number of prefixes.
        bias: Mean of V - mean reward.
        rmse: Root mean squared difference.
        correlation: Pearson's, of V and mean reward; None if one of them is constant.
        standard_error: Root mean squared standard error of a mean reward: the `rmse` of a perfect
            critic.
    """

    prefixes: int
    bias: float
    rmse: float
    correlation: float | None
    standard_error: float

    def scalars(self) -> dict[str, float]:
        """Return the measures that are not None."""
        measures = {k: v for k, v in asdict(self).items() if k != "prefixes"}
        return {k: float(v) for k, v in measures.items() if v is not None}


def audit_values(values_P: Tensor, rewards_PM: Tensor) -> Audit:
    """Compare values with Monte-Carlo estimates.

    Args:
        values_P: V at each prefix.
        rewards_PM: Rewards of M >= 2 continuations of each prefix.
    """
    means_P = rewards_PM.mean(1)
    error_P = values_P - means_P
    return Audit(
        prefixes=len(values_P),
        bias=float(error_P.mean()),
        rmse=float(error_P.square().mean().sqrt()),
        correlation=correlation(values_P, means_P),
        standard_error=float((rewards_PM.var(1) / rewards_PM.shape[1]).mean().sqrt()),
    )
