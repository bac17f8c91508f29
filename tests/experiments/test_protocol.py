"""Protocols: complete, and their arms are what they say."""

import re

import pytest

from experiments.protocol import read_protocol
from tests.support.configs import printed

DOSE = read_protocol("dose_response")


@pytest.mark.parametrize("arm", DOSE.arms, ids=lambda arm: arm.name)
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


def test_only_seeds_and_arms_of_the_protocol_are_run():
    DOSE.check_seeds([0, 200])
    with pytest.raises(ValueError, match=r"--seeds: 7 is not in the protocol, which has 0, 1,"):
        DOSE.check_seeds([7])
    with pytest.raises(ValueError, match=r"--arms: 'ppo' is not one of ppo_ratio_10, "):
        DOSE.pick(["ppo"])
    assert DOSE.pick([]) == list(DOSE.arms)
