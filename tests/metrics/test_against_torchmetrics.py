"""torchmetrics agrees with what we compute ourselves, with masks and sums over ranks."""

from __future__ import annotations

import pytest
import torch
from torchmetrics import functional as theirs
from torchmetrics.functional.classification import binary_calibration_error

from lightning_vcppo.algorithm.statistics import explained_variance
from lightning_vcppo.metrics.calibration import Forecasts, calibrate, correlation, rank_correlation


@pytest.mark.parametrize("seed", range(3))
def test_explained_variance(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    returns_BT, noise_BT = torch.randn(2, 6, 20, generator=generator, dtype=torch.float64)
    values_BT = 0.7 * returns_BT + noise_BT
    mask_BT = torch.rand(6, 20, generator=generator) < 0.6
    there = theirs.explained_variance(values_BT[mask_BT], returns_BT[mask_BT])
    torch.testing.assert_close(explained_variance(values_BT, returns_BT, mask_BT), there)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_of_single_outcomes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted_P = torch.rand(200, generator=generator, dtype=torch.float64)
    observed_P = torch.rand(200, generator=generator, dtype=torch.float64) < predicted_P
    here = calibrate(Forecasts(predicted_P, observed_P.double(), torch.ones(200)), num_bins=10)
    there = binary_calibration_error(predicted_P, observed_P.long(), n_bins=10, norm="l1")
    assert here.ece == pytest.approx(float(there), abs=1e-6)
    assert here.brier == pytest.approx(
        float(theirs.mean_squared_error(predicted_P, observed_P.double()))
    )


@pytest.mark.parametrize("seed", range(3))
def test_correlations(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    y = (x + noise).round()  # with equal numbers
    assert correlation(x, y) == pytest.approx(float(theirs.pearson_corrcoef(x, y)))
    assert rank_correlation(x, y) == pytest.approx(float(theirs.spearman_corrcoef(x, y)), abs=1e-5)
