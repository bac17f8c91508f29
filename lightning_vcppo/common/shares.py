"""Compute the exact interval of a share (Clopper and Pearson, 1934), without scipy."""

from __future__ import annotations

import math
from collections.abc import Callable

_HALVINGS = 60
"""Halvings of [0, 1] that find a bound to the last digit of a float."""


def share_interval(count: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share.

    Its ends are the shares at which `count` or more, and `count` or fewer, of `total` are only
    just as probable as half of the error. So it has a width also for none and for all of them,
    where a normal interval or a bootstrap has none.

    Args:
        count: Number of successes. A fraction, as of problems that are each right half of the
            time, is rounded down for the lower end and up for the upper one.
        total: Number of trials.
        confidence: Coverage of the interval.

    Raises:
        ValueError: If the count is not between 0 and a total of at least 1.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"share_interval: expected 0 <= count <= total, got {count:g} of {total}")
    tail = (1 - confidence) / 2
    least, most = math.floor(count + 1e-9), math.ceil(count - 1e-9)
    low = _root(lambda p: 1 - _at_most(least - 1, total, p) > tail) if least else 0.0
    high = _root(lambda p: _at_most(most, total, p) < tail) if most < total else 1.0
    return low, high


def _at_most(count: int, total: int, share: float) -> float:
    """Return the probability of at most so many successes."""
    log_p, log_q = math.log(share), math.log1p(-share)
    logs = (
        math.lgamma(total + 1)
        - math.lgamma(k + 1)
        - math.lgamma(total - k + 1)
        + k * log_p
        + (total - k) * log_q
        for k in range(count + 1)
    )
    return math.fsum(map(math.exp, logs))


def _root(is_above: Callable[[float], bool]) -> float:
    """Return the place in (0, 1) from which on a condition holds."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return (low + high) / 2
