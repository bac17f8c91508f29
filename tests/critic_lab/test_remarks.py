"""Critics that are not fitted are told with their learning rate, and are not ranked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lightning_vcppo.algorithm.value_pretraining import Progress
from lightning_vcppo.critic_lab.comparison import NOT_RANKED, recommendation
from lightning_vcppo.critic_lab.measures import Measures, measure
from lightning_vcppo.critic_lab.remarks import explains, headline, of_comparison, of_fit

PROMPTS = 12


def measured(gain: float, noise: float = 0.0) -> Measures:
    """Measure V = gain R + noise on two right and two wrong responses to each prompt."""
    rng = np.random.default_rng(0)
    rewards = [1.0, 1.0, -1.0, -1.0] * PROMPTS
    values = [np.full(5, gain * reward + noise * rng.normal()) for reward in rewards]
    groups = [row // 4 for row in range(4 * PROMPTS)]
    return measure(values, rewards, groups, (-1.0, 1.0))


def fit_of(name: str, found: Measures, *warnings: str) -> dict[str, Any]:
    return {"name": name, "measures": found.as_json(), "warnings": [*warnings]}


def test_a_slow_fit_names_its_rate_and_what_to_change() -> None:
    progress = Progress(rollouts=4, best_rollout=4)
    (line,) = of_fit(replace(measured(0.0), r2=-0.324), progress, 28, 1e-5)
    assert "V explains hardly anything: held-out R^2 -0.324 after 4 passes (28 updates)" in line
    assert "--critic_optimizer.lr=1e-05; it was still rising: try a higher" in line
    assert "--patience" in line and "--max_epochs" in line


def test_a_fit_that_fell_is_not_told_to_go_on() -> None:
    (line,) = of_fit(replace(measured(0.0), r2=0.05), Progress(5, best_rollout=2), 40, 1e-2)
    assert "V explains little: held-out R^2 0.050" in line and "highest after pass 2" in line
    assert "--max_epochs" not in line
    assert not of_fit(measured(1.0), Progress(5, best_rollout=2), 40, 1e-2)


@pytest.mark.parametrize(
    ("gain", "noise", "expected"),
    [
        (0.0, 0.0, False),  # the mean reward
        (0.001, 0.0, False),  # R^2 0.002, with an interval above 0
        (0.5, 0.0, True),
        (0.3, 0.6, False),  # R^2 above 0.01, but not beyond chance
    ],
)
def test_an_r2_is_distinguishable_from_0_or_not(gain: float, noise: float, expected: bool) -> None:
    found = measured(gain, noise)
    assert found.r2_interval is not None and found.r2_interval[0] <= found.r2 + 1e-12
    assert explains(fit_of("mse", found)) is expected
    if noise:
        assert found.r2 > 0.01 and found.r2_interval[0] < 0


def test_critics_that_explain_nothing_are_not_ranked() -> None:
    fits = [fit_of("mse", measured(0.0), "V explains hardly anything"), fit_of("b", measured(0.0))]
    first, second = of_comparison(fits)
    assert first.startswith("no ranking: no critic has an R^2 distinguishable from 0, which is at")
    assert "0.01 with a 95 % interval above 0 over the 12 held-out prompts" in first
    assert second == "mse: V explains hardly anything"
    assert headline(fits).startswith("No ranking: ")
    assert recommendation([fit | {"truth": {}} for fit in fits]) == NOT_RANKED


def test_one_critic_that_explains_something_makes_a_ranking() -> None:
    fits = [fit_of("mse", measured(0.5)), fit_of("b", measured(0.0))]
    assert not of_comparison(fits) and headline(fits) == "mse, with a held-out R^2 of 0.750"
    del fits[0]["measures"]["r2_interval"], fits[0]["warnings"]  # of an earlier version
    assert not of_comparison(fits)
