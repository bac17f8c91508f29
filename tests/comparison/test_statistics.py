"""Statistics of few runs: against scipy, closed forms, enumeration, and laws that always hold."""

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_vcppo.comparison import statistics
from lightning_vcppo.comparison.statistics import (
    area,
    detectable_difference,
    holm,
    interquartile_mean,
    paired_differences,
    probability_of_improvement,
    share_interval,
    sign_flip,
    t_estimate,
)

# Multiples of 1/8: sums are exact, so that a law need not allow for rounding.
eighths = st.integers(-80, 80).map(lambda n: n / 8)
lists = st.lists(eighths, min_size=1, max_size=9)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)
few = settings(max_examples=60, deadline=None)


# Means and intervals


def test_a_t_interval_is_that_of_scipy():
    values = [0.2, 0.5, 0.3, 0.4]
    estimate, reference = t_estimate(values), stats.ttest_1samp(values, 0)
    assert estimate.mean == pytest.approx(0.35)
    assert estimate.p == pytest.approx(reference.pvalue)
    assert estimate.interval == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_a_t_interval_needs_two_values_and_a_p_value_needs_spread():
    one, equal = t_estimate([0.3]), t_estimate([0.3, 0.3, 0.3])
    assert one.mean == 0.3 and all(map(math.isnan, (*one.interval, one.p)))
    assert equal.mean == 0.3 and all(map(math.isnan, (*equal.interval, equal.p)))
    with pytest.raises(ValueError, match="at least one value"):
        t_estimate([])


@pytest.mark.parametrize("count", range(1, 13))
def test_an_interquartile_mean_is_the_trimmed_mean_of_scipy(count):
    values = np.random.default_rng(count).normal(size=(3, count))
    expected = stats.trim_mean(values, 0.25, axis=1)
    np.testing.assert_allclose(interquartile_mean(values), expected, rtol=1e-15)


def test_of_five_values_an_interquartile_mean_keeps_the_middle_three():
    assert interquartile_mean(np.array([9.0, 1.0, 2.0, 3.0, -7.0])) == 2


@given(lists)
@few
def test_paired_differences_change_sign_with_the_order(values):
    reference = [2 * value - 1 for value in reversed(values)]
    forth, back = paired_differences(values, reference), paired_differences(reference, values)
    assert forth == [-difference for difference in back]
    one, other = t_estimate(forth), t_estimate(back)
    assert one.mean == pytest.approx(-other.mean)
    if len(values) > 1:
        assert one.interval.low == pytest.approx(-other.interval.high, nan_ok=True)
        assert one.p == pytest.approx(other.p, nan_ok=True)


def test_a_paired_estimate_is_the_paired_t_test():
    values, reference = [0.5, 0.7, 0.9], [0.3, 0.8, 0.8]
    estimate = t_estimate(paired_differences(values, reference))
    assert estimate.p == pytest.approx(stats.ttest_rel(values, reference).pvalue)
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired_differences(values, reference[:2])


@given(lists, lists)
@few
def test_probabilities_of_improvement_of_both_directions_add_up_to_one(values, reference):
    forth = probability_of_improvement(values, reference)
    assert forth + probability_of_improvement(reference, values) == pytest.approx(1)
    u = stats.mannwhitneyu(values, reference).statistic
    assert forth == pytest.approx(u / (len(values) * len(reference)))


# Tests


@given(st.lists(eighths, min_size=1, max_size=8))
@few
def test_a_sign_flip_p_value_counts_patterns(differences):
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = sum(abs(s) >= abs(sum(differences)) for s in sums) / len(sums)
    found = sign_flip(differences)
    assert found.exact and found.p == expected
    assert sign_flip([-d for d in differences]) == found
    assert found.p >= 2 / 2 ** len(differences)


def test_five_differences_cannot_get_below_a_sixteenth():
    assert sign_flip([0.1, 0.2, 0.3, 0.4, 0.5]).p == 0.0625


def test_many_differences_are_flipped_at_random():
    differences = np.random.default_rng(0).normal(0.3, 1, size=24)
    found = sign_flip(list(differences))
    reference = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=100_000, rng=1
    )
    assert not found.exact
    assert found.p == pytest.approx(reference.pvalue, abs=0.008)


@given(p_values)
@few
def test_holm_keeps_the_order_and_never_lowers_a_p_value(raw):
    corrected = holm(raw)
    assert all(r <= c <= 1 for r, c in zip(raw, corrected, strict=True))
    ranked = [c for _, c in sorted(zip(raw, corrected, strict=True))]
    assert ranked == sorted(ranked)
    # Never stricter than Bonferroni.
    assert all(c <= min(1, len(raw) * r) for r, c in zip(raw, corrected, strict=True))


def test_holm_by_hand_and_without_what_has_no_p_value():
    corrected = holm([0.04, math.nan, 0.01, 0.03])
    assert corrected[0] == pytest.approx(0.06) and corrected[2] == pytest.approx(0.03)
    assert corrected[3] == pytest.approx(0.06) and math.isnan(corrected[1])


@pytest.mark.parametrize(("count", "total"), [(0, 5), (5, 5), (2, 7), (1, 1)])
def test_the_interval_of_a_share_is_that_of_scipy(count, total):
    reference = stats.binomtest(count, total).proportion_ci(0.95, "exact")
    assert share_interval(count, total) == pytest.approx((reference.low, reference.high))


def test_the_interval_of_none_of_five_is_that_of_the_closed_form():
    assert share_interval(0, 5) == pytest.approx((0, 1 - 0.025**0.2))
    with pytest.raises(ValueError, match="got 6 of 5"):
        share_interval(6, 5)


def test_a_detectable_difference_has_the_power_that_simulation_finds():
    difference = detectable_difference(2.8, 5)
    assert difference == pytest.approx(4.7096, abs=1e-4)
    samples = np.random.default_rng(0).normal(difference, 2.8, size=(20_000, 5))
    power = np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05)
    assert power == pytest.approx(0.8, abs=5 * 0.4 / math.sqrt(20_000))
    assert math.isnan(detectable_difference(1.0, 1))
    assert detectable_difference(0.0, 5) == 0


# Curves


def test_an_area_is_that_of_trapezoids_up_to_the_end():
    places, values = [0.0, 1.0, 3.0, 4.0], [0.0, 1.0, 1.0, 5.0]
    assert area(places, values, 4) == pytest.approx(np.trapezoid(values, places) / 4)
    assert area(places, values, 2) == pytest.approx((0.5 + 1) / 2)
    assert area([3.0], [0.7], 3) == 0.7
    with pytest.raises(ValueError, match="reaches the end"):
        area(places, values, 5)


def test_without_scipy_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-vcppo\[report\]'"):
        t_estimate([1.0, 2.0])
    assert statistics.INSTALL.startswith("vcppo compare needs scipy")
