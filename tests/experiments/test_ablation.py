"""The ablation: arms are presets, results are added once, and the statistics are the textbook's."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from experiments import ablation, ablation_report
from experiments.runs import CONFIGS
from tests.support.configs import printed
from tests.support.rows import thin

ARMS = ablation.read_arms(["all"])
SOME = {"vcppo_lambda_0.9", "grpo"}
"""Arms with and without a critic, which `make test` looks at."""


@pytest.mark.parametrize("arm", thin(ARMS, lambda arm: arm.name in SOME), ids=lambda arm: arm.name)
def test_an_arm_is_its_preset_at_the_learning_rates_of_the_file(arm, tmp_path):
    command = arm.command(7, tmp_path)
    config = printed(*command[1:])
    settings = config["model"]["init_args"]
    assert config["seed_everything"] == 7
    assert settings["actor_optimizer"]["lr"] == arm.actor_lr
    assert arm.critic_lr is None or settings["critic_optimizer"]["lr"] == arm.critic_lr
    responses = config["data"]["prompts_per_rollout"] * settings["sampling"]["num_generations"]
    assert responses == 128, "the same budget for every arm"
    assert config["trainer"]["limit_train_batches"] == 30


@pytest.mark.parametrize(
    "arm",
    thin(ablation.read_arms(ablation.MAIN_ARMS), lambda arm: arm.name in SOME),
    ids=lambda arm: arm.name,
)
def test_an_arm_keeps_its_algorithm_in_another_setting(arm, tmp_path):
    elsewhere = replace(arm, setting=CONFIGS / "smollm2")
    here, there = (printed(*a.command(7, tmp_path)[1:]) for a in (arm, elsewhere))
    assert there["model"]["init_args"]["lora"]["rank"] == 16
    for group in ("advantage", "policy", "value"):
        assert there["model"]["init_args"][group] == here["model"]["init_args"][group]
    assert there["value_pretraining"]["enabled"] is here["value_pretraining"]["enabled"]


def test_the_main_arms_are_there_and_unknown_ones_are_named():
    assert set(ablation.MAIN_ARMS) < {arm.name for arm in ARMS}
    with pytest.raises(ValueError, match=r"--arms: 'pp0' is not one of ppo, "):
        ablation.read_arms(["pp0"])


def row(arm, seed, accuracy, actor_lr="0.0001"):
    columns = ("arm", "seed", "actor_lr", "critic_lr", "accuracy", "cold_start_accuracy")
    columns += ("response_length", "rollouts", "seconds")
    values = (arm, seed, actor_lr, "0.0002", accuracy, 0.07, 200, 30, 60)
    return dict(zip(columns, values, strict=True))


def test_estimates_are_those_of_the_t_test():
    values = [0.2, 0.5, 0.3, 0.4]
    estimate = ablation_report.Estimate.of(values)
    reference = stats.ttest_1samp(values, 0)
    low, high = reference.confidence_interval(0.95)
    assert estimate.p == pytest.approx(reference.pvalue)
    assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == (
        pytest.approx(low),
        pytest.approx(high),
    )
    assert math.isnan(ablation_report.Estimate.of([0.3]).half_width)


def test_differences_are_paired_by_seed():
    ours, reference = {0: 0.5, 1: 0.7, 2: 0.9}, {2: 0.8, 0: 0.3, 5: 0.0}
    expected = stats.ttest_rel([0.5, 0.9], [0.3, 0.8])
    estimate = ablation_report.paired(ours, reference)
    assert estimate.mean == pytest.approx(0.15)
    assert estimate.p == pytest.approx(expected.pvalue)
    with pytest.raises(ValueError, match="no seed in common"):
        ablation_report.paired({1: 0.5}, {2: 0.5})


def test_the_table_and_the_figures_show_every_arm(tmp_path):
    rows = [
        {key: str(value) for key, value in row(arm, seed, accuracy + seed / 100).items()}
        for arm, accuracy in (("ppo", 0.0), ("vcppo", 0.6))
        for seed in range(3)
    ]
    lines = ablation_report.table(rows).splitlines()
    assert lines[2].startswith("| `ppo` | 0.0001 | 3 | 7.0 | 1.0 (-1.5 to 3.5) | 200 | -60.0 |")
    assert lines[3].startswith(
        "| `vcppo` | 0.0001 | 3 | 7.0 | 61.0 (58.5 to 63.5) | 200 |  |  |  |  |"
    )
    curves = [
        {"arm": "ppo", "seed": "0", "rollout": r, "accuracy": "0.1", "response_length": "9"}
        for r in ("1", "2")
    ]
    ablation_report.draw_curves(curves, ["ppo", "vcppo"], tmp_path / "curves.png")
    ablation_report.draw_arms(rows, tmp_path / "arms.png")
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == 2
