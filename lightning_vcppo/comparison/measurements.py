"""Resample runs on two levels: their seeds, and the problems on which they were evaluated.

`Measurement` holds a run's mean together with its noise over problems, so that `bootstrap` can
resample seeds first and problems within each seed.

Legend of shapes: B resamples, S seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_vcppo.comparison.statistics import CONFIDENCE, NO_INTERVAL, Array, Interval, mean

RESAMPLES = 10_000

Statistic = Callable[[Array], Array]
"""Maps values of shape (..., S) to one value for each row, of shape (...)."""


@dataclass(frozen=True)
class _Problems:
    """Distinct results of a run's problems, their probabilities, and the number of problems."""

    sign: float
    results: tuple[float, ...]
    probabilities: tuple[float, ...]
    count: int


@dataclass(frozen=True)
class Measurement:
    """The mean of a run, and its variation when its problems are resampled.

    Attributes:
        value: Mean over the problems.
    """

    value: float
    _parts: tuple[_Problems, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether the noise over problems is known."""
        return bool(self._parts)

    @property
    def deviation(self) -> float:
        """The standard deviation of the value over problems; 0 if their noise is unknown."""
        variance = 0.0
        for part in self._parts:
            results, shares = np.asarray(part.results), np.asarray(part.probabilities)
            variance += float(shares @ results**2 - (shares @ results) ** 2) / part.count
        return math.sqrt(max(0.0, variance))

    @classmethod
    def of_problems(cls, results: Sequence[float]) -> Measurement:
        """Return the mean over problems, from one result for each.

        Raises:
            ValueError: If there is no problem.
        """
        if not results:
            raise ValueError("Measurement: expected the result of at least one problem")
        found, count = Counter(results), len(results)
        shares = tuple(number / count for number in found.values())
        part = _Problems(1.0, tuple(found), shares, count)
        return cls(math.fsum(results) / count, (part,))

    @classmethod
    def of_share(cls, share: float, problems: int) -> Measurement:
        """Return a share of right problems, with binomial noise if single results are unknown.

        Args:
            share: Share of right answers, in [0, 1].
            problems: Number of problems.

        Raises:
            ValueError: If the share is outside [0, 1], or there is no problem.
        """
        if not 0 <= share <= 1 or problems < 1:
            raise ValueError(
                f"Measurement: expected a share in [0, 1] of >= 1 problems, got {share:g} of "
                f"{problems}"
            )
        return cls(share, (_Problems(1.0, (1.0, 0.0), (share, 1 - share), problems),))

    def minus(self, other: Measurement) -> Measurement:
        """Subtract another run, whose problems are resampled independently."""
        negated = tuple(replace(part, sign=-part.sign) for part in other._parts)
        return Measurement(self.value - other.value, self._parts + negated)

    def draw(self, generator: np.random.Generator, size: int) -> Array:
        """Return means over problems that are drawn with replacement.

        The numbers of problems with each distinct result are multinomial, so problems need not be
        drawn one by one.
        """
        if not self._parts:
            return np.full(size, self.value)
        drawn = np.zeros(size)
        for part in self._parts:
            counts = generator.multinomial(part.count, part.probabilities, size=size)
            drawn += part.sign * (counts @ np.asarray(part.results)) / part.count
        return drawn


def bootstrap(
    runs: Sequence[Measurement],
    statistic: Statistic = mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the percentile interval of a statistic over two levels: seeds, problems within them.

    With few seeds it is too narrow: a resample of five has about three and a half distinct ones.
    Equal runs without problems have no spread to show: there is no interval.

    Args:
        runs: One measurement for each seed, or the difference of each pair.
        statistic: Summary of the runs of a resample.
        resamples: Number of resamples.
        seed: Seed of the random numbers.
        confidence: Coverage of the interval.

    Raises:
        ValueError: If there is no run.
    """
    if not runs:
        raise ValueError("bootstrap: expected at least one run")
    generator = np.random.default_rng(seed)
    chosen_BS = generator.integers(len(runs), size=(resamples, len(runs)))
    values_BS = np.empty(chosen_BS.shape)
    for place, run in enumerate(runs):
        drawn_BS = chosen_BS == place
        values_BS[drawn_BS] = run.draw(generator, int(drawn_BS.sum()))
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(values_BS), [tail, 1 - tail])
    return Interval(float(low), float(high)) if low < high else NO_INTERVAL
