"""Estimate means, differences and shares of few runs, with their uncertainty.

References: Agarwal et al. 2021 (arXiv 2108.13264) for the interquartile mean and the probability of
improvement; Holm 1979 for the correction; Clopper and Pearson 1934 for shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_vcppo.common import shares

CONFIDENCE = 0.95
EXACT_SIGNS = 20
"""Largest number of differences for which all 2^n patterns of signs are enumerated."""
INSTALL = "vcppo compare needs scipy: pip install 'lightning-vcppo[report]'"

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """The two ends of an interval; NaN if there is none."""

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


# Means of few values


def mean(values: Array) -> Array:
    """Return the mean over the last axis."""
    return np.asarray(values.mean(axis=-1))


def interquartile_mean(values: Array) -> Array:
    """Return the mean over the last axis without the lowest and the highest quarter.

    floor(n / 4) values are dropped at either end, as in `scipy.stats.trim_mean(values, 0.25)`: of
    five values the middle three remain, of fewer than four values all remain.
    """
    count = values.shape[-1]
    cut = count // 4
    return np.asarray(np.sort(values, axis=-1)[..., cut : count - cut].mean(axis=-1))


@dataclass(frozen=True)
class TEstimate:
    """A mean with the interval and the p value of Student's t test.

    Attributes:
        mean: Mean of the values.
        interval: 95 % interval; NaN for a single value, and if all values are equal, because their
            spread is then unknown.
        p: Two-sided p value of the hypothesis that the mean is 0; NaN like the interval.
    """

    mean: float
    interval: Interval
    p: float


def t_estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> TEstimate:
    """Estimate a mean by Student's t test of one sample.

    Args:
        values: One value for each seed; for a paired test, their differences.
        confidence: Coverage of the interval.

    Raises:
        ValueError: If there is no value.
        ImportError: If scipy is not installed.
    """
    if not values:
        raise ValueError("t_estimate: expected at least one value")
    stats = _scipy()
    array = np.asarray(values, dtype=np.float64)
    middle, count = float(array.mean()), len(values)
    if min(values) == max(values):
        return TEstimate(values[0], NO_INTERVAL, math.nan)
    error = float(array.std(ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    p = 2 * float(stats.t.sf(abs(middle) / error, count - 1)) if error else 0.0
    return TEstimate(middle, Interval(middle - half, middle + half), p)


def paired_differences(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return value minus reference, seed by seed.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(values) != len(reference):
        raise ValueError(
            f"paired_differences: expected as many values as references, got {len(values)} and "
            f"{len(reference)}"
        )
    return [value - other for value, other in zip(values, reference, strict=True)]


def probability_of_improvement(values: Sequence[float], reference: Sequence[float]) -> float:
    """Return the probability that a run is better than one of the reference; ties count half.

    It is the Mann-Whitney statistic divided by the number of pairs.

    Raises:
        ValueError: If there is no pair.
    """
    if not values or not reference:
        raise ValueError("probability_of_improvement: expected values on either side")
    better = sum((v > r) + 0.5 * (v == r) for v in values for r in reference)
    return better / (len(values) * len(reference))


# Tests


@dataclass(frozen=True)
class SignFlip:
    """The p value of a sign-flip test.

    Attributes:
        p: Two-sided p value.
        exact: Whether all patterns were enumerated; otherwise patterns were drawn at random.
    """

    p: float
    exact: bool


def sign_flip(differences: Sequence[float], *, draws: int = 100_000, seed: int = 0) -> SignFlip:
    """Test whether differences are symmetric around 0, by flipping their signs.

    The p value is the share of the 2^n patterns of signs whose sum is at least as far from 0 as the
    observed one. It cannot be below 2 / 2^n: 0.0625 for five differences.

    Args:
        differences: One for each seed.
        draws: Number of random patterns for more than `EXACT_SIGNS` differences; the observed
            pattern is counted in addition.
        seed: Seed of the random patterns.

    Raises:
        ValueError: If there is no difference.
    """
    if not differences:
        raise ValueError("sign_flip: expected at least one difference")
    array = np.asarray(differences, dtype=np.float64)
    observed = abs(math.fsum(differences))
    least = observed - 1e-12 * max(1.0, float(np.abs(array).sum()))  # sums round differently
    if len(array) <= EXACT_SIGNS:
        sums = np.zeros(1)
        for difference in array:
            sums = np.concatenate([sums + difference, sums - difference])
        return SignFlip(float(np.mean(np.abs(sums) >= least)), exact=True)
    generator = np.random.default_rng(seed)
    extreme = 1
    for begin in range(0, draws, 10_000):
        shape = (min(10_000, draws - begin), len(array))
        signs = 2.0 * generator.integers(2, size=shape) - 1
        extreme += int(np.sum(np.abs(signs @ array) >= least))
    return SignFlip(extreme / (draws + 1), exact=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for the size of their family, by Holm's step-down procedure.

    Args:
        p_values: The p values of all hypotheses of the family; NaN is ignored.

    Returns:
        Corrected p values in the same order.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    so_far = 0.0
    for rank, (p, place) in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p))
        corrected[place] = so_far
    return corrected


def share_interval(count: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the exact interval of a share; see `common.shares`.

    Raises:
        ValueError: If the count is not between 0 and a total of at least 1.
    """
    return Interval(*shares.share_interval(count, total, confidence))


def detectable_difference(deviation: float, count: int, power: float = 0.8) -> float:
    """Return the mean difference that a paired t test detects with a given power.

    Args:
        deviation: Standard deviation of the differences.
        count: Number of pairs.
        power: Probability of p < 0.05.

    Returns:
        The difference in the unit of the deviation; NaN with fewer than two pairs.

    Raises:
        ImportError: If scipy is not installed.
    """
    stats = _scipy()
    if count < 2:
        return math.nan
    from scipy.optimize import brentq

    critical = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)

    def missing(noncentrality: float) -> float:  # differences of the wrong sign do not count
        return float(stats.nct.sf(critical, count - 1, noncentrality)) - power

    top = 1.0
    while missing(top) < 0:
        top *= 2
    return float(brentq(missing, 0.0, top)) * deviation / math.sqrt(count)


# Curves


def area(places: Sequence[float], values: Sequence[float], end: float) -> float:
    """Return the mean height of a curve from its first place to an end, by the trapezoid rule.

    Args:
        places: Strictly increasing places on the axis.
        values: Height at each of them.
        end: Place at which the curve is cut; the height there is interpolated.

    Raises:
        ValueError: If the curve has no part before the end, or does not reach it.
    """
    if not places or places[0] > end or places[-1] < end:
        raise ValueError("area: expected a curve that reaches the end")
    inside = [(x, y) for x, y in zip(places, values, strict=True) if x < end]
    inside.append((end, float(np.interp(end, places, values))))
    if len(inside) == 1:
        return inside[0][1]
    x, y = np.asarray(inside).T
    return float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)) / (x[-1] - x[0]))


def _scipy() -> Any:
    """Return `scipy.stats`, which takes half a second to import."""
    try:
        from scipy import stats
    except ImportError:
        raise ImportError(INSTALL) from None
    return stats
