"""The two levels of noise, against enumeration and the variances that add up."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vcppo.comparison.measurements import Measurement, bootstrap
from lightning_vcppo.comparison.statistics import interquartile_mean, mean


def test_a_measurement_draws_what_drawing_its_problems_would():
    """All resamples of three problems, enumerated, against the multinomial draws."""
    results = [0.0, 0.5, 1.0]
    every = [sum(chosen) / 3 for chosen in itertools.product(results, repeat=3)]
    drawn = Measurement.of_problems(results).draw(np.random.default_rng(0), 200_000)
    for value in sorted(set(every)):
        expected = every.count(value) / len(every)
        error = math.sqrt(expected * (1 - expected) / 200_000)
        assert abs(np.mean(np.isclose(drawn, value)) - expected) < 5 * error


def test_a_share_without_its_problems_varies_as_a_binomial():
    drawn = Measurement.of_share(0.25, 512).draw(np.random.default_rng(0), 100_000)
    assert drawn.mean() == pytest.approx(0.25, abs=5 * drawn.std() / math.sqrt(100_000))
    assert drawn.std() == pytest.approx(math.sqrt(0.25 * 0.75 / 512), rel=0.02)
    with pytest.raises(ValueError, match=r"share in \[0, 1\] of >= 1 problems, got 1.5 of 3"):
        Measurement.of_share(1.5, 3)


def test_the_difference_of_independent_problems_adds_their_variances():
    one, other = Measurement.of_share(0.5, 100), Measurement.of_share(0.2, 50)
    drawn = one.minus(other).draw(np.random.default_rng(0), 100_000)
    assert one.minus(other).value == pytest.approx(0.3)
    assert drawn.mean() == pytest.approx(0.3, abs=5 * drawn.std() / math.sqrt(100_000))
    assert drawn.var() == pytest.approx(0.25 / 100 + 0.16 / 50, rel=0.02)


def test_a_bootstrap_of_two_seeds_is_that_of_enumeration():
    """Of two values, resampled means are low, middle, high with weights 1/4, 1/2, 1/4."""
    runs = [Measurement(0.0), Measurement(1.0)]
    assert bootstrap(runs) == (0, 1)
    assert all(map(math.isnan, bootstrap(runs, confidence=0.4)))  # both ends are the middle


def test_a_bootstrap_is_wider_with_problems_than_with_seeds_alone():
    rates = [0.5, 0.55, 0.6, 0.65, 0.7]
    alone = bootstrap([Measurement(rate) for rate in rates])
    both = bootstrap([Measurement.of_share(rate, 40) for rate in rates])
    assert both.low < alone.low and both.high > alone.high
    # Variances of the two levels add up.
    resampled = (np.var(rates) + np.mean([r * (1 - r) / 40 for r in rates])) / 5
    width = 2 * 1.96 * math.sqrt(resampled)
    assert both.high - both.low == pytest.approx(width, rel=0.05)


@given(
    st.integers(-80, 80).map(lambda n: n / 8),
    st.integers(1, 6),
    st.sampled_from([mean, interquartile_mean]),
)
@settings(max_examples=30, deadline=None)
def test_equal_values_have_no_interval(value, count, statistic):
    assert all(map(math.isnan, bootstrap([Measurement(value)] * count, statistic, resamples=50)))


def test_a_bootstrap_needs_a_run():
    with pytest.raises(ValueError, match="at least one run"):
        bootstrap([])
    with pytest.raises(ValueError, match="at least one problem"):
        Measurement.of_problems([])


def test_the_deviation_of_a_measurement_is_that_of_its_draws():
    measured = Measurement.of_problems([0.0, 0.5, 1.0, 1.0]).minus(Measurement.of_share(0.3, 20))
    drawn = measured.draw(np.random.default_rng(0), 100_000)
    assert measured.deviation == pytest.approx(drawn.std(), rel=0.02)
    assert Measurement(0.4).deviation == 0 and not Measurement(0.4).varies
