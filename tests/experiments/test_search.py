"""The search for learning rates: which rates it tries, and how it shortens a run."""

import pytest

from experiments.protocol import read_protocol, search_rates
from experiments.runner import Results
from experiments.search import next_rate, scores_of

RATES = (1e-5, 3e-5, 1e-4)
DESIGN = read_protocol("checked_arithmetic")
PPO, VCPPO = DESIGN.pick(["ppo", "vcppo"])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, 3e-5),
        ({3e-5: 0.2}, 1e-4),
        ({3e-5: 0.2, 1e-4: 0.3}, None),
        ({3e-5: 0.2, 1e-4: 0.1}, 1e-5),
        ({3e-5: 0.0, 1e-4: 0.0}, 1e-5),
        ({3e-5: 0.2, 1e-4: 0.1, 1e-5: 0.3}, None),
    ],
)
def test_the_neighbours_of_the_best_rate_are_tried(scores, expected):
    assert next_rate(RATES, scores) == expected


def test_a_score_is_the_mean_accuracy_of_the_last_policy_rollouts(tmp_path):
    results = Results(tmp_path / "pilot.csv")
    which = {"arm": "vcppo", "seed": 200, "actor_lr": f"{3e-5:g}"}
    accuracies = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
    curve = [which | {"policy_rollout": i, "accuracy": a} for i, a in enumerate(accuracies, 1)]
    results.add(which, [which | {"policy_rollout": "", "accuracy": 1.0}, *curve])
    assert scores_of(VCPPO, 200, results) == {3e-5: pytest.approx(0.3)}
    assert scores_of(PPO, 200, results) == scores_of(VCPPO, 201, results) == {}


def test_a_shorter_run_keeps_the_rollouts_of_value_pretraining():
    for arm, total in ((PPO, 36), (VCPPO, 44)):
        flags = arm.shorter(18).flags
        assert flags[-2:] == (
            f"--trainer.limit_train_batches={total - 18}",
            f"--trainer.val_check_interval={total - 18}",
        )


def test_a_search_needs_a_seed_of_the_pilot(tmp_path):
    assert DESIGN.search == {"seed": 200, "actor_lr": list(RATES), "fewer_rollouts": 18}
    dose = read_protocol("dose_response")
    with pytest.raises(ValueError, match="--search: expected a protocol with `search`"):
        search_rates(dose, dose.arms, Results(tmp_path / "pilot.csv"), tmp_path)
