"""Protocols: complete, and their arms are what they say."""

import re
from dataclasses import replace

import pytest

from experiments.protocol import read_protocol
from tests.support.configs import printed
from tests.support.rows import thin

DOSE = read_protocol("dose_response")
DESIGNS = [read_protocol(name) for name in ("checked_arithmetic", "count_solutions")]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "arm",
    thin(DOSE.arms, lambda arm: arm.name.endswith("_10")),
    ids=lambda arm: arm.name,
)
def test_the_name_of_a_dose_is_its_ratio_of_rates(arm, tmp_path):
    ratio = float(re.search(r"ratio_(.+)", arm.name)[1])
    assert arm.critic_lr / arm.actor_lr == pytest.approx(ratio)
    config = printed(*arm.command(7, tmp_path)[1:])
    settings = config["model"]["init_args"]
    assert settings["critic_optimizer"]["lr"] == arm.critic_lr
    lam = {"ppo": 0.95, "no_pretraining_95": 0.95}.get(arm.name.split("_ratio")[0], 0.99)
    assert settings["advantage"]["lambda_actor"] == lam
    assert settings["advantage"]["lambda_critic"] == (0.95 if arm.name.startswith("ppo") else 1.0)
    assert config["value_pretraining"]["enabled"] is arm.name.startswith("vcppo")


def test_contrasts_compare_arms_at_the_same_dose():
    for contrast in DOSE.contrasts[:3]:
        assert contrast.primary
        assert contrast.arm.split("ratio")[1] == contrast.reference.split("ratio")[1]


@pytest.mark.parametrize(
    ("design", "arm"),
    [
        pytest.param(
            *(d, arm),
            id=f"{d.name}-{arm.name}",
            marks=[] if arm.name in ("vcppo", "critic_free") else [pytest.mark.thorough],
        )
        for d in DESIGNS
        for arm in d.arms
    ],
)
def test_the_arms_of_a_design_have_the_same_budget(design, arm, tmp_path):
    config = printed(*arm.command(7, tmp_path)[1:])
    settings, pretraining = config["model"]["init_args"], config["value_pretraining"]
    responses = config["data"]["prompts_per_rollout"] * settings["sampling"]["num_generations"]
    assert responses == 64 and settings["update"]["ppo_mini_batch_size"] == 4
    assert settings["policy"]["loss_agg_mode"] == "token-mean"
    before = pretraining["max_rollouts"] if pretraining["enabled"] else 0
    assert (before > 0) is (arm.name in ("ppo_value_pretraining", "vcppo", "one_lambda_of_1"))
    of_policy = {"checked_arithmetic": 36, "count_solutions": 40}[design.name]
    trainer = config["trainer"]
    assert trainer["limit_train_batches"] == trainer["val_check_interval"] == of_policy + before
    lambdas = {"ppo": (0.95, 0.95), "ppo_value_pretraining": (0.95, 0.95)}
    lambdas |= {"no_pretraining": (0.95, 1.0), "vcppo": (0.95, 1.0), "one_lambda_of_1": (1.0, 1.0)}
    advantage = settings["advantage"]
    if arm.name in lambdas:
        assert (advantage["lambda_actor"], advantage["lambda_critic"]) == lambdas[arm.name]
        assert arm.critic_lr == pytest.approx(2 * arm.actor_lr)
    else:
        assert advantage["estimator"] == {"grpo": "group", "critic_free": "batch"}[arm.name]


def test_a_reported_seed_is_not_run_before_the_pilot_has_set_everything():
    unfinished = replace(DESIGNS[0], to_be_set=("slip_rate",))
    unfinished.check_seeds([200, 201])
    with pytest.raises(ValueError, match="the pilot must set slip_rate"):
        unfinished.check_seeds([0])


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)
def test_the_configs_of_a_design_are_valid(design):
    for name in ("cold_start", "reward_model", "rl"):
        printed(f"--config={design.setting / name}.yaml")


def test_only_seeds_and_arms_of_the_protocol_are_run():
    DOSE.check_seeds([0, 200])
    with pytest.raises(ValueError, match=r"--seeds: 7 is not in the protocol, which has 0, 1,"):
        DOSE.check_seeds([7])
    with pytest.raises(ValueError, match=r"--arms: 'ppo' is not one of ppo_ratio_10, "):
        DOSE.pick(["ppo"])
    assert DOSE.pick([]) == list(DOSE.arms)
