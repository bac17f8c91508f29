"""Arms of experiments: what they run, and that a result is added once, where it belongs."""

from dataclasses import replace

import pytest

from experiments import ablation
from experiments.runner import COLUMNS, CURVES, Results, origin, read_curve
from experiments.runs import append_rows, read_rows

PPO, SAO = ablation.read_arms(["ppo", "sao"])


def row(arm, seed, **more):
    return {"arm": arm, "seed": seed, "actor_lr": f"{PPO.actor_lr:g}", **origin(), **more}


def test_another_learning_rate_keeps_the_ratio_of_actor_and_critic():
    assert SAO.critic_lr == pytest.approx(5 * SAO.actor_lr)
    assert (SAO.at(2e-5).actor_lr, SAO.at(2e-5).critic_lr) == (2e-5, 1e-4)


def test_a_run_counts_as_done_when_its_row_is_there(tmp_path):
    results = Results(tmp_path / "new" / "results.csv")
    assert not results.holds(PPO, 3)
    results.add(row("ppo", 3, accuracy=0.1), [{"arm": "ppo", "seed": 3, "rollout": 1}])
    assert results.holds(PPO, 3)
    assert not results.holds(PPO, 4) and not results.holds(replace(PPO, actor_lr=1.0), 3)
    results.add(row("ppo", 4), [])
    assert [r["seed"] for r in results.rows()] == ["3", "4"]
    assert tuple(results.rows()[0]) == COLUMNS
    (point,) = read_rows(tmp_path / "new" / "results_curves.csv")
    assert (point["rollout"], point["policy_rollout"]) == ("1", "")


def test_a_row_says_where_it_was_measured(tmp_path):
    assert origin()["threads"] == "1" and "torch 2" in origin()["versions"]
    assert origin()["processor"] and origin()["commit"]


def test_the_arms_of_a_seed_are_not_spread_over_processors(tmp_path):
    results = Results(tmp_path / "results.csv")
    results.add(row("ppo", 3), [])
    results.add(row("ppo", 4, processor="abacus"), [])
    results.check_machine(3)
    with pytest.raises(ValueError, match="arm ppo of seed 4 was measured on 'abacus', and this is"):
        results.check_machine(4)


def test_rows_are_added_to_an_older_file_with_its_columns(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("arm,accuracy\nppo,0.1\n")
    append_rows(path, COLUMNS, [row("vcppo", 1, accuracy=0.7)])
    assert path.read_text().splitlines() == ["arm,accuracy", "ppo,0.1", "vcppo,0.7"]


def test_a_curve_counts_the_rollouts_of_the_policy(tmp_path):
    header = ["step", *CURVES.values()]
    lines = [
        ["1", "0.1", "9", "", "-3", "0.1", "-1.5", "0.6", "0.1"],
        ["2", "0.2", "8", "0.5", "0.1", "0.1", "-0.9", "0.01234567", ""],
    ]
    text = "\n".join(",".join(line) for line in [header, *lines])
    (tmp_path / "metrics.csv").write_text(text)
    fitted, moved = read_curve(tmp_path)
    assert (fitted["rollout"], fitted["policy_rollout"], fitted["held_out_r2"]) == (1, "", "0.1")
    assert (moved["rollout"], moved["policy_rollout"], moved["bias"]) == (2, 1, "0.01235")
