"""What the monitors measure, write and warn of: on invented rollouts, then on real runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_vcppo.callbacks import (
    AIMEEvaluation,
    CriticCalibration,
    GuardRails,
    LearningCurves,
    RewardDecayMonitor,
)
from lightning_vcppo.dashboards.rollout_log import RolloutLog
from lightning_vcppo.metrics.guard_rules import Limits
from lightning_vcppo.metrics.positions import SPLITS
from lightning_vcppo.settings import AdvantageSettings
from tests.support.inventing import (
    InventingModule,
    PretrainTwice,
    fit,
    invent_rollout,
    logged,
    make_trainer,
)
from tests.support.tiny_runs import ROLLOUTS, vcppo
from tests.support.tiny_runs import logged as rows_of


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def positions(root: Path) -> list[dict[str, Any]]:
    return lines(root / "diagnostics" / "positions.jsonl")


def calibrations(root: Path) -> list[dict[str, Any]]:
    return lines(root / "diagnostics" / "calibration.jsonl")


def known(means: list[float | None]) -> list[float]:
    return [mean for mean in means if mean is not None]


# The files ---------------------------------------------------------------------------------------


def test_a_log_of_rollouts_is_rewound_to_a_checkpoint(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "there" / "log.jsonl")
    log.rewind(0)  # nothing is there yet
    for rollout in (1, 2, 3):
        log.append({"rollout": rollout, "x": [1 / 3, math.nan, math.inf, None]})
    with log.path.open("a") as file:
        file.write('{"rollout": 4, "x"')  # killed in the middle
    log.rewind(2)
    log.append({"rollout": 3, "x": []})
    first, second, third = lines(log.path)
    assert first == {"rollout": 1, "x": [0.333333, None, None, None]}
    assert (second["rollout"], third) == (2, {"rollout": 3, "x": []})


def test_profiles_are_written_as_documented(tmp_path: Path) -> None:
    module = InventingModule(AdvantageSettings(lambda_actor=0.9, lambda_critic=0.5))
    monitor = RewardDecayMonitor(bin_width=25)
    fit(make_trainer(tmp_path, PretrainTwice(), monitor), module)
    pretraining, *_, policy = positions(tmp_path)
    assert [entry["rollout"] for entry in positions(tmp_path)] == [1, 2, 3, 4]
    assert (pretraining["phase"], policy["phase"]) == ("value_pretraining", "policy_optimization")
    assert (pretraining["lambda_critic"], policy["lambda_critic"]) == (1.0, 0.5)
    assert (policy["lambda_actor"], policy["gamma"]) == (pytest.approx(0.9), 1.0)
    assert (pretraining["critic_horizon"], policy["critic_horizon"]) == (None, 2.0)

    rollout = invent_rollout(4, module.advantage)
    lengths = rollout.response_lengths_B
    assert policy["response_length"] == pytest.approx(float(lengths.double().mean()), rel=1e-5)
    absolute = policy["absolute"]
    assert absolute.pop("bin_width") == 25
    assert absolute["count"][0] == lengths.clamp(max=25).sum()
    assert len(absolute.pop("count")) == 3  # of 60 tokens
    for name, places in (("deciles", 10), ("absolute", 3)):
        assert set(policy[name]) == {"value", "return", "bias", "advantage", "entropy"}
        assert set(policy["reward_weight"][name]) == {"actor", "critic"}
        for profile in (*policy[name].values(), *policy["reward_weight"][name].values()):
            assert set(profile) == set(SPLITS)
            assert {len(means) for means in profile.values()} == {places}
    assert policy["deciles"]["return"]["correct"] == [1.0] * 10
    value = policy["deciles"]["value"]["all"]
    assert policy["deciles"]["bias"]["incorrect"][0] > value[0] > value[0] - 1
    assert monitor.latest is not None and monitor.latest.rollout == 4


def test_a_resumed_run_goes_on_with_its_files(tmp_path: Path) -> None:
    def monitors() -> tuple[Callback, ...]:
        return AIMEEvaluation(), RewardDecayMonitor(), CriticCalibration(), GuardRails()

    fit(make_trainer(tmp_path / "whole", *monitors()), InventingModule())
    checkpoint = ModelCheckpoint(tmp_path, monitor="eval/accuracy", save_top_k=-1)
    root = tmp_path / "parts"
    fit(make_trainer(root, *monitors(), checkpoint), InventingModule())
    fit(
        make_trainer(root, *monitors(), limit_train_batches=2, max_epochs=2),
        InventingModule(),
        next(tmp_path.glob("*step=2.ckpt")),
    )
    for name in ("positions.jsonl", "calibration.jsonl"):
        parts, whole = (tmp_path / run / "diagnostics" / name for run in ("parts", "whole"))
        assert parts.read_text() == whole.read_text()


def test_a_new_run_in_an_old_directory_starts_its_files_anew(tmp_path: Path) -> None:
    for rollouts in (4, 2):
        trainer = make_trainer(tmp_path, RewardDecayMonitor(), limit_train_batches=rollouts)
        fit(trainer, InventingModule())
    assert [entry["rollout"] for entry in positions(tmp_path)] == [1, 2]


class Idle(InventingModule):
    """Dynamic sampling: its first two batches fill no rollout."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx < 2:
            self.rollout = None
        else:
            super().training_step(batch, batch_idx)


