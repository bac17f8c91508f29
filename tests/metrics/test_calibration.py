"""Measures of calibration against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_vcppo.metrics.calibration import (
    Forecasts,
    ReliabilityBin,
    audit_values,
    calibrate,
    correlation,
    forecasts_of_prompts,
    join_forecasts,
    rank_correlation,
    success_probability,
)


def forecasts(predicted: list[float], observed: list[float], samples: int = 1) -> Forecasts:
    size = torch.full((len(predicted),), float(samples), dtype=torch.float64)
    return Forecasts(
        torch.tensor(predicted, dtype=torch.float64),
        torch.tensor(observed, dtype=torch.float64),
        size,
    )


def test_values_become_probabilities() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.5])
    assert success_probability(values).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]
    assert success_probability(torch.tensor(0.25), reward_min=0.0).item() == 0.25


def test_responses_are_brought_together_by_prompt() -> None:
    together = forecasts_of_prompts(
        torch.tensor([0.25, 0.5, 0.25, 0.25]),
        torch.tensor([True, True, False, False]),
        torch.tensor([7, 3, 7, 7]),
    )
    assert together.predicted_P.tolist() == [0.5, 0.25]
    assert together.observed_P.tolist() == pytest.approx([1.0, 1 / 3])
    assert together.samples_P.tolist() == [1, 3]


def test_calibration_by_hand() -> None:
    seen = forecasts([0.1, 0.2, 0.9, 1.0], [0.0, 1.0, 1.0, 0.5], samples=2)
    calibration = calibrate(seen, num_bins=2)
    assert calibration.bins == [
        ReliabilityBin(pytest.approx(0.15), 0.5, 2),
        ReliabilityBin(pytest.approx(0.95), 0.75, 2),
    ]
    assert calibration.ece == pytest.approx((2 * 0.35 + 2 * 0.2) / 4)
    # (0.1 - 0)^2, (0.2 - 1)^2, (0.9 - 1)^2; outcomes 1 and 0 against 1.0.
    assert calibration.brier == pytest.approx((0.01 + 0.64 + 0.01 + 0.5) / 4)
    assert calibration.brier_skill == pytest.approx(1 - calibration.brier / (0.625 * 0.375))
    assert calibration.prompts == 4


def test_brier_counts_outcomes_and_not_prompts() -> None:
    many = forecasts([0.5], [1.0], samples=3)
    one = forecasts([0.5], [0.0], samples=1)
    assert calibrate(join_forecasts([many, one])).brier == 0.25
    sure = Forecasts(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0]))
    assert calibrate(sure).brier == 0.25


def test_perfect_forecasts_have_no_error_but_the_noise_of_the_outcomes() -> None:
    perfect = calibrate(forecasts([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], samples=4))
    assert perfect.ece == 0
    assert perfect.brier == pytest.approx(0.25 / 3)
    assert perfect.rank_correlation == pytest.approx(1)


def test_what_cannot_be_known_is_left_out() -> None:
    calibration = calibrate(forecasts([0.5, 0.5], [1.0, 1.0]))
    assert calibration.brier_skill is None and calibration.rank_correlation is None
    assert set(calibration.scalars()) == {"prompts", "ece", "brier"}


def test_equal_numbers_share_their_rank() -> None:
    x = torch.tensor([1.0, 2.0, 2.0, 9.0])
    y = torch.tensor([0.0, 0.0, 1.0, 1.0])
    # Ranks 0, 1.5, 1.5, 3 and 0.5, 0.5, 2.5, 2.5: covariance 3, norms sqrt(4.5) and 2.
    assert rank_correlation(x, y) == pytest.approx(3 / (4.5**0.5 * 2))
    assert rank_correlation(x, -x.exp()) == pytest.approx(-1)
    assert rank_correlation(x, torch.full((4,), 0.1)) is None


def test_correlation_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    assert correlation(x, 3 - 2 * x) == pytest.approx(-1)
    assert correlation(x, torch.tensor([1.0, 0.0, 1.0])) == pytest.approx(0)
    assert correlation(x, torch.full((3,), 0.1)) is None


def test_an_audit_by_hand() -> None:
    audit = audit_values(
        torch.tensor([0.5, -1.0]), torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0] * 4])
    )
    assert audit.prefixes == 2
    assert audit.bias == pytest.approx(0.25)  # 0.5 - 0 and -1 + 1
    assert audit.rmse == pytest.approx((0.25 / 2) ** 0.5)
    assert audit.correlation == pytest.approx(1)
    # Variances 4/3 and 0 of one outcome, a fourth of that for the mean of four.
    assert audit.standard_error == pytest.approx((1 / 3 / 2) ** 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_forecasts_that_are_no_numbers_have_no_measures(bad: float) -> None:
    spoilt = calibrate(forecasts([0.25, bad, 0.75], [0.0, 0.5, 1.0]))
    assert math.isnan(spoilt.ece) and math.isnan(spoilt.brier) and spoilt.prompts == 3
    assert (spoilt.brier_skill, spoilt.rank_correlation, spoilt.bins) == (None, None, [])
    values_P, rewards_PM = torch.tensor([0.5, bad]), torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    audit = audit_values(values_P, rewards_PM)
    assert audit.correlation is None and not math.isfinite(audit.bias)
