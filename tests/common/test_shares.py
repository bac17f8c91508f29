"""The exact interval of a share, against scipy and the closed form."""

from __future__ import annotations

import pytest
from scipy import stats

from lightning_vcppo.common.shares import share_interval


@pytest.mark.parametrize(
    ("count", "total"), [(0, 4), (4, 4), (1, 4), (2, 7), (0, 1), (1, 1), (250, 500), (4999, 5000)]
)
def test_it_is_that_of_scipy(count: int, total: int) -> None:
    reference = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    assert share_interval(count, total) == pytest.approx((reference.low, reference.high), rel=1e-9)


def test_none_of_four_does_not_rule_out_half() -> None:
    low, high = share_interval(0, 4)
    assert low == 0 and high == pytest.approx(1 - 0.025**0.25)  # 60 %
    assert share_interval(4, 4) == pytest.approx((1 - high, 1))


def test_a_fraction_is_rounded_outwards() -> None:
    assert share_interval(1.5, 4) == (share_interval(1, 4)[0], share_interval(2, 4)[1])
    assert share_interval(0.1 * 30, 30) == share_interval(3, 30)  # 0.1 * 30 is above 3


@pytest.mark.parametrize(("count", "total"), [(6, 5), (-1, 5), (0, 0)])
def test_other_counts_are_refused(count: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"got {count} of {total}"):
        share_interval(count, total)