def test_monitors_pass_over_batches_without_a_rollout(tmp_path: Path) -> None:
    fit(make_trainer(tmp_path, RewardDecayMonitor(), CriticCalibration(), GuardRails()), Idle())
    assert [entry["rollout"] for entry in positions(tmp_path)] == [1, 2]
    assert [entry["rollout"] for entry in calibrations(tmp_path)] == [1, 2]
    assert len(logged(tmp_path, "guard_rails/violations")) == 2


def test_monitors_of_a_run_without_a_critic(tmp_path: Path) -> None:
    callbacks = (RewardDecayMonitor(), CriticCalibration(), GuardRails(on_violation="stop"))
    fit(make_trainer(tmp_path, *callbacks), InventingModule(AdvantageSettings(estimator="group")))
    assert not (tmp_path / "diagnostics" / "calibration.jsonl").exists()
    assert set(positions(tmp_path)[-1]["deciles"]) == {"advantage", "entropy"}
    assert positions(tmp_path)[-1]["lambda_actor"] == 1.0
    assert set(logged(tmp_path, "guard_rails/violations").values()) == {0.0}


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: RewardDecayMonitor(bin_width=0), "bin_width"),
        (lambda: CriticCalibration(num_bins=0), "num_bins"),
        (lambda: CriticCalibration(audit_continuations=1), "audit_continuations"),
        (lambda: CriticCalibration(reward_min=1.0), "reward_min"),
    ],
)
def test_impossible_settings_are_refused(make: Any, flag: str) -> None:
    with pytest.raises(ValueError, match=f"{flag}: expected"):
        make()


# CriticCalibration -------------------------------------------------------------------------------


