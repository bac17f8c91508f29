"""Learning curves on a real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.image import imread

from lightning_vcppo.callbacks import AIMEEvaluation, LearningCurves, RewardDecayMonitor
from lightning_vcppo.report import pictures, plotting
from lightning_vcppo.settings import AdvantageSettings, SamplingSettings
from tests.support.inventing import InventingModule, PretrainTwice, fit, make_trainer


def test_the_mean_of_a_stage_is_over_the_rollouts_that_have_it() -> None:
    means_RP = np.array([[1.0, np.nan], [3.0, np.nan], [5.0, 7.0]])
    (early, late) = pictures.stage_means([1, 2, 3], means_RP)[:2]
    assert early == ("1", [1.0, pytest.approx(np.nan, nan_ok=True)])
    assert late[1][0] == 3.0
    assert pictures.stage_means([4], means_RP[2:]) == [("4", [5.0, 7.0])]


def test_stages_cover_a_run_early_to_late() -> None:
    assert plotting.stages([1, 2, 3, 4, 5, 6, 7], at_most=3) == [
        ("1 to 2", slice(0, 2)),
        ("3 to 4", slice(2, 4)),
        ("5 to 7", slice(4, 7)),
    ]
    assert plotting.stages([4, 9]) == [("4", slice(0, 1)), ("9", slice(1, 2))]
    assert plotting.stages([]) == []


# LearningCurves ----------------------------------------------------------------------------------

PLOTS = {
    "reward",
    "accuracy",
    "response_length",
    "explained_variance",
    "r2",
    "value_by_position",
    "advantage_by_position",
    "value_by_token",
    "advantage_by_token",
    "reward_decay",
}


@pytest.mark.thorough
def test_learning_curves_are_drawn_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watcher(Callback):
        seen: ClassVar[list[bool]] = []

        def on_train_batch_start(self, *args: Any) -> None:
            self.seen.append((tmp_path / "plots" / "reward.png").exists())

    monkeypatch.setattr("lightning_vcppo.callbacks.plots.DRAWING_SHARE", 1e9)
    fit(make_trainer(tmp_path, AIMEEvaluation(), LearningCurves(), Watcher()), InventingModule())
    assert Watcher.seen == [False, False, True, True]  # drawn after the evaluation of rollout 2
    pictures = {path.stem: imread(path) for path in (tmp_path / "plots").glob("*.png")}
    assert set(pictures) == PLOTS
    for picture in pictures.values():
        assert picture.shape[:2] == (600, 960)
        assert (picture[..., :3].min(axis=2) < 0.9).mean() > 0.005  # there is ink


def test_learning_curves_that_are_switched_off_are_not_drawn(tmp_path: Path) -> None:
    curves = LearningCurves(enabled=False)
    fit(make_trainer(tmp_path, curves), InventingModule())
    assert not (tmp_path / "plots").exists()
    assert curves.state_dict()["rollouts"] == [1, 2, 3, 4]


def test_learning_curves_go_on_after_a_resume(tmp_path: Path) -> None:
    """What is drawn is kept alike if nothing is."""
    whole = LearningCurves(enabled=False)
    fit(make_trainer(tmp_path / "whole", AIMEEvaluation(), whole), InventingModule())

    checkpoint = ModelCheckpoint(tmp_path, monitor="eval/accuracy", save_top_k=-1)
    curves = LearningCurves(enabled=False)
    first_half = make_trainer(
        tmp_path / "half", AIMEEvaluation(), curves, checkpoint, limit_train_batches=2
    )
    fit(first_half, InventingModule())
    resumed = LearningCurves(enabled=False)
    second_half = make_trainer(
        tmp_path / "half", AIMEEvaluation(), resumed, limit_train_batches=2, max_epochs=2
    )
    fit(second_half, InventingModule(), checkpoint.best_model_path)

    assert resumed.state_dict() == whole.state_dict()
    assert resumed.state_dict()["rollouts"] == [1, 2, 3, 4]
    assert resumed.state_dict()["evaluations"] == [[2.0, 0.25], [4.0, 0.25]]


def test_profiles_start_anew_when_a_resumed_run_has_other_bins(tmp_path: Path) -> None:
    first, second = LearningCurves(enabled=False), LearningCurves()
    trainer = make_trainer(tmp_path, first, limit_train_batches=2)
    fit(trainer, InventingModule())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    module = InventingModule()
    module.sampling = SamplingSettings(max_response_length=500)
    resumed = make_trainer(tmp_path, second, limit_train_batches=2, max_epochs=2)
    fit(resumed, module, tmp_path / "two.ckpt")
    history = second.state_dict()
    assert history["bins"] == [10, 50]
    profiles = history["by_token"]["value"]
    assert [len(profile) for profile in profiles] == [50] * 4
    assert [profile[0] is None for profile in profiles] == [True, True, False, False]
    assert (tmp_path / "plots" / "value_by_token.png").exists()


def test_a_rollout_belongs_to_the_phase_in_which_it_began(tmp_path: Path) -> None:
    curves = LearningCurves(enabled=False)
    fit(make_trainer(tmp_path, PretrainTwice(), curves), InventingModule())
    assert curves.state_dict()["phases"] == ["value_pretraining"] * 2 + ["policy_optimization"] * 2


def test_learning_curves_without_a_critic(tmp_path: Path) -> None:
    curves = LearningCurves(dirpath=str(tmp_path / "pictures"))
    module = InventingModule(AdvantageSettings(estimator="group"))
    fit(make_trainer(tmp_path, curves, RewardDecayMonitor()), module)
    drawn = {path.stem for path in (tmp_path / "pictures").iterdir()}
    assert drawn == PLOTS - {"value_by_position", "value_by_token", "reward_decay"}
    assert curves.state_dict()["by_decile"]["value"] == [[None] * 10] * 4