class KnownForecasts(InventingModule):
    """Two prompts of three responses: V(prompt) -0.5 and 0.5, pass rates 1/3 and 1."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        assert self.rollout is not None and self.rollout.values_BT is not None
        values_BT = self.rollout.values_BT.clone()
        values_BT[:, 0] = torch.tensor([-0.5] * 3 + [0.5] * 3)
        self.rollout = self.rollout.with_(
            values_BT=values_BT,
            group_ids_B=torch.tensor([4] * 3 + [9] * 3),
            correct_B=torch.tensor([True, False, False, True, True, True]),
        )


def test_the_critic_is_compared_with_pass_rates(tmp_path: Path) -> None:
    fit(make_trainer(tmp_path, CriticCalibration(window_prompts=2)), KnownForecasts())
    entry = calibrations(tmp_path)[-1]
    assert entry["rollout"] == 4 and entry["phase"] == "policy_optimization"
    assert entry["bins"] == [
        {"predicted": 0.25, "observed": 0.333333, "count": 1},
        {"predicted": 0.75, "observed": 1.0, "count": 1},
    ]
    assert entry["ece"] == pytest.approx((1 / 12 + 1 / 4) / 2, rel=1e-5)
    assert logged(tmp_path, "calibration/ece")[4] == pytest.approx(entry["ece"], rel=1e-5)
    assert logged(tmp_path, "calibration/rank_correlation")[4] == pytest.approx(1)


@pytest.mark.parametrize(
    ("window", "prompts"), [(1, [2, 2, 2, 2]), (3, [2, 4, 4, 4]), (6, [2, 4, 6, 6])]
)
def test_the_window_holds_just_enough_rollouts(
    tmp_path: Path, window: int, prompts: list[int]
) -> None:
    fit(make_trainer(tmp_path, CriticCalibration(window_prompts=window)), KnownForecasts())
    assert [entry["prompts"] for entry in calibrations(tmp_path)] == prompts


# GuardRails --------------------------------------------------------------------------------------


class Rewarded(InventingModule):
    """Rollouts whose rewards lie so far apart."""

    spread = 2.0

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        assert self.rollout is not None
        rewards_B = torch.linspace(0.1, 0.1 + self.spread, len(self.rollout))
        self.rollout = self.rollout.with_(scores_B=rewards_B)


class Numbers(Rewarded):
    """Rollouts whose clip fraction is given."""

    def __init__(self, *clipfracs: float) -> None:
        super().__init__()
        self.clipfracs = clipfracs

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.log("policy/clipfrac", self.clipfracs[self.rollouts_done - 1])
        self.log("critic/r2", 0.5)


def rails(on_violation: Any = "warn", cured_after: int = 2) -> GuardRails:
    return GuardRails(on_violation, Limits(window=1, cured_after=cured_after))


def test_a_warning_is_given_once_until_it_is_cured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path, rails(), limit_train_batches=7)
    fit(trainer, Numbers(0.5, 0.5, 0.0, 0.6, 0.0, 0.0, 0.7))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "guard rail" in line]
    assert [warning.split(":")[0] for warning in warnings] == [
        "guard rail large_clip_fraction, rollout 1",
        "guard rail large_clip_fraction, rollout 7",
    ]
    assert "0.5" in warnings[0] and "--model.actor_optimizer.lr" in warnings[0]
    broken = logged(tmp_path, "guard_rails/violations")
    assert broken == {1: 1, 2: 1, 3: 0, 4: 1, 5: 0, 6: 0, 7: 1}


def test_a_run_stops_with_an_evaluation_and_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="eval/accuracy", save_top_k=-1)
    numbers = (0.1, 0.1, 0.5, 0.1)
    trainer = make_trainer(
        tmp_path, AIMEEvaluation(), rails("stop"), checkpoint, val_check_interval=4
    )
    module = Numbers(*numbers)
    fit(trainer, module)
    assert module.rollouts_done == 3 and trainer.state.finished
    (saved,) = tmp_path.glob("*.ckpt")
    assert torch.load(saved, weights_only=True)["rollouts_done"] == 3
    out = capsys.readouterr().out
    assert "Stopped after rollout 3 by guard rail large_clip_fraction" in out

    resumed = Numbers(*numbers)
    again = make_trainer(tmp_path, rails("stop"), limit_train_batches=4, max_epochs=1)
    fit(again, resumed, saved)
    assert resumed.rollouts_done == 4  # it was cured


def test_stopping_waits_for_the_least_number_of_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Numbers(0.5, 0.5, 0.1, 0.1)
    fit(make_trainer(tmp_path, rails("stop"), min_steps=3, min_epochs=0), module)
    assert module.rollouts_done == 3
    out = capsys.readouterr().out
    assert out.count("guard rail large_clip_fraction, rollout") == 1
    assert "Stopped after rollout 3 by guard rail large_clip_fraction" in out


def test_a_run_without_guard_rails_looks_at_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(make_trainer(tmp_path, rails("off")), Numbers(0.9, 0.9, 0.9, 0.9))
    assert "guard rail" not in capsys.readouterr().out
    with pytest.raises(KeyError):
        logged(tmp_path, "guard_rails/violations")


def test_what_was_warned_of_is_remembered_by_a_resumed_run(tmp_path: Path) -> None:
    seen, resumed = rails(cured_after=9), rails(cured_after=9)
    fit(make_trainer(tmp_path, seen, limit_train_batches=2), Numbers(0.5, 0.1))
    resumed.load_state_dict(seen.state_dict())
    assert resumed.state_dict() == seen.state_dict()
    assert seen.state_dict()["whole_for"] == {"large_clip_fraction": 1}
    assert seen.state_dict()["first"]["policy/clipfrac"] == [0.5]
    assert seen.state_dict()["latest"]["policy/clipfrac"] == [pytest.approx(0.1)]


def test_the_actor_is_stopped_before_it_moves_by_a_bad_critic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unready(Rewarded):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            self.log("critic/r2", -0.25)

    module = Unready()
    fit(make_trainer(tmp_path, PretrainTwice(), rails("stop")), module)
    assert module.rollouts_done == 2
    assert "guard rail unready_critic, rollout 2" in capsys.readouterr().out


def test_a_mismatch_is_seen_without_a_correction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mismatched(Rewarded):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            assert self.rollout is not None
            sampler_BT = self.rollout.sampler_logprobs_BT
            self.rollout = self.rollout.with_(old_logprobs_BT=sampler_BT - 0.5)

    fit(make_trainer(tmp_path, rails()), Mismatched())
    kl = math.exp(-0.5) - 1 + 0.5
    assert f"guard rail sampler_mismatch, rollout 1: the KL of the trainer's policy from the " \
        f"sampler's is {kl:.3g}" in capsys.readouterr().out  # fmt: skip


def test_rewards_that_stay_the_same_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Equal(Rewarded):
        spread = 0.0

    fit(make_trainer(tmp_path, GuardRails(limits=Limits(window=3))), Equal())
    assert "guard rail equal_rewards, rollout 3: all rewards" in capsys.readouterr().out


# Real runs ---------------------------------------------------------------------------------------


def test_an_audit_does_not_disturb_the_run(tiny_actor: Path, tmp_path: Path) -> None:
    audit = ("--critic_calibration.audit_every=2", "--critic_calibration.audit_prefixes=6")
    for name, flags in (("plain", ()), ("audited", audit)):
        vcppo(
            *("fit", f"--model.actor={tiny_actor}", *ROLLOUTS, "--loggers=[csv]", *flags),
            *("--model.actor_optimizer.lr=1e-3", "--model.sampling.num_generations=2"),
            *("--critic_calibration.audit_continuations=3", "--trainer.limit_val_batches=0"),
            *("--trainer.callbacks+=tests.support.tiny_runs.WeightsWatcher",),
            f"--trainer.default_root_dir={tmp_path / name}",
        )
    plain, audited = (tmp_path / name / "weights_0.jsonl" for name in ("plain", "audited"))
    assert plain.read_text() == audited.read_text()
    assert plain.read_text().count("\n") == 3
    entries = calibrations(tmp_path / "audited")
    assert ["audit" in entry for entry in entries] == [False, True, False]
    audit_2 = entries[1].pop("audit")
    assert entries == calibrations(tmp_path / "plain")
    assert audit_2["prefixes"] == 6 and 0 <= audit_2["standard_error"] <= 1
    logged_2 = next(r for r in rows_of(tmp_path / "audited") if "calibration/audit_bias" in r)
    assert logged_2["step"] == 2
    assert logged_2["calibration/audit_bias"] == pytest.approx(audit_2["bias"], rel=1e-4)


def test_learning_curves_and_files_agree(tmp_path: Path) -> None:
    curves = LearningCurves()
    fit(make_trainer(tmp_path, RewardDecayMonitor(), curves), InventingModule())
    history = curves.state_dict()
    for rollout, entry in enumerate(positions(tmp_path)):
        for name in ("value", "advantage"):
            written, drawn = entry["absolute"][name]["all"], history["by_token"][name][rollout]
            assert [mean is None for mean in written] == [mean is None for mean in drawn]
            assert known(written) == pytest.approx(known(drawn), rel=1e-4)
